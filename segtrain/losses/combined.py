"""Several losses as one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segtrain.contracts import Loss, LossTerm
from segtrain.errors import UserError
from segtrain.structures.samples import Batch


class Combined(nn.Module):
    """The terms of several losses, given by name as `_target_` nodes; each reads the same output and batch.

    `weights` are those of all parts together. No two parts may have a term of the same name. In a config the names are
    the way to a part: `loss.parts.pixel.weights.aux=0.4`. Raises UserError.
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        owners: dict[str, str] = {}
        for part, loss in parts.items():
            if not (
                isinstance(loss, nn.Module) and hasattr(loss, "counts") and hasattr(loss, "weights")
            ):
                raise UserError(
                    f"loss.parts.{part}: expected a loss, a mapping with a `_target_` in segtrain.losses"
                )
            for name, weight in loss.weights.items():
                if name in owners:
                    raise UserError(
                        f"loss.parts.{part} has the term `{name}`, and so has loss.parts.{owners[name]}: give it to one of them"
                    )
                owners[name], self.weights[name] = part, weight
        if not self.weights:
            raise UserError(
                "loss.parts is empty: name at least one loss, as `pixel` in conf/loss/encnet.yaml"
            )
        self.losses: list[Loss] = list(parts.values())
        self.parts = nn.ModuleList(parts.values())  # so that device and mode reach them

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The counts of all parts."""
        return {name: count for loss in self.losses for name, count in loss.counts(batch).items()}

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """The terms of one micro-batch, of all parts."""
        return {name: term for loss in self.losses for name, term in loss(output, batch).items()}
