"""What `segeval`, `segpredict` and `segreport` do. `cli` calls them and turns their errors into exit codes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segtrain import api
from segtrain.benchmarks import predictions
from segtrain.benchmarks.submission import submission
from segtrain.checkpoints import manifest, reading
from segtrain.commands.arguments import take
from segtrain.config import parts as parts_module
from segtrain.config.compose import check, compose_config, with_overrides
from segtrain.config.schema import RunConf, dataset_arguments, measured_split
from segtrain.contracts import Predictor
from segtrain.engine.evaluate import evaluate
from segtrain.engine.parts import check_judged
from segtrain.errors import DiskError, UserError, did_you_mean
from segtrain.logs.progress import Progress
from segtrain.runtime import distributed, launch
from segtrain.runtime.distributed import World
from segtrain.visualization import panels, picture_files


def segeval(arguments: list[str]) -> None:
    """`segeval checkpoint=RUN_OR_FILE [overrides]` or `segeval predictions=FILE_OR_DIR dataset=NAME [overrides]`."""
    taken, overrides = take(arguments, "checkpoint", "predictions")
    for override in overrides:
        key = override.partition("=")[0]
        if "." not in key and (near := did_you_mean(key, ("checkpoint", "predictions"))):
            raise UserError(f"{key}: no such argument.{near}")
    if len(taken) != 1 or not all(taken.values()):
        raise UserError(
            "give either checkpoint=RUN_OR_FILE or predictions=FILE_OR_DIR dataset=NAME"
        )
    if "predictions" in taken:
        score_predictions(Path(taken["predictions"]), overrides)
        return
    source = chosen(taken["checkpoint"], overrides)
    stored = api.stored_run(source)
    run = with_overrides(stored, overrides)
    processes = run.eval.processes or launch.default_processes(run.train.device)
    if processes > 1 and not distributed.launched():
        launch.launch(processes, ["segeval", *arguments], "stopped; nothing was written")
        return
    with distributed.join(run.train.device) as world:
        score_checkpoint(run, source, Path(taken["checkpoint"]), world, changes(stored, run))


def chosen(path: str, overrides: Sequence[str]) -> manifest.Checkpoint:
    """The checkpoint that `eval.weights` of the command line asks for; a wrong value is named when the run is checked."""
    prefer = next((o.partition("=")[2] for o in overrides if o.startswith("eval.weights=")), "best")
    return reading.find(path, "latest" if prefer == "latest" else "best")


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
    run: RunConf, source: manifest.Checkpoint, asked: Path, world: World, changed: dict[str, Any]
) -> None:
    """Evaluate on this rank's share; rank 0 writes metrics.json, the table, pictures and the submission asked for.

    `changed` of `changes`: what the checkpoint's run did otherwise.
    """
    distributed.use_threads(run.train.threads, world.size)
    loaded = api.load(asked, device=world.device.type, run=run, source=source)
    split = measured_split(run.dataset)
    images = parts_module.dataset(run.dataset, split)
    api.check_classes(loaded.labels, images.labels)
    labelled = getattr(images, "labelled", True)
    if not labelled and not run.eval.submission:
        raise UserError(
            f"dataset.split={split}: has no labels to compare with; eval.submission=DIR writes what the server takes"
        )
    evaluator = parts_module.evaluator(run.dataset, list(images.labels.names)) if labelled else None
    check_judged(loaded.predictor, evaluator)
    criterion = (
        parts_module.criterion(run.loss).to(world.device) if run.eval.loss and labelled else None
    )
    place = Path(run.eval.submission) if run.eval.submission else None
    upload = submission(run.dataset.get("submission"), place, images, split) if place else None
    world.barrier()  # every rank has seen an empty folder before one of them writes
    with Progress(len(images), "evaluating", enabled=world.main and run.log.progress) as bar:
        numbers = evaluate(
            loaded.network,
            loaded.predictor,
            images,
            evaluator,
            world=world,
            precision=loaded.precision,
            criterion=criterion,
            workers=run.train.workers or 0,
            advance=lambda done, total: bar.to(done * world.size),
            each=upload.add if upload else lambda sample_id, prediction: None,
        )
    packed = upload.finish(world) if upload else ""
    if not world.main:
        return
    if evaluator is not None:
        folder = (
            Path(run.eval.output)
            if run.eval.output
            else default_output(source, run, split, loaded.predictor, changed)
        )
        protocol = (
            made_by(loaded, source, world)
            | {"changed": changed}
            | describe(run, split, images, evaluator)
        )
        write_results(folder, numbers, evaluator, protocol)
        draw_worst(folder, evaluator, images, loaded, run.eval.worst)
    if packed:
        print(packed)


def made_by(loaded: api.Loaded, source: manifest.Checkpoint, world: World) -> dict[str, Any]:
    """How the predictions came about, for metrics.json."""
    return {
        "checkpoint": str(source.path),
        "step": source.step,
        "moving_average": loaded.averaged,
        "inference": loaded.predictor.settings(),
        "precision": loaded.run.train.precision,
        "device": world.device.type,
    }


# Settings that the predictor's own tag tells of, so that `default_output` need not repeat them.
NAMED = {
    f"inference.{key}"
    for key in ("mode", "window", "stride", "scales", "flip", "base", "average", "crf")
}


def default_output(
    source: manifest.Checkpoint,
    run: RunConf,
    split: str,
    predictor: Predictor,
    changed: dict[str, Any],
) -> Path:
    """eval/<dataset>-<split> inside the run folder that the checkpoint belongs to, and what is not the plain protocol."""
    parts = [run.dataset["_target_"].split(".")[-1].lower(), split]
    if predictor.tag:
        parts.append(predictor.tag)
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


def write_results(
    folder: Path, numbers: dict[str, Any], evaluator: Any, protocol: dict[str, Any]
) -> None:
    """metrics.json, the evaluator's pictures and counts, and its table on screen. Errors: DiskError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(
            json.dumps({**numbers, "protocol": protocol}, indent=2) + "\n"
        )
        (folder / "table.txt").write_text(evaluator.table() + "\n")
        for name, counts in evaluator.counts().items():
            (folder / f"{name}.json").write_text(json.dumps(counts) + "\n")
    except OSError as error:
        raise DiskError(
            f"{folder}: cannot be written ({error.strerror}); choose another eval.output"
        ) from error
    for name, picture in evaluator.pictures().items():
        picture_files.save(folder / f"{name}.png", picture)
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
        picture = panels.panel(
            sample.image,
            sample.target,
            loaded(sample.image, sample_id),
            names,
            colors,
            f"{sample_id}: {score:.3f}",
        )
        picture_files.save(folder / "worst" / f"{rank:02d}_{Path(sample_id).name}.png", picture)
    if worst:
        print(
            "worst images: " + ", ".join(f"{sample_id} {score:.3f}" for sample_id, score in worst)
        )


def score_predictions(source: Path, overrides: Sequence[str]) -> None:
    """Score what any program wrote: a folder of label maps SOURCE/<id>.png, or a COCO results file."""
    if not any(o.startswith("dataset=") for o in overrides):
        raise UserError(f"predictions={source}: say what they are predictions of with dataset=NAME")
    if not source.exists():
        raise UserError(f"predictions={source}: no such file or folder")
    cfg, _ = compose_config(overrides)
    run = check(cfg)
    split = measured_split(run.dataset)
    images = parts_module.dataset(run.dataset, split)
    if not getattr(images, "labelled", True):
        raise UserError(f"dataset.split={split}: has no labels to compare with")
    if source.is_dir() == hasattr(images, "segments"):
        form = (
            "FILE.json, a COCO results file"
            if source.is_dir()
            else "FOLDER of label maps <image id>.png"
        )
        raise UserError(
            f"predictions={source}: the truth of {run.dataset['_target_']} takes predictions={form}"
        )
    evaluator = parts_module.evaluator(run.dataset, list(images.labels.names))
    if source.is_dir():
        predicted = predictions.label_maps(
            source, images, run.eval.prediction_ids, split, evaluator.voids > 0
        )
    else:
        predicted = predictions.detections(source, images)
    with Progress(len(images), "scoring", enabled=run.log.progress) as bar:
        for index, (sample_id, prediction) in enumerate(predicted):
            evaluator.update(sample_id, prediction, images.truth(index))
            bar.to(index + 1)
    folder = Path(run.eval.output) if run.eval.output else source.parent / f"{source.stem}-scores"
    protocol = {"predictions": str(source)} | describe(run, split, images, evaluator)
    write_results(folder, evaluator.compute(), evaluator, protocol)
