"""Draw objects into one label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segtrain.structures import run_lengths


def painted(
    masks: Sequence[Mapping[str, Any]],
    labels: np.ndarray,
    crowd: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Return the label map (H, W) uint8 of N run-length masks; where nothing is it holds 0.

    `labels` and `crowd` are (N,); masks of label 0 are not drawn. Where objects overlap the smaller
    one is on top, for what lies in front is mostly smaller; crowds lie below all. Pixels decide, as
    an area that a file says may be wrong.
    """
    drawn = np.zeros(size, np.uint8)
    for k in np.lexsort((-run_lengths.areas(masks), ~crowd)):
        if labels[k]:
            drawn[run_lengths.decode([masks[k]], size)[0]] = labels[k]
    return drawn
