"""Proposals of one image: the best masks, or boxes, of anything (FPN, CVPR 2017, arXiv:1612.03144). No suppression.

One scale: the pyramid sees all sizes at once. Proposals are of class 0, their score is the objectness.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.inference.base import BasePredictor, BoxProposer, MaskProposer
from segtrain.inference.maps import batch_of, check_edges, device_of, seen
from segtrain.inference.paste import segments
from segtrain.structures import run_lengths
from segtrain.structures.boxes import edge_size
from segtrain.structures.instances import Segments
from segtrain.structures.samples import Batch


class MaskProposals(BasePredictor):
    """Wraps a model with `propose_masks(batch, count)`. The caller sets eval mode and autocast.

    count              proposals of an image (paper: 1,000)
    shorter, longest   the shorter edge in pixels that an image is resized to, and the most that its longer edge may have;
                       shorter None keeps the image's size
    threshold          of a mask's probability. FPN's is not known. DeepMask's release has 0.2 for masks of 112 x 112 cells; in
                       those of 14 x 14 it moves borders by a third of a large cell, and perfect masks lose 0.06 AR

    A proposal's box is that of its mask, not of its window.
    """

    class_agnostic = True

    def __init__(
        self,
        model: nn.Module,
        count: int = 1000,
        shorter: int | None = 800,
        longest: int = 1333,
        threshold: float = 0.5,
    ) -> None:
        if not isinstance(model, MaskProposer):
            raise UserError(
                f"inference: {type(model).__name__} proposes no masks; set model=fpn, or another inference"
            )
        self.model = model
        self.proposer: MaskProposer = model
        self.count, self.shorter, self.longest, self.threshold = count, shorter, longest, threshold
        check_arguments(count, shorter, longest)
        if not 0 < threshold <= 1:
            raise UserError(
                f"inference.threshold={threshold}: a probability above 0, up to 1; DeepMask has 0.2"
            )

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as plain values for metrics.json."""
        return {
            "count": self.count,
            "shorter": self.shorter,
            "longest": self.longest,
            "threshold": self.threshold,
        }

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Segments:
        """(3, H, W) uint8 RGB -> at most `count` masks at the image's own size, best first."""
        batch, factor = shown(self.model, image, self.shorter, self.longest)
        windows, scores, masks = self.proposer.propose_masks(batch, self.count)[0]
        labels = torch.zeros(len(scores), dtype=torch.int64)
        size = (image.shape[1], image.shape[2])
        found = segments(size, windows / factor, masks, labels, scores, self.threshold)
        return replace(found, boxes=run_lengths.boxes(found.masks or []))


class BoxProposals(BasePredictor):
    """Wraps a model with `propose(batch)`: boxes without masks, for the metric of boxes. The caller sets eval mode.

    Arguments as of `MaskProposals`; boxes are cut to the image.
    """

    class_agnostic = True

    def __init__(
        self, model: nn.Module, count: int = 1000, shorter: int | None = 800, longest: int = 1333
    ) -> None:
        if not isinstance(model, BoxProposer):
            raise UserError(
                f"inference: {type(model).__name__} proposes no boxes; set model=box_rpn, or another inference"
            )
        self.model = model
        self.proposer: BoxProposer = model
        self.count, self.shorter, self.longest = count, shorter, longest
        check_arguments(count, shorter, longest)

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as plain values for metrics.json."""
        return {
            "count": self.count,
            "shorter": self.shorter,
            "longest": self.longest,
        }

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Segments:
        """(3, H, W) uint8 RGB -> at most `count` boxes at the image's own size, best first."""
        batch, factor = shown(self.model, image, self.shorter, self.longest)
        corners, scores = self.proposer.propose(batch)[0]
        best = scores.argsort(descending=True, stable=True)[: self.count]
        height, width = int(image.shape[1]), int(image.shape[2])
        boxes = (
            (corners[best].float() / factor)
            .double()
            .cpu()
            .numpy()
            .reshape(-1, 4)
            .clip(0, [width, height] * 2)
        )
        sides = boxes[:, 2:] - boxes[:, :2]
        return Segments(
            size=(height, width),
            labels=np.zeros(len(best), np.int64),
            boxes=np.concatenate([boxes[:, :2], sides], 1),
            masks=None,
            areas=sides.prod(1),
            scores=scores[best].double().cpu().numpy(),
        )


def shown(
    model: nn.Module, image: Tensor, shorter: int | None, longest: int
) -> tuple[Batch, Tensor]:
    """(the image as the model sees it, by how much it grew in x, y, x, y)."""
    own = (image.shape[1], image.shape[2])
    size = own if shorter is None else edge_size(own, shorter, longest)
    pixels, factor = seen(image.to(device_of(model)), size)
    return batch_of(pixels[None], size), factor


def check_arguments(count: int, shorter: int | None, longest: int) -> None:
    """UserError with the way out for a value that makes no sense."""
    if count < 1:
        raise UserError(
            f"inference.count={count}: at least 1 proposal an image; the paper has 1000"
        )
    check_edges(shorter, longest)
