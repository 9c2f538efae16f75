"""Boxes between anchors, proposals and objects: coding, matching, sampling, and targets of masks.

Boxes are (N, 4) x1, y1, x2, y2 in pixels of the network's input, x2 and y2 exclusive (no + 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from segtrain.structures.instances import Instances

LARGEST = math.log(1000 / 16)  # of a width or height delta, before its exponential
CROWDED = 0.7  # a box of which this share lies in a crowd region is no background
CHUNK = 32  # objects at a time: memory stays bounded with hundreds of objects in an image


@dataclass(frozen=True)
class Objects:
    """What is learned from of one image: objects with a box of an area, and the boxes of crowd regions."""

    boxes: Tensor  # (G, 4) float32
    labels: Tensor  # (G,) int64
    masks: Tensor  # (G, H, W) bool
    crowds: Tensor  # (C, 4) float32


def usable(target: Instances) -> Objects:
    """Crowd regions apart; without boxes that are not finite or have no area, of which nothing can be learned."""
    boxes = target.boxes.float()
    good = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    crowd = torch.zeros_like(good) if target.crowd is None else target.crowd
    kept = good & ~crowd
    if kept.all():  # hundreds of masks are not copied for nothing
        return Objects(boxes, target.labels, target.masks, boxes[:0])
    return Objects(boxes[kept], target.labels[kept], target.masks[kept], boxes[good & crowd])


def encode(
    objects: Tensor, boxes: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Deltas (N, 4) that move `boxes` onto `objects` (R-CNN, arXiv:1311.2524, appendix C), times `weights`.

    Middle x and y relative to the box's sides, logarithms of width and height ratios.
    """
    sides, wanted = boxes[:, 2:] - boxes[:, :2], objects[:, 2:] - objects[:, :2]
    shift = ((objects[:, :2] + objects[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) / 2 / sides
    return torch.cat([shift, (wanted / sides).log()], 1) * boxes.new_tensor(weights)


def decode(
    deltas: Tensor, boxes: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Boxes (..., 4) that `deltas` (..., 4) move `boxes` to; a side grows at most 1000 / 16 fold."""
    deltas = deltas / deltas.new_tensor(weights)
    sides = boxes[..., 2:] - boxes[..., :2]
    middle = (boxes[..., :2] + sides / 2) + deltas[..., :2] * sides
    half = sides * deltas[..., 2:].clamp(max=LARGEST).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut to an image of `size` (height, width)."""
    height, width = size
    return torch.stack([boxes[..., i].clamp(0, (width, height)[i % 2]) for i in range(4)], -1)


def match(
    objects: Tensor, boxes: Tensor, low: float, high: float, best: bool = False
) -> tuple[Tensor, Tensor]:
    """(which (N,) int64 object overlaps a box most, kind (N,) int8: 1 positive, 0 negative, -1 neither).

    Positive from IoU `high` on, negative below `low`. `best` also makes positive the boxes that no
    other box surpasses in their overlap with some object (Faster R-CNN, arXiv:1506.01497, section
    3.1.2), for the object that each overlaps most.
    """
    value, which = (
        boxes.new_full((len(boxes),), -1.0),
        torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device),
    )
    needed = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for first in range(0, len(objects), CHUNK):
        overlap = box_iou(objects[first : first + CHUNK], boxes)
        found, place = overlap.max(0)
        which = torch.where(found > value, place + first, which)
        value = torch.maximum(found, value)
        if best:
            highest = overlap.amax(1, keepdim=True)
            needed |= ((overlap == highest) & (highest > 0)).any(0)
    kind = torch.where(value < low, 0, torch.where(value >= high, 1, -1)).to(torch.int8)
    return which, torch.where(needed, 1, kind).to(torch.int8)


def not_crowded(kind: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor:
    """`kind` of `match`, where negatives that lie in a crowd region, by 0.7 of their own area, become neither."""
    if not len(crowds):
        return kind
    first = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])
    shared = (torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:]) - first).clamp(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-6)
    covered = shared.amax(1) / area >= CROWDED
    return torch.where(covered & (kind == 0), -1, kind).to(torch.int8)


def sample(
    kind: Tensor, count: int, share: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Places of at most `count` boxes, drawn without repetition: (positives, at most `share` of them; negatives).

    Drawn on the CPU, so that every device draws the same; `generator` None is torch's own.
    """
    positive, negative = (torch.nonzero(kind == wanted).flatten() for wanted in (1, 0))
    positives = min(len(positive), int(count * share))
    return some(positive, positives, generator), some(
        negative, min(len(negative), count - positives), generator
    )


def some(places: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` of `places` (N,), without repetition, in random order."""
    return places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]


def draws(training: bool) -> torch.Generator | None:
    """What `sample` draws from: torch's own generator in training; else always the same numbers, so that losses are."""
    return None if training else torch.Generator().manual_seed(0)


def mask_targets(
    masks: Tensor, boxes: Tensor, which: Tensor, size: int, legacy: bool = False
) -> Tensor:
    """(R, size, size) float: mask `which[i]` of `masks` (G, H, W) bool in box i, 1 where at least half of a cell is mask.

    A box may reach beyond the image, where no mask is. `legacy`: torchvision's targets, the covered
    share of a cell half a pixel to the right and below.
    """
    cells = boxes.new_zeros((len(boxes), size, size))
    border = 0 if legacy else 1  # of zeros: roi_align would repeat the image's last pixels outside
    for first in range(0, len(masks), CHUNK):
        rows = torch.nonzero((which >= first) & (which < first + CHUNK)).flatten()
        if len(rows):
            regions = torch.cat([(which[rows] - first)[:, None].to(boxes), boxes[rows] + border], 1)
            pixels = F.pad(masks[first : first + CHUNK, None].to(boxes.dtype), (border,) * 4)
            # The operator itself: roi_align of torchvision would take gigabytes with deterministic
            # algorithms, which only a gradient needs.
            cells[rows] = torch.ops.torchvision.roi_align(
                pixels, regions, 1.0, size, size, -1, not legacy
            )[:, 0]
    return cells if legacy else (cells >= 0.5).to(cells.dtype)
