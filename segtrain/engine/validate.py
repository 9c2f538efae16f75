"""Measure on the validation split, keep the best, draw samples."""

from __future__ import annotations

from pathlib import Path

import torch

from segtrain.config import parts as config_parts
from segtrain.config import trust
from segtrain.config.schema import RunConf
from segtrain.contracts import Predictor
from segtrain.engine import batch_norm
from segtrain.engine.evaluate import Stopped, evaluate
from segtrain.engine.parts import Parts, train_batches
from segtrain.engine.state import TrainState, save, score
from segtrain.errors import Interrupted
from segtrain.logs.run_log import RunLog
from segtrain.runtime.distributed import World
from segtrain.runtime.signals import Signals
from segtrain.visualization import panels, picture_files


def validate(
    run: RunConf,
    folder: Path,
    parts: Parts,
    state: TrainState,
    log: RunLog,
    world: World,
    signals: Signals,
) -> None:
    """Measure the weights on the validation split, log the metrics, draw samples, save.

    Errors: Interrupted on all ranks after a signal; then the step is saved without its metrics.
    """
    network = state.measured
    if count := run.train.bn_batches:
        batches = train_batches(run, parts, world, 0, count)
        batch_norm.estimate(network, batches, count, state.precision, world, signals)
    world.share_buffers(network)
    predictor = config_parts.predictor(run, network)
    try:
        state.metrics = evaluate(
            network,
            predictor,
            parts.val_set,
            config_parts.evaluator(run.metric, parts.class_names),
            world=world,
            precision=state.precision,
            loss=parts.loss,
            workers=parts.workers,
            advance=log.evaluating,
            stop=lambda: signals.received is not None,
        )
    except Stopped:
        save(run, folder, parts, state, log, world)
        raise Interrupted(
            f"stopped while validating step {state.step}: saved; "
            f"go on with: {trust.command(f'resume={folder}')}"
        ) from None
    state.validated_step = state.step
    _remember_best(run, state)
    log.validation(state.step, state.metrics)
    if world.main:
        _draw_samples(run, folder, parts, state, log, predictor)
    state.network.train()
    save(run, folder, parts, state, log, world)


def _remember_best(run: RunConf, state: TrainState) -> None:
    """Keep step and value of the best monitored scalar; of equal ones the first."""
    value = state.monitored(run.train)
    if value is None:
        return
    if state.best is None or score(run.train, value) > score(run.train, state.best["value"]):
        state.best = {"step": state.step, "value": value}


def out_of_patience(run: RunConf, state: TrainState, validate_every: int, log: RunLog) -> bool:
    """Tell whether the monitored scalar has not improved for `train.patience` validations."""
    patience = run.train.patience
    if patience is None or state.best is None or state.step % validate_every:
        return False
    if waited := (state.step - int(state.best["step"])) // validate_every >= patience:
        log.text(
            f"step {state.step}: {run.train.monitor} has not improved for {patience} validations; "
            "stopping"
        )
    return waited


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
