"""Boxes between anchors, proposals and objects: coding, matching, sampling, and targets of masks.

Boxes are (N, 4) x1, y1, x2, y2 in pixels of the network's input, x2 and y2 exclusive (no + 1).

Detectron and PANet's release name a box by its last pixels instead, and count + 1 in its sides.
With x2 and y2 one larger that is the same box, with the same sides, deltas and overlaps, and boxes
are kept so everywhere. Three things remain, for which parts have an argument `inclusive`: a box is
cut so that its last pixel lies in the image, its features are read up to that pixel's first edge
(`up_to_last`), and between images of two sizes it is the last pixel that is scaled, not the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from segtrain.structures.instances import Instances

# Of a width or height delta, before its exponential, which would overflow: a side grows at most
# 1000 / 16 fold, as Detectron's BBOX_XFORM_CLIP says.
MAX_LOG_SCALE = math.log(1000 / 16)
# A box of which this share lies in a crowd region is no background (Detectron's
# TRAIN.CROWD_FILTER_THRESH).
CROWD_SHARE = 0.7
# Objects are taken so many at a time: memory stays bounded with hundreds of objects in an image.
# Chosen by hand.
OBJECTS_AT_A_TIME = 32


@dataclass(frozen=True)
class Objects:
    """What one image teaches: G objects whose boxes have an area, and C crowd regions."""

    boxes: Tensor  # (G, 4) float32
    labels: Tensor  # (G,) int64
    masks: Tensor  # (G, H, W) bool
    crowds: Tensor  # (C, 4) float32


def usable(target: Instances) -> Objects:
    """Set crowd regions apart, and leave out objects that teach nothing.

    Those are objects whose box is not finite or has no area.
    """
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
    """Return the deltas (N, 4) that move `boxes` onto `objects`, times `weights`.

    They are the middle's x and y relative to the box's sides, and the logarithms of the ratios of
    width and height (R-CNN, arXiv:1311.2524, appendix C).
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    wanted = objects[:, 2:] - objects[:, :2]
    shift = ((objects[:, :2] + objects[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) / 2 / sides
    return torch.cat([shift, (wanted / sides).log()], 1) * boxes.new_tensor(weights)


def decode(
    deltas: Tensor, boxes: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Return the boxes (..., 4) that `deltas` (..., 4) move `boxes` to.

    A side grows at most 1000 / 16 fold.
    """
    deltas = deltas / deltas.new_tensor(weights)
    sides = boxes[..., 2:] - boxes[..., :2]
    middle = (boxes[..., :2] + sides / 2) + deltas[..., :2] * sides
    half = sides * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


def clip(boxes: Tensor, size: tuple[int, int], inclusive: bool = False) -> Tensor:
    """Cut boxes (..., 4) to an image of `size` (height, width).

    `inclusive`: their first and last pixels are moved into it, so one that starts inside keeps at
    least one pixel.
    """
    height, width = size
    one = 1 if inclusive else 0
    low = (0, 0, one, one)
    high = (width - one, height - one, width, height)
    return torch.stack([boxes[..., i].clamp(low[i], high[i]) for i in range(4)], -1)


def up_to_last(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4) that end with the first edge of their last pixels, not the second."""
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def moved_ends(growth: Tensor, inclusive: bool) -> Tensor:
    """Return (4,) what boxes get added before they are divided by `growth`, x, y, x, y.

    It is nothing for exclusive boxes. Of inclusive ones the last pixel is scaled and not the end:
    x2 becomes (x2 - 1) / growth + 1.
    """
    ends = growth.new_tensor([0, 0, 1, 1]) if inclusive else growth.new_zeros(4)
    return ends * (growth - 1)


def match(
    objects: Tensor, boxes: Tensor, low: float, high: float, best: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (which (N,) int64, kind (N,) int8) of N boxes.

    `which` is the object that a box overlaps most, `kind` is 1 positive, 0 negative, -1 neither.
    Positive from IoU `high` on, negative below `low`. `best` also makes positive the boxes that no
    other box surpasses in their overlap with some object (Faster R-CNN, arXiv:1506.01497, section
    3.1.2), for the object that each overlaps most.
    """
    value = boxes.new_full((len(boxes),), -1.0)
    which = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    needed = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for first in range(0, len(objects), OBJECTS_AT_A_TIME):
        overlap = box_iou(objects[first : first + OBJECTS_AT_A_TIME], boxes)
        highest, index = overlap.max(0)
        which = torch.where(highest > value, index + first, which)
        value = torch.maximum(highest, value)
        if best:
            of_object = overlap.amax(1, keepdim=True)
            needed |= ((overlap == of_object) & (of_object > 0)).any(0)
    kind = torch.where(value < low, 0, torch.where(value >= high, 1, -1)).to(torch.int8)
    return which, torch.where(needed, 1, kind).to(torch.int8)


def not_crowded(kind: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor:
    """Make negatives that lie in a crowd region, by 0.7 of their own area, neither.

    `kind` is that of `match`.
    """
    if not len(crowds):
        return kind
    first = torch.maximum(boxes[:, None, :2], crowds[None, :, :2])
    shared = (torch.minimum(boxes[:, None, 2:], crowds[None, :, 2:]) - first).clamp(min=0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-6)  # a box may have no area
    covered = shared.amax(1) / area >= CROWD_SHARE
    return torch.where(covered & (kind == 0), -1, kind).to(torch.int8)


def sample(
    kind: Tensor, count: int, positive_share: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw the indices of at most `count` boxes without repetition: (positives, negatives).

    At most `positive_share` of them are positive; negatives take the places of missing positives.
    They are drawn on the CPU, so that every device draws the same; `generator` None is torch's own.
    """
    positive, negative = (torch.nonzero(kind == wanted).flatten() for wanted in (1, 0))
    positives = min(len(positive), int(count * positive_share))
    negatives = min(len(negative), count - positives)
    # The positives come first: a generator gives its numbers in this order.
    drawn = random_subset(positive, positives, generator)
    return drawn, random_subset(negative, negatives, generator)


def random_subset(indices: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Return `count` of `indices` (N,), without repetition, in random order."""
    order = torch.randperm(len(indices), generator=generator)[:count]
    return indices[order.to(indices.device)]


def sampling_generator(training: bool) -> torch.Generator | None:
    """Return what `sample` draws from: None, torch's own generator, in training.

    Elsewhere it gives the same numbers every time, so that a measured loss is the same, too.
    """
    return None if training else torch.Generator().manual_seed(0)


def mask_targets(
    masks: Tensor,
    boxes: Tensor,
    which: Tensor,
    size: int,
    legacy: bool = False,
    covered: bool | None = None,
) -> Tensor:
    """Return what R masks look like inside their boxes, (R, size, size) float.

    Target i is mask `which[i]` of `masks` (G, H, W) bool in box i: with `covered` the share of a
    cell's area that is mask; else 1 where RoIAlign reads at least half, and 0. A box may reach
    beyond the image, where no mask is. `legacy` reads cells as torchvision does, half a pixel to
    the right and below, whose targets are what RoIAlign reads: that is `covered` None.
    """
    cells = boxes.new_zeros((len(boxes), size, size))
    shares = legacy if covered is None else covered
    # A border of zeros: roi_align would repeat the image's last pixels outside.
    border = 0 if legacy else 1
    for first in range(0, len(masks), OBJECTS_AT_A_TIME):
        rows = torch.nonzero((which >= first) & (which < first + OBJECTS_AT_A_TIME)).flatten()
        if len(rows) and shares and not legacy:
            some = masks[first : first + OBJECTS_AT_A_TIME]
            cells[rows] = covered_shares(some, boxes[rows], which[rows] - first, size).to(cells)
        elif len(rows):
            regions = torch.cat([(which[rows] - first)[:, None].to(boxes), boxes[rows] + border], 1)
            pixels = F.pad(
                masks[first : first + OBJECTS_AT_A_TIME, None].to(boxes.dtype), (border,) * 4
            )
            # The operator itself: torchvision's function would take gigabytes with deterministic
            # algorithms, which only a gradient needs.
            cells[rows] = torch.ops.torchvision.roi_align(
                pixels, regions, 1.0, size, size, -1, not legacy
            )[:, 0]
    return cells if shares else (cells >= 0.5).to(cells.dtype)


def covered_shares(masks: Tensor, boxes: Tensor, which: Tensor, size: int) -> Tensor:
    """Return the share of each cell's area that is mask, (R, size, size) float64, exact.

    Arguments are those of `mask_targets`. The area above and left of a point comes from a table of
    sums, which is exact between whole pixels too where it is read bilinearly.
    """
    height, width = masks.shape[1:]
    sums = masks.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    sums = F.pad(sums, (1, 0, 1, 0))
    steps = torch.arange(size + 1, dtype=torch.float64, device=boxes.device) / size
    corners = boxes.double()
    x, y = (
        corners[:, i, None] + (corners[:, i + 2] - corners[:, i])[:, None] * steps for i in (0, 1)
    )
    x = x.clamp(0, width)
    y = y.clamp(0, height)
    left = x.long().clamp(max=width - 1)
    top = y.long().clamp(max=height - 1)
    right_share = (x - left)[:, None, :]
    lower_share = (y - top)[:, :, None]

    def read(rows: Tensor, columns: Tensor) -> Tensor:
        return sums[which[:, None, None], rows[:, :, None], columns[:, None, :]].double()

    upper = torch.lerp(read(top, left), read(top, left + 1), right_share)
    lower = torch.lerp(read(top + 1, left), read(top + 1, left + 1), right_share)
    areas = torch.lerp(upper, lower, lower_share).diff(dim=1).diff(dim=2)
    cell = (corners[:, 2:] - corners[:, :2]).prod(1) / size**2
    return (areas / cell.clamp(min=1e-12)[:, None, None]).clamp(0, 1)
