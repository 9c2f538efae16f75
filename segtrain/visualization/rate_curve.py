"""The picture of a learning-rate range test: the loss over the rate, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from segtrain.visualization.colors import INK, PALE, PAPER, VOID, WRONG, Color
from segtrain.visualization.text import load_font, text_line

# Chosen by eye.
SIZE = (900, 480)  # width and height of the axes and what stands around them, in pixels
LEFT = 76
RIGHT = 24
TOP = 16
BOTTOM = 46
CURVE: Color = (33, 113, 181)
MARKS = 5  # numbers on the axis of the loss, about


def rate_curve(
    rates: Sequence[float],
    losses: Sequence[float],
    smooth: Sequence[float],
    taken: int,
    title: str,
) -> np.ndarray:
    """Draw losses as points, their smoothed curve, and a line at the rate that is `taken`.

    Losses above what the curve shows are left out. Returns (H, W, 3) uint8.
    """
    axes = _Axes(rates, smooth)
    canvas = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(canvas)
    axes.draw(draw)
    for rate, loss in zip(rates, losses, strict=True):
        if math.isfinite(loss) and axes.low <= loss <= axes.high:
            x, y = axes.at(rate, loss)
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=PALE)
    line = [axes.at(rate, loss) for rate, loss in zip(rates, smooth, strict=False)]
    draw.line(line, fill=CURVE, width=3, joint="curve")
    x, _ = axes.at(rates[taken], smooth[taken])
    draw.line((x, TOP, x, SIZE[1] - BOTTOM), fill=WRONG, width=2)
    draw.text((x + 6, TOP + 4), f"{rates[taken]:.2g}", fill=WRONG, font=load_font(15))
    return np.concatenate([text_line(title, SIZE[0], 16), np.asarray(canvas)])


class _Axes:
    """Where a rate and a loss stand in the picture."""

    def __init__(self, rates: Sequence[float], smooth: Sequence[float]) -> None:
        self._first = math.log10(rates[0])
        self._last = math.log10(rates[-1])
        low = min(smooth)
        high = max(smooth)
        room = 0.15 * (high - low) or 1.0
        self.low = low - room
        self.high = high + room

    def at(self, rate: float, loss: float) -> tuple[float, float]:
        across = (math.log10(rate) - self._first) / (self._last - self._first)
        up = (loss - self.low) / (self.high - self.low)
        return (
            LEFT + across * (SIZE[0] - LEFT - RIGHT),
            SIZE[1] - BOTTOM - up * (SIZE[1] - TOP - BOTTOM),
        )

    def draw(self, draw: ImageDraw.ImageDraw) -> None:
        font = load_font(13)
        bottom = SIZE[1] - BOTTOM
        for power in range(math.ceil(self._first), math.floor(self._last) + 1):
            x, _ = self.at(10.0**power, self.low)
            draw.line((x, TOP, x, bottom), fill=VOID)
            draw.text((x, bottom + 6), f"1e{power}", fill=INK, font=font, anchor="mt")
        step = _round_step((self.high - self.low) / MARKS)
        for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            _, y = self.at(10.0**self._first, number * step)
            draw.line((LEFT, y, SIZE[0] - RIGHT, y), fill=VOID)
            draw.text((LEFT - 8, y), f"{number * step:.4g}", fill=INK, font=font, anchor="rm")
        draw.line((LEFT, TOP, LEFT, bottom), fill=INK)
        draw.line((LEFT, bottom, SIZE[0] - RIGHT, bottom), fill=INK)
        middle = (LEFT + (SIZE[0] - LEFT - RIGHT) / 2, SIZE[1] - 6)
        draw.text(middle, "optimizer.lr", fill=INK, font=load_font(14), anchor="mb")


def _round_step(about: float) -> float:
    """Return 1, 2 or 5 times a power of ten, near a number above 0."""
    power = 10.0 ** math.floor(math.log10(about))
    return min((1, 2, 5, 10), key=lambda times: abs(times * power - about)) * power
