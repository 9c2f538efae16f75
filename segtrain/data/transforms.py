"""Augmentation: a random view of a sample as a function of a seed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from segtrain.data.extra import Extra, make_look
from segtrain.data.view import (
    Padding,
    View,
    draw_bend,
    draw_view,
    padded,
    show_sample,
    source_size,
)
from segtrain.errors import UserError
from segtrain.structures.samples import IGNORE, Sample


class Augment:
    """`augment(sample, seed) -> Sample`: a random view of exactly `crop` (height, width).

    Equal seeds give equal bytes. The annotation is a label mask or instances. Of an instance that
    the view shows in part, mask and box are cut; one that it does not show is dropped, so a sample
    may be left without any.

    scale: range of the uniform factor; with `scale_step` > 0 one of low, low + step, ..., high
    (DeepLab: 0.25).
    short_side: in place of `scale`: range of the shorter side of the whole scaled image, a whole
    number of pixels (PyTorch-Encoding 0.5.0: 260 to 1040).
    flip, blur: probability of mirroring, of a Gaussian blur.
    blur_sigma: range of its deviation in pixels (0.5 to 2 is chosen by hand).
    blur_kernel: side of its kernel in pixels, odd; 0: as wide as the deviation needs.
    rotate: largest angle in degrees (PSPNet: 10).
    rotate_share: share of the samples that are turned; the others train without padding in their
    corners (semseg: 0.5; PyTorch-Encoding before 0.5.0: all).
    color: jitter of brightness, contrast and saturation by factors 1 +- color, of hue by
    +- color / 4 (a quarter, as in SimCLR, arXiv:2002.05709).
    mean: RGB of the padding, which lies all round where rotated or bent.
    padding: where it lies if the scaled image is smaller than the crop: "mirrored", right (left
    where mirrored) and below; "middle", all round (semseg); "end", right and below, mirrored or not
    (PyTorch-Encoding).
    padding_label: what it is in a label mask: None, IGNORE; 0, the first class, in PyTorch-Encoding
    the background of VOC. It is in no instance.
    elastic: standard deviation in pixels of the crop of the displacements on a 3 x 3 grid that bend
    it (U-Net: 10).
    extra: transforms of albumentations that follow, see `extra.Extra`.
    blank: a network sees exactly zero in the padding, behind its own normalisation, instead of
    `mean`, which is in whole bytes (DeepLab's releases pad with their floating-point mean, and with
    127.5 where the input is scaled to [-1, 1]). Only pictures then show `mean`.
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
        short_side: tuple[int, int] | None = None,
        blur_sigma: tuple[float, float] = (0.5, 2.0),
        blur_kernel: int = 0,
        padding: Padding = "mirrored",
        padding_label: int | None = None,
        rotate_share: float = 0.5,
        extra: list[dict | str] | None = None,
        blank: bool = False,
    ) -> None:
        shares = {"flip": flip, "color": color, "blur": blur, "rotate_share": rotate_share}
        check_settings(crop, scale, scale_step, shares)
        check_blur(blur_sigma, blur_kernel)
        if short_side is not None and not 1 <= short_side[0] <= short_side[1]:
            raise UserError(
                f"augment.short_side={list(short_side)}: give [lowest, highest] in pixels, from 1 "
                "on and in this order, or null for augment.scale"
            )
        if padding not in get_args(Padding):
            raise UserError(
                f"augment.padding={padding} is unknown. Known: {', '.join(get_args(Padding))}"
            )
        if padding_label is not None and not 0 <= padding_label <= IGNORE:
            raise UserError(
                f"augment.padding_label={padding_label}: give a train id from 0 to {IGNORE}, or "
                "null for pixels that are ignored"
            )
        if elastic < 0:
            raise UserError(
                f"augment.elastic={elastic}: give 0, "
                "or the standard deviation of displacements in pixels"
            )
        if blank and (rotate or elastic or extra):
            raise UserError(
                f"augment.blank=true with augment.rotate={rotate:g} augment.elastic={elastic:g} "
                f"augment.extra={extra}: only upright crops are blanked; set these to 0, 0 and "
                "null, or augment.blank=false"
            )
        self.crop = (crop[0], crop[1])
        self.scale = (scale[0], scale[1])
        self.scale_step = scale_step
        self.flip = flip
        self.rotate = rotate
        self.rotate_share = rotate_share
        self.mean = np.array(mean, np.uint8)
        self.elastic = elastic
        self.short_side = short_side
        self.padding: Padding = padding
        self.padding_label = IGNORE if padding_label is None else padding_label
        wanted = color or blur
        self.look = make_look(color, blur, blur_sigma, blur_kernel) if wanted else None
        self.extra = Extra(extra, mean, self.crop) if extra else None
        self.blank = blank

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Return the view of `sample` that `seed` stands for.

        Errors: DataError where image and annotation differ in size.
        """
        rng = np.random.default_rng(seed)
        view = self.draw(source_size(sample), rng)
        image = view.show(sample.image, smooth=True)
        if self.look:
            # One generator for everything. set_random_seed would start every transform on the
            # *same* stream, and then what is drawn for one would follow from what was drawn for
            # another.
            self.look.set_random_state(rng, random.Random(seed))
            image = np.ascontiguousarray(self.look(image=image)["image"])
        view.paint(image, self.mean)  # last, so that jitter and blur leave the padding as the mean
        shown = show_sample(sample, view, image, self.padding_label)
        if self.blank:
            return replace(shown, inside=view.inside)
        return self.extra(shown, rng, seed) if self.extra else shown

    def check_labels(self, num_classes: int, labelled_with: Literal["masks", "instances"]) -> None:
        """Refuse new labels that the data set does not have. Errors: UserError."""
        label = self.padding_label
        if labelled_with == "masks" and label != IGNORE and label >= num_classes:
            raise UserError(
                f"augment.padding_label={label}: the data set has {num_classes} classes; give a "
                f"train id from 0 to {num_classes - 1}, or null for pixels that are ignored"
            )
        if self.extra:
            self.extra.check_labels(num_classes, labelled_with)

    def draw(self, source: tuple[int, int], rng: np.random.Generator) -> View:
        """Draw a view of `source` (height, width).

        There are always six draws, so that one setting does not shift another's. The draws of a
        bent view come after them.
        """
        scale, turned, angle, top, left, mirrored = rng.random(6)
        degrees = self.rotate * (2 * angle - 1) if turned < self.rotate_share else 0.0
        factor = self.pick_scale(scale, source)
        view = draw_view(source, self.crop, factor, (top, left), degrees)
        bend = draw_bend(self.crop, self.elastic, rng) if self.elastic else None
        view = replace(view, mirrored=bool(mirrored < self.flip), bend=bend)
        return padded(view, self.padding)

    def pick_scale(self, u: float, source: tuple[int, int]) -> float:
        """Return the scale of `source` (height, width) for a uniform draw `u` from [0, 1)."""
        if self.short_side is not None:
            least, most = self.short_side
            return (least + int(u * (most - least + 1))) / min(source)
        low, high = self.scale
        if not self.scale_step:
            return low + u * (high - low)
        # 1e-6: so that (2 - 0.5) / 0.25 is six steps also where division gives 5.999...
        steps = int((high - low) / self.scale_step + 1e-6) + 1
        return low + self.scale_step * int(u * steps)


def check_settings(
    crop: tuple[int, int], scale: tuple[float, float], scale_step: float, shares: dict[str, float]
) -> None:
    """Refuse values that no view can be made from. Errors: UserError."""
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
            f"augment.scale_step={scale_step}: give 0 for any scale in the range, "
            "or the step between scales"
        )
    check_shares(shares)


def check_blur(sigma: tuple[float, float], kernel: int) -> None:
    """Refuse a blur that cannot be made. Errors: UserError."""
    if len(sigma) != 2 or not 0 <= sigma[0] <= sigma[1] or not sigma[1]:
        raise UserError(
            f"augment.blur_sigma={list(sigma)}: give [lowest, highest] in pixels, from 0 on and in "
            "this order"
        )
    if kernel and (kernel < 3 or kernel % 2 == 0):
        raise UserError(
            f"augment.blur_kernel={kernel}: give an odd number of pixels from 3 on, or 0 for what "
            "the deviation needs"
        )


def check_shares(shares: dict[str, float]) -> None:
    """Refuse what is no share. Errors: UserError."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"augment.{name}={value}: give a value from 0 to 1")
