"""PANet (Liu et al., CVPR 2018, arXiv:1803.01534).

It is Mask R-CNN with a bottom-up path, adaptive feature pooling and a fused mask.

Sizes, norms and biases are those of the authors' release, which is a re-implementation and not the
code of the paper. Shapes: B images, N regions of all images in order, K classes, column 0 is
background, levels fine to coarse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.backbones.staged import freeze_parts, make_staged
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.blocks import input_of_objects
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import Input, chosen
from segtrain.layers.pyramid import STRIDES, FeaturePyramid, padded, with_coarser
from segtrain.layers.roi import RoIPool, regions_of
from segtrain.layers.roi_heads import BoxPredictor, he_initialised, linear, upsampled_masks
from segtrain.layers.rpn import on_pyramid
from segtrain.layers.two_stage import TwoStage
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

BOX_HEADS = ("two_fc", "heavy")


class PANet(SegmentationModel):
    """Add the paper's parts to Mask R-CNN (models/mask_rcnn.py).

    Each of them can be left out, as in the paper's ablation.

    backbone      resnet18 ... resnet152, resnext101_32x8d, resnext101_64x4d,
                  mobilenet_v2
    style         of the ResNet, see backbones/resnet.py: "msra" for weights of Detectron and
                  PANet's release
    norm          of the backbone: "frozen" (with weights; from scratch that is none), "batch"
                  (SyncBN with several GPUs), "group"
    head_norm     of pyramid, path and heads: "none", "group" (the release) or "batch" (the paper,
                  with train.sync_bn)
    freeze        parts of the backbone that do not train: 1 the stem, 2 conv2 too (Detectron), ...;
                  None: 2 with `weights`, else 0
    width         channels of pyramid, path and heads
    bottom_up     N2 to N6 of the bottom-up path feed proposals and heads (section 3.1); else P2 to
                  P6
    adaptive_pooling   every region is read from all four levels (section 3.2); else from the one
                       that fits its area
    fusion        a fully connected layer draws a map that every class's mask gets (section 3.3)
    fusion_relu   that map is never negative, as released
    box_head      "heavy": four 3x3 and a fully connected 1024; "two_fc": fully connected 1024, 1024
    anchors       sides in pixels of the anchors of N2 to N6
    proposals     (training, evaluation) proposals an image
    candidates    (training, evaluation) proposals of each level that enter the suppression; None:
                  as many as `proposals`
    regions       proposals sampled per image to train the heads, a quarter of them objects at most
    roi, roi_samples, anchor_corners, inclusive_boxes   as of MaskRCNN; the release has "legacy", 2,
                                                        "quantised" and true
    mask_targets  as of MaskRCNN

    Without the four parts (box_head=two_fc) and head_norm="none" it is Mask R-CNN. Named
    deviations: those of MaskRCNN.
    """

    learns_from = "instances"

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        weights: Literal["imagenet"] | Path | None = None,
        norm: Literal["frozen", "batch", "group", "none"] = "frozen",
        head_norm: Literal["none", "group", "batch"] = "group",
        freeze: int | None = None,
        width: int = 256,
        bottom_up: bool = True,
        adaptive_pooling: bool = True,
        fusion: bool = True,
        fusion_relu: bool = True,
        box_head: Literal["two_fc", "heavy"] = "heavy",
        anchors: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512),
        proposals: tuple[int, int] = (2000, 1000),
        regions: int = 512,
        roi: Literal["align", "pool", "legacy"] = "align",
        roi_samples: int = 2,
        anchor_corners: Literal["exact", "rounded", "quantised"] = "rounded",
        inclusive_boxes: bool = False,
        style: Literal["torchvision", "deep", "caffe", "msra"] = "torchvision",
        input: Input = None,
        candidates: tuple[int, int] | None = None,
        mask_targets: Literal["binary", "covered"] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = make_staged(backbone, norm=norm, weights=weights, style=style)
        freeze_parts(self.backbone, freeze, weights)
        self.preprocess = chosen(input, self.backbone.preprocess)
        # Pixels: sides are padded to a multiple, so that all strides of the backbone are exact.
        self.divisor = 32
        self.pyramid = FeaturePyramid(self.backbone.channels, width, head_norm)
        self.path = (
            BottomUpPath(width, len(self.backbone.channels), head_norm) if bottom_up else None
        )
        kept = (proposals[0], proposals[1])
        rpn = on_pyramid(
            width, anchors, kept, anchor_corners, inclusive_boxes, candidates=candidates
        )
        pools = [RoIPool(size, STRIDES[:4], roi, roi_samples, inclusive_boxes) for size in (7, 14)]
        box = BoxHead(pools[0], width, num_classes + 1, box_head, adaptive_pooling, head_norm)
        mask = MaskHead(pools[1], width, num_classes + 1, adaptive_pooling, head_norm)
        if fusion:
            mask.fusion = FusedMask(width, pools[1].size, head_norm, fusion_relu)
        legacy = roi == "legacy"
        self.stages = TwoStage(
            rpn,
            box,
            mask,
            regions,
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
        layers = ("box_head.predict.score", "box_head.predict.box", "mask_head.predict.2")
        return {f"stages.{layer}": ClassRows(background="first") for layer in layers}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return what loss=multitask reads of sampled regions; {} without instances."""
        return self.stages(self.features(batch), batch)

    def features(self, batch: Batch) -> list[Tensor]:
        """Return N2 to N6 (B, width, h, w), or P2 to P6."""
        levels = self.pyramid(
            self.backbone(padded(input_of_objects(batch, self.preprocess), self.divisor))
        )
        if self.path is not None:
            levels = self.path(levels)
        return with_coarser(levels)

    def detect(
        self, features: list[Tensor], sizes: Tensor, growth: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Classify the proposals of each image: (probabilities (n, K), boxes (n, K, 4))."""
        return self.stages.detect(features, sizes, growth)

    def masks(self, features: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Return the probabilities (N, M, M) of the masks of `boxes`, of their classes `labels`."""
        return self.stages.masks(features, boxes, labels)


class BottomUpPath(nn.Module):
    """Give the detail of low levels a short way up: `[p2, ..., p5] -> [n2, ..., n5]` (section 3.1).

    Sizes and width stay.

    n2 is p2. To climb, a 3x3 of stride 2 reads n(i), p(i+1) is added to it, and a second 3x3 gives
    n(i+1). Both have norm and ReLU, so the sum lies between the first ReLU and the second
    convolution. They keep their bias beside a norm, as released.
    """

    def __init__(self, width: int, levels: int = 4, norm: str = "none") -> None:
        super().__init__()
        self.down = nn.ModuleList(
            conv3x3(width, width, norm, stride=2, bias=True) for _ in range(levels - 1)
        )
        self.merge = nn.ModuleList(
            conv3x3(width, width, norm, bias=True) for _ in range(levels - 1)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)  # like the pyramid

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Return the path's maps, fine to coarse."""
        path = pyramid[:1]
        for down, merge, level in zip(self.down, self.merge, pyramid[1:], strict=True):
            path.append(merge(down(path[-1]) + level))
        return path


class AdaptivePooling(nn.Module):
    """Read regions and apply a head's first layer: `(features, boxes) -> (N, ...)` (section 3.2).

    Each region is read from *every* level of `pool`, each level has a first layer with weights of
    its own, and the largest value over the levels goes on. Not `adaptive`: each is read from the
    one level that fits its area, and there is one first layer. `layer` makes a first layer, of (N,
    C, size, size).
    """

    def __init__(
        self, pool: RoIPool, layer: Callable[[], nn.Module], adaptive: bool = True
    ) -> None:
        super().__init__()
        self.pool = pool
        self.adaptive = adaptive
        self.layers = nn.ModuleList(
            layer() for _ in (pool.strides if adaptive else pool.strides[:1])
        )

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return what the first layer makes of each region.

        `features` (B, C, h, w) are one per stride of the pool (further ones are not read), `boxes`
        (n, 4) one tensor per image.
        """
        if not self.adaptive:
            return self.layers[0](self.pool(features, boxes))
        regions = regions_of(boxes)
        levels = (
            layer(self.pool.read(features[i], regions, i)) for i, layer in enumerate(self.layers)
        )
        return reduce(torch.maximum, levels)


class BoxHead(nn.Module):
    """Classify regions: `(features, boxes) -> (scores (N, K + 1), deltas (N, 4 (K + 1)))`.

    K + 1 is `outputs`.

    "two_fc": two fully connected layers of `hidden`, the first one per level. "heavy" (the paper's
    heavier head): four 3x3 of `width`, the first one per level, and one fully connected layer.
    Norms as released: behind all but the fully connected layer of "heavy".
    """

    def __init__(
        self,
        pool: RoIPool,
        width: int,
        outputs: int,
        kind: Literal["two_fc", "heavy"] = "heavy",
        adaptive: bool = True,
        norm: str = "none",
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        if kind not in BOX_HEADS:
            near = did_you_mean(kind, BOX_HEADS)
            raise UserError(f"box_head={kind} is unknown.{near} Known: {', '.join(BOX_HEADS)}")
        cells = width * pool.size**2
        if kind == "two_fc":
            self.first = AdaptivePooling(pool, lambda: flat_layer(cells, hidden, norm), adaptive)
            self.shared = flat_layer(hidden, hidden, norm)
        else:
            self.first = AdaptivePooling(pool, lambda: conv3x3(width, width, norm), adaptive)
            convs = [conv3x3(width, width, norm) for _ in range(3)]
            self.shared = nn.Sequential(*convs, *flat_layer(cells, hidden))
        self.predict = BoxPredictor(hidden, outputs)

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the scores and the deltas."""
        return self.predict(self.shared(self.first(features, boxes)))


class MaskHead(nn.Module):
    """Draw masks from 14x14 cells: `(features, boxes) -> (N, outputs, 28, 28)` logits.

    Four 3x3, the first one per level, a transposed 2x2 of stride 2, a 1x1. `fusion` reads what the
    third 3x3 gives and draws one map (N, 1, 28, 28), which is added to the logits of every class.
    """

    def __init__(
        self, pool: RoIPool, width: int, outputs: int, adaptive: bool = True, norm: str = "none"
    ) -> None:
        super().__init__()
        self.first = AdaptivePooling(pool, lambda: conv3x3(width, width, norm), adaptive)
        self.shared = nn.Sequential(conv3x3(width, width, norm), conv3x3(width, width, norm))
        self.last = conv3x3(width, width, norm)
        self.predict = upsampled_masks(width, width, outputs)
        self.fusion: nn.Module | None = None

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return the logits."""
        x = self.shared(self.first(features, boxes))
        logits = self.predict(self.last(x))
        return logits if self.fusion is None else logits + self.fusion(x)


class FusedMask(nn.Module):
    """Draw a map whose cells each see the whole region (section 3.3).

    `(N, width, size, size) -> (N, 1, 2 size, 2 size)`.

    Two 3x3, the second half as wide, and a fully connected layer, whose values are the map's rows,
    one after the other. `relu` as released: the map is then never negative, so it can raise a logit
    and cannot lower it.
    """

    def __init__(self, width: int, size: int = 14, norm: str = "none", relu: bool = True) -> None:
        super().__init__()
        self.side = 2 * size
        self.relu = relu
        self.convs = nn.Sequential(conv3x3(width, width, norm), conv3x3(width, width // 2, norm))
        self.cells = nn.Linear(width // 2 * size**2, self.side**2)
        nn.init.normal_(self.cells.weight, std=0.01)
        nn.init.zeros_(self.cells.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map."""
        cells = self.cells(self.convs(x).flatten(1)).unflatten(1, (1, self.side, self.side))
        return cells.relu() if self.relu else cells


def conv3x3(
    inputs: int, outputs: int, norm: str, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    """Return 3x3, norm, ReLU.

    The convolution has a bias where no norm has one, or where it is asked for.
    """
    conv = he_initialised(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias or norm == "none"))
    return nn.Sequential(conv, norm_factory(norm)(outputs), nn.ReLU(inplace=True))


def flat_layer(inputs: int, outputs: int, norm: str = "none") -> nn.Sequential:
    """Return fully connected, norm, ReLU, of a region's values in one row."""
    layers: list[nn.Module] = [nn.Flatten(), linear(inputs, outputs)]
    if norm != "none":  # norms read maps, here of one cell
        layers += [nn.Unflatten(1, (outputs, 1, 1)), norm_factory(norm)(outputs), nn.Flatten()]
    return nn.Sequential(*layers, nn.ReLU(inplace=True))
