"""Train by several losses at once."""

from __future__ import annotations

from torch import Tensor, nn

from segtrain.contracts import Loss, LossTerm
from segtrain.errors import UserError
from segtrain.losses.base import BaseLoss
from segtrain.structures.samples import Batch


class Combined(BaseLoss):
    """Give the terms of several losses, which all read the same output and batch.

    The losses are given by name as `_target_` nodes. In a config the names are the way to a part:
    `loss.parts.pixel.weights.aux=0.4`. No two parts may have a term of the same name.

    Errors: UserError where they have, and for parts that are no losses.
    """

    def __init__(self, parts: dict[str, Loss]) -> None:
        weights: dict[str, float] = {}
        needs: set[str] = set()
        owners: dict[str, str] = {}
        modules: list[nn.Module] = []
        for part, loss in parts.items():
            modules.append(_module(part, loss))
            for name, weight in loss.weights.items():
                if name in owners:
                    raise UserError(
                        f"loss.parts.{part} has the term `{name}`, and so has "
                        f"loss.parts.{owners[name]}: give it to one of them"
                    )
                owners[name] = part
                weights[name] = weight
            needs.update(loss.needs)
        if not weights:
            raise UserError(
                "loss.parts is empty: name at least one loss, as `pixel` in conf/loss/encnet.yaml"
            )
        super().__init__(weights, needs)
        self.losses: list[Loss] = list(parts.values())
        self.parts = nn.ModuleList(modules)  # so that device and mode reach them

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the counts of all parts."""
        return {name: count for loss in self.losses for name, count in loss.counts(batch).items()}

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Return the terms of one micro-batch, of all parts."""
        return {name: term for loss in self.losses for name, term in loss(output, batch).items()}


def _module(part: str, loss: Loss) -> nn.Module:
    """Return a part as the module that it must be too. Errors: UserError for what is no loss."""
    if isinstance(loss, nn.Module) and isinstance(loss, Loss):
        return loss
    raise UserError(
        f"loss.parts.{part}: expected a loss, a mapping with a `_target_` in segtrain.losses"
    )
