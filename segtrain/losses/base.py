"""The base class of the losses: what the engine asks of a loss, with the answer most give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from segtrain.structures.samples import Batch


class BaseLoss(nn.Module):
    """Hold the members of `contracts.Loss`. A subclass defines `forward(output, batch)`.

    weights  the weight of each term by its name.
    needs    the names of the model's outputs that the terms read in training. A model that makes
             less is refused before the first step.
    """

    def __init__(self, weights: Mapping[str, float], needs: Iterable[str]) -> None:
        super().__init__()
        self.weights: dict[str, float] = dict(weights)
        self.needs: frozenset[str] = frozenset(needs)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the scalar count of each term whose count follows from the labels alone.

        The others give theirs with the term itself.
        """
        return {}
