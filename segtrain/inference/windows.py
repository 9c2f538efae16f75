"""Say what a network is shown of an image: how large, in which windows, and what pads it.

Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

# How the pixels of a side follow from its exact length.
Sides = Literal["half_up", "half_even", "down", "plus_one"]
SIDES = ("half_up", "half_even", "down", "plus_one")
BASE_SIDES = ("long", "short")

# By how much a stride in pixels may miss a whole number: 480 * 2/3 is to be 320 also where a config
# writes 0.666666667.
STRIDE_TOLERANCE = 1e-6


def scaled_size(
    size: tuple[int, int],
    scale: float,
    base: int | None = None,
    base_side: Literal["long", "short"] = "long",
    sides: Sides = "half_up",
) -> tuple[int, int]:
    """Return (height, width) of an image of `size` at `scale`.

    Without `base`, `scale` multiplies both sides. With it the long (or the short) side gets
    `base * scale` pixels, and the other one follows in proportion:

    half_up    halves are rounded up, as in PyTorch-Encoding.
    half_even  halves are rounded to the even number, as in semseg.
    down       all are rounded down, as in torchvision.
    plus_one   `base * scale + 1` pixels, halves rounded up, as in PSPNet's Caffe release.
    """
    height, width = size
    if base is None:
        return max(1, round(height * scale)), max(1, round(width * scale))
    given = max(size) if base_side == "long" else min(size)
    wanted = whole(base * scale, sides) + (sides == "plus_one")
    if sides == "half_even":  # in the order of semseg's code: what is a half hangs on it
        return whole(wanted / given * height, sides), whole(wanted / given * width, sides)
    return whole(height * wanted / given, sides), whole(width * wanted / given, sides)


def whole(pixels: float, sides: Sides) -> int:
    """Return a whole number of pixels, at least one, by one of the rules of `scaled_size`."""
    if sides == "half_even":
        return max(1, round(pixels))
    return max(1, math.floor(pixels if sides == "down" else pixels + 0.5))


def canvas_size(canvas: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return a canvas at `scale` as in DeepLab's release: 513 -> 257 at 0.5, 769 at 1.5.

    A side of 16k + 1 pixels has k + 1 cells whose corners are those of the canvas; so it has at the
    other scale.
    """
    height, width = canvas
    return int((height - 1) * scale) + 1, int((width - 1) * scale) + 1


def window_starts(length: int, window: int, stride: float, overhang: bool = False) -> list[int]:
    """Return the first pixels of the windows that cover `length` pixels.

    The last window is shifted inside, or hangs over the end with `overhang`; one that holds
    everything begins at 0.
    """
    last = max(length - window, 0)
    exact = window * stride
    # PSPNet's releases round the step up, PyTorch-Encoding, whose windows hang over, down.
    pixels = (
        math.floor(exact + STRIDE_TOLERANCE) if overhang else math.ceil(exact - STRIDE_TOLERANCE)
    )
    step = max(1, pixels)
    starts = [i * step for i in range(math.ceil(last / step) + 1)]
    return starts if overhang else [min(start, last) for start in starts]


def covered(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size that holds both."""
    return max(first[0], second[0]), max(first[1], second[1])


def laid(
    image: Tensor, canvas: tuple[int, int], colour: Tensor | float = 0, middle: bool = False
) -> tuple[Tensor, int, int]:
    """Lay an image (C, h, w) on a canvas of one colour, in its upper left corner or its middle.

    `colour` is a number or (C, 1, 1). Returns the canvas (C, H, W), and the row and the column of
    it at which the image begins.
    """
    height, width = image.shape[-2:]
    if (height, width) == canvas:
        return image, 0, 0
    top = (canvas[0] - height) // 2 if middle else 0
    left = (canvas[1] - width) // 2 if middle else 0
    board = image.new_empty((len(image), *canvas))
    board[:] = colour
    board[:, top : top + height, left : left + width] = image
    return board, top, left
