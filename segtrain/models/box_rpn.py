"""A region proposal network by itself on a feature pyramid.

It is FPN's (Lin et al., CVPR 2017, arXiv:1612.03144, section 4.1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from segtrain.backbones.staged import freeze_parts, make_staged
from segtrain.errors import UserError
from segtrain.layers.blocks import input_of_objects
from segtrain.layers.preprocess import Input, chosen
from segtrain.layers.pyramid import STRIDES, FeaturePyramid, padded, with_coarser
from segtrain.layers.regions import usable
from segtrain.layers.rpn import on_pyramid
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch


class BoxRPN(SegmentationModel):
    """Propose boxes of objects of any class: Mask R-CNN up to its proposals.

    `num_classes` is not used.

    `backbone`, `style`, `norm`, `head_norm` (of the pyramid), `freeze`, `width`, `anchor_corners`,
    `inclusive_boxes`: as of MaskRCNN. Anchors have sides of 32 to 512 pixels on P2 to P6.
    `proposals` of an image are kept in evaluation; the same number enters the suppression from each
    level.
    """

    learns_from = "instances"

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        weights: Literal["imagenet"] | Path | None = None,
        norm: Literal["frozen", "batch", "group", "none"] = "frozen",
        head_norm: Literal["none", "group", "batch"] = "none",
        freeze: int | None = None,
        width: int = 256,
        proposals: int = 1000,
        anchor_corners: Literal["exact", "rounded", "quantised"] = "rounded",
        inclusive_boxes: bool = False,
        style: Literal["torchvision", "deep", "caffe", "msra"] = "torchvision",
        input: Input = None,
    ) -> None:
        super().__init__()
        if proposals < 1:
            raise UserError(f"model.proposals={proposals}: at least 1 an image; the paper has 1000")
        self.backbone = make_staged(backbone, norm=norm, weights=weights, style=style)
        freeze_parts(self.backbone, freeze, weights)
        self.preprocess = chosen(input, self.backbone.preprocess)
        # Pixels: sides are padded to a multiple, so that all strides of the backbone are exact.
        self.divisor = 32
        self.pyramid = FeaturePyramid(self.backbone.channels, width, head_norm)
        kept = (proposals, proposals)
        self.inclusive_boxes = inclusive_boxes
        sides = [8 * stride for stride in STRIDES]
        self.rpn = on_pyramid(width, sides, kept, anchor_corners, inclusive_boxes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training, beside targets."""
        return ("rpn_class", "rpn_box")

    def class_rows(self) -> dict[str, ClassRows]:
        """Return {}: proposals have no class."""
        return {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return what loss=rpn reads of sampled anchors; {} without instances."""
        levels = self.features(batch)
        objects = [usable(each) for each in batch.instances or []]
        return self.rpn.learn(self.rpn(levels), objects, batch.sizes) if objects else {}

    def features(self, batch: Batch) -> list[Tensor]:
        """Return P2 to P6 (B, width, h, w)."""
        x = padded(input_of_objects(batch, self.preprocess), self.divisor)
        return with_coarser(self.pyramid(self.backbone(x)))

    def propose(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Return the proposals of each image, best first.

        They are (boxes (n, 4) within its real size, scores (n,) in [0, 1]).
        """
        return self.rpn.propose(self.rpn(self.features(batch)), batch.sizes)
