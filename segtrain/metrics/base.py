"""Hold what evaluators share: the defaults of the contract, and what all count by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from segtrain.errors import InternalError

Count = TypeVar("Count")


class BaseEvaluator:
    """Hold the members of `contracts.Evaluator` that many evaluators have in common.

    A subclass sets `protocol` and `class_names`, and counts; the rest has defaults.
    """

    protocol: str  # whose numbers these are, in words, for metrics.json
    class_names: list[str]
    # Whether classes play no part, so that objects without a class can be judged.
    class_agnostic: bool = False
    # How many values beside the classes a predicted label map may hold, see `confusion`.
    voids: int = 0

    def counts(self) -> dict[str, Any]:
        """Return what was counted, as plain values by the name of the JSON file; {} for none."""
        return {}

    def pictures(self) -> dict[str, np.ndarray]:
        """Return pictures (H, W, 3) of the counts by file name; {} for none."""
        return {}

    def image_scores(self) -> dict[str, dict[str, float | None]]:
        """Return what each image scores by itself, {id: {name: value}}; {} for none."""
        return {}


def union(shards: Iterable[Mapping[str, Count]]) -> dict[str, Count]:
    """Join what each process counted by image id. Errors: InternalError if two share an image."""
    images: dict[str, Count] = {}
    for shard in shards:
        twice = sorted(images.keys() & shard.keys())
        if twice:
            raise InternalError(
                f"{twice[0]}: evaluated by two processes ({len(twice)} images in all)."
            )
        images |= shard
    return images


def lowest(scores: Mapping[str, float | None], count: int) -> list[tuple[str, float]]:
    """Return the `count` images of the lowest score, worst first; those without one are left out.

    Ties go by id, so the result is the same under any sharding.
    """
    known = [(name, value) for name, value in scores.items() if value is not None]
    return sorted(known, key=lambda pair: (pair[1], pair[0]))[:count]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
