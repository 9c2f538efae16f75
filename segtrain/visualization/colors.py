"""Colours: those of pictures, those of classes, and how they are mixed.

A picture is a numpy array (H, W, 3) uint8 RGB. Class colours are one (red, green, blue) per class,
in the order of the class names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from segtrain.errors import DataError
from segtrain.structures.samples import IGNORE

Color = tuple[int, int, int]

VOID: Color = (224, 224, 192)  # VOC's colour for pixels that are ignored
INK: Color = (38, 42, 51)
PALE: Color = (128, 134, 145)
PAPER: Color = (255, 255, 255)
WRONG: Color = (222, 45, 62)


def colorize(mask: Tensor | np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Paint a label map (H, W) in the colours of its classes, ignored pixels in VOID.

    Errors: DataError for a value without a colour.
    """
    labels = as_array(mask)
    known = (labels >= 0) & (labels < len(colors)) | (labels == IGNORE)
    if not known.all():
        value = int(labels[~known][0])
        raise DataError(
            f"label {value} has no colour: there are {len(colors)}, for 0-{len(colors) - 1}."
        )
    table = np.full((256, 3), VOID, dtype=np.uint8)
    table[: len(colors)] = colors[:256]
    return table[labels]


def blend(below: np.ndarray, above: np.ndarray, share: float) -> np.ndarray:
    """Mix two pictures or colours; `share` (0 to 1) is that of `above`."""
    return np.rint(below * (1 - share) + above * share).astype(np.uint8)


def readable_on(color: Sequence[int]) -> Color:
    """Choose dark or white text, whichever is read more easily on `color` (luma of BT.601)."""
    red, green, blue = color
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER


def as_array(values: Tensor | np.ndarray) -> np.ndarray:
    """Return a tensor's values as numpy array on the CPU; an array stays as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values
