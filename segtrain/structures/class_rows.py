"""Say where a tensor of a network holds its classes, so that they can be matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

BACKGROUND = None  # in place of a class's name: what is no class


@dataclass(frozen=True)
class ClassRows:
    """Say how a tensor holds the classes of its model: in equal groups of rows, one for each.

    The groups are in the order of the classes. `background` says whether there is one group more,
    before or behind them, for what is no class. `dims` are the dimensions that have such rows: the
    first one of a classifier, (0, 1) of a deconvolution from class scores to class scores.
    """

    background: Literal["first", "last"] | None = None
    dims: tuple[int, ...] = (0,)

    def owners(self, names: Sequence[str]) -> list[str | None]:
        """Return whose each group is, in their order: a class's, or BACKGROUND."""
        first = [BACKGROUND] if self.background == "first" else []
        last = [BACKGROUND] if self.background == "last" else []
        return [*first, *names, *last]


def rows_of(layout: Mapping[str, ClassRows], key: str) -> ClassRows | None:
    """Return how the tensor `key` holds the classes; None where it holds none.

    `layout` is that of a model, whose keys name tensors, or layers with all of their tensors.
    """
    return layout.get(key) or layout.get(key.rpartition(".")[0])
