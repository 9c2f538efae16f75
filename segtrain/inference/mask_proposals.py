"""Propose masks, or boxes, of anything in an image (FPN, CVPR 2017, arXiv:1612.03144).

There is one scale, as the pyramid sees all sizes at once, and no suppression. Proposals are of
class 0; their score is the objectness.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.inference.base import BasePredictor, BoxProposer, MaskProposer, inclusive
from segtrain.inference.maps import batch_of, check_edges, device_of, seen
from segtrain.inference.paste import segments
from segtrain.layers.regions import moved_ends
from segtrain.structures import run_lengths
from segtrain.structures.boxes import edge_size
from segtrain.structures.instances import Segments
from segtrain.structures.samples import Batch


class MaskProposals(BasePredictor):
    """Wrap a model with `propose_masks(batch, count)`. The caller sets eval mode and autocast.

    count      proposals per image (paper: 1,000).
    shorter    the shorter edge in pixels that an image is resized to; None keeps its size.
    longest    if the longer edge would exceed this many pixels, the image is shrunk further. The
               defaults, 800 and 1333, are those of Detectron's baselines.
    threshold  the probability from which a pixel belongs to a mask. The FPN paper does not give
               its value. DeepMask's release has 0.2 for masks of 112 x 112 cells. In masks of
               14 x 14 cells that moves borders by a third of a cell: one perfect mask for each
               object of docs/results/coco_sample.md has AR@1000 0.691 with 0.2 and 0.756 with 0.5
               (scripts/fpn_oracle.py --thresholds 0.2 0.5). So the default is 0.5.

    The box of a proposal is that of its mask, not of its region.
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
                f"inference: {type(model).__name__} proposes no masks; set model=fpn, "
                "or another inference"
            )
        self.model = model
        self.proposer: MaskProposer = model  # the same object, typed by what is asked of it
        self.count = count
        self.shorter = shorter
        self.longest = longest
        self.threshold = threshold
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

    def network_output(self, batch: Batch) -> object:
        """Return the masks of a batch, for `eval.speed`."""
        return self.proposer.propose_masks(batch, self.count)

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Segments:
        """Propose at most `count` masks for an image (3, H, W) uint8 RGB, best first."""
        batch, growth = shown(self.model, image, self.shorter, self.longest)
        regions, scores, masks = self.proposer.propose_masks(batch, self.count)[0]
        labels = torch.zeros(len(scores), dtype=torch.int64)
        size = (image.shape[1], image.shape[2])
        proposed = segments(size, regions / growth, masks, labels, scores, self.threshold)
        return replace(proposed, boxes=run_lengths.boxes(proposed.masks or []))


class BoxProposals(BasePredictor):
    """Wrap a model with `propose(batch)`: boxes without masks, for the metric of boxes.

    The arguments are those of `MaskProposals`; boxes are cut to the image. The caller sets eval
    mode and autocast.
    """

    class_agnostic = True

    def __init__(
        self, model: nn.Module, count: int = 1000, shorter: int | None = 800, longest: int = 1333
    ) -> None:
        if not isinstance(model, BoxProposer):
            raise UserError(
                f"inference: {type(model).__name__} proposes no boxes; set model=box_rpn, "
                "or another inference"
            )
        self.model = model
        self.proposer: BoxProposer = model  # the same object, typed by what is asked of it
        self.count = count
        self.shorter = shorter
        self.longest = longest
        check_arguments(count, shorter, longest)

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as plain values for metrics.json."""
        return {"count": self.count, "shorter": self.shorter, "longest": self.longest}

    def network_output(self, batch: Batch) -> object:
        """Return the boxes of a batch, for `eval.speed`."""
        return self.proposer.propose(batch)

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Segments:
        """Propose for an image (3, H, W) uint8 RGB at most `count` boxes in it, best first."""
        batch, growth = shown(self.model, image, self.shorter, self.longest)
        corners, scores = self.proposer.propose(batch)[0]
        best = scores.argsort(descending=True, stable=True)[: self.count]
        height = int(image.shape[1])
        width = int(image.shape[2])
        corners = corners[best].float() + moved_ends(growth, inclusive(self.model))
        boxes = (corners / growth).double().cpu().numpy().reshape(-1, 4)
        boxes = boxes.clip(0, [width, height] * 2)
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
    """Return the image as the model sees it, and (4,) by how much it grew in x, y, x, y."""
    own = (image.shape[1], image.shape[2])
    size = own if shorter is None else edge_size(own, shorter, longest)
    pixels, growth = seen(image.to(device_of(model)), size)
    return batch_of(pixels[None], size), growth


def check_arguments(count: int, shorter: int | None, longest: int) -> None:
    """Refuse a number of proposals or edges of an image that cannot be. Errors: UserError."""
    if count < 1:
        raise UserError(
            f"inference.count={count}: at least 1 proposal an image; the paper has 1000"
        )
    check_edges(shorter, longest)
