"""`segeval`: measure a checkpoint, or what another program predicted."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.commands.arguments import take
from segtrain.commands.flags import take_config_dirs
from segtrain.commands.results import (
    check_output,
    draw_worst,
    said,
    write_cost,
    write_results,
)
from segtrain.commands.speed import speed_of, write_speed
from segtrain.config import parts, places, trust
from segtrain.config.compose import check, compose_config, with_overrides
from segtrain.config.schema import RunConf, dataset_arguments, dataset_keys
from segtrain.errors import Stopped, UserError, did_you_mean, printable, words_of
from segtrain.logs.progress import Progress
from segtrain.runtime.run_folder import check_entries

if TYPE_CHECKING:
    from segtrain import api
    from segtrain.checkpoints import manifest
    from segtrain.contracts import Evaluator, Predictor
    from segtrain.runtime.distributed import World

HELP = """segeval measures a checkpoint, or what another program predicted.

  segeval checkpoint=RUN_OR_FILE              on the validation split it was trained with
  segeval checkpoint=RUN dataset.split=test eval.scales=[0.5,1,1.5] eval.flip=true
  segeval checkpoint=RUN inference=slide      windows instead of whole images
  segeval checkpoint=RUN eval.speed=true eval.cost=true
                                              also latency, images/s and memory, and the FLOPs
  segeval checkpoint=RUN eval.submission=DIR  also what the benchmark's server takes, checked
  segeval predictions=DIR dataset=camvid dataset.root=DIR
                                              DIR/<id>.png holds the data set's own class ids
                                              (eval.prediction_ids=train: train ids)
  segeval predictions=RESULTS.json dataset=coco_json dataset.annotations=FILE.json

Leaves metrics.json, table.txt, images.csv (what each image scores by itself), for label maps
confusion.json (rows: truth, pixels) and confusion.png, for objects matches.json (what each
detection hit), and the worst images in eval/ of the run folder (eval.output=DIR)."""

SOURCES = ("checkpoint", "predictions")  # what can be measured; exactly one is given


def run(arguments: list[str]) -> None:
    """Measure `checkpoint=RUN_OR_FILE`, or `predictions=FILE_OR_DIR` of `dataset=NAME`."""
    config_dirs, words = take_config_dirs("segeval", arguments)
    taken, overrides = take(words, *SOURCES)
    for override in overrides:
        # `chekpoint=RUN` would otherwise be taken for a setting; settings of a group have a dot.
        key = override.partition("=")[0]
        if "." not in key and (near := did_you_mean(key, SOURCES)):
            raise UserError(f"{key}: no such argument.{near}")
    if len(taken) != 1:
        raise UserError(
            "give either checkpoint=RUN_OR_FILE or predictions=FILE_OR_DIR dataset=NAME"
        )
    if "predictions" in taken:
        score_predictions(Path(taken["predictions"]), overrides, config_dirs)
        return

    # Only now: they import torch.
    from segtrain import api
    from segtrain.runtime import distributed, launch

    source = chosen(taken["checkpoint"], overrides)
    stored = api.stored_run(source)
    conf = with_overrides(stored, overrides, config_dirs)
    processes = conf.eval.processes or launch.default_processes(conf.train.device)
    if processes > 1 and not distributed.launched():
        command = ["segeval", *arguments, *trust.flags()]
        launch.launch(processes, command)
        return
    with distributed.join(conf.train.device) as world:
        score_checkpoint(conf, source, Path(taken["checkpoint"]), world, changes(stored, conf))


def chosen(path: str, overrides: Sequence[str]) -> manifest.Checkpoint:
    """Find the checkpoint that `eval.weights` of the command line asks for.

    A value that is neither best nor latest is named when the run is checked.
    """
    from segtrain.checkpoints import reading

    prefix = "eval.weights="
    prefer = next((o.removeprefix(prefix) for o in overrides if o.startswith(prefix)), "best")
    return reading.find(path, "latest" if prefer == "latest" else "best")


def changes(stored: RunConf, conf: RunConf) -> dict[str, Any]:
    """Return the settings of model, inference and metric that differ from the training's.

    They are by `part.key`. Of another class only its name is returned, by `part`.
    """
    changed: dict[str, Any] = {}
    for part, before, now in (
        ("model", stored.model, conf.model),
        ("inference", stored.inference, conf.inference),
        ("metric", stored.metric, conf.metric),
    ):
        if before["_target_"] != now["_target_"]:
            name = now["_target_"].rpartition(".")[2].lower()
            changed[part] = name.removesuffix("evaluator")
            continue
        for key, value in now.items():
            if value != before.get(key):
                changed[f"{part}.{key}"] = places.as_stored(value)
    return changed


def score_checkpoint(
    conf: RunConf, source: manifest.Checkpoint, asked: Path, world: World, changed: dict[str, Any]
) -> None:
    """Evaluate this rank's share; rank 0 writes the numbers, pictures and submission asked for.

    `asked` is the path as it was typed, `changed` what `changes` returned.
    """
    from segtrain import api
    from segtrain.benchmarks.submission import submission, whole
    from segtrain.engine.evaluate import evaluate
    from segtrain.engine.parts import check_judged
    from segtrain.runtime import distributed

    distributed.use_threads(conf.train.threads, world.size)
    loaded = api.load(asked, device=str(world.device), run=conf, source=source)
    split = dataset_keys(conf.dataset).measured_split
    images = api.by_classes_of(loaded.labels, parts.dataset(conf.dataset, split))
    labelled = images.labelled
    if not labelled and not conf.eval.submission:
        raise UserError(
            f"dataset.split={split}: has no labels to compare with; "
            "eval.submission=DIR writes what the server takes"
        )
    evaluator = parts.evaluator(conf.metric, list(images.labels.names)) if labelled else None
    check_judged(loaded.predictor, evaluator)
    criterion = None
    if conf.eval.loss and labelled:
        criterion = parts.loss(conf.loss, world.device, images.labels.names)
    upload = None
    if conf.eval.submission:
        upload = submission(
            dataset_keys(conf.dataset).submission, Path(conf.eval.submission), images, split
        )
    folder = Path(
        conf.eval.output or default_output(source, conf, split, loaded.predictor, changed)
    )
    if labelled:
        check_entries(source.path.parent.parent, ("eval",))
        check_output(folder)
    world.barrier()  # every rank has seen an empty folder before one of them writes
    bar = Progress(len(images), "evaluating", enabled=world.main and conf.log.progress)
    with whole(conf.eval.submission), bar:
        numbers = evaluate(
            loaded.network,
            loaded.predictor,
            images,
            evaluator,
            world=world,
            precision=loaded.precision,
            loss=criterion,
            workers=conf.train.workers or 0,
            advance=lambda done, total: bar.to(done * world.size),
            each=upload.add if upload else lambda sample_id, prediction: None,
        )
        packed = upload.finish(world) if upload else ""
    if not world.main:
        return
    if evaluator is not None:
        protocol = {
            **made_by(loaded, source, world),
            "changed": changed,
            **describe(conf, split, images, evaluator),
        }
        write_results(folder, numbers, evaluator, places.as_stored(protocol))
        try:
            draw_worst(folder, evaluator, images, loaded, conf.eval.worst)
        except KeyboardInterrupt as stop:
            raise Stopped(
                f"{stop}: stopped; the scores are in {folder}, but not all of the worst images"
            ) from None
        except Exception as error:  # the numbers are written, and pictures only describe them
            warning = f"segeval: the worst images were not all drawn ({words_of(error)})"
            print(printable(warning), file=sys.stderr)
        if conf.eval.cost:
            with said("the FLOPs were not counted"):
                write_cost(folder, cost_of(loaded, images))
        if conf.eval.speed:
            with said("the speed was not measured"):
                measured = speed_of(
                    loaded,
                    images,
                    conf.eval.speed_batch,
                    conf.eval.speed_repetitions,
                    conf.log.progress,
                )
                write_speed(folder, measured)
    if packed:
        print(packed)


def cost_of(loaded: api.Loaded, images: Any) -> dict[str, Any]:
    """Return what one image costs: the FLOPs of its prediction, two for a multiply-add.

    torch counts them, of convolutions and matrix products. The image is the first one, at its own
    size, by the inference of this measurement.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it takes seconds to import

    image = images[0].image[:, :]
    with FlopCounterMode(display=False) as counter:
        loaded(image, images.ids[0])
    return {
        "flops": counter.get_total_flops(),
        "image": images.ids[0],
        "height": image.shape[0],
        "width": image.shape[1],
        "parameters": sum(parameter.numel() for parameter in loaded.network.parameters()),
    }


def made_by(loaded: api.Loaded, source: manifest.Checkpoint, world: World) -> dict[str, Any]:
    """Return how the predictions came about, for metrics.json."""
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
    conf: RunConf,
    split: str,
    predictor: Predictor,
    changed: dict[str, Any],
) -> Path:
    """Return eval/<dataset>-<split>-<what differs from the plain protocol> of the run's folder."""
    words = [conf.dataset["_target_"].split(".")[-1].lower(), split]
    if predictor.tag:
        words.append(predictor.tag)
    for key, value in changed.items():
        if key not in NAMED:
            text = re.sub(r"[^\w.]+", "_", str(value)).strip("_")[:40]
            words.append(text if "." not in key else f"{key.rpartition('.')[2]}_{text}")
    return source.path.parent.parent / "eval" / "-".join(words)


def describe(conf: RunConf, split: str, images: Any, evaluator: Evaluator) -> dict[str, Any]:
    """Return what was measured and by whose rules, for metrics.json."""
    return {
        "dataset": dataset_arguments(conf.dataset),
        "split": split,
        "images": len(images),
        "metric": conf.metric["_target_"],
        "rules": evaluator.protocol,
    }


def score_predictions(
    source: Path, overrides: Sequence[str], config_dirs: Sequence[str] = ()
) -> None:
    """Score what any program wrote: label maps SOURCE/<id>.png, or a COCO results file."""
    from segtrain.benchmarks import predictions
    from segtrain.structures import run_lengths

    if not any(o.startswith("dataset=") for o in overrides):
        raise UserError(f"predictions={source}: say what they are predictions of with dataset=NAME")
    if not source.exists():
        raise UserError(f"predictions={source}: no such file or folder")
    cfg, _ = compose_config(overrides, config_dirs)
    conf = check(cfg)
    split = dataset_keys(conf.dataset).measured_split
    images = parts.dataset(conf.dataset, split)
    if not images.labelled:
        raise UserError(f"dataset.split={split}: has no labels to compare with")
    if source.is_dir() == (images.labelled_with == "instances"):
        form = "FOLDER of label maps <image id>.png"
        if source.is_dir():
            form = "FILE.json, a COCO results file"
        raise UserError(
            f"predictions={source}: the truth of {conf.dataset['_target_']} takes "
            f"predictions={form}"
        )
    folder = Path(conf.eval.output or source.parent / f"{source.stem}-scores")
    check_output(folder)
    evaluator = parts.evaluator(conf.metric, list(images.labels.names))
    if source.is_dir():
        predicted = predictions.label_maps(
            source, images, conf.eval.prediction_ids, split, evaluator.voids > 0
        )
    else:
        predicted = predictions.detections(source, images)
    boxes = corners = 0
    with Progress(len(images), "scoring", enabled=conf.log.progress) as bar:
        for index, (sample_id, prediction) in enumerate(predicted):
            evaluator.update(sample_id, prediction, images.truth(index))
            beside_masks, fitting = run_lengths.corner_boxes(prediction)
            boxes += beside_masks
            corners += fitting
            bar.to(index + 1)
    if note := predictions.corners_note(source, boxes, corners):
        print(f"note: {note}", file=sys.stderr)
    protocol = {"predictions": str(source), **describe(conf, split, images, evaluator)}
    write_results(folder, evaluator.compute(), evaluator, places.as_stored(protocol))
