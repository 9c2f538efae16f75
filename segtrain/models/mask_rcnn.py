"""Mask R-CNN (He et al., ICCV 2017, arXiv:1703.06870): boxes, classes and masks of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.backbones.resnet import ResNet, freeze_parts
from segtrain.layers.blocks import model_input
from segtrain.layers.norm import norm_factory
from segtrain.layers.pyramid import STRIDES, FeaturePyramid, padded, with_coarser
from segtrain.layers.roi import RoIPool
from segtrain.layers.rpn import RegionProposals
from segtrain.layers.two_stage import TwoStage
from segtrain.models.base import SegmentationModel
from segtrain.structures.samples import Batch


class MaskRCNN(SegmentationModel):
    """A ResNet, a feature pyramid, region proposals, a box head of two fully connected layers, a mask head.

    backbone      resnet18 ... resnet152, resnext101_32x8d, resnext101_64x4d
    trunk         "fpn", or "c4": regions are read from conv4 and go through conv5 (the paper's first network)
    norm          of the trunk: "frozen" (with weights; from scratch that is none), "batch" (SyncBN with several GPUs), "group"
    head_norm     of pyramid and mask head: "none", "group" or "batch"
    freeze        parts of the trunk that do not train: 1 the stem, 2 conv2 too (Detectron), ...; None: 2 with `weights`, else 0
    width         channels of the pyramid and of the mask head
    anchors       sides in pixels of the anchors of P2 to P6 ("c4": all of them at every place)
    proposals     (training, evaluation) proposals an image; of each level as many enter the suppression ("c4": 12,000 and
                  6,000 of its one level, as in Detectron)
    regions       proposals an image that are learned from, a quarter of them objects at most
    mask_head     "fcn": four 3x3 and 2x upsampling; "mlp": fully connected 1024, 1024 (table 2e)
    class_agnostic_masks   one mask for all classes (table 2c)
    masks         "sigmoid", or "softmax" over classes and background (table 2b)
    roi           "align", "pool" or "legacy", see models/roi.py (tables 2c, 2d)

    Named deviations: boxes are exclusive (no + 1), RoIAlign has no half-pixel offset, proposals are kept per image and not
    per process, anchors may reach beyond the image, crowd regions hide negatives from the RPN too, mask targets come from
    pixels and not from polygons.
    """

    learns_from = "instances"

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        trunk: Literal["fpn", "c4"] = "fpn",
        weights: Literal["imagenet"] | None = None,
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
    ) -> None:
        super().__init__()
        self.backbone = ResNet(backbone, norm=norm, weights=weights)
        freeze_parts(self.backbone, freeze, weights)
        self.preprocess = self.backbone.preprocess
        self.divisor = (
            32  # input pixels that sides are padded to a multiple of: then the strides are exact
        )
        outputs, channels = num_classes + 1, self.backbone.channels
        mask_outputs = 1 if class_agnostic_masks else outputs
        kept = (proposals[0], proposals[1])
        if trunk == "c4":
            self.pyramid = None
            rpn = RegionProposals(channels[2], [16], [list(anchors)], (12000, 6000), kept)
            stage = self.backbone.stages[3]
            self.backbone.stages = self.backbone.stages[:3]
            pool = RoIPool(14, [16], roi)
            box = StageBoxHead(pool, stage, channels[3], outputs)
            mask = StageMaskHead(box.features, channels[3], mask_outputs)
        else:
            self.pyramid = FeaturePyramid(channels, width, head_norm)
            rpn = RegionProposals(width, STRIDES, [[side] for side in anchors], kept, kept)
            box = BoxHead(RoIPool(7, STRIDES[:4], roi), width, outputs)
            pool = RoIPool(14, STRIDES[:4], roi)
            mask = (
                MLPMaskHead(pool, width, mask_outputs)
                if mask_head == "mlp"
                else MaskHead(pool, width, mask_outputs, head_norm)
            )
        self.stages = TwoStage(rpn, box, mask, regions, masks=masks, legacy=roi == "legacy")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training, beside targets."""
        return ("rpn_class", "rpn_box", "class", "box", "mask")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Sampled regions and their targets, what loss=multitask reads; {} without instances as targets."""
        return self.stages(self.features(batch), batch)

    def features(self, batch: Batch) -> list[Tensor]:
        """P2 to P6 (B, width, h, w), or conv4 alone."""
        found = self.backbone(padded(model_input(batch, self.preprocess), self.divisor))
        if self.pyramid is None:
            return found[-1:]
        return with_coarser(self.pyramid(found))

    def detect(self, features: list[Tensor], sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """See `TwoStage.detect`."""
        return self.stages.detect(features, sizes)

    def masks(self, features: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """See `TwoStage.masks`."""
        return self.stages.masks(features, boxes, labels)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The trunk; conv5 of "c4" is a part of the head."""
        return self.backbone.parameters()


class BoxHead(nn.Module):
    """Two fully connected layers of 1024, then K + 1 scores and a box for each (figure 4, right)."""

    def __init__(self, pool: RoIPool, inputs: int, outputs: int, width: int = 1024) -> None:
        super().__init__()
        self.pool = pool
        self.fc6, self.fc7 = fully(inputs * pool.size**2, width), fully(width, width)
        self.predict = BoxPredictor(width, outputs)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(scores (N, K + 1), deltas (N, 4 (K + 1)))."""
        x = self.pool(features, boxes).flatten(1)
        return self.predict(F.relu(self.fc7(F.relu(self.fc6(x)))))


class BoxPredictor(nn.Module):
    """`(N, inputs) -> (scores (N, outputs), deltas (N, 4 outputs))`, float32: eight bits would tie too many scores."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.score, self.box = nn.Linear(inputs, outputs), nn.Linear(inputs, 4 * outputs)
        for layer, std in ((self.score, 0.01), (self.box, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x.float()), self.box(x.float())


class StageBoxHead(nn.Module):
    """conv5 of the trunk on 14x14 regions (its stride leaves 7x7), mean, scores and boxes (figure 4, left)."""

    def __init__(self, pool: RoIPool, stage: nn.Module, channels: int, outputs: int) -> None:
        super().__init__()
        self.pool, self.stage = pool, stage
        self.predict = BoxPredictor(channels, outputs)

    def features(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """(N, channels, 7, 7)."""
        return self.stage(self.pool(features, boxes))

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(scores (N, K + 1), deltas (N, 4 (K + 1)))."""
        return self.predict(self.features(features, boxes).mean((2, 3)))


class MaskHead(nn.Module):
    """Four 3x3, a transposed 2x2 of stride 2, a 1x1: `size` 14 gives masks of 28 x 28 (figure 4, right)."""

    def __init__(self, pool: RoIPool, width: int, outputs: int, norm: str = "none") -> None:
        super().__init__()
        self.pool = pool
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [
                msra(nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")),
                norm_factory(norm)(width),
                nn.ReLU(),
            ]
        self.convs = nn.Sequential(*layers)
        self.predict = upsampled(width, width, outputs)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """(N, outputs, M, M) logits."""
        return self.predict(self.convs(self.pool(features, boxes)))


class StageMaskHead(nn.Module):
    """On the box head's 7x7 features: a transposed 2x2 of stride 2, a 1x1, masks of 14 x 14 (figure 4, left)."""

    def __init__(
        self,
        shared: Callable[[list[Tensor], list[Tensor]], Tensor],
        inputs: int,
        outputs: int,
        width: int = 256,
    ) -> None:
        super().__init__()
        self.shared = shared  # a method of the box head, which holds the layers
        self.predict = upsampled(inputs, width, outputs)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """(N, outputs, 14, 14) logits."""
        return self.predict(self.shared(features, boxes))


class MLPMaskHead(nn.Module):
    """Fully connected 1024, 1024, outputs x 28 x 28 instead of convolutions (table 2e)."""

    def __init__(self, pool: RoIPool, inputs: int, outputs: int, size: int = 28) -> None:
        super().__init__()
        self.pool, self.outputs, self.size = pool, outputs, size
        self.fc1, self.fc2 = fully(inputs * pool.size**2, 1024), fully(1024, 1024)
        self.predict = fully(1024, outputs * size**2)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """(N, outputs, 28, 28) logits."""
        x = F.relu(self.fc1(self.pool(features, boxes).flatten(1)))
        return self.predict(F.relu(self.fc2(x))).view(-1, self.outputs, self.size, self.size)


def upsampled(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """A transposed 2x2 of stride 2 and a ReLU, then a 1x1 to logits."""
    up, last = msra(nn.ConvTranspose2d(inputs, width, 2, 2)), msra(nn.Conv2d(width, outputs, 1))
    if outputs == 1:  # a fan-out of 1 would start with logits of 8
        nn.init.normal_(last.weight, std=0.001)
    return nn.Sequential(up, nn.ReLU(), last)


def fully(inputs: int, outputs: int) -> nn.Linear:
    """A fully connected layer with uniform weights of variance 1 / inputs, bias 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return layer


def msra(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    """He initialisation by fan-out (arXiv:1502.01852), bias 0."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
