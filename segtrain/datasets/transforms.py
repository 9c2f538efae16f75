"""Augmentation of images with masks: a seeded random view of fixed size. The only home of albumentations and cv2.

Scaling the whole image and then cropping computes pixels that are thrown away. Here scale and position are drawn as if
that were done, but only the window of the source that the crop will show is cut out and resized. A rotated crop is
sampled from the source by one affine map.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # without it the import sends a request to the network

import albumentations as A  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402

from ..contracts import IGNORE, Sample  # noqa: E402
from ..errors import DataError, UserError  # noqa: E402

cv2.setNumThreads(0)  # loader workers are the parallelism; threads inside each would only compete

ROTATE_P = 0.5


@dataclass(frozen=True)
class View:
    """What one draw shows: `window` (top, left, height, width) of the source as `shown` (height, width), turned."""

    window: tuple[int, int, int, int]
    shown: tuple[int, int]
    angle: float

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
        return np.column_stack([shrink[:, None] * turn, offset])


def draw_view(
    source: tuple[int, int], crop: tuple[int, int], scale: float, position: tuple[float, float], angle: float = 0.0
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
    return View((top, left, height, width), (shown_h, shown_w), angle)


class SourceWindow(A.DualTransform):
    """Draws a view and samples it from the source: image bilinear, masks nearest and IGNORE outside.

    Outside the source the image repeats its border pixels; `Augment` paints the padding last.
    """

    def __init__(
        self, crop: tuple[int, int], scale: tuple[float, float], scale_step: float, rotate: float, p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.crop, self.scale, self.scale_step, self.rotate = crop, scale, scale_step, rotate

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The view of this call. Every call makes the same five draws, so that one setting does not shift another's."""
        scale, turned, angle, top, left = self.random_generator.random(5)
        degrees = self.rotate * (2 * angle - 1) if turned < ROTATE_P else 0.0
        return {"view": draw_view(params["shape"][:2], self.crop, self.pick_scale(scale), (top, left), degrees)}

    def pick_scale(self, u: float) -> float:
        """The scale for a uniform draw `u` from [0, 1)."""
        low, high = self.scale
        if not self.scale_step:
            return low + u * (high - low)
        return low + self.scale_step * int(u * (int((high - low) / self.scale_step + 1e-6) + 1))

    def apply(self, img: np.ndarray, view: View, **params: Any) -> np.ndarray:
        """(H, W, 3) -> crop size."""
        return self._sample(img, view, cv2.INTER_LINEAR, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)

    def apply_to_mask(self, mask: np.ndarray, view: View, **params: Any) -> np.ndarray:
        """(H, W) -> crop size."""
        # plain INTER_NEAREST resizes from pixel corners, up to half a pixel away from where the image is sampled
        return self._sample(mask, view, cv2.INTER_NEAREST_EXACT, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)

    def _sample(self, pixels: np.ndarray, view: View, resize: int, warp: int, border: int) -> np.ndarray:
        height, width = self.crop
        if view.angle:
            flags = warp | cv2.WARP_INVERSE_MAP
            whole = np.ascontiguousarray(pixels)
            return cv2.warpAffine(whole, view.matrix(), (width, height), None, flags, border, IGNORE)
        top, left, h, w = view.window
        shown = cv2.resize(pixels[top : top + h, left : left + w], view.shown[::-1], interpolation=resize)
        below, right = height - view.shown[0], width - view.shown[1]
        return cv2.copyMakeBorder(shown, 0, below, 0, right, border, value=IGNORE) if below or right else shown


class Augment:
    """`augment(sample, seed) -> Sample`: a random view of exactly `crop` (height, width); equal seeds give equal bytes.

    scale: range of the uniform factor; with `scale_step` > 0 one of low, low + step, ..., high (DeepLab: 0.25).
    flip, blur: probability of mirroring, of a Gaussian blur (sigma 0.5 to 2 px).
    rotate: largest angle in degrees, used for half of the samples (PSPNet: 10).
    color: jitter of brightness, contrast and saturation by factors 1 +- color, of hue by +- color / 4.
    mean: RGB of the padding, which lies right and bottom (all round where rotated) and is IGNORE in the mask.
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
    ) -> None:
        check_settings(crop, scale, scale_step, {"flip": flip, "color": color, "blur": blur})
        self.mean = np.array(mean, np.uint8)
        steps: list[Any] = [
            SourceWindow((crop[0], crop[1]), (scale[0], scale[1]), scale_step, rotate),
            A.HorizontalFlip(p=flip),
        ]
        if color:
            steps.append(
                A.ColorJitter((1 - color, 1 + color), (1 - color, 1 + color), (1 - color, 1 + color), color / 4, p=1)
            )
        if blur:
            steps.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.5, 2.0), p=blur))
        # A misspelt argument of a transform is only a warning unless strict.
        self.compose = A.Compose(steps, strict=True, additional_targets={"outside": "mask"})

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """The view of `sample` (mask target) that `seed` stands for. UserError for instance targets."""
        image, mask = sample.image, sample.target
        if not isinstance(mask, np.ndarray):
            raise UserError(
                f"{sample.id}: this augment handles label masks, not instances; choose an augment for instances"
            )
        if image.shape[:2] != mask.shape:
            raise DataError(f"{sample.id}: image is {image.shape[:2]} but its mask is {mask.shape} (height, width)")
        # One generator shared by all transforms. set_random_seed would start every transform on the *same* stream, and
        # then whether a crop is mirrored would follow from where it was cut.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        view = self.compose(image=image, mask=mask, outside=np.zeros(mask.shape, np.uint8))
        image, outside = view["image"], view["outside"] == IGNORE
        if outside.any():  # painted last, so that jitter and blur leave the padding as the mean
            image = image.copy()
            image[outside] = self.mean
        return replace(sample, image=np.ascontiguousarray(image), target=np.ascontiguousarray(view["mask"]))


def check_settings(
    crop: tuple[int, int], scale: tuple[float, float], scale_step: float, shares: dict[str, float]
) -> None:
    """UserError for values no view can be made from."""
    if len(crop) != 2 or min(crop) < 1:
        raise UserError(f"augment.crop={list(crop)}: give [height, width] in pixels, both at least 1")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise UserError(f"augment.scale={list(scale)}: give [lowest, highest], above 0 and in this order")
    if scale_step < 0:
        raise UserError(
            f"augment.scale_step={scale_step}: give 0 for any scale in the range, or the step between scales"
        )
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"augment.{name}={value}: give a value from 0 to 1")
