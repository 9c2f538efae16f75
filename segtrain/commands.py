"""What `segeval`, `segpredict`, `segdata` and `segreport` do. `cli` calls them and turns their errors into exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtrain import api, assemble, checkpoint, dist, draw
from segtrain.compose import check, compose_config, with_overrides
from segtrain.config import DATASET_RUN_KEYS, RunConf
from segtrain.contracts import Instances
from segtrain.datasets.io import read_image, read_mask
from segtrain.datasets.verify import verify_labels
from segtrain.errors import DataError, DiskError, UserError, did_you_mean
from segtrain.evaluate import evaluate
from segtrain.log import Progress

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
    """`segeval checkpoint=RUN_OR_FILE [overrides]` or `segeval predictions=DIR dataset=NAME [overrides]`."""
    taken, overrides = take(arguments, "checkpoint", "predictions")
    for override in overrides:
        key = override.partition("=")[0]
        if near := did_you_mean(key, ("checkpoint", "predictions")):
            raise UserError(f"{key}: no such argument.{near}")
    if len(taken) != 1 or not all(taken.values()):
        raise UserError("give either checkpoint=RUN_OR_FILE or predictions=DIR dataset=NAME")
    if "predictions" in taken:
        score_predictions(Path(taken["predictions"]), overrides)
        return
    prefer = next((o.partition("=")[2] for o in overrides if o.startswith("eval.weights=")), "best")
    source = checkpoint.find(taken["checkpoint"], "latest" if prefer == "latest" else "best")
    run = with_overrides(api.stored_run(source), overrides)
    processes = run.eval.processes or dist.default_processes(run.train.device)
    if processes > 1 and not dist.launched():
        dist.launch(processes, ["segeval", *arguments], "stopped; nothing was written")
        return
    with dist.join(run.train.device) as world:
        score_checkpoint(run, source, Path(taken["checkpoint"]), world)


def score_checkpoint(run: RunConf, source: checkpoint.Checkpoint, asked: Path, world: dist.World) -> None:
    """Evaluate on this rank's share; rank 0 writes metrics.json, the table and pictures."""
    dist.use_threads(run.train.threads, world.size)
    loaded = api.load(asked, device=world.device.type, run=run, source=source)
    split = run.dataset["split"] or run.dataset["val_split"]
    images = assemble.dataset(run.dataset, split)
    api.check_classes(loaded.labels, images.labels)
    evaluator = assemble.evaluator(run.dataset, list(images.labels.names))
    criterion = assemble.criterion(run.loss).to(world.device) if run.eval.loss else None
    with Progress(len(images), "evaluating", enabled=world.main and run.log.progress) as bar:
        numbers = evaluate(
            loaded.network, loaded.predictor, images, evaluator, world=world, precision=loaded.precision,
            criterion=criterion, workers=run.train.workers or 0, advance=lambda done, total: bar.to(done * world.size),
        )  # fmt: skip
    if not world.main:
        return
    protocol = {
        "checkpoint": str(source.path),
        "step": source.step,
        "moving_average": loaded.averaged,
        "inference": {
            k: v for k, v in vars(loaded.predictor).items() if isinstance(v, (str, int, float, bool, list, type(None)))
        },
        "precision": run.train.precision,
        "device": world.device.type,
    }
    folder = Path(run.eval.output) if run.eval.output else default_output(source, run, split)
    write_results(folder, numbers, evaluator, protocol | describe(run, split, images))
    draw_worst(folder, evaluator, images, loaded, run.eval.worst)


def default_output(source: checkpoint.Checkpoint, run: RunConf, split: str) -> Path:
    """eval/<dataset>-<split> inside the run folder that the checkpoint belongs to."""
    return source.path.parent.parent / "eval" / f"{run.dataset['_target_'].split('.')[-2]}-{split}"


def describe(run: RunConf, split: str, images: Any) -> dict[str, Any]:
    """What was measured, for metrics.json."""
    dataset = {k: v for k, v in run.dataset.items() if k not in DATASET_RUN_KEYS}
    return {"dataset": dataset, "split": split, "images": len(images), "metric": run.dataset["metric"]["_target_"]}


def write_results(folder: Path, numbers: dict[str, Any], evaluator: Any, protocol: dict[str, Any]) -> None:
    """metrics.json, the evaluator's pictures and counts, and its table on screen. Errors: DiskError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({**numbers, "protocol": protocol}, indent=2) + "\n")
        (folder / "table.txt").write_text(evaluator.table() + "\n")
        if (matrix := getattr(evaluator, "matrix", None)) is not None:  # rows: truth, columns: prediction, in pixels
            counts = {"classes": evaluator.class_names, "counts": matrix.tolist()}
            (folder / "confusion.json").write_text(json.dumps(counts) + "\n")
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror}); choose another eval.output") from error
    for name, picture in evaluator.pictures().items():
        draw.save(folder / f"{name}.png", picture)
    print(evaluator.table())
    overall = "  ".join(f"{k} {v:.4f}" for k, v in numbers.items() if "/" not in k)
    print(f"{overall}\n{protocol['images']} images of {protocol['split']}; written to {folder}")


def draw_worst(folder: Path, evaluator: Any, images: Any, loaded: api.Loaded, count: int) -> None:
    """List and draw the images with the lowest score."""
    worst = evaluator.worst(count)
    position = {sample_id: index for index, sample_id in enumerate(images.ids)}
    for rank, (sample_id, score) in enumerate(worst):
        sample = images[position[sample_id]]
        names, colors = list(images.labels.names), list(images.labels.colors)
        picture = draw.panel(
            sample.image, sample.target, loaded(sample.image), names, colors, f"{sample_id}: {score:.3f}"
        )
        draw.save(folder / "worst" / f"{rank:02d}_{Path(sample_id).name}.png", picture)
    if worst:
        print("worst images: " + ", ".join(f"{sample_id} {score:.3f}" for sample_id, score in worst))


def score_predictions(source: Path, overrides: Sequence[str]) -> None:
    """Score label maps that any program wrote: SOURCE/<id>.png with the data set's own class ids, at native size."""
    if not any(o.startswith("dataset=") for o in overrides):
        raise UserError(f"predictions={source}: say what they are predictions of with dataset=NAME")
    if not source.is_dir():
        raise UserError(f"predictions={source}: no such folder")
    cfg, _ = compose_config(overrides)
    run = check(cfg)
    split = run.dataset["split"] or run.dataset["val_split"]
    images = assemble.dataset(run.dataset, split)
    evaluator = assemble.evaluator(run.dataset, list(images.labels.names))
    with Progress(len(images), "scoring", enabled=run.log.progress) as bar:
        for index, sample_id in enumerate(images.ids):
            path = next(
                (p for p in (source / f"{sample_id}.png", source / f"{Path(sample_id).name}.png") if p.is_file()), None
            )
            if path is None:
                raise DataError(
                    f"{source / sample_id}.png: no prediction for this image of {split} ({len(images)} images)"
                )
            prediction = images.labels.encode(read_mask(path), str(path))
            evaluator.update(sample_id, torch.from_numpy(prediction), images[index].target)
            bar.to(index + 1)
    folder = Path(run.eval.output) if run.eval.output else source.parent / f"{source.name}-scores"
    write_results(folder, evaluator.compute(), evaluator, {"predictions": str(source)} | describe(run, split, images))


# ---------------------------------------------------------------------- segpredict


def segpredict(arguments: list[str]) -> None:
    """`segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR [overrides]`."""
    taken, overrides = take(arguments, "checkpoint", "input", "output")
    for name in ("checkpoint", "input", "output"):
        if name not in taken:
            raise UserError(f"{name}=... is missing; segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR")
    source = checkpoint.find(taken["checkpoint"], "best")
    run = with_overrides(api.stored_run(source), overrides)
    paths = input_images(Path(taken["input"]))
    loaded = api.load(taken["checkpoint"], device=run.train.device, run=run, source=source)
    output = Path(taken["output"])
    with Progress(len(paths), "predicting", enabled=run.log.progress) as bar:
        for done, (path, name) in enumerate(paths.items(), 1):
            image = read_image(path)
            write_prediction(output / name, image, loaded(image), loaded)
            bar.to(done)
    print(f"{len(paths)} images; label maps and overlays in {output}")


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


def write_prediction(stem: Path, image: np.ndarray, prediction: Any, loaded: api.Loaded) -> None:
    """<stem>.png, a palette PNG of the data set's own ids, and <stem>_overlay.png with a legend."""
    names, colors = list(loaded.labels.names), list(loaded.labels.colors)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{stem.parent}: cannot be made ({error.strerror}); choose another output") from error
    picture = draw.overlay(image, prediction, names, colors)
    if not isinstance(prediction, Instances):
        mask = prediction.cpu().numpy()
        draw.save_labels(stem.parent / f"{stem.name}.png", loaded.labels.decode(mask), raw_colors(loaded))
        key = draw.legend(names, colors, set(np.unique(mask).tolist()), width=picture.shape[1])
        picture = np.concatenate([picture, key])
    draw.save(stem.parent / f"{stem.name}_overlay.png", picture)


def raw_colors(loaded: api.Loaded) -> list[tuple[int, int, int]]:
    """The palette by the ids as written: index = the data set's own id."""
    palette = [(0, 0, 0)] * (1 + max(loaded.labels.raw))
    for raw, train in loaded.labels.raw.items():
        if train < len(loaded.labels.colors):
            palette[raw] = loaded.labels.colors[train]
    return palette


# ---------------------------------------------------------------------- segdata, segreport


def segdata(arguments: list[str]) -> None:
    """`segdata verify|browse dataset=NAME [overrides]`."""
    verbs = {"verify": verify_data, "browse": browse_data}
    verb, *rest = arguments
    if verb not in verbs:
        raise UserError(f"segdata {verb}: no such action; there are {', '.join(verbs)}.{did_you_mean(verb, verbs)}")
    taken, overrides = take(rest, "output")
    cfg, _ = compose_config(overrides)
    run = check(cfg)
    verbs[verb](run, Path(taken.get("output", "browse.png")))


def splits(run: RunConf) -> list[str]:
    """The split asked for, or those that training uses."""
    chosen = run.dataset["split"]
    return [chosen] if chosen else list(dict.fromkeys([run.dataset["train_split"], run.dataset["val_split"]]))


def verify_data(run: RunConf, output: Path) -> None:
    """Open every image and mask, compare sizes, check every label. Errors: DataError after the report."""
    problems: list[str] = []
    for split in splits(run):
        images = assemble.dataset(run.dataset, split)
        with Progress(len(images), f"verifying {split}", enabled=run.log.progress) as bar:
            report = verify_labels(images, progress=lambda done, total, bar=bar: bar.to(done))
        problems += report.problems
        print(f"{split}: {report.checked} images, {len(report.problems)} problems")
        total = max(1, int(report.pixels[: len(images.labels.names)].sum()))
        for name, count in zip(images.labels.names, report.pixels, strict=False):
            print(f"  {name:<24} {100 * count / total:6.2f} % of labelled pixels")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise DataError(f"{len(problems)} problems in {', '.join(splits(run))}, listed above")


def browse_data(run: RunConf, output: Path) -> None:
    """A grid of samples, each before and after augmentation, with its labels."""
    images = assemble.dataset(run.dataset, splits(run)[0])
    augment = assemble.augment(run.augment)
    names, colors = list(images.labels.names), list(images.labels.colors)
    tiles: list[np.ndarray] = []
    present: set[int] = set()
    for index in range(min(6, len(images))):
        sample = images[index]
        for shown in (sample, augment(sample, index)):
            tiles.append(draw.overlay(shown.image, shown.target, names, colors))
            present |= set(np.unique(shown.target).tolist()) if isinstance(shown.target, np.ndarray) else set()
    picture = draw.grid(tiles, columns=4)
    key = draw.legend(names, colors, present, width=picture.shape[1])
    draw.save(output, np.concatenate([picture, key]))
    print(f"{output}: {len(tiles) // 2} samples of {splits(run)[0]}, each as stored and as augmented for training")


def segreport(arguments: list[str]) -> None:
    """`segreport RUN_OR_SWEEP ... [output=DIR]`."""
    from segtrain.report import report

    out = [a.partition("=")[2] for a in arguments if a.startswith("output=")]
    paths = [Path(a) for a in arguments if not a.startswith("output=")]
    print(report(paths, Path(out[0]) if out else None))
