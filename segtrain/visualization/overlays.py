"""Label maps and objects drawn over the image that they belong to."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from segtrain.structures import run_lengths
from segtrain.structures.boxes import corners, overlaps
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import IGNORE
from segtrain.visualization.colors import PAPER, Color, as_array, blend, colorize
from segtrain.visualization.text import draw_tag

Prediction = np.ndarray | Tensor | Instances | Segments

MIN_SCORE = 0.5  # detectors return objects from 0.05 on, and the unsure ones clutter a picture
MAX_DRAWN_OBJECTS = 100  # what detectors return at most; a prediction with more is one of proposals
DRAWN_PROPOSALS = 10  # of so many proposals more would hide the image
MAX_OVERLAP = 0.5  # box IoU above which the less sure of two objects of one class is not drawn


def overlay(
    image: np.ndarray,
    prediction: Prediction,
    class_names: Sequence[str],
    colors: Sequence[Color],
    min_score: float = MIN_SCORE,
) -> np.ndarray:
    """Draw a label map (H, W) or objects over `image`, at its size; ignored pixels are left alone.

    Predicted objects are drawn from `min_score` on, unless half of one lies over a better one of
    its class. Of more than 100 objects, which are proposals, only the best 10 are drawn. Without
    masks only boxes are drawn.
    """
    return paint(select_drawn(prediction, min_score), image, class_names, colors)


def select_drawn(prediction: Prediction, min_score: float) -> np.ndarray | Tensor | Segments:
    """Select what to draw. Objects are sorted so that the most confident is painted last.

    Label maps, and objects without scores (a truth), are drawn whole.
    """
    objects = run_lengths.segments(prediction) if isinstance(prediction, Instances) else prediction
    if not isinstance(objects, Segments) or objects.scores is None:
        return objects
    by_score = np.argsort(-objects.scores, kind="stable")
    confident = by_score[objects.scores[by_score] >= min_score]
    order = np.array(_without_duplicates(objects, confident)[::-1], np.int64)
    return replace(
        objects,
        labels=objects.labels[order],
        boxes=objects.boxes[order],
        areas=objects.areas[order],
        scores=objects.scores[order],
        masks=objects.masks and [objects.masks[i] for i in order],
    )


def _without_duplicates(objects: Segments, candidates: np.ndarray) -> list[int]:
    """Keep the candidates (indices, best first) that are not half over a better one of their class.

    All are kept, or only the best 10 where there are more than 100.
    """
    limit = MAX_DRAWN_OBJECTS if len(candidates) <= MAX_DRAWN_OBJECTS else DRAWN_PROPOSALS
    boxes = corners(objects.boxes)
    kept: list[int] = []
    for index in candidates.tolist():
        if len(kept) == limit:
            break
        same_class = [other for other in kept if objects.labels[other] == objects.labels[index]]
        if same_class and (overlaps(boxes[[index]], boxes[same_class]) > MAX_OVERLAP).any():
            continue
        kept.append(index)
    return kept


@functools.singledispatch
def paint(
    drawn: object, image: np.ndarray, class_names: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    """Paint what `select_drawn` selected over a copy of `image`: a label map or objects."""
    raise TypeError(f"cannot draw a {type(drawn).__name__}")


@paint.register(np.ndarray)
@paint.register(Tensor)
def _paint_labels(
    drawn: np.ndarray | Tensor,
    image: np.ndarray,
    class_names: Sequence[str],
    colors: Sequence[Color],
) -> np.ndarray:
    """Tint every pixel in its class's colour and brighten the borders between classes."""
    labels = as_array(drawn)
    tinted = blend(image, colorize(labels, colors), 0.6)
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    tinted[border] = blend(tinted[border], np.array(PAPER), 0.6)
    return np.where((labels == IGNORE)[..., None], image, tinted)


@paint.register(Segments)
def _paint_objects(
    drawn: Segments, image: np.ndarray, class_names: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    """Tint every mask and draw its outline, then all boxes, then all names.

    So no box crosses a name.
    """
    picture = image.copy()
    labels = drawn.labels.tolist()
    line_width = max(1, round(min(image.shape[:2]) / 200))
    _paint_masks(drawn, picture, colors, line_width)

    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    boxes = corners(drawn.boxes).tolist()
    for label, box in zip(labels, boxes, strict=True):
        left, top, right, bottom = (round(side) for side in box)
        # Pillow counts the last pixel as part of a rectangle, our boxes end before it.
        last = (max(left, right - 1), max(top, bottom - 1))
        draw.rectangle((left, top, *last), outline=colors[label], width=line_width)
    for number, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        score = "" if drawn.scores is None else f" {drawn.scores[number]:.2f}"
        draw_tag(draw, (box[0], box[1]), class_names[label] + score, colors[label])
    return np.asarray(canvas).copy()


def _paint_masks(
    drawn: Segments, picture: np.ndarray, colors: Sequence[Color], line_width: int
) -> None:
    """Tint the masks in `picture` itself, each in the window of its box."""
    masks = drawn.masks or []
    windows = run_lengths.boxes(masks).astype(int).tolist()
    for label, mask, (x, y, width, height) in zip(
        drawn.labels.tolist(), masks, windows, strict=False
    ):
        rows = slice(y, y + height)
        columns = slice(x, x + width)
        part = picture[rows, columns]
        inside = run_lengths.decode([mask], drawn.size)[0][rows, columns]
        part[inside] = blend(part[inside], np.array(colors[label]), 0.5)
        part[inside & ~_eroded(inside, line_width)] = colors[label]


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """Take the outermost `times` pixels off a mask (H, W).

    A pixel has 4 neighbours, and nothing beyond the picture belongs to the mask.
    """
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask
