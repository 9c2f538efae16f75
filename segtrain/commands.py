"""What `segeval`, `segpredict` and `segreport` do. `cli` calls them and turns their errors into exit codes."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segtrain import api, assemble, checkpoint, checks, dist, draw, predictions
from segtrain.compose import check, compose_config, with_overrides
from segtrain.config import RunConf, dataset_arguments, measured_split
from segtrain.contracts import Instances, Segments
from segtrain.datasets.io import read_image
from segtrain.datasets.labels import LabelMap
from segtrain.dist import World
from segtrain.errors import DiskError, UserError, did_you_mean
from segtrain.evaluate import evaluate
from segtrain.log import Progress
from segtrain.submission import categories, raw_colors, results, submission, write_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def take(arguments: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """({name: value} of `name=value` arguments, the rest as overrides). Errors: UserError on a flag."""
    taken, rest = {}, []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in names and equals:
            taken[key] = value
        elif argument.startswith("-") or not equals:
            raise UserError(f"{argument}: not understood; arguments are written key=value.{did_you_mean(key, names)}")
        else:
            rest.append(argument)
    return taken, rest


# ---------------------------------------------------------------------- segeval


def segeval(arguments: list[str]) -> None:
    """`segeval checkpoint=RUN_OR_FILE [overrides]` or `segeval predictions=FILE_OR_DIR dataset=NAME [overrides]`."""
    taken, overrides = take(arguments, "checkpoint", "predictions")
    for override in overrides:
        key = override.partition("=")[0]
        if "." not in key and (near := did_you_mean(key, ("checkpoint", "predictions"))):
            raise UserError(f"{key}: no such argument.{near}")
    if len(taken) != 1 or not all(taken.values()):
        raise UserError("give either checkpoint=RUN_OR_FILE or predictions=FILE_OR_DIR dataset=NAME")
    if "predictions" in taken:
        score_predictions(Path(taken["predictions"]), overrides)
        return
    source = chosen(taken["checkpoint"], overrides)
    stored = api.stored_run(source)
    run = with_overrides(stored, overrides)
    processes = run.eval.processes or dist.default_processes(run.train.device)
    if processes > 1 and not dist.launched():
        dist.launch(processes, ["segeval", *arguments], "stopped; nothing was written")
        return
    with dist.join(run.train.device) as world:
        score_checkpoint(run, source, Path(taken["checkpoint"]), world, changes(stored, run))


def chosen(path: str, overrides: Sequence[str]) -> checkpoint.Checkpoint:
    """The checkpoint that `eval.weights` of the command line asks for; a wrong value is named when the run is checked."""
    prefer = next((o.partition("=")[2] for o in overrides if o.startswith("eval.weights=")), "best")
    return checkpoint.find(path, "latest" if prefer == "latest" else "best")


def changes(stored: RunConf, run: RunConf) -> dict[str, Any]:
    """Settings of model and inference that are not those that the run was trained with, by `part.key`.

    Of another class of inference its name alone.
    """
    found = {}
    for part in ("model", "inference"):
        before, now = getattr(stored, part), getattr(run, part)
        if before["_target_"] != now["_target_"]:
            found[part] = now["_target_"].rpartition(".")[2].lower()
            continue
        found |= {f"{part}.{key}": value for key, value in now.items() if value != before.get(key)}
    return found


def score_checkpoint(
    run: RunConf, source: checkpoint.Checkpoint, asked: Path, world: World, changed: dict[str, Any]
) -> None:
    """Evaluate on this rank's share; rank 0 writes metrics.json, the table, pictures and the submission asked for.

    `changed` of `changes`: what the checkpoint's run did otherwise.
    """
    dist.use_threads(run.train.threads, world.size)
    loaded = api.load(asked, device=world.device.type, run=run, source=source)
    split = measured_split(run.dataset)
    images = assemble.dataset(run.dataset, split)
    api.check_classes(loaded.labels, images.labels)
    labelled = getattr(images, "labelled", True)
    if not labelled and not run.eval.submission:
        raise UserError(
            f"dataset.split={split}: has no labels to compare with; eval.submission=DIR writes what the server takes"
        )
    evaluator = assemble.evaluator(run.dataset, list(images.labels.names)) if labelled else None
    checks.judged(loaded.predictor, evaluator)
    criterion = assemble.criterion(run.loss).to(world.device) if run.eval.loss and labelled else None
    place = Path(run.eval.submission) if run.eval.submission else None
    upload = submission(run.dataset.get("submission"), place, images, split) if place else None
    world.barrier()  # every rank has seen an empty folder before one of them writes
    with Progress(len(images), "evaluating", enabled=world.main and run.log.progress) as bar:
        numbers = evaluate(
            loaded.network, loaded.predictor, images, evaluator, world=world, precision=loaded.precision,
            criterion=criterion, workers=run.train.workers or 0, advance=lambda done, total: bar.to(done * world.size),
            each=upload.add if upload else lambda sample_id, prediction: None,
        )  # fmt: skip
    packed = upload.finish(world) if upload else ""
    if not world.main:
        return
    if evaluator is not None:
        folder = (
            Path(run.eval.output) if run.eval.output else default_output(source, run, split, loaded.predictor, changed)
        )
        protocol = made_by(loaded, source, world) | {"changed": changed} | describe(run, split, images, evaluator)
        write_results(folder, numbers, evaluator, protocol)
        draw_worst(folder, evaluator, images, loaded, run.eval.worst)
    if packed:
        print(packed)


def made_by(loaded: api.Loaded, source: checkpoint.Checkpoint, world: World) -> dict[str, Any]:
    """How the predictions came about, for metrics.json."""
    plain = (str, int, float, bool, list, dict, type(None))
    crf = getattr(loaded.predictor, "crf", None)
    known = vars(loaded.predictor) | ({} if crf is None else {"crf": vars(crf)})
    return {
        "checkpoint": str(source.path),
        "step": source.step,
        "moving_average": loaded.averaged,
        "inference": {k: value for k, value in known.items() if isinstance(value, plain) and not k.startswith("_")},
        "precision": loaded.run.train.precision,
        "device": world.device.type,
    }


# Settings that `default_output` reads from the predictor, in its own words.
NAMED = {f"inference.{key}" for key in ("mode", "window", "stride", "scales", "flip", "base", "average", "crf")}


def default_output(
    source: checkpoint.Checkpoint, run: RunConf, split: str, predictor: Any, changed: dict[str, Any]
) -> Path:
    """eval/<dataset>-<split> inside the run folder that the checkpoint belongs to, and what is not the plain protocol."""
    parts = [run.dataset["_target_"].split(".")[-1].lower(), split]
    if (mode := getattr(predictor, "mode", "whole")) != "whole":
        parts.append(mode)
    if (scales := getattr(predictor, "scales", [1.0])) != [1.0]:
        parts.append("scales_" + "_".join(f"{scale:g}" for scale in scales))
    if getattr(predictor, "flip", False):
        parts.append("flip")
    if (base := getattr(predictor, "base", None)) is not None:
        parts.append(f"base_{base}")
    if (average := getattr(predictor, "average", "probabilities")) != "probabilities":
        parts.append(average)
    if getattr(predictor, "crf", None) is not None:
        parts.append("crf")
    for key, value in changed.items():
        if key not in NAMED:
            text = re.sub(r"[^\w.]+", "_", str(value)).strip("_")[:40]
            parts.append(text if key == "inference" else f"{key.rpartition('.')[2]}_{text}")
    return source.path.parent.parent / "eval" / "-".join(parts)


def describe(run: RunConf, split: str, images: Any, evaluator: Any) -> dict[str, Any]:
    """What was measured and by whose rules, for metrics.json."""
    return {
        "dataset": dataset_arguments(run.dataset),
        "split": split,
        "images": len(images),
        "metric": run.dataset["metric"]["_target_"],
        "rules": evaluator.protocol,
    }


def write_results(folder: Path, numbers: dict[str, Any], evaluator: Any, protocol: dict[str, Any]) -> None:
    """metrics.json, the evaluator's pictures and counts, and its table on screen. Errors: DiskError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({**numbers, "protocol": protocol}, indent=2) + "\n")
        (folder / "table.txt").write_text(evaluator.table() + "\n")
        if (matrix := getattr(evaluator, "matrix", None)) is not None:  # rows: truth, columns: prediction, in pixels
            counts = {"classes": evaluator.class_names, "counts": matrix[:, : len(matrix)].tolist()}
            (folder / "confusion.json").write_text(json.dumps(counts) + "\n")
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror}); choose another eval.output") from error
    for name, picture in evaluator.pictures().items():
        draw.save(folder / f"{name}.png", picture)
    print(evaluator.table())
    if overall := "  ".join(f"{k} {v:.4f}" for k, v in numbers.items() if "/" not in k):
        print(overall)
    print(f"{protocol['images']} images of {protocol['split']}; written to {folder}")


def draw_worst(folder: Path, evaluator: Any, images: Any, loaded: api.Loaded, count: int) -> None:
    """List and draw the images with the lowest score."""
    worst = evaluator.worst(count)
    shutil.rmtree(folder / "worst", ignore_errors=True)  # of an earlier measurement
    position = {sample_id: index for index, sample_id in enumerate(images.ids)}
    for rank, (sample_id, score) in enumerate(worst):
        sample = images[position[sample_id]]
        names, colors = list(images.labels.names), list(images.labels.colors)
        picture = draw.panel(
            sample.image, sample.target, loaded(sample.image, sample_id), names, colors, f"{sample_id}: {score:.3f}"
        )
        draw.save(folder / "worst" / f"{rank:02d}_{Path(sample_id).name}.png", picture)
    if worst:
        print("worst images: " + ", ".join(f"{sample_id} {score:.3f}" for sample_id, score in worst))


def score_predictions(source: Path, overrides: Sequence[str]) -> None:
    """Score what any program wrote: a folder of label maps SOURCE/<id>.png, or a COCO results file."""
    if not any(o.startswith("dataset=") for o in overrides):
        raise UserError(f"predictions={source}: say what they are predictions of with dataset=NAME")
    if not source.exists():
        raise UserError(f"predictions={source}: no such file or folder")
    cfg, _ = compose_config(overrides)
    run = check(cfg)
    split = measured_split(run.dataset)
    images = assemble.dataset(run.dataset, split)
    if not getattr(images, "labelled", True):
        raise UserError(f"dataset.split={split}: has no labels to compare with")
    if source.is_dir() == hasattr(images, "segments"):
        form = "FILE.json, a COCO results file" if source.is_dir() else "FOLDER of label maps <image id>.png"
        raise UserError(f"predictions={source}: the truth of {run.dataset['_target_']} takes predictions={form}")
    evaluator = assemble.evaluator(run.dataset, list(images.labels.names))
    if source.is_dir():
        voids = getattr(evaluator, "voids", 0) > 0
        predicted = predictions.label_maps(source, images, run.eval.prediction_ids, split, voids)
    else:
        predicted = predictions.detections(source, images)
    with Progress(len(images), "scoring", enabled=run.log.progress) as bar:
        for index, (sample_id, prediction) in enumerate(predicted):
            evaluator.update(sample_id, prediction, images.truth(index))
            bar.to(index + 1)
    folder = Path(run.eval.output) if run.eval.output else source.parent / f"{source.stem}-scores"
    protocol = {"predictions": str(source)} | describe(run, split, images, evaluator)
    write_results(folder, evaluator.compute(), evaluator, protocol)


# ---------------------------------------------------------------------- segpredict


def segpredict(arguments: list[str]) -> None:
    """`segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR [overrides]`."""
    taken, overrides = take(arguments, "checkpoint", "input", "output")
    for name in ("checkpoint", "input", "output"):
        if name not in taken:
            raise UserError(f"{name}=... is missing; segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR")
    source = chosen(taken["checkpoint"], overrides)
    run = with_overrides(api.stored_run(source), overrides)
    paths = input_images(Path(taken["input"]))
    output, place = Path(taken["output"]), run.eval.submission
    check_output(output, Path(taken["input"]), list(paths.values()))
    dist.use_threads(run.train.threads, 1)
    loaded = api.load(taken["checkpoint"], device=run.train.device, run=run, source=source)
    inputs = Inputs(loaded.labels, list(paths), [name.as_posix() for name in paths.values()])
    split = run.dataset["split"] or "test"
    upload = submission(run.dataset.get("submission"), Path(place), inputs, split) if place else None
    with Progress(len(paths), "predicting", enabled=run.log.progress) as bar:
        for done, (path, sample_id) in enumerate(zip(paths, inputs.ids, strict=True), 1):
            image = read_image(path)
            prediction = loaded(image, sample_id)
            if upload:
                upload.add(sample_id, prediction)
            write_prediction(output / sample_id, image, prediction, loaded)
            bar.to(done)
    print(f"{len(paths)} images; predictions and overlays in {output}")
    if upload:
        print(upload.finish(World()))


@dataclass(frozen=True)
class Inputs:
    """Images without annotations, as much of a data set as a submission needs."""

    labels: LabelMap
    paths: list[Path]
    ids: list[str]

    def files(self, index: int) -> tuple[Path, None]:
        """(image path, no mask)."""
        return self.paths[index], None


def input_images(source: Path) -> dict[Path, Path]:
    """{image: relative name without suffix} of a file or of a folder and everything below it. Errors: UserError."""
    if source.is_file():
        return {source: Path(source.stem)}
    if not source.is_dir():
        raise UserError(f"input={source}: no such file or folder")
    found = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"input={source}: no images ({', '.join(IMAGE_SUFFIXES)}) in it")
    names = {path: path.relative_to(source).with_suffix("") for path in found}
    if len(set(names.values())) < len(names):
        names = {path: path.relative_to(source) for path in found}  # a.jpg beside a.png
    return names


def check_output(output: Path, source: Path, names: Sequence[Path]) -> None:
    """Nothing that is written may replace an input, be taken for one later, or be written twice. Errors: UserError."""
    written = Counter(name.with_name(name.name + end) for name in names for end in (".png", "_overlay.png"))
    if source.is_dir():
        among = output.resolve().is_relative_to(source.resolve())
    else:
        among = source.resolve() in {(output / path).resolve() for path in written}
    if among:
        raise UserError(
            f"output={output}: pictures would lie among the images; choose a folder outside of input={source}"
        )
    if twice := [path for path, times in written.items() if times > 1]:
        raise UserError(f"input={source}: {output / twice[0]} would be written for two of its images; rename one")


def write_prediction(stem: Path, image: np.ndarray, prediction: Any, loaded: api.Loaded) -> None:
    """<stem>.png, a palette PNG of the data set's own ids, or <stem>.json, a COCO results file; and <stem>_overlay.png.

    The file has every object, the picture the best ones (`draw.overlay`).
    """
    names, colors = list(loaded.labels.names), list(loaded.labels.colors)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{stem.parent}: cannot be made ({error.strerror}); choose another output") from error
    picture = draw.overlay(image, prediction, names, colors)
    if isinstance(prediction, (Instances, Segments)):
        found = results(stem.name, prediction, categories(loaded.labels))
        write_text(stem.parent / f"{stem.name}.json", json.dumps(found))
    else:
        mask = prediction.cpu().numpy()
        draw.save_labels(stem.parent / f"{stem.name}.png", loaded.labels.decode(mask), raw_colors(loaded.labels))
        key = draw.legend(names, colors, set(np.unique(mask).tolist()), width=picture.shape[1])
        picture = np.concatenate([picture, key])
    draw.save(stem.parent / f"{stem.name}_overlay.png", picture)


# ---------------------------------------------------------------------- segreport


def segreport(arguments: list[str]) -> None:
    """`segreport RUN_OR_SWEEP ... [output=DIR]`."""
    from segtrain.report import report

    out = [a.partition("=")[2] for a in arguments if a.startswith("output=")]
    paths = [Path(a) for a in arguments if not a.startswith("output=")]
    print(report(paths, Path(out[0]) if out else None))
