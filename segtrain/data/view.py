"""What an augmented sample shows of its source, image and labels together. The only home of cv2.

Scaling the whole image and then cropping computes pixels that are thrown away. Here scale and
position are drawn as if that were done, but only the window of the source that the crop will show
is read and resized. A rotated crop is sampled by one affine map from the window that lies below
it, a bent one by the map's positions moved pixel by pixel. Image and mask may be arrays or anything
else that has a shape and reads by two slices, such as the tiles of `cache.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import cv2
import numpy as np
import torch

from segtrain.errors import DataError
from segtrain.structures.instances import Instances
from segtrain.structures.samples import IGNORE, Sample

# Where the padding lies of a scaled image that is smaller than the crop: right and below, and
# mirrored with the image | all round, the image in the middle | right and below in any case.
Padding = Literal["mirrored", "middle", "end"]

cv2.setNumThreads(0)  # loader workers are the parallelism; threads inside each would only compete


class Pixels(Protocol):
    """An image (H, W, 3) or a mask (H, W), uint8: `pixels[top:bottom, left:right]` is an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The height, the width, and 3 for an image."""
        ...

    def __getitem__(self, window: tuple[slice, slice], /) -> np.ndarray:
        """Return the pixels of a window."""
        ...


@dataclass(frozen=True)
class View:
    """What one draw shows of a source.

    A `window` of the source is scaled to `shown`, turned, and laid in the crop at `offset`; then
    the crop is mirrored.
    """

    source: tuple[int, int]  # height, width
    crop: tuple[int, int]  # height, width
    window: tuple[int, int, int, int]  # top, left, height, width in the source
    # Height, width in the crop; less than the crop only where the window is the whole side.
    shown: tuple[int, int]
    angle: float = 0.0  # degrees
    mirrored: bool = False
    # (crop height, crop width, 2), displacements x and y in pixels of the crop.
    bend: np.ndarray | None = field(default=None, compare=False)
    offset: tuple[int, int] = (0, 0)  # top, left of what is shown, before mirroring

    def matrix(self) -> np.ndarray:
        """Return the map (2, 3) from pixel (x, y) of the crop to pixel (x, y) of the source.

        The turn is about the middle of what is shown, in the plane of the scaled image, and
        reaches beyond the window, so padding shows only where the source ends. Pixel centres lie at
        half-integers, so scaling does not shift.
        """
        top, left, height, width = self.window
        cos = np.cos(np.deg2rad(self.angle))
        sin = np.sin(np.deg2rad(self.angle))
        turn = np.array([[cos, -sin], [sin, cos]])
        shrink = np.array([width / self.shown[1], height / self.shown[0]])
        middle = np.array([self.shown[1], self.shown[0]]) / 2
        linear = shrink[:, None] * turn
        offset = np.array([left, top]) + shrink * (middle + turn @ (0.5 - middle)) - 0.5
        matrix = np.column_stack([linear, offset - linear @ self.offset[::-1]])
        if self.mirrored:
            matrix[:, 2] += (self.crop[1] - 1) * matrix[:, 0]
            matrix[:, 0] *= -1
        return matrix

    def corners(self) -> np.ndarray:
        """Return (2, 4), x and y in the source of the crop's four corner pixels.

        All other pixels lie between them.
        """
        height, width = self.crop
        x = [0, width - 1, 0, width - 1]
        y = [0, 0, height - 1, height - 1]
        return self.matrix() @ [x, y, [1, 1, 1, 1]]

    @cached_property
    def bent(self) -> np.ndarray:
        """Return (2, crop height, crop width) float32, x and y in the source of every pixel.

        Only for a bent view.
        """
        assert self.bend is not None
        y, x = np.indices(self.crop)
        moved = np.stack([x + self.bend[..., 0], y + self.bend[..., 1], np.ones(self.crop)])
        return np.tensordot(self.matrix(), moved, 1).astype(np.float32)

    def reach(self) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right) of the source pixels that the crop is made from."""
        if self.plain:
            top, left, height, width = self.window
            return top, left, top + height, left + width
        bounds = []
        farthest = self.corners() if self.bend is None else self.bent
        for positions, side in zip(farthest, (self.source[1], self.source[0]), strict=True):
            # Two pixels to each side hold the neighbours of interpolation and all rounding. Where a
            # side is missed altogether, its last pixel is what repeats there.
            first = min(max(0, int(np.floor(positions.min())) - 2), side - 1)
            end = min(side, int(np.ceil(positions.max())) + 3)
            bounds.append((first, max(first + 1, end)))
        (left, right), (top, bottom) = bounds
        return top, left, bottom, right

    def show(self, pixels: Pixels, smooth: bool) -> np.ndarray:
        """Return the crop of `pixels`, a new array.

        Pixels are bilinear where `smooth`, else those nearest to each pixel's centre. Outside the
        source its border pixels are repeated, until `paint`.
        """
        height, width = self.crop
        top, left, bottom, right = self.reach()
        part = pixels[top:bottom, left:right]
        if not self.plain:
            method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
            whole = np.ascontiguousarray(part)
            if self.bend is not None:
                x = self.bent[0] - np.float32(left)
                y = self.bent[1] - np.float32(top)
                return cv2.remap(whole, x, y, method, None, cv2.BORDER_REPLICATE)
            matrix = self.matrix() - [[0, 0, left], [0, 0, top]]
            flags = method | cv2.WARP_INVERSE_MAP
            return cv2.warpAffine(whole, matrix, (width, height), None, flags, cv2.BORDER_REPLICATE)
        # INTER_NEAREST would resize from pixel corners, up to half a pixel away from where the
        # image is sampled.
        method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT
        crop = cv2.resize(part, self.shown[::-1], interpolation=method)
        below = height - self.shown[0]
        beside = width - self.shown[1]
        if below or beside:
            over, before = self.offset
            sides = (over, below - over, before, beside - before)
            crop = cv2.copyMakeBorder(crop, *sides, cv2.BORDER_REPLICATE)
        return cv2.flip(crop, 1) if self.mirrored else crop

    @property
    def plain(self) -> bool:
        """Tell whether the view is a scaled rectangle of the source."""
        return not self.angle and self.bend is None

    @cached_property
    def _outside(self) -> np.ndarray | None:
        """Return (crop height, crop width) bool, the pixels whose centres lie outside the source.

        Only for a turned or bent view. None: a turned view without such pixels.
        """
        limits = np.array([[self.source[1]], [self.source[0]]]) - 0.5
        if self.bend is not None:
            x, y = self.bent
            return (np.minimum(x, y) < -0.5) | (x >= limits[0]) | (y >= limits[1])
        if ((self.corners() >= -0.5) & (self.corners() < limits)).all():
            return None
        height, width = self.crop
        outside = np.zeros(self.crop, bool)
        for (x, y, offset), limit in zip(self.matrix(), limits[:, 0], strict=True):
            positions = x * np.arange(width) + (y * np.arange(height) + offset)[:, None]
            outside |= (positions < -0.5) | (positions >= limit)
        return outside

    @property
    def inside(self) -> tuple[int, int, int, int]:
        """Return top, left, bottom, right of the source in the crop. Only for a plain view."""
        assert self.plain
        top, left = self.offset
        height, width = self.shown
        if self.mirrored:
            left = self.crop[1] - width - left
        return top, left, top + height, left + width

    def paint(self, crop: np.ndarray, value: int | np.ndarray) -> None:
        """Fill what lies outside the source in a `crop` that `show` made."""
        if not self.plain:
            if self._outside is not None:
                crop[self._outside] = value
            return
        top, left, bottom, right = self.inside
        crop[:top] = crop[bottom:] = value
        crop[:, :left] = crop[:, right:] = value


def draw_view(
    source: tuple[int, int],
    crop: tuple[int, int],
    scale: float,
    position: tuple[float, float],
    angle: float = 0.0,
) -> View:
    """Return the view of scaling `source` (height, width) and then cropping.

    `position` in [0, 1)^2 chooses among the positions that the crop can take. The window's size and
    position are rounded to whole source pixels. A scaled image smaller than the crop lies at its
    top left.
    """
    axes = []
    for side, length, share in zip(source, crop, position, strict=True):
        shown = min(length, max(1, round(side * scale)))
        window = min(side, max(1, round(shown / scale))) if shown == length else side
        axes.append((int(share * (side - window + 1)), window, shown))
    (top, height, shown_h), (left, width, shown_w) = axes
    return View(source, crop, (top, left, height, width), (shown_h, shown_w), angle)


def padded(view: View, padding: Padding) -> View:
    """Return the view with its padding where `padding` says, see `Padding`.

    "middle" puts half of it, rounded down, above and left of the finished crop.
    """
    if padding == "mirrored":
        return view
    below = view.crop[0] - view.shown[0]
    beside = view.crop[1] - view.shown[1]
    top = below // 2 if padding == "middle" else 0
    left = beside // 2 if padding == "middle" else 0
    return replace(view, offset=(top, beside - left if view.mirrored else left))


def draw_bend(crop: tuple[int, int], deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Draw (crop height, crop width, 2) float32 displacements x and y in pixels.

    Nine vectors, each component N(0, `deviation`), lie in the middles of the crop's 3 x 3 equal
    parts; between them the displacements are bicubic (U-Net, arXiv:1505.04597, section 3.1).
    """
    grid = rng.normal(0.0, deviation, (3, 3, 2)).astype(np.float32)
    return cv2.resize(grid, crop[::-1], interpolation=cv2.INTER_CUBIC)


def show_sample(
    sample: Sample, view: View, image: np.ndarray, padding_label: int = IGNORE
) -> Sample:
    """Return the sample with `image` for its image, and what the view shows of its labels."""
    mask = sample.mask
    instances = sample.instances
    return replace(
        sample,
        image=image,
        mask=None if mask is None else show_mask(mask, view, padding_label),
        instances=None if instances is None else show_instances(instances, view),
    )


def show_mask(mask: Pixels, view: View, padding_label: int = IGNORE) -> np.ndarray:
    """Return what the view shows of a label mask (H, W), `padding_label` where the source ends."""
    shown = view.show(mask, smooth=False)
    view.paint(shown, padding_label)
    return shown


def show_instances(instances: Instances, view: View) -> Instances:
    """Return the objects of which the view shows a pixel, with the tightest boxes of what it shows.

    So a box is at least a pixel wide and high. The others are left out and counted in `dropped`.
    """
    shown = [view.show(mask, smooth=False) for mask in instances.masks.numpy().view(np.uint8)]
    for mask in shown:
        view.paint(mask, 0)
    return instances_in(shown, instances, view.crop)


def instances_in(
    masks: Sequence[np.ndarray], instances: Instances, size: tuple[int, int]
) -> Instances:
    """Return `instances` with other masks (H, W) of 0 and 1, of `size`, and their tightest boxes.

    Those without a pixel are left out and counted in `dropped`.
    """
    kept = []
    boxes = []
    for number, mask in enumerate(masks):
        left, top, width, height = cv2.boundingRect(mask)  # of the pixels that are not 0
        if width:
            kept.append(number)
            boxes.append([left, top, left + width, top + height])
    crowd = instances.crowd
    scores = instances.scores
    found = np.stack([masks[k] for k in kept]) if kept else np.zeros((0, *size), np.uint8)
    return Instances(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        instances.labels[kept],
        torch.from_numpy(found.view(bool)),
        crowd=None if crowd is None else crowd[kept],
        scores=None if scores is None else scores[kept],
        dropped=instances.dropped + len(instances.labels) - len(kept),
    )


def source_size(sample: Sample) -> tuple[int, int]:
    """Return (height, width) of image and annotation. Errors: DataError where they differ."""
    annotated = sample.mask if sample.instances is None else sample.instances.masks
    assert annotated is not None
    height, width = annotated.shape[-2:]
    image = tuple(sample.image.shape[:2])
    if image != (height, width):
        raise DataError(
            f"{sample.id}: image is {image} but its mask is {(height, width)} (height, width)"
        )
    return height, width
