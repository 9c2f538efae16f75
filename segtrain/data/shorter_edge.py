"""The augmentation of detectors: the whole image with its shorter edge at one of a few lengths, and mirroring. No crop."""

from __future__ import annotations

import numpy as np

from segtrain.data.transforms import View, check_shares, show_sample, source_size
from segtrain.errors import UserError
from segtrain.structures.boxes import edge_size
from segtrain.structures.samples import Sample


class ShorterEdge:
    """`edges(sample, seed) -> Sample`: the whole image, scaled and perhaps mirrored; equal seeds give equal bytes.

    The samples of a batch differ in size: `loader.collate` pads them right and below. Pixels are made as in `Augment` and
    as evaluation makes them: bilinear about pixel centres, not smoothed where an image shrinks. The target is a label
    mask or `Instances`; an object that is left without a pixel is dropped and counted.

    shorter: lengths in pixels of the shorter edge, drawn alike; with `between` any whole number from the first to the last.
    longest: limit in pixels of the longer edge, which then decides the size (`segtrain.structures.boxes.edge_size`).
    flip: probability of mirroring left and right.
    """

    def __init__(
        self,
        shorter: tuple[int, ...] = (800,),
        longest: int = 1333,
        flip: float = 0.5,
        between: bool = False,
    ) -> None:
        self.shorter, self.longest, self.flip, self.between = tuple(shorter), longest, flip, between
        if not self.shorter or min(self.shorter) < 1:
            raise UserError(
                f"augment.shorter={list(shorter)}: give at least one length in pixels, each at least 1"
            )
        if between and (len(self.shorter) != 2 or self.shorter[0] > self.shorter[1]):
            raise UserError(
                f"augment.shorter={list(shorter)}: with augment.between=true give [lowest, highest]"
            )
        if longest < max(self.shorter):
            raise UserError(
                f"augment.longest={longest}: below the shorter edge {max(self.shorter)}; give at least that"
            )
        check_shares({"flip": flip})

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """The view of `sample` that `seed` stands for. Errors: DataError where image and target differ in size."""
        view = self.draw(source_size(sample), np.random.default_rng(seed))
        return show_sample(sample, view, view.show(sample.image, smooth=True))

    def draw(self, source: tuple[int, int], rng: np.random.Generator) -> View:
        """A view of `source` (height, width). Always two draws, so that one setting does not shift another's."""
        length, mirrored = rng.random(2)
        size = edge_size(source, self.pick(length), self.longest)
        return View(source, size, (0, 0, *source), size, mirrored=bool(mirrored < self.flip))

    def pick(self, u: float) -> int:
        """The shorter edge for a uniform draw `u` from [0, 1)."""
        first, last = self.shorter[0], self.shorter[-1]
        return (
            first + int(u * (last - first + 1))
            if self.between
            else self.shorter[int(u * len(self.shorter))]
        )
