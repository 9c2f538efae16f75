"""The augmentation of detectors: the whole image, scaled and perhaps mirrored. No crop."""

from __future__ import annotations

from typing import Literal

import numpy as np

from segtrain.data.extra import Extra
from segtrain.data.transforms import check_shares
from segtrain.data.view import View, show_sample, source_size
from segtrain.errors import UserError
from segtrain.structures.boxes import edge_size
from segtrain.structures.samples import Sample

MEAN = (124, 116, 104)  # RGB of new pixels, ImageNet's mean


class ShorterEdge:
    """`edges(sample, seed) -> Sample`: the whole image with its shorter edge at one of few lengths.

    Equal seeds give equal bytes. The samples of a batch differ in size: `loader.collate` pads them
    right and below. Pixels are made as in `Augment` and as evaluation makes them: bilinear about
    pixel centres, not smoothed where an image shrinks. The annotation is a label mask or instances;
    an object that is left without a pixel is dropped and counted.

    shorter: lengths in pixels of the shorter edge, all equally likely; with `between` any whole
    number from the first to the last.
    longest: limit in pixels of the longer edge, which then decides the size
    (`segtrain.structures.boxes.edge_size`).
    flip: probability of mirroring left and right.
    extra: transforms of albumentations that follow, see `extra.Extra`.
    """

    def __init__(
        self,
        shorter: tuple[int, ...] = (800,),
        longest: int = 1333,
        flip: float = 0.5,
        between: bool = False,
        extra: list[dict | str] | None = None,
    ) -> None:
        self.shorter = tuple(shorter)
        self.longest = longest
        self.flip = flip
        self.between = between
        if not self.shorter or min(self.shorter) < 1:
            raise UserError(
                f"augment.shorter={list(shorter)}: "
                "give at least one length in pixels, each at least 1"
            )
        if between and (len(self.shorter) != 2 or self.shorter[0] > self.shorter[1]):
            raise UserError(
                f"augment.shorter={list(shorter)}: with augment.between=true give [lowest, highest]"
            )
        if longest < max(self.shorter):
            raise UserError(
                f"augment.longest={longest}: "
                f"below the shorter edge {max(self.shorter)}; give at least that"
            )
        check_shares({"flip": flip})
        self.extra = Extra(extra, MEAN) if extra else None

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """Return the view of `sample` that `seed` stands for.

        Errors: DataError where image and annotation differ in size.
        """
        rng = np.random.default_rng(seed)
        view = self.draw(source_size(sample), rng)
        shown = show_sample(sample, view, view.show(sample.image, smooth=True))
        return self.extra(shown, rng, seed) if self.extra else shown

    def check_labels(self, num_classes: int, labelled_with: Literal["masks", "instances"]) -> None:
        """Refuse new labels that the data set does not have. Errors: UserError."""
        if self.extra:
            self.extra.check_labels(num_classes, labelled_with)

    def draw(self, source: tuple[int, int], rng: np.random.Generator) -> View:
        """Draw a view of `source` (height, width).

        There are always two draws, so that one setting does not shift another's.
        """
        length, mirrored = rng.random(2)
        size = edge_size(source, self.pick(length), self.longest)
        return View(source, size, (0, 0, *source), size, mirrored=bool(mirrored < self.flip))

    def pick(self, u: float) -> int:
        """Return the shorter edge for a uniform draw `u` from [0, 1)."""
        if self.between:
            lowest, highest = self.shorter
            return lowest + int(u * (highest - lowest + 1))
        return self.shorter[int(u * len(self.shorter))]
