"""What every evaluator shares: the defaults of the contract."""

from __future__ import annotations

from typing import Any

import numpy as np


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
