"""Text in pictures, in the font that comes with Pillow: pictures are the same on every machine."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segtrain.visualization.colors import INK, PALE, PAPER, Color, readable_on

MARGIN = 12  # pixels around and between the parts of a picture


@functools.cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font at `size` pixels."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def text_line(
    text: str, width: int, size: int, margin: int = MARGIN, color: Color = INK
) -> np.ndarray:
    """Draw one line of text (size + 10, width, 3), shortened where it does not fit."""
    font = load_font(size)
    if font.getlength(text) > width - 2 * margin:
        while text and font.getlength(text + "...") > width - 2 * margin:
            text = text[:-1]
        text += "..."
    canvas = Image.new("RGB", (width, size + 10), PAPER)
    ImageDraw.Draw(canvas).text((margin, (size + 10) / 2), text, fill=color, font=font, anchor="lm")
    return np.asarray(canvas).copy()


def captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    """Put a caption above a picture."""
    line = text_line(caption, picture.shape[1], 14, margin=0, color=PALE)
    return np.concatenate([line, picture])


def upright(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw text that reads from bottom to top."""
    flat = Image.new("RGB", (int(font.getlength(text)) + 2, int(font.size) + 4), PAPER)
    ImageDraw.Draw(flat).text((1, flat.height / 2), text, fill=INK, font=font, anchor="lm")
    return flat.transpose(Image.Transpose.ROTATE_90)


def draw_tag(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: Color
) -> None:
    """Write a name above the upper left corner of a box, or inside it without room above."""
    width, height = draw.im.size
    font = load_font(int(np.clip(min(height, width) / 28, 11, 32)))
    text_width = font.getlength(text) + 6
    text_height = font.size + 4
    x = max(0, min(round(corner[0]), width - text_width))
    y = round(corner[1] - text_height) if corner[1] >= text_height else max(0, round(corner[1]))
    draw.rectangle((x, y, x + text_width, y + text_height), fill=color)
    middle = (x + 3, y + text_height / 2)
    draw.text(middle, text, fill=readable_on(color), font=font, anchor="lm")
