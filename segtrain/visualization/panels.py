"""Pictures side by side: image, truth, prediction and errors, with a legend; grids of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import IGNORE
from segtrain.visualization.colors import INK, PALE, PAPER, VOID, WRONG, Color, as_array, blend
from segtrain.visualization.overlays import MIN_SCORE, Prediction, paint, select_drawn
from segtrain.visualization.text import MARGIN, captioned, load_font, text_line

MAX_TILE_WIDTH = 640  # pixels; wider pictures are shrunk, for four of them stand in a row
MIN_TILE_WIDTH = 320  # pixels; pictures of less than half are enlarged, or captions would not fit
SWATCH = 14  # pixels of a colour's square in a legend


def panel(
    image: np.ndarray,
    truth: Prediction,
    prediction: Prediction,
    class_names: Sequence[str],
    colors: Sequence[Color],
    title: str = "",
    min_score: float = MIN_SCORE,
) -> np.ndarray:
    """Draw image | truth | prediction in a row, for label maps also | errors, with a legend.

    Predicted objects are selected as in `overlay`; the caption tells how many of them are shown.
    """
    drawn_truth = select_drawn(truth, min_score)
    drawn = select_drawn(prediction, min_score)
    count = counted(prediction, min_score)
    caption = f"prediction: {count}" if count else "prediction"
    tiles = {
        "image": image,
        "truth": paint(drawn_truth, image, class_names, colors),
        caption: paint(drawn, image, class_names, colors),
    }
    if not isinstance(drawn_truth, Segments) and not isinstance(drawn, Segments):
        errors = error_picture(image, as_array(drawn_truth), as_array(drawn))
        tiles["errors in red, ignored pale"] = errors
    row = grid([captioned(_fit(tile), name) for name, tile in tiles.items()], columns=len(tiles))
    present = _labels_of(drawn_truth) | _labels_of(drawn)
    parts = [row, legend(class_names, colors, present, width=row.shape[1])]
    if title:
        parts.insert(0, text_line(title, row.shape[1], 18))
    return np.concatenate(parts)


def counted(prediction: Prediction, min_score: float = MIN_SCORE) -> str:
    """Say how many of the predicted objects a picture shows; "" for other predictions."""
    if not isinstance(prediction, Instances | Segments) or prediction.scores is None:
        return ""
    drawn = select_drawn(prediction, min_score)
    assert isinstance(drawn, Segments)
    best = max((float(score) for score in prediction.scores), default=0.0)
    surest = "" if len(drawn) else f", the surest {best:.2f}"
    return f"{len(drawn)} of {len(prediction.labels)}, score from {min_score:g}{surest}"


def legend(
    class_names: Sequence[str], colors: Sequence[Color], present: Iterable[int], width: int = 640
) -> np.ndarray:
    """Draw colour and name of the classes `present` (train ids), wrapped to `width` pixels.

    Ids without a name, such as IGNORE, are skipped.
    """
    font = load_font(14)
    corners = []
    x = MARGIN
    y = MARGIN
    for label in sorted(set(present)):
        if not 0 <= label < len(class_names):
            continue
        needed = SWATCH + 6 + int(font.getlength(class_names[label])) + 18
        if x > MARGIN and x + needed > width - MARGIN:
            x = MARGIN
            y += 22
        corners.append((label, x, y))
        x += needed
    canvas = Image.new("RGB", (width, y + SWATCH + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for label, x, y in corners:
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=tuple(colors[label]), outline=PALE)
        middle = (x + SWATCH + 6, y + SWATCH / 2)
        draw.text(middle, class_names[label], fill=INK, font=font, anchor="lm")
    return np.asarray(canvas).copy()


def error_picture(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Draw the image in grey, red where the prediction is wrong, pale where pixels are ignored."""
    grey = np.repeat(image.mean(2, keepdims=True), 3, axis=2)
    picture = blend(grey, np.array(PAPER), 0.35)
    ignored = truth == IGNORE
    wrong = (truth != prediction) & ~ignored
    picture[wrong] = blend(picture[wrong], np.array(WRONG), 0.75)
    picture[ignored] = blend(picture[ignored], np.array(VOID), 0.8)
    return picture


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arrange pictures of any sizes in rows of `columns`, with margins around.

    All cells are as large as the largest picture; each picture stands at the upper left of its own.
    """
    if not pictures or columns < 1:
        raise ValueError("grid() needs at least one picture and one column")
    columns = min(columns, len(pictures))
    height = max(picture.shape[0] for picture in pictures) + MARGIN
    width = max(picture.shape[1] for picture in pictures) + MARGIN
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * height + MARGIN, columns * width + MARGIN, 3), PAPER, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top = MARGIN + i // columns * height
        left = MARGIN + i % columns * width
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def _labels_of(drawn: np.ndarray | Tensor | Segments) -> set[int]:
    """Return the train ids in a label map or of objects."""
    labels = drawn.labels if isinstance(drawn, Segments) else drawn
    return set(np.unique(as_array(labels)).tolist()) - {IGNORE}


def _fit(picture: np.ndarray) -> np.ndarray:
    """Enlarge a small picture by a whole factor, which keeps its pixels, or shrink a wide one."""
    height, width = picture.shape[:2]
    if width > MAX_TILE_WIDTH:
        size = (MAX_TILE_WIDTH, max(1, round(height * MAX_TILE_WIDTH / width)))
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)).copy()
    factor = max(1, MIN_TILE_WIDTH // width)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
