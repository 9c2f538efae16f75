"""Augmentation: a seeded random view of fixed size, image and labels together. The only home of albumentations and cv2.

Scaling the whole image and then cropping computes pixels that are thrown away. Here scale and position are drawn as if
that were done, but only the window of the source that the crop will show is read and resized; then colours and blur work
on the crop. A rotated crop is sampled by one affine map from the window that lies below it, a bent one by the map's places
moved pixel by pixel. Image and mask may be arrays or anything else that has a shape and reads by two slices, such as the
tiles of `cache.py`.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # without it the import sends a request to the network

import albumentations as A  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from segtrain.errors import DataError, UserError  # noqa: E402
from segtrain.structures.instances import Instances  # noqa: E402
from segtrain.structures.samples import IGNORE, Sample

cv2.setNumThreads(0)  # loader workers are the parallelism; threads inside each would only compete

ROTATE_P = 0.5


class Pixels(Protocol):
    """An image (H, W, 3) or a mask (H, W), uint8: `pixels[top:bottom, left:right]` is an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, window: tuple[slice, slice], /) -> np.ndarray: ...


@dataclass(frozen=True)
class View:
    """What one draw shows of a source: a `window` of it as `shown`, turned, at the top left of the crop; then mirrored."""

    source: tuple[int, int]  # height, width
    crop: tuple[int, int]  # height, width
    window: tuple[int, int, int, int]  # top, left, height, width in the source
    shown: tuple[
        int, int
    ]  # height, width in the crop; less than the crop only where the window is the whole side
    angle: float = 0.0  # degrees
    mirrored: bool = False
    bend: np.ndarray | None = field(
        default=None, compare=False
    )  # (crop height, crop width, 2) x and y in crop pixels

    def matrix(self) -> np.ndarray:
        """The map (2, 3) from pixel (x, y) of the crop to pixel (x, y) of the source.

        The turn is about the middle of what is shown, in the plane of the scaled image, and reaches beyond the window,
        so padding shows only where the source ends. Pixel centres lie at half-integers, so scaling does not shift.
        """
        top, left, height, width = self.window
        cos, sin = np.cos(np.deg2rad(self.angle)), np.sin(np.deg2rad(self.angle))
        turn = np.array([[cos, -sin], [sin, cos]])
        shrink = np.array([width / self.shown[1], height / self.shown[0]])
        middle = np.array([self.shown[1], self.shown[0]]) / 2
        offset = np.array([left, top]) + shrink * (middle + turn @ (0.5 - middle)) - 0.5
        matrix = np.column_stack([shrink[:, None] * turn, offset])
        if self.mirrored:
            matrix[:, 2] += (self.crop[1] - 1) * matrix[:, 0]
            matrix[:, 0] *= -1
        return matrix

    def corners(self) -> np.ndarray:
        """(2, 4) x and y in the source of the crop's four corner pixels. All others lie between them."""
        height, width = self.crop
        return self.matrix() @ [
            [0, width - 1, 0, width - 1],
            [0, 0, height - 1, height - 1],
            [1, 1, 1, 1],
        ]

    @cached_property
    def bent(self) -> np.ndarray:
        """(2, crop height, crop width) float32 x and y in the source of every pixel of a bent view."""
        assert self.bend is not None
        y, x = np.indices(self.crop)
        moved = np.stack([x + self.bend[..., 0], y + self.bend[..., 1], np.ones(self.crop)])
        return np.tensordot(self.matrix(), moved, 1).astype(np.float32)

    def reach(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the source pixels that the crop is made from."""
        if self.plain:
            top, left, height, width = self.window
            return top, left, top + height, left + width
        bounds = []
        farthest = self.corners() if self.bend is None else self.bent
        for places, side in zip(farthest, (self.source[1], self.source[0]), strict=True):
            # two pixels to each side hold the neighbours of interpolation and all rounding; the last pixel of a side
            # that is missed altogether is what repeats there
            first = min(max(0, int(np.floor(places.min())) - 2), side - 1)
            bounds.append((first, max(first + 1, min(side, int(np.ceil(places.max())) + 3))))
        (left, right), (top, bottom) = bounds
        return top, left, bottom, right

    def show(self, pixels: Pixels, smooth: bool) -> np.ndarray:
        """The crop of `pixels`, a new array: bilinear where `smooth`, else the pixel nearest to each pixel's centre.

        Outside the source its border pixels are repeated, until `paint`.
        """
        (height, width), (top, left, bottom, right) = self.crop, self.reach()
        part = pixels[top:bottom, left:right]
        if not self.plain:
            method, whole = (
                cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST,
                np.ascontiguousarray(part),
            )
            if self.bend is not None:
                x, y = self.bent[0] - np.float32(left), self.bent[1] - np.float32(top)
                return cv2.remap(whole, x, y, method, None, cv2.BORDER_REPLICATE)
            matrix = self.matrix() - [[0, 0, left], [0, 0, top]]
            flags = method | cv2.WARP_INVERSE_MAP
            return cv2.warpAffine(whole, matrix, (width, height), None, flags, cv2.BORDER_REPLICATE)
        # plain INTER_NEAREST resizes from pixel corners, up to half a pixel away from where the image is sampled
        method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT
        crop = cv2.resize(part, self.shown[::-1], interpolation=method)
        below, beside = height - self.shown[0], width - self.shown[1]
        if below or beside:
            crop = cv2.copyMakeBorder(crop, 0, below, 0, beside, cv2.BORDER_REPLICATE)
        return cv2.flip(crop, 1) if self.mirrored else crop

    @property
    def plain(self) -> bool:
        """Whether the view is a scaled rectangle of the source."""
        return not self.angle and self.bend is None

    @cached_property
    def _outside(self) -> np.ndarray | None:
        """Of a turned or bent view, (crop height, crop width) bool: the pixels whose centres lie outside the source, if any."""
        limits = np.array([[self.source[1]], [self.source[0]]]) - 0.5
        if self.bend is not None:
            x, y = self.bent
            return (np.minimum(x, y) < -0.5) | (x >= limits[0]) | (y >= limits[1])
        if ((self.corners() >= -0.5) & (self.corners() < limits)).all():
            return None
        height, width = self.crop
        outside = np.zeros(self.crop, bool)
        for (x, y, offset), limit in zip(self.matrix(), limits[:, 0], strict=True):
            places = x * np.arange(width) + (y * np.arange(height) + offset)[:, None]
            outside |= (places < -0.5) | (places >= limit)
        return outside

    def paint(self, crop: np.ndarray, value: int | np.ndarray) -> None:
        """Fill what lies outside the source: pixels of a `crop` that `show` made."""
        if not self.plain:
            if self._outside is not None:
                crop[self._outside] = value
            return
        height, width = self.shown
        crop[height:] = value
        crop[:, slice(self.crop[1] - width) if self.mirrored else slice(width, None)] = value


def draw_view(
    source: tuple[int, int],
    crop: tuple[int, int],
    scale: float,
    position: tuple[float, float],
    angle: float = 0.0,
) -> View:
    """The view of scaling `source` (height, width), then cropping at `position` in [0, 1)^2 of the free places.

    The window's size and place are rounded to whole source pixels. A scaled image smaller than the crop lies at its
    top left.
    """
    axes = []
    for side, length, place in zip(source, crop, position, strict=True):
        shown = min(length, max(1, round(side * scale)))
        window = min(side, max(1, round(shown / scale))) if shown == length else side
        axes.append((int(place * (side - window + 1)), window, shown))
    (top, height, shown_h), (left, width, shown_w) = axes
    return View(source, crop, (top, left, height, width), (shown_h, shown_w), angle)


def draw_bend(crop: tuple[int, int], deviation: float, rng: np.random.Generator) -> np.ndarray:
    """(crop height, crop width, 2) float32 displacements x and y in pixels (U-Net, arXiv:1505.04597, section 3.1).

    Nine vectors, each component N(0, `deviation`), in the middles of the crop's 3 x 3 equal parts; bicubic in between.
    """
    grid = rng.normal(0.0, deviation, (3, 3, 2)).astype(np.float32)
    return cv2.resize(grid, crop[::-1], interpolation=cv2.INTER_CUBIC)


def show_instances(target: Instances, view: View) -> Instances:
    """The objects of which the view shows a pixel, with the tightest boxes of what it shows; the others go whole.

    So a box is at least a pixel wide and high. Those that go are added to `dropped`.
    """
    kept, masks, boxes = [], [], []
    for number, mask in enumerate(target.masks.numpy().view(np.uint8)):
        shown = view.show(mask, smooth=False)
        view.paint(shown, 0)
        left, top, width, height = cv2.boundingRect(shown)  # of the pixels that are not 0
        if width:
            kept.append(number)
            masks.append(shown.view(bool))
            boxes.append([left, top, left + width, top + height])
    rest = {
        name: value[kept]
        for name in ("crowd", "scores")
        if (value := getattr(target, name)) is not None
    }
    return Instances(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        target.labels[kept],
        torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *view.crop), bool)),
        dropped=target.dropped + len(target.labels) - len(kept),
        **rest,
    )


def show_mask(mask: Pixels, view: View) -> np.ndarray:
    """Return what the view shows of a label mask (H, W), IGNORE where the source ends."""
    shown = view.show(mask, smooth=False)
    view.paint(shown, IGNORE)
    return shown


def show_sample(sample: Sample, view: View, image: np.ndarray) -> Sample:
    """Return the sample with `image` for its image, and what the view shows of its mask or instances."""
    mask = sample.mask
    instances = sample.instances
    return replace(
        sample,
        image=image,
        mask=None if mask is None else show_mask(mask, view),
        instances=None if instances is None else show_instances(instances, view),
    )


def source_size(sample: Sample) -> tuple[int, int]:
    """(height, width) of image and annotation. Errors: DataError where they differ."""
    annotated = sample.mask if sample.instances is None else sample.instances.masks
    assert annotated is not None
    height, width = annotated.shape[-2:]
    if tuple(sample.image.shape[:2]) != (height, width):
        sizes = f"{tuple(sample.image.shape[:2])} but its mask is {(height, width)} (height, width)"
        raise DataError(f"{sample.id}: image is {sizes}")
    return height, width


class Augment:
    """`augment(sample, seed) -> Sample`: a random view of exactly `crop` (height, width); equal seeds give equal bytes.

    The target is a label mask or `Instances`. Of an instance that the view shows in part, mask and box are cut; one that
    it does not show is dropped, so a sample may be left without any.

    scale: range of the uniform factor; with `scale_step` > 0 one of low, low + step, ..., high (DeepLab: 0.25).
    flip, blur: probability of mirroring, of a Gaussian blur (sigma 0.5 to 2 px).
    rotate: largest angle in degrees, used for half of the samples (PSPNet: 10).
    color: jitter of brightness, contrast and saturation by factors 1 +- color, of hue by +- color / 4.
    mean: RGB of the padding, which lies right (left where mirrored) and below, all round where rotated or bent. It is IGNORE
    in a label mask and in no instance.
    elastic: standard deviation in pixels of the crop of the displacements on a 3 x 3 grid that bend it (U-Net: 10).
    """

    def __init__(
        self,
        crop: tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        scale_step: float = 0.0,
        flip: float = 0.5,
        rotate: float = 0.0,
        color: float = 0.0,
        blur: float = 0.0,
        mean: tuple[int, int, int] = (124, 116, 104),
        elastic: float = 0.0,
    ) -> None:
        check_settings(crop, scale, scale_step, {"flip": flip, "color": color, "blur": blur})
        self.crop, self.scale, self.scale_step = (
            (crop[0], crop[1]),
            (scale[0], scale[1]),
            scale_step,
        )
        self.flip, self.rotate, self.mean = flip, rotate, np.array(mean, np.uint8)
        if elastic < 0:
            raise UserError(
                f"augment.elastic={elastic}: give 0, or the standard deviation of displacements in pixels"
            )
        self.elastic = elastic
        steps: list[Any] = []
        if color:
            steps.append(
                A.ColorJitter(
                    (1 - color, 1 + color),
                    (1 - color, 1 + color),
                    (1 - color, 1 + color),
                    color / 4,
                    p=1,
                )
            )
        if blur:
            steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.5, 2.0), p=blur))
        # A misspelt argument of a transform is only a warning unless strict.
        self.look = A.Compose(steps, strict=True) if steps else None

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """The view of `sample` that `seed` stands for."""
        rng = np.random.default_rng(seed)
        view = self.draw(source_size(sample), rng)
        image = view.show(sample.image, smooth=True)
        if self.look:
            # One generator for everything. set_random_seed would start every transform on the *same* stream, and then
            # what is drawn for one would follow from what was drawn for another.
            self.look.set_random_state(rng, random.Random(seed))
            image = np.ascontiguousarray(self.look(image=image)["image"])
        view.paint(image, self.mean)  # last, so that jitter and blur leave the padding as the mean
        return show_sample(sample, view, image)

    def draw(self, source: tuple[int, int], rng: np.random.Generator) -> View:
        """A view of `source` (height, width). Always six draws, so that one setting does not shift another's.

        The draws of a bent view come after them.
        """
        scale, turned, angle, top, left, mirrored = rng.random(6)
        degrees = self.rotate * (2 * angle - 1) if turned < ROTATE_P else 0.0
        view = draw_view(source, self.crop, self.pick_scale(scale), (top, left), degrees)
        bend = draw_bend(self.crop, self.elastic, rng) if self.elastic else None
        return replace(view, mirrored=bool(mirrored < self.flip), bend=bend)

    def pick_scale(self, u: float) -> float:
        """The scale for a uniform draw `u` from [0, 1)."""
        low, high = self.scale
        if not self.scale_step:
            return low + u * (high - low)
        return low + self.scale_step * int(u * (int((high - low) / self.scale_step + 1e-6) + 1))


def check_settings(
    crop: tuple[int, int], scale: tuple[float, float], scale_step: float, shares: dict[str, float]
) -> None:
    """UserError for values no view can be made from."""
    if len(crop) != 2 or min(crop) < 1:
        raise UserError(
            f"augment.crop={list(crop)}: give [height, width] in pixels, both at least 1"
        )
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise UserError(
            f"augment.scale={list(scale)}: give [lowest, highest], above 0 and in this order"
        )
    if scale_step < 0:
        raise UserError(
            f"augment.scale_step={scale_step}: give 0 for any scale in the range, or the step between scales"
        )
    check_shares(shares)


def check_shares(shares: dict[str, float]) -> None:
    """UserError for what is no share."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"augment.{name}={value}: give a value from 0 to 1")
