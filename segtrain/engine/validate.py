"""Measure on the validation split, keep the best, draw samples."""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import torch

from segtrain.config import parts as config_parts
from segtrain.config import trust
from segtrain.config.schema import RunConf, TrainConf
from segtrain.contracts import Evaluator, Predictor
from segtrain.engine import batch_norm
from segtrain.engine.evaluate import evaluate
from segtrain.engine.parts import Parts, train_batches
from segtrain.engine.state import TrainState, save, score
from segtrain.errors import Interrupted, NothingToMeasure, SegtrainError, Stopped
from segtrain.logs.run_log import RunLog
from segtrain.runtime import heartbeat
from segtrain.runtime.distributed import World
from segtrain.runtime.signals import Signals
from segtrain.visualization import panels, picture_files


@heartbeat.patiently()
def validate_and_save(
    run: RunConf,
    folder: Path,
    parts: Parts,
    state: TrainState,
    log: RunLog,
    world: World,
    signals: Signals,
) -> None:
    """Validate: estimate batch norm (`train.bn_batches`), measure, log, draw samples, save.

    All ranks take rank 0's buffers before they measure. Both that and the estimate change what is
    saved. Errors: Interrupted on all ranks after a signal, or what failed; then the step is saved
    without its metrics. Where there is nothing to measure, that is said, and nothing fails.
    """
    with log.spending("validate"):
        _measure(run, folder, parts, state, log, world, signals)
        save(run, folder, parts, state, log, world)


def _measure(
    run: RunConf,
    folder: Path,
    parts: Parts,
    state: TrainState,
    log: RunLog,
    world: World,
    signals: Signals,
) -> None:
    """Validate, log, draw samples. Errors: as `validate_and_save` says."""
    network = state.measured
    predictor = config_parts.predictor(run, network)
    evaluator = config_parts.evaluator(run.metric, parts.class_names)
    together = world.size == 1  # whether all ranks fail where one does
    try:
        if count := run.train.bn_batches:
            steps = train_batches(run, parts, world, 0, count)
            if not batch_norm.estimate(network, steps, count, state.precision, world, signals):
                raise Stopped("stopped before every batch was seen")
        world.share_buffers(network)
        together = True  # so does `evaluate`
        # Of several ranks all must leave after the same image.
        with signals.at_once() if world.size == 1 else nullcontext():
            state.metrics = evaluate(
                network,
                predictor,
                parts.val_set,
                evaluator,
                world=world,
                precision=state.precision,
                loss=parts.loss,
                workers=parts.workers,
                advance=log.evaluating,
                stop=lambda: signals.received is not None,
            )
    except (Stopped, KeyboardInterrupt):
        save(run, folder, parts, state, log, world)
        raise Interrupted(
            f"{signals.received or 'a signal'} while validating step {state.step}: saved; "
            f"go on with: {trust.command(f'resume={folder}')}"
        ) from None
    except NothingToMeasure:
        state.metrics = {}
    except Exception as error:
        # Steps are not lost with their validation. A lost rank, no error of ours, saves nothing.
        if together and (world.size == 1 or isinstance(error, SegtrainError)):
            save(run, folder, parts, state, log, world)
            log.text(
                f"warn   step {state.step}: saved, but its validation failed; "
                f"go on with: {trust.command(f'resume={folder}')}"
            )
        raise
    state.validated_step = state.step
    if evaluator.names() and not any(name in state.metrics for name in evaluator.names()):
        log.text("warn   the validation split holds nothing to compare with: nothing is measured")
    remember_best(run.train, state)
    log.validation(state.step, state.metrics)
    if world.main:
        # What is not drawn then remains as it was drawn the last time.
        with suppress(KeyboardInterrupt), signals.at_once(), log.aside("samples/"):
            _draw_samples(run, folder, parts, state, log, predictor)
        with suppress(KeyboardInterrupt), signals.at_once(), log.aside("pictures of the metric"):
            for name, picture in pictures(run, state, log, evaluator).items():
                log.image(state.step, f"val/{name}", picture)
    state.network.train()


def pictures(
    run: RunConf, state: TrainState, log: RunLog, evaluator: Evaluator
) -> dict[str, np.ndarray]:
    """Return the metric's own pictures (H, W, 3) by name, such as the confusion matrix.

    None where nobody takes pictures, where none are asked for, or where nothing was measured.
    """
    wanted = log.draws and run.log.images and state.metrics
    return evaluator.pictures() if wanted else {}


def remember_best(train: TrainConf, state: TrainState) -> None:
    """Keep step and value of the best monitored scalar; of equal ones the first."""
    value = state.monitored(train)
    if value is None:
        return
    if state.best is not None:
        best = state.best["value"]
        # NaN is above and below nothing: without this a first NaN would stay the best.
        first_number = math.isnan(best) and not math.isnan(value)
        if not first_number and not score(train, value) > score(train, best):
            return
    state.best = {"step": state.step, "value": value}


def patience_exhausted(train: TrainConf, state: TrainState, validate_every: int) -> bool:
    """Tell whether the monitored scalar has not improved for `train.patience` validations."""
    if train.patience is None or state.best is None or state.step % validate_every:
        return False
    validations = (state.step - int(state.best["step"])) // validate_every
    return validations >= train.patience


def no_patience(train: TrainConf, state: TrainState) -> str:
    """Say why a run ends before its last step."""
    return (
        f"step {state.step}: {train.monitor} has not improved for {train.patience} validations; "
        "stopping"
    )


def _draw_samples(
    run: RunConf, folder: Path, parts: Parts, state: TrainState, log: RunLog, predictor: Predictor
) -> None:
    """Draw the first validation images with truth and prediction, as PNG and for TensorBoard."""
    state.measured.eval()
    colors = parts.val_set.labels.colors
    for index in range(min(run.log.images, len(parts.val_set))):
        sample = parts.val_set[index]
        image = torch.from_numpy(sample.image).permute(2, 0, 1)
        with torch.inference_mode(), state.precision:
            prediction = predictor(image, sample.id)
        title = f"{sample.id}, step {state.step}"
        picture = panels.panel(
            sample.image, sample.annotation, prediction, parts.class_names, colors, title
        )
        picture_files.save(folder / "samples" / f"{Path(sample.id).name}.png", picture)
        log.image(state.step, sample.id, picture)
