"""Mask R-CNN (He et al., ICCV 2017, arXiv:1703.06870): boxes, classes and masks of objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.backbones.staged import freeze_parts, make_staged
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.blocks import input_of_objects
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import Input, chosen
from segtrain.layers.pyramid import STRIDES, FeaturePyramid, padded, with_coarser
from segtrain.layers.roi import RoIPool
from segtrain.layers.roi_heads import BoxPredictor, he_initialised, linear, upsampled_masks
from segtrain.layers.rpn import RegionProposals, on_pyramid
from segtrain.layers.two_stage import TwoStage
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

BOX_HEADS = ("two_fc", "heavy")
# Detectron's RPN_PRE_NMS_TOP_N in training and evaluation, of its one level.
C4_CANDIDATES = (12000, 6000)


class MaskRCNN(SegmentationModel):
    """Find objects: propose regions, then classify each, refine its box and draw its mask.

    It is a ResNet, a feature pyramid, region proposals, a box head of two fully connected layers
    and a mask head.

    backbone      resnet18 ... resnet152, resnext101_32x8d, resnext101_64x4d,
                  mobilenet_v2
    trunk         "fpn", or "c4": regions are read from conv4 and go through conv5 (the paper's
                  first network). conv5 is then a part of the box head, so train.init does not fill
                  it from other systems.
    style         of the ResNet, see backbones/resnet.py: "msra" for weights of Detectron and
                  detectron2
    norm          of the backbone: "frozen" (with weights; from scratch that is none), "batch"
                  (SyncBN with several GPUs), "group"
    head_norm     of pyramid, mask head and heavy box head: "none", "group" or "batch"
    freeze        parts of the backbone that do not train: 1 the stem, 2 conv2 too (Detectron), ...;
                  None: 2 with `weights`, else 0
    width         channels of the pyramid and of the mask head
    anchors       sides in pixels of the anchors of P2 to P6 ("c4": all of them at every place)
    anchor_corners   "exact", "rounded" or "quantised", see layers/rpn.py
    rpn_convs     3x3 of the RPN before its outputs; torchvision's version 2 has 2
    proposals     (training, evaluation) proposals an image
    candidates    (training, evaluation) proposals of each level that enter the suppression; None:
                  as many as `proposals` ("c4": 12,000 and 6,000 of its one level, as in Detectron)
    regions       proposals sampled per image to train the heads, a quarter of them objects at most
    box_head      "two_fc": fully connected 1024, 1024; "heavy": four 3x3 and a fully connected 1024
                  (Wu and He, arXiv:1803.08494, section 4.2; torchvision's version 2)
    mask_head     "fcn": four 3x3 and 2x upsampling; "mlp": fully connected 1024, 1024 (table 2e)
    class_agnostic_masks   one mask for all classes (section 4.2)
    masks         "sigmoid", or "softmax" over classes and background (table 2b)
    roi           "align", "pool" or "legacy", see layers/roi.py (tables 2c, 2d)
    roi_samples   along each side of a bin: 2, or 0 for as many as it has cells
    mask_targets  of a cell: "covered", the share of it that is mask; "binary", whether that is at
                  least half; None: binary, with roi="legacy" covered (torchvision)
    inclusive_boxes  Detectron's boxes, which count + 1, see layers/regions.py

    Which weights need which of these stands in docs/weights.md. Named deviations: boxes are
    exclusive (no + 1), RoIAlign has no half-pixel offset, proposals are kept per image and not per
    process, anchors may reach beyond the image, crowd regions hide negatives from the RPN too, mask
    targets come from pixels and not from polygons.
    """

    learns_from = "instances"

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        trunk: Literal["fpn", "c4"] = "fpn",
        weights: Literal["imagenet"] | Path | None = None,
        norm: Literal["frozen", "batch", "group", "none"] = "frozen",
        head_norm: Literal["none", "group", "batch"] = "none",
        freeze: int | None = None,
        width: int = 256,
        anchors: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512),
        proposals: tuple[int, int] = (2000, 1000),
        regions: int = 512,
        mask_head: Literal["fcn", "mlp"] = "fcn",
        class_agnostic_masks: bool = False,
        masks: Literal["sigmoid", "softmax"] = "sigmoid",
        roi: Literal["align", "pool", "legacy"] = "align",
        roi_samples: int = 2,
        anchor_corners: Literal["exact", "rounded", "quantised"] = "rounded",
        inclusive_boxes: bool = False,
        style: Literal["torchvision", "deep", "caffe", "msra"] = "torchvision",
        box_head: Literal["two_fc", "heavy"] = "two_fc",
        rpn_convs: int = 1,
        input: Input = None,
        candidates: tuple[int, int] | None = None,
        mask_targets: Literal["binary", "covered"] | None = None,
    ) -> None:
        super().__init__()
        check_box_head(box_head, trunk)
        self.backbone = make_staged(backbone, norm=norm, weights=weights, style=style)
        freeze_parts(self.backbone, freeze, weights)
        self.preprocess = chosen(input, self.backbone.preprocess)
        # Pixels: sides are padded to a multiple, so that all strides of the backbone are exact.
        self.divisor = 32
        self.class_agnostic_masks = class_agnostic_masks
        outputs = num_classes + 1
        channels = self.backbone.channels
        mask_outputs = 1 if class_agnostic_masks else outputs
        kept = (proposals[0], proposals[1])
        if trunk == "c4":
            self.pyramid = None
            rpn = RegionProposals(
                channels[2],
                [16],
                [list(anchors)],
                C4_CANDIDATES if candidates is None else (candidates[0], candidates[1]),
                kept,
                corners=anchor_corners,
                inclusive=inclusive_boxes,
                convs=rpn_convs,
            )
            stage = self.backbone.stages[3]
            self.backbone.stages = self.backbone.stages[:3]
            pool = RoIPool(14, [16], roi, roi_samples, inclusive_boxes)
            box = StageBoxHead(pool, stage, channels[3], outputs)
            mask = StageMaskHead(box.features, channels[3], mask_outputs)
        else:
            self.pyramid = FeaturePyramid(channels, width, head_norm)
            rpn = on_pyramid(
                width, anchors, kept, anchor_corners, inclusive_boxes, rpn_convs, candidates
            )
            pools = [
                RoIPool(size, STRIDES[:4], roi, roi_samples, inclusive_boxes) for size in (7, 14)
            ]
            box = (
                HeavyBoxHead(pools[0], width, outputs, head_norm)
                if box_head == "heavy"
                else BoxHead(pools[0], width, outputs)
            )
            mask = (
                MLPMaskHead(pools[1], width, mask_outputs)
                if mask_head == "mlp"
                else MaskHead(pools[1], width, mask_outputs, head_norm)
            )
        legacy = roi == "legacy"
        self.stages = TwoStage(
            rpn,
            box,
            mask,
            regions,
            masks=masks,
            legacy=legacy,
            inclusive=inclusive_boxes,
            mask_targets=mask_targets,
        )
        self.inclusive_boxes = inclusive_boxes
        self.mask_shift = self.stages.mask_shift

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training, beside targets."""
        return ("rpn_class", "rpn_box", "class", "box", "mask")

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how: background comes first."""
        layers = ["box_head.predict.score", "box_head.predict.box"]
        if not self.class_agnostic_masks:
            flat = isinstance(self.stages.mask_head, MLPMaskHead)
            layers.append("mask_head.predict" if flat else "mask_head.predict.2")
        return {f"stages.{layer}": ClassRows(background="first") for layer in layers}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return what loss=multitask reads of sampled regions; {} without instances."""
        return self.stages(self.features(batch), batch)

    def features(self, batch: Batch) -> list[Tensor]:
        """Return P2 to P6 (B, width, h, w), or conv4 alone."""
        stages = self.backbone(padded(input_of_objects(batch, self.preprocess), self.divisor))
        if self.pyramid is None:
            return stages[-1:]
        return with_coarser(self.pyramid(stages))

    def detect(
        self, features: list[Tensor], sizes: Tensor, growth: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Classify the proposals of each image: (probabilities (n, K), boxes (n, K, 4))."""
        return self.stages.detect(features, sizes, growth)

    def masks(self, features: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Return the probabilities (N, M, M) of the masks of `boxes`, of their classes `labels`."""
        return self.stages.masks(features, boxes, labels)


class BoxHead(nn.Module):
    """Classify regions by two fully connected layers of 1024 (figure 4, right)."""

    def __init__(self, pool: RoIPool, inputs: int, outputs: int, width: int = 1024) -> None:
        super().__init__()
        self.pool = pool
        self.fc6 = linear(inputs * pool.size**2, width)
        self.fc7 = linear(width, width)
        self.predict = BoxPredictor(width, outputs)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (scores (N, K + 1), deltas (N, 4 (K + 1)))."""
        x = self.pool(features, boxes).flatten(1)
        return self.predict(F.relu(self.fc7(F.relu(self.fc6(x)))))


class HeavyBoxHead(nn.Module):
    """Classify regions by four 3x3 and a fully connected layer (arXiv:1803.08494, section 4.2)."""

    def __init__(
        self, pool: RoIPool, inputs: int, outputs: int, norm: str = "none", width: int = 1024
    ) -> None:
        super().__init__()
        self.pool = pool
        self.convs = four_convs(inputs, norm)
        self.fc = linear(inputs * pool.size**2, width)
        self.predict = BoxPredictor(width, outputs)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (scores (N, K + 1), deltas (N, 4 (K + 1)))."""
        x = self.convs(self.pool(features, boxes)).flatten(1)
        return self.predict(F.relu(self.fc(x)))


class StageBoxHead(nn.Module):
    """Classify 14x14 regions by conv5, whose stride leaves 7x7, and a mean (figure 4, left)."""

    def __init__(self, pool: RoIPool, stage: nn.Module, channels: int, outputs: int) -> None:
        super().__init__()
        self.pool = pool
        self.stage = stage
        self.predict = BoxPredictor(channels, outputs)

    def features(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return what conv5 makes of each region, (N, channels, 7, 7)."""
        return self.stage(self.pool(features, boxes))

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (scores (N, K + 1), deltas (N, 4 (K + 1)))."""
        return self.predict(self.features(features, boxes).mean((2, 3)))


class MaskHead(nn.Module):
    """Draw masks by four 3x3, a transposed 2x2 of stride 2 and a 1x1 (figure 4, right).

    A pool of 14 x 14 gives masks of 28 x 28.
    """

    def __init__(self, pool: RoIPool, width: int, outputs: int, norm: str = "none") -> None:
        super().__init__()
        self.pool = pool
        self.convs = four_convs(width, norm)
        self.predict = upsampled_masks(width, width, outputs)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return logits (N, outputs, M, M)."""
        return self.predict(self.convs(self.pool(features, boxes)))


class StageMaskHead(nn.Module):
    """Draw masks of 14 x 14 on the box head's 7x7 features (figure 4, left).

    The layers are a transposed 2x2 of stride 2 and a 1x1.
    """

    def __init__(
        self,
        shared: Callable[[list[Tensor], list[Tensor]], Tensor],
        inputs: int,
        outputs: int,
        width: int = 256,
    ) -> None:
        super().__init__()
        self.shared = shared  # a method of the box head, which holds the layers
        self.predict = upsampled_masks(inputs, width, outputs)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return logits (N, outputs, 14, 14)."""
        return self.predict(self.shared(features, boxes))


class MLPMaskHead(nn.Module):
    """Draw masks by fully connected layers: 1024, 1024, outputs x 28 x 28 (table 2e)."""

    def __init__(self, pool: RoIPool, inputs: int, outputs: int, size: int = 28) -> None:
        super().__init__()
        self.pool = pool
        self.outputs = outputs
        self.size = size
        self.fc1 = linear(inputs * pool.size**2, 1024)
        self.fc2 = linear(1024, 1024)
        self.predict = linear(1024, outputs * size**2)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return logits (N, outputs, 28, 28)."""
        x = F.relu(self.fc1(self.pool(features, boxes).flatten(1)))
        return self.predict(F.relu(self.fc2(x))).view(-1, self.outputs, self.size, self.size)


def four_convs(width: int, norm: str) -> nn.Sequential:
    """Return four times 3x3, norm and ReLU of `width`; without a norm a 3x3 has a bias."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [
            he_initialised(nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")),
            norm_factory(norm)(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def check_box_head(box_head: str, trunk: str) -> None:
    """Raise UserError with the way out for a box head that is not offered."""
    if box_head not in BOX_HEADS:
        near = did_you_mean(box_head, BOX_HEADS)
        raise UserError(f"box_head={box_head} is unknown.{near} Known: {', '.join(BOX_HEADS)}")
    if box_head == "heavy" and trunk == "c4":
        raise UserError(
            "box_head=heavy belongs to trunk=fpn: conv5 is the box head of c4, set "
            "model.box_head=two_fc"
        )
