"""How terms become one loss.

The gradient is the same however a global batch is split over processes and micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segtrain.contracts import Loss, LossTerm, MapsMasks, MaskMap
from segtrain.errors import UserError
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch

# A term without a single counted element has the sum 0 and the count 0; divided by this instead it
# is 0, and stays attached to the graph. No real count is smaller: they are of pixels and objects.
SMALLEST_COUNT = 1e-12


def mask_map_of(loss: Loss | None) -> MaskMap | None:
    """Return what `loss`, or a part of it, lets the data workers make of each mask.

    Errors: UserError for two parts that do.
    """
    parts = loss.modules() if isinstance(loss, nn.Module) else ()
    makers = [part.mask_map() for part in parts if isinstance(part, MapsMasks)]
    if len(makers) > 1:
        raise UserError(
            f"loss.parts: {len(makers)} losses make a map of each mask, but a batch holds one map; "
            "leave one of them out"
        )
    return makers[0] if makers else None


def global_counts(loss: Loss, micro_batches: Sequence[Batch], world: World) -> dict[str, Tensor]:
    """Return the counts that follow from the labels, over all ranks and micro-batches.

    They are summed before the forward pass, in one collective for all terms.
    """
    counts = [loss.counts(batch) for batch in micro_batches]
    names = list(counts[0])
    if not names:
        return {}
    stacked = torch.stack(
        [torch.stack([each[name].float() for each in counts]).sum() for name in names]
    )
    return dict(zip(names, world.sum(stacked).unbind(), strict=True))


def objective(
    terms: Mapping[str, LossTerm],
    counts: Mapping[str, Tensor],
    weights: Mapping[str, float],
    world: World,
    micro_batches: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (the loss to differentiate, each term's share of its global mean).

    Both are of one micro-batch on one rank. Term i of the objective is sum_i / count_i with
    `count_i` over all ranks and micro-batches, so that shares simply add up. A count that only the
    forward pass knows is summed over the ranks of this micro-batch, and averaged over
    micro-batches. A term that has no count at all is a plain sum.
    """
    shares = {}
    for name, term in terms.items():
        if term.count is not None:
            count = world.sum(term.count.detach().float().clone()) * micro_batches
        elif name in counts:
            count = counts[name]
        else:
            shares[name] = term.sum
            continue
        shares[name] = term.sum / count.clamp(min=SMALLEST_COUNT)
    zero = torch.zeros((), device=world.device)
    return sum((weights[name] * share for name, share in shares.items()), start=zero), shares
