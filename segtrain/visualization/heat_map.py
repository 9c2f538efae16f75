"""The picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from segtrain.visualization.colors import INK, PALE, PAPER, as_array, readable_on
from segtrain.visualization.text import MARGIN, load_font, upright

# Colours and sizes are chosen by eye. Blues close to ColorBrewer's, from 0 to 100 %.
HEAT = np.array(
    [(247, 250, 253), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107)],
    dtype=np.float64,
)
EMPTY = (240, 240, 240)  # a row without true pixels, which has no percentages
PICTURE_WIDTH = 960  # pixels that all cells together aim at
CELL_SIDES = (14, 56)  # pixels: smallest, so that names stay readable, and largest
MIN_SIDE_WITH_NUMBER = 24  # pixels; two digits do not fit into a smaller cell


def confusion_picture(matrix: Tensor | np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draw counts (K, K), rows = truth, as a heat map of percentages of the row."""
    counts = as_array(matrix).astype(np.float64)
    row_sums = counts.sum(1, keepdims=True)
    shares = np.divide(counts, row_sums, out=np.zeros_like(counts), where=row_sums > 0)
    classes = len(class_names)
    side = int(np.clip(PICTURE_WIDTH / classes, *CELL_SIDES))
    font = load_font(13 if side >= 18 else 11)
    label_length = int(max(font.getlength(name) for name in class_names)) + 10
    left = MARGIN + label_length
    top = MARGIN + 26
    width = left + max(classes * side, 300) + MARGIN  # the line above the cells needs 300 pixels
    canvas = Image.new("RGB", (width, top + classes * side + label_length + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    title = "row: truth, column: prediction, % of the row"
    draw.text((left, MARGIN), title, fill=PALE, font=load_font(13), anchor="lt")
    for row in range(classes):
        for column in range(classes):
            corner = (left + column * side, top + row * side)
            _draw_cell(draw, corner, side, float(shares[row, column]), row_sums[row, 0] == 0)
    for i, name in enumerate(class_names):
        middle = i * side + side / 2
        draw.text((left - 6, top + middle), name, fill=INK, font=font, anchor="rm")
        label = upright(name, font)
        corner = (round(left + middle - label.width / 2), top + classes * side + 6)
        canvas.paste(label, corner)
    return np.asarray(canvas).copy()


def _draw_cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, share: float, empty: bool
) -> None:
    """Draw one cell, with its percentage where it rounds to at least 1 and fits."""
    x, y = corner
    # The square root lets a confusion of 1 % be seen beside one of 90 %.
    position = share**0.5 * (len(HEAT) - 1)
    red, green, blue = (
        round(np.interp(position, range(len(HEAT)), HEAT[:, channel])) for channel in range(3)
    )
    fill = EMPTY if empty else (red, green, blue)
    corners = (x, y, x + side - 2, y + side - 2)  # a line of paper stays between cells
    draw.rectangle(corners, fill=fill)
    if side < MIN_SIDE_WITH_NUMBER or round(100 * share) < 1:
        return
    middle = (x + side / 2 - 1, y + side / 2 - 1)
    font = load_font(min(15, side // 2))
    draw.text(middle, f"{100 * share:.0f}", fill=readable_on(fill), font=font, anchor="mm")
