"""How terms become one loss: the same gradient however a global batch is split over processes and micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segtrain.contracts import Loss, LossTerm
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch


def global_counts(criterion: Loss, micros: Sequence[Batch], world: World) -> dict[str, Tensor]:
    """Counts that follow from the targets, over all ranks and micro-batches; summed before the forward pass."""
    each = [criterion.counts(batch) for batch in micros]
    names = list(each[0])
    if not names:
        return {}
    stacked = torch.stack(
        [torch.stack([counts[name].float() for counts in each]).sum() for name in names]
    )
    return dict(zip(names, world.sum(stacked).unbind(), strict=True))


def objective(
    terms: dict[str, LossTerm],
    counts: dict[str, Tensor],
    weights: Mapping[str, float],
    world: World,
    micro_batches: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss to differentiate, each term's contribution to its global mean) of one micro-batch on one rank.

    Term i of the objective is sum_i / count_i with `count_i` over all ranks and micro-batches, so that contributions simply
    add up. A count that only the forward pass knows is summed over the ranks of this micro-batch, and averaged over
    micro-batches. A term that has no count at all is a plain sum.
    """
    parts = {}
    for name, term in terms.items():
        if term.count is None and name not in counts:
            parts[name] = term.sum
            continue
        count = (
            counts[name]
            if term.count is None
            else world.sum(term.count.detach().float().clone()) * micro_batches
        )
        parts[name] = term.sum / count.clamp(min=1e-12)
    return sum(
        (weights[name] * part for name, part in parts.items()),
        start=torch.zeros((), device=world.device),
    ), parts
