"""One update of the weights, in which all processes agree.

It counts the labels of the whole global batch, runs the network forward, computes loss terms in
fp32, runs backward, tells all ranks in one small sum (losses, the norm of the gradient, whether one
of them is not finite, whether to stop), and updates. The host never waits for the device inside it,
unless a user wants bad updates skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segtrain.config.schema import RunConf
from segtrain.contracts import Loss
from segtrain.engine import memory
from segtrain.engine.objective import global_counts, objective
from segtrain.engine.parts import Parts
from segtrain.engine.state import TrainState
from segtrain.errors import UserError
from segtrain.optim.optimizers import set_lr
from segtrain.optim.precision import Precision
from segtrain.rng import seed_for
from segtrain.runtime import heartbeat
from segtrain.runtime.distributed import World, no_reduce
from segtrain.runtime.signals import Signals
from segtrain.structures.samples import Batch


@dataclass(frozen=True)
class Report:
    """What an update tells the host, still on the device.

    `vector` holds (ranks that found a number which is not finite, ranks that shall stop, norm of
    the gradient, total loss, terms...), summed over ranks.
    """

    step: int  # updates made before this one
    vector: Tensor
    names: list[str]  # of the losses in `vector`
    bad: Tensor  # 1.0 when this rank's own loss is not finite
    micro_batches: Sequence[Batch]  # this rank's
    buffers: list[Tensor]  # those of the network before this update

    @property
    def ids(self) -> list[str]:
        """Those of this rank's images."""
        return [sample_id for batch in self.micro_batches for sample_id in batch.ids]


class Outcome(NamedTuple):
    """What an update told the host; all but its `report` is the same on all ranks."""

    report: Report
    bad: bool  # a loss or the gradient was not finite, so the update was cancelled
    stop: bool  # some rank has received a signal
    norm: float  # of the gradient: 2-norm over all parameters, before clipping
    losses: dict[str, float]


def update(
    run: RunConf,
    parts: Parts,
    state: TrainState,
    micro_batches: list[Batch],
    world: World,
    signals: Signals,
) -> Report:
    """Make one update of the weights from this rank's share of a global batch.

    All ranks call it together. When the loss of any rank is not finite, or the gradient is not, no
    weight and no state of the optimizer changes. Where such updates are skipped, nothing else does
    either. Else the run is over: no update after this one changes them, so that whoever looks, some
    updates later, finds the weights that it was computed from.
    """
    set_lr(state.optimizer, parts.schedule(state.step - run.train.begin))
    state.optimizer.zero_grad(set_to_none=True)
    buffers = [buffer.clone() for buffer in state.network.buffers()]
    seed = seed_for(run.train.seed, "dropout", state.step, world.rank)

    def attempt(pieces: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        state.optimizer.zero_grad(set_to_none=True)
        put_back(state.network, buffers)
        return backward(parts.loss, state, pieces, seed, world)

    if run.train.fits_itself:
        micro_batches, (total, terms) = memory.fitted(
            run, parts, state, micro_batches, world, attempt
        )
    else:
        total, terms = backward(parts.loss, state, micro_batches, seed, world)
    state.precision.unscale(state.optimizer)
    norm = _clipped(state.network, run.train.clip)
    bad = (~torch.isfinite(total)).float()
    ruins = torch.maximum(bad, state.precision.ruins(norm, state.optimizer).float())
    stop = torch.full((), float(signals.received is not None), device=world.device)
    told = [ruins, stop, norm / world.size, total, *terms.values()]  # all ranks have one norm
    vector = world.sum(torch.stack(told))
    names = ["loss", *(f"loss/{name}" for name in terms)]
    report = Report(state.step, vector, names, bad, micro_batches, buffers)

    cancel = vector[0] + state.cancelled
    state.precision.step(state.optimizer, cancel)
    if run.train.non_finite == "skip":
        if cancel.item():  # the one wait that skipping costs
            put_back(state.network, buffers)
            return report
    else:
        state.cancelled = cancel
    if state.ema is not None:
        state.ema.update_parameters(state.network)
    return report


def backward(
    criterion: Loss, state: TrainState, micro_batches: Sequence[Batch], seed: int, world: World
) -> tuple[Tensor, dict[str, Tensor]]:
    """Fill the gradients; return the loss and the share of each term, of this rank."""
    total = torch.zeros((), device=world.device)
    terms: dict[str, Tensor] = {}
    for loss, shares in losses(criterion, state.model, state.precision, micro_batches, seed, world):
        heartbeat.arrive()  # ranks exchange gradients in backward
        # Data-parallel models average gradients over ranks; the objective is a sum.
        state.precision.backward(loss * world.size)
        total += loss.detach()
        terms = {name: terms.get(name, 0) + share.detach() for name, share in shares.items()}
    return total, terms


def losses(
    criterion: Loss,
    model: nn.Module,
    precision: Precision,
    micro_batches: Sequence[Batch],
    seed: int,
    world: World,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield the loss of each micro-batch, to be differentiated, and the share of each of its terms.

    Whoever takes it runs backward before the next is asked for: a data-parallel `model` sums its
    gradients over ranks in the last backward alone. `seed` is that of dropout.
    """
    torch.manual_seed(seed)
    counts = global_counts(criterion, micro_batches, world)
    for index, batch in enumerate(micro_batches):
        with no_reduce(model, index + 1 < len(micro_batches)):
            with precision:
                output = _output(model, batch)
            yield objective(
                criterion(output, batch),  # in fp32: outside autocast
                counts,
                criterion.weights,
                world,
                len(micro_batches),
            )


def _output(model: nn.Module, batch: Batch) -> Any:
    """Call a model. Errors: UserError where a norm is to take the variance of a single value."""
    try:
        return model(batch)
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):  # torch's words
            raise
        raise UserError(
            f"train.batch_size: a process has {len(batch.ids)} image at a time, of which a batch "
            "norm sees one value a channel, so there is no variance; take more images a process "
            "and micro-batch, a larger dataset.crop, or a model with model.norm=group"
        ) from error


def put_back(network: nn.Module, buffers: Sequence[Tensor]) -> None:
    """Give a network the buffers it had: a forward pass changes the statistics of batch norm."""
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _clipped(network: nn.Module, largest: float | None) -> Tensor:
    """Clip the gradients where that is asked for, and return the norm they had (scalar)."""
    if largest:
        return nn.utils.clip_grad_norm_(network.parameters(), largest)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def read(pending: list[Report]) -> list[Outcome]:
    """Wait for all `pending` updates, empty the list, and return what they told, oldest first.

    The device is waited for once.
    """
    reports = list(pending)
    pending.clear()
    rows = torch.stack([report.vector for report in reports]).tolist() if reports else []
    return [
        Outcome(report, bad > 0, stop > 0, norm, dict(zip(report.names, told, strict=True)))
        for report, (bad, stop, norm, *told) in zip(reports, rows, strict=True)
    ]
