"""One update of the weights, in which all processes agree.

It counts the labels of the whole global batch, runs the network forward, computes loss terms in
fp32, runs backward, tells all ranks in one small sum (losses, whether they are finite, whether to
stop), and updates. The host never waits for the device inside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segtrain.config.schema import RunConf
from segtrain.engine.objective import global_counts, objective
from segtrain.engine.parts import Parts
from segtrain.engine.state import WAYS_OUT, TrainState
from segtrain.errors import InternalError
from segtrain.optim.optimizers import set_lr
from segtrain.rng import seed_for
from segtrain.runtime.distributed import World, no_reduce
from segtrain.runtime.signals import Signals
from segtrain.structures.samples import Batch


@dataclass(frozen=True)
class Report:
    """What an update tells the host, still on the device.

    `vector` holds (ranks whose loss is not finite, ranks that shall stop, total loss, terms...),
    summed over ranks.
    """

    step: int  # updates made before this one
    vector: Tensor
    names: list[str]  # of the losses in `vector`
    ids: list[str]  # of this rank's images
    bad: Tensor  # 1.0 when this rank's own loss is not finite


def update(
    run: RunConf,
    parts: Parts,
    state: TrainState,
    micro_batches: list[Batch],
    world: World,
    signals: Signals,
) -> Report:
    """Make one update of the weights from this rank's share of a global batch.

    All ranks call it together. When the loss of any rank is not finite, no weight and no state of
    the optimizer changes, and `read` says whose it was. Statistics of batch norm and the moving
    average of the weights may have changed, but `read` raises before the next save.
    """
    torch.manual_seed(seed_for(run.train.seed, "dropout", state.step, world.rank))
    set_lr(state.optimizer, parts.schedule(state.step - run.train.begin))
    state.optimizer.zero_grad(set_to_none=True)
    counts = global_counts(parts.loss, micro_batches, world)
    total = torch.zeros((), device=world.device)
    terms: dict[str, Tensor] = {}
    for index, batch in enumerate(micro_batches):
        with no_reduce(state.model, index + 1 < len(micro_batches)):
            with state.precision:
                output = state.model(batch)
            loss, shares = objective(
                parts.loss(output, batch),  # in fp32: outside autocast
                counts,
                parts.loss.weights,
                world,
                len(micro_batches),
            )
            # Data-parallel models average gradients over ranks; the objective is a sum.
            state.precision.backward(loss * world.size)
        total += loss.detach()
        terms = {name: terms.get(name, 0) + share.detach() for name, share in shares.items()}
    state.precision.unscale(state.optimizer)
    if run.train.clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), run.train.clip)
    report = _agree(state.step, total, terms, micro_batches, world, signals)
    state.precision.step(state.optimizer, report.vector[0])
    if state.ema is not None:
        state.ema.update_parameters(state.network)
    return report


def _agree(
    step: int,
    total: Tensor,
    terms: Mapping[str, Tensor],
    micro_batches: list[Batch],
    world: World,
    signals: Signals,
) -> Report:
    """Tell all ranks the losses, whether one is not finite and whether to stop, in one sum."""
    bad = (~torch.isfinite(total)).float()
    stop = torch.full((), float(signals.received is not None), device=world.device)
    vector = world.sum(torch.stack([bad, stop, total, *terms.values()]))
    names = ["loss", *(f"loss/{name}" for name in terms)]
    ids = [sample_id for batch in micro_batches for sample_id in batch.ids]
    return Report(step, vector, names, ids, bad)


def read(pending: list[Report], network: nn.Module, world: World) -> tuple[bool, dict[str, float]]:
    """Wait for all `pending` updates, empty the list, return (whether to stop, the newest losses).

    The device is waited for once. Errors: InternalError on all ranks when a loss is not finite; it
    names step and images, or says that the weights of `network` are ruined.
    """
    reports = list(pending)
    pending.clear()
    rows = torch.stack([report.vector for report in reports]).tolist()
    for report, (bad, _, loss, *_) in zip(reports, rows, strict=True):
        if bad:
            raise _not_finite(report, loss, network, world)
    stop = any(row[1] > 0 for row in rows)
    return stop, dict(zip(reports[-1].names, rows[-1][2:], strict=True))


def _not_finite(report: Report, loss: float, network: nn.Module, world: World) -> InternalError:
    """Say why a loss was not finite; all ranks call it together.

    Either the weights are not finite, as an update with a finite loss can have gradients that are
    not; or it is due to the images of the ranks whose loss was not finite. The weights are looked
    at now: on a GPU a few updates may have followed the one whose loss is told.
    """
    if not all(torch.isfinite(parameter).all() for parameter in network.parameters()):
        return InternalError(
            f"step {report.step + 1}: the loss is not finite ({loss}), and neither are the "
            f"weights: an update, most likely one before it, ruined them. {WAYS_OUT}"
        )
    shares = world.gather(report.ids if report.bad.item() else [])
    images = [sample_id for share in shares for sample_id in share]
    named = ", ".join(images[:8]) + (f" and {len(images) - 8} more" if len(images) > 8 else "")
    return InternalError(
        f"step {report.step + 1}: the loss is not finite ({loss}) on images {named}; it changed "
        f"no weight. {WAYS_OUT}"
    )
