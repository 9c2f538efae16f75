"""FCN, fully convolutional networks (Long, Shelhamer and Darrell, CVPR 2015, arXiv:1411.4038).

The paper's network and torchvision's network of the same name.

Where the values of a map sit in the image follows from kernels, strides and padding: value i is
centred at pixel `first + stride * i`. The crops that align skips and outputs with the image are
derived from it, not written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.backbones import alexnet, vgg
from segtrain.backbones.alexnet import AlexNet
from segtrain.backbones.googlenet import GoogLeNet
from segtrain.backbones.resnet import ResNet
from segtrain.backbones.vgg import VGG
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.blocks import (
    classifier,
    conv_norm_relu,
    initialise,
    model_input,
    resize,
    wide_layers,
)
from segtrain.layers.preprocess import Input, chosen
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

BACKBONES_WITHOUT_SKIPS = (
    "alexnet",
    "alexnet_torchvision",
    "googlenet",
    "googlenet_torchvision",
)
# Least padding in pixels with which the scores cover the image. A VGG needs sides of 33 pixels or
# more for it: those of smaller images are gone before fc6.
LEAST_PADDING = {"vgg": 81, "alexnet": 85, "googlenet": 3}
# Factors on pool4 and pool3 with which the authors' release trains FCN-8s in one go.
AT_ONCE_FACTORS = (1e-2, 1e-4)


class FCN(SegmentationModel):
    """A classifier made convolutional, and a head that brings its scores to the image's size.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size, whatever it is, and,
    in training with `aux`, "aux" of the same shape.

    head       "fcn" is the paper's network (`DeconvolutionHead`) on a VGG, AlexNet or GoogLeNet.
               "torchvision" is the library's of this name (`DilatedHead`): a ResNet at output
               stride 8, for which `norm`, `weights` and `aux` are all there is to choose. None
               takes torchvision's for a ResNet, and else the paper's.
    backbone   "alexnet" and "googlenet" are the papers' networks; with "_torchvision" they are
               those that weights exist for. These four have no skips, so they need stride=32.
    stride     32, 16 or 8 pixels between two scores before the last deconvolution (section 4.2).
    norm       "none" (the paper), or "batch" after every convolution up to fc7: without it nothing
               starts from scratch. torchvision's has "batch" or "group". None: "none" in the
               paper's network, "batch" in torchvision's.
    weights    "imagenet": torchvision's classifier, fc6 and fc7 included; "features": see `VGG`.
    pad        zeros around the image, in pixels. The paper's 100 serves every size. For images of
               at least 33 pixels a side, 81 is enough on a VGG. 85 is enough on an AlexNet, and a
               GoogLeNet needs no more than its own 3.
    learned_upsampling   which deconvolutions learn, one kernel per class: "none" (the release),
               "intermediate" (all but the last, the paper), or "all".
    at_once    scales pool4 and pool3 down, to train stride 16 or 8 without the stages before.
    width      channels of fc6 and fc7 (GoogLeNet has none); the classifier has 4096.
    aux        adds torchvision's auxiliary head on the third stage of a ResNet.

    Raises UserError for a combination that neither network has.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        head: Literal["fcn", "torchvision"] | None = None,
        stride: Literal[32, 16, 8] = 8,
        norm: Literal["none", "batch", "group"] | None = None,
        weights: Literal["imagenet", "features"] | Path | None = None,
        pad: int = 100,
        learned_upsampling: Literal["none", "intermediate", "all"] = "none",
        at_once: bool = False,
        width: int = 4096,
        aux: bool = False,
        input: Input = None,
    ) -> None:
        super().__init__()
        head = head or ("torchvision" if backbone.startswith("resnet") else "fcn")
        norm = norm or ("batch" if head == "torchvision" else "none")
        check_head(head, backbone, norm, weights, aux)
        self.backbone: VGG | AlexNet | GoogLeNet | ResNet
        self.head: DeconvolutionHead | DilatedHead
        if head == "torchvision":
            check_dilated(stride, learned_upsampling, at_once)
            self.backbone = ResNet(
                backbone,
                output_stride=8,
                norm=norm,
                weights=None if weights == "features" else weights,
                pattern="delayed",
            )
            self.head = DilatedHead(self.backbone.channels, num_classes, norm, aux)
        else:
            check_deconvolved(backbone, stride, pad, learned_upsampling, at_once)
            # `check_head` left only these two.
            body_norm = "batch" if norm == "batch" else "none"
            body = convolutions(backbone, body_norm, weights, pad)
            fc = fully_connected(backbone, body_norm, weights, width)
            self.backbone = body
            self.head = DeconvolutionHead(
                body, fc, num_classes, stride, learned_upsampling, at_once
            )
        self.preprocess = chosen(input, self.backbone.preprocess)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training."""
        auxiliary = isinstance(self.head, DilatedHead) and self.head.aux is not None
        return ("logits", "aux") if auxiliary else ("logits",)

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        return {f"head.{layer}": ClassRows() for layer in self.head.class_layers()}

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all that ImageNet trained, so fc6 and fc7 too: they get the backbone's factor."""
        if isinstance(self.head, DeconvolutionHead):
            return chain(self.backbone.parameters(), self.head.fc.parameters())
        return self.backbone.parameters()

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) and what else the head gives."""
        x = model_input(batch, self.preprocess)
        return self.head(self.backbone(x), x)


class DeconvolutionHead(nn.Module):
    """Score the deepest map and bring the scores to the image's size by bilinear deconvolution.

    With stride 16 and 8 the scores of pool4, and of pool3, are added on the way up (section 4.2).
    Scores start at zero: so does every logit. FCN-32s, 16s and 8s name their parameters alike, so
    that each starts from the one before (train.init). `fc` is fc6 and fc7 as convolutions, or
    empty.
    """

    def __init__(
        self,
        backbone: VGG | AlexNet | GoogLeNet,
        fc: nn.Sequential,
        num_classes: int,
        stride: Literal[32, 16, 8] = 8,
        learned_upsampling: Literal["none", "intermediate", "all"] = "none",
        at_once: bool = False,
    ) -> None:
        super().__init__()
        self.fc = fc
        self.skip_factors = AT_ONCE_FACTORS if at_once else (1.0, 1.0)
        widths = [layer.out_channels for layer in fc if isinstance(layer, nn.Conv2d)]
        deepest = widths[-1] if widths else backbone.channels[-1]  # GoogLeNet has no fc6 and fc7
        self.score_fr = zero_scores(deepest, num_classes)
        skipped = {32: [], 16: ["pool4"], 8: ["pool4", "pool3"]}[stride]
        # pool4 first, then pool3: from the second deepest map upwards.
        channels = dict(zip(skipped, backbone.channels[-2::-1], strict=False))
        self.score = nn.ModuleDict(
            {name: zero_scores(channels[name], num_classes) for name in skipped}
        )
        learn_inner = learned_upsampling != "none"
        self.up = nn.ModuleDict(
            {name: Bilinear(num_classes, 4, 2, learn_inner) for name in self.score}
        )
        self.skip_crops, self.output_crop, kernel = alignment(backbone, fc, stride)
        self.upscore = Bilinear(num_classes, kernel, stride, learned_upsampling == "all")

    def class_layers(self) -> list[str]:
        """Return the layers with a row for each class: scores, and deconvolutions that learn."""
        scores = ["score_fr", *(f"score.{name}" for name in self.score)]
        return scores + [
            name
            for name, layer in self.named_modules()
            if isinstance(layer, Bilinear) and isinstance(layer.weight, nn.Parameter)
        ]

    def forward(self, pools: list[Tensor], x: Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) of the maps of all pools, at the size of `x`."""
        fused = self.score_fr(self.fc(pools[-1]))
        for name, pooled, crop, factor in zip(
            self.score, pools[-2::-1], self.skip_crops, self.skip_factors, strict=False
        ):
            fused = self.up[name](fused)
            pooled = pooled * factor if factor != 1 else pooled
            fused = fused + window(self.score[name](pooled), crop, fused)
        return {"logits": window(self.upscore(fused), self.output_crop, x)}


class DilatedHead(nn.Module):
    """Score the stages of a dilated ResNet as torchvision's fcn_resnet50 and fcn_resnet101 do.

    "logits" come from the last of the stages that are `channels` wide and, in training with `aux`,
    "aux" from the one before. Both heads are a quarter as wide as what they read.
    """

    def __init__(self, channels: list[int], num_classes: int, norm: str, aux: bool) -> None:
        super().__init__()
        self.classifier = quarter_head(channels[-1], num_classes, norm)
        self.aux = quarter_head(channels[-2], num_classes, norm) if aux else None

    def class_layers(self) -> list[str]:
        """Return the layers with a row for each class."""
        return ["classifier.2", *([] if self.aux is None else ["aux.2"])]

    def forward(self, stages: list[Tensor], x: Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W), and "aux" alike, at the size of `x`."""
        *_, middle, deep = stages
        output = {"logits": resize(self.classifier(deep), x, align_corners=False)}
        if self.aux is not None and self.training:
            output["aux"] = resize(self.aux(middle), x, align_corners=False)
        return output


class Bilinear(nn.Module):
    """Upsample each channel by a bilinear deconvolution.

    `(B, channels, h, w) -> (B, channels, (h - 1) * stride + kernel, (w - 1) * stride + kernel)`.
    Where it is fixed it is no weight and stands in no checkpoint; where it is `learned` it is a
    parameter that starts bilinear.
    """

    def __init__(self, channels: int, kernel: int, stride: int, learned: bool) -> None:
        super().__init__()
        self.stride = stride
        weight = bilinear_kernel(kernel).repeat(channels, 1, 1, 1)
        self.weight: Tensor
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the upsampled maps."""
        return F.conv_transpose2d(x, self.weight, stride=self.stride, groups=len(self.weight))


class Grid(NamedTuple):
    """Where a map sits in the image, in rows and columns alike.

    Value i is centred at pixel `first + stride * i`.
    """

    first: float
    stride: int


def bilinear_kernel(size: int) -> Tensor:
    """Return the kernel (size, size) that upsamples by (size + 1) // 2.

    It is 1 in the middle and falls linearly to 0 just outside.
    """
    half = (size + 1) // 2
    ramp = 1 - (torch.arange(size) - (size - 1) / 2).abs() / half
    return ramp[:, None] * ramp


def grid_behind(layers: Iterable[nn.Module], grid: Grid) -> Grid:
    """Return the grid of the last layer's output when the first one reads `grid`.

    Modules other than convolutions and pools leave it where it is. Branches side by side may be
    passed one after the other if they move nothing, as those of an inception module.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, step, padding = (
                value if isinstance(value, int) else int(value[0])
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            first = grid.first + grid.stride * ((kernel - 1) / 2 - padding)
            grid = Grid(first, grid.stride * step)
    return grid


def alignment(
    backbone: VGG | AlexNet | GoogLeNet, fc: nn.Module, stride: int
) -> tuple[list[int], int, int]:
    """Return (skip_crops, output_crop, kernel) where the last deconvolution has this `stride`.

    `skip_crops` are where the windows of the skips start, `output_crop` is where the output's
    starts, `kernel` is the last deconvolution's. The papers' VGG has [5, 9], 31, 16 at stride 8,
    [5], 27, 32 at 16 and [], 19, 64 at 32; their AlexNet has [], 18, 63.
    """
    grids = list(pool_grids(backbone))
    grid = grid_behind(fc.modules(), grids[-1])
    skip_crops = []
    for own in grids[-2::-1]:
        if grid.stride == stride:
            break
        finer = grid.stride // 2
        grid = Grid(grid.first - 1.5 * finer, finer)  # behind a deconvolution k4 s2
        skip_crops.append(round((grid.first - own.first) / own.stride))
    # Two kernels interpolate by this stride. Take the one whose values fall onto pixels, not
    # between.
    kernel = 2 * stride - (grid.first % 1 == 0)
    return skip_crops, round((kernel - 1) / 2 - grid.first), kernel


def pool_grids(backbone: VGG | AlexNet | GoogLeNet) -> Iterator[Grid]:
    """Yield the grid of each map that the backbone gives."""
    grid = Grid(0.0, 1)
    if not isinstance(backbone, VGG):
        yield grid_behind(backbone.modules(), grid)
        return
    for block, pool in zip(backbone.blocks, backbone.pools, strict=True):
        grid = grid_behind([*block.modules(), pool], grid)
        yield grid


def window(x: Tensor, start: int, like: Tensor) -> Tensor:
    """Cut the part of `x` from row and column `start` on that is as high and wide as `like`."""
    height, width = like.shape[-2:]
    return x[..., start : start + height, start : start + width]


def zero_scores(inputs: int, num_classes: int) -> nn.Conv2d:
    """Return a 1x1 convolution to scores that start at zero."""
    conv = nn.Conv2d(inputs, num_classes, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def quarter_head(inputs: int, num_classes: int, norm: str) -> nn.Sequential:
    """Return torchvision's FCNHead.

    It is 3x3 to a quarter of the channels, norm, ReLU, dropout, scores.
    """
    conv = conv_norm_relu(inputs, inputs // 4, 3, norm=norm)
    initialise(conv)
    return nn.Sequential(conv, nn.Dropout(0.1), classifier(inputs // 4, num_classes))


def convolutions(
    name: str,
    norm: Literal["none", "batch"],
    weights: Literal["imagenet", "features"] | Path | None,
    pad: int,
) -> VGG | AlexNet | GoogLeNet:
    """Return the classifier's convolutions, with `pad` zeros around the image."""
    if name in vgg.DEPTHS:
        return VGG(name, norm, weights, pad=pad)
    if weights == "features":
        raise UserError(
            f"weights=features exist for backbone=vgg16 only, {name} takes imagenet or null"
        )
    foreign = name.endswith("_torchvision")
    if name.startswith("alexnet"):
        return AlexNet("torchvision" if foreign else "caffe", norm, weights, pad)
    return GoogLeNet("torchvision" if foreign else "paper", norm, weights, pad)


def fully_connected(name: str, norm: str, weights: str | Path | None, width: int) -> nn.Sequential:
    """Return fc6 and fc7 as convolutions, each with ReLU and dropout 0.5; GoogLeNet has neither."""
    if name.startswith("googlenet"):
        return nn.Sequential()
    if name.startswith("alexnet"):
        convs = alexnet.fully_convolutional(weights, width)
    else:
        convs = vgg.fully_convolutional(name, norm, weights, width)
    return wide_layers(convs, norm, 0.5)


def check_head(head: str, backbone: str, norm: str, weights: str | Path | None, aux: bool) -> None:
    """Raise UserError with the way out where a head does not fit the rest."""
    if head not in ("fcn", "torchvision"):
        near = did_you_mean(head, ["fcn", "torchvision"])
        raise UserError(f"head={head} is unknown.{near} Known: fcn, torchvision")
    residual = backbone.startswith("resnet")
    if residual != (head == "torchvision"):
        way_out = "head=torchvision" if residual else "head=fcn, or backbone=resnet50"
        raise UserError(f"backbone={backbone} does not go with head={head}: use {way_out}")
    if residual and (norm not in ("batch", "group") or weights == "features"):
        raise UserError(
            f"norm={norm} weights={weights}: {backbone} offers norm batch and group, weights "
            f"imagenet and null"
        )
    if not residual and (norm == "group" or aux):
        raise UserError(
            f"norm={norm} aux={aux}: head=fcn offers norm none and batch, and no auxiliary head"
        )


def check_dilated(stride: int, learned_upsampling: str, at_once: bool) -> None:
    """Raise UserError for what torchvision's network does not offer."""
    if (stride, learned_upsampling, at_once) != (8, "none", False):
        raise UserError(
            f"stride={stride} learned_upsampling={learned_upsampling} at_once={at_once}: "
            f"head=torchvision has stride 8, none and false; take a VGG for others"
        )


def check_deconvolved(
    backbone: str, stride: int, pad: int, learned_upsampling: str, at_once: bool
) -> None:
    """Raise UserError with the way out for what the paper's network does not offer."""
    known = (*vgg.DEPTHS, *BACKBONES_WITHOUT_SKIPS)
    if backbone not in known:
        near = did_you_mean(backbone, known)
        raise UserError(f"backbone `{backbone}` is unknown.{near} Known: {', '.join(known)}")
    if stride not in (32, 16, 8):
        raise UserError(f"stride={stride}: an FCN offers 32, 16 and 8")
    if backbone in BACKBONES_WITHOUT_SKIPS and stride != 32:
        raise UserError(
            f"stride={stride}: {backbone} has no skips, use stride=32, or a VGG for 16 and 8"
        )
    least = next(value for prefix, value in LEAST_PADDING.items() if backbone.startswith(prefix))
    if pad < least:
        raise UserError(
            f"pad={pad}: the scores of {backbone} cover images of 33 pixels a side and more from "
            f"pad={least} on; the paper has 100"
        )
    if learned_upsampling not in ("none", "intermediate", "all"):
        raise UserError(
            f"learned_upsampling={learned_upsampling} is unknown. Known: none, intermediate, all"
        )
    if at_once and stride == 32:
        raise UserError(
            "at_once=true scales the skips, and stride=32 has none: use stride=8 or 16, or "
            "at_once=false"
        )
