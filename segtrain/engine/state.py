"""What changes while a run trains, and how it is saved and restored."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segtrain.checkpoints import match, reading, writing
from segtrain.checkpoints.manifest import Checkpoint
from segtrain.config import places
from segtrain.config.schema import RunConf, TrainConf
from segtrain.contracts import Model
from segtrain.engine import inputs
from segtrain.engine.imported import starting_weights
from segtrain.engine.in_force import Settings
from segtrain.engine.parts import Parts
from segtrain.errors import InternalError, UserError
from segtrain.layers.preprocess import record_of
from segtrain.logs.metrics_file import rewind
from segtrain.logs.run_log import RunLog
from segtrain.optim.precision import Precision
from segtrain.runtime import heartbeat
from segtrain.runtime.distributed import World
from segtrain.runtime.files import replace_file
from segtrain.runtime.run_folder import FINGERPRINT, require_held

WAYS_OUT = "A lower optimizer.lr, train.clip=1 or train.precision=fp32 are the usual ways out"
SKIPPED = "skipped"  # in the meta of a checkpoint: updates that were left out, in all and in a row


@dataclass
class TrainState:
    """Everything that the next update depends on, and the numbers that checkpoint and summary tell.

    Nothing random is in it: order, augmentation and dropout follow from the seed and `step`.
    """

    network: nn.Module  # the weights
    model: nn.Module  # what is called: `network`, compiled or data-parallel where the run says so
    optimizer: Optimizer
    precision: Precision
    ema: AveragedModel | None  # moving average of the weights
    step: int = 0  # updates made
    pieces: int = 1  # that each micro-batch is cut into; grows with train.accumulate=auto
    losses: dict[str, float] = field(default_factory=dict)  # of the newest update that was read
    norm: float = 0.0  # of its gradient, before clipping; in no checkpoint
    metrics: dict[str, float] = field(default_factory=dict)  # of the newest validation
    validated_step: int | None = None  # the step that `metrics` are of
    best: dict[str, float] | None = None  # {"step", "value"} of the monitored scalar
    skipped: int = 0  # updates that were left out, `train.non_finite=skip`
    skipped_in_a_row: int = 0  # of these, the ones just before this step
    # Not 0, on the device, once an update was cancelled and the run is to end: no other is made.
    cancelled: Tensor | float = 0.0
    settings: Settings | None = None  # on rank 0: what the checkpoints tell of them
    # SHA-256 of the data's fingerprint, as the checkpoint tells it that is gone on from.
    fingerprint_sum: str | None = None
    fingerprint: bytes | None = None  # on rank 0: what the data are now, see `same_data`

    @property
    def validated(self) -> bool:
        """Whether `metrics` are those of this very step."""
        return self.validated_step == self.step

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group, which is logged."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def rates(self) -> dict[str, float]:
        """Learning rate of each parameter group, by `lr/NAME`."""
        return {f"lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups}

    @property
    def measured(self) -> nn.Module:
        """The weights that are validated: the moving average where there is one."""
        return self.network if self.ema is None else self.ema.module

    def monitored(self, train: TrainConf) -> float | None:
        """Return the scalar that decides which checkpoint is best.

        It is None for the score of a class that the validation split does not hold.
        """
        known = {**self.metrics, **{f"train/{name}": loss for name, loss in self.losses.items()}}
        return known.get(train.monitor)


def score(train: TrainConf, value: float) -> float:
    """Turn a monitored value into one of which more is better, as checkpoints are compared."""
    return value if train.monitor_mode == "max" else -value


def new_state(train: TrainConf, parts: Parts, world: World) -> TrainState:
    """Return the state before the first update."""
    ema = None
    if train.ema is not None:
        average = get_ema_multi_avg_fn(train.ema)
        ema = AveragedModel(parts.network, multi_avg_fn=average, use_buffers=True)
    model = parts.network
    if train.compile:
        model = cast(nn.Module, torch.compile(model))
    # A rank that runs out of memory must not leave others waiting inside backward.
    wrapped = model if train.fits_itself else world.wrap(model)
    return TrainState(parts.network, wrapped, parts.optimizer, parts.precision, ema)


def restore(
    run: RunConf,
    folder: Path,
    parts: Parts,
    world: World,
    config: Mapping[str, Any] | None = None,
) -> TrainState:
    """Return the state of the newest whole checkpoint in `folder`, on which all ranks agree.

    Without a checkpoint it is a new state, with the weights of `train.init` where that is set.
    Lines of metrics.jsonl about later steps are dropped. `config` is what `fit` takes. Errors:
    UserError where all checkpoints are damaged, where the data set has other classes than they
    have, or where the weights of the checkpoint or of `train.init` do not fit.
    """
    newest = reading.latest(folder / "checkpoints") if world.main else None
    path = world.broadcast(str(newest.path) if newest else None)
    checkpoint = None if path is None else newest or reading.find(path)
    if checkpoint is None:
        begin(run, folder, parts, world)
    else:
        _check_classes(checkpoint, parts)
        inputs.as_trained(parts.network, checkpoint)
    state = new_state(run.train, parts, world)
    if checkpoint is not None:
        stored_config = checkpoint.meta.get("config")
        stored = match.modern_state(checkpoint.read("model"), stored_config)
        match.load_exactly(state.network, stored, checkpoint.path)
        _load_optimizer(state.optimizer, checkpoint)
        state.precision.load_state_dict(checkpoint.read("precision"))
        if state.ema is not None:
            state.ema.load_state_dict(match.modern_state(checkpoint.read("ema"), stored_config))
        state.step = checkpoint.step
        state.pieces = checkpoint.meta.get("pieces", 1) if run.train.fits_itself else 1
        state.best = checkpoint.meta.get("best")
        state.metrics = checkpoint.meta.get("numbers", {})
        state.losses = checkpoint.meta.get("train", {})
        state.skipped, state.skipped_in_a_row = checkpoint.meta.get(SKIPPED, (0, 0))
        state.fingerprint_sum = checkpoint.meta.get("fingerprint")
        state.validated_step = checkpoint.step if checkpoint.meta.get("evaluated") else None
    if world.main:
        state.settings = Settings.read(folder, config, newest)
        rewind(folder, state.step)
    return state


def _load_optimizer(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Give an optimizer its state. Errors: UserError where it is that of other parameters."""
    try:
        optimizer.load_state_dict(checkpoint.read("optimizer"))
        fits = all(
            value.shape == parameter.shape
            for parameter, values in optimizer.state.items()
            for value in values.values()
            if isinstance(value, torch.Tensor) and value.ndim
        )
    except (ValueError, KeyError, TypeError, AttributeError):  # by what torch meets first
        fits = False
    if not fits:
        raise UserError(
            f"{checkpoint.path}: optimizer.pt is the state of another optimizer or model; "
            f"begin a run from these weights with train.init={checkpoint.path}"
        )


def _check_classes(checkpoint: Checkpoint, parts: Parts) -> None:
    """Refuse data of other classes, as a resume with another place may find. Errors: UserError."""
    before = checkpoint.meta.get("class_names", parts.class_names)
    if sorted(before) == sorted(parts.class_names) and before != parts.class_names:
        place = next(i for i, name in enumerate(before) if name != parts.class_names[i])
        raise UserError(
            f"{checkpoint.path}: was trained on these classes in another order: class {place} was "
            f"`{before[place]}`, the data set has `{parts.class_names[place]}` there; name the "
            "place of the same data, dataset.root=, or begin a run from it with train.init="
        )
    if before != parts.class_names:
        raise UserError(
            f"{checkpoint.path}: was trained on {len(before)} classes, the data set has "
            f"{len(parts.class_names)}, or others; name the place of the same data, dataset.root="
        )


def begin(run: RunConf, folder: Path, parts: Parts, world: World) -> None:
    """Refuse a folder of damaged checkpoints; take the weights that `train.init` names.

    Rows of classes are matched by name, where the model says which these are (`class_rows`); rows
    of classes that are new keep their random weights. The input belongs to the weights: it comes
    with the backbone's, unless `model.input` says another.
    """
    if damaged := sorted((folder / "checkpoints").glob("step_*")):
        raise UserError(
            f"{damaged[-1].parent}: every checkpoint is damaged, none to go on from; "
            "start a new run with another hydra.run.dir"
        )
    if run.train.init is None:
        return
    start = starting_weights(run.train.init)
    # A bare file tells no model: its names may be those that this model had in an older version.
    loaded = match.modern_state(start.weights, {"model": run.model})
    layout = cast(Model, parts.network).class_rows()
    weights, table = match.init_from(
        parts.network.state_dict(), loaded, parts.class_names, start.class_names, layout
    )
    if reading.is_bare(run.train.init):
        match.require_backbone(weights, table, loaded, run.train.init)
    parts.network.load_state_dict(weights)
    lines = [f"train.init={places.as_stored(run.train.init)}", table.table()]
    if table.holds("backbone"):
        whole = table.holds("backbone", 1.0)
        lines += inputs.with_weights(run, parts.network, start.input, whole)
    if world.main:
        print("\n".join(lines))
        if doubt := table.doubt():
            source = places.as_stored(run.train.init)
            logging.getLogger("segtrain").warning("train.init=%s: %s", source, doubt)


@heartbeat.patiently()
def save(
    run: RunConf, folder: Path, parts: Parts, state: TrainState, log: RunLog, world: World
) -> None:
    """Write a checkpoint on rank 0 while the others wait. Metrics reach the disk before it does.

    Errors: InternalError on all ranks where the weights are not finite; DiskError.
    """
    heartbeat.doing(f"saving step {state.step}", "")
    with log.spending("save"):
        _require_finite(state, world)
        if world.main:
            _write(run, folder, parts, state, log)
        world.barrier()


def _write(run: RunConf, folder: Path, parts: Parts, state: TrainState, log: RunLog) -> None:
    """Write a checkpoint. Errors: DiskError."""
    assert state.settings is not None, "rank 0 has read them"
    require_held(folder)
    payload: dict[str, Any] = {
        "model": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "precision": state.precision.state_dict(),
    }
    if state.ema is not None:
        payload["ema"] = state.ema.state_dict()
    value = state.monitored(run.train) if state.validated else None
    meta = {
        "config": dict(state.settings.config),
        "started_in": state.settings.started_in,
        "class_names": parts.class_names,
        "labels": parts.train_set.labels.record(),
        "input": record_of(state.network),
        "evaluated": state.validated,
        "score": None if value is None else score(run.train, value),
        "best": state.best,
        "numbers": state.metrics if state.validated else {},
        "train": state.losses,
        **({SKIPPED: [state.skipped, state.skipped_in_a_row]} if state.skipped else {}),
        "samples_seen": state.step * run.train.global_batch,
        "fingerprint": _keep(folder / FINGERPRINT, state.fingerprint),
        **({"pieces": state.pieces} if run.train.fits_itself else {}),
    }
    state.settings.warn_of_changes(log)
    log.sync()
    kept = (run.train.keep, run.train.keep_best)
    writing.save(folder / "checkpoints", state.step, payload, meta, *kept)


def _keep(path: Path, content: bytes | None) -> str | None:
    """Have the fingerprint of the data stand at `path`; return its SHA-256. Errors: OSError."""
    if content is None:
        return None
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)
    return hashlib.sha256(content).hexdigest()


def _require_finite(state: TrainState, world: World) -> None:
    """Refuse weights, their average or a state of the optimizer that are not finite.

    An update can ruin them although its loss and gradient were finite. If they were saved, every
    resume would start from them. Errors: InternalError on all ranks.
    """
    average = {} if state.ema is None else state.ema.state_dict()
    memory = [value for held in state.optimizer.state.values() for value in held.values()]
    kinds = {
        "weights are": [*state.network.state_dict().values(), *average.values()],
        "the optimizer's state is": [value for value in memory if isinstance(value, Tensor)],
    }
    ruined = world.sum(torch.stack([_ruined(values, world) for values in kinds.values()])).tolist()
    for what, ranks in zip(kinds, ruined, strict=True):
        if ranks:
            raise InternalError(
                f"step {state.step}: {what} not finite after this update; nothing was saved. "
                f"{WAYS_OUT}"
            )


def _ruined(values: Iterable[Tensor], world: World) -> Tensor:
    """Return 1.0 where one of the tensors holds a number that is not finite (scalar on device)."""
    whole = [torch.isfinite(v).all().to(world.device) for v in values if v.is_floating_point()]
    return (~torch.stack(whole).all()).float() if whole else torch.zeros((), device=world.device)
