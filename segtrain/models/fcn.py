"""FCN, fully convolutional networks (Long, Shelhamer and Darrell, CVPR 2015, arXiv:1411.4038): the papers' and torchvision's.

Where the values of a map sit in the image follows from kernels, strides and padding: value i is centred at pixel
`first + stride * i`. The crops that align skips and outputs with the image are derived from it, not written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
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
from segtrain.structures.samples import Batch

OTHERS = (
    "alexnet",
    "alexnet_torchvision",
    "googlenet",
    "googlenet_torchvision",
)  # trunks without skips
LEAST_PAD = {
    "vgg": 81,
    "alexnet": 85,
    "googlenet": 3,
}  # from here on the scores reach all borders, at every size
AT_ONCE = (1e-2, 1e-4)  # on pool4 and pool3, where the authors' release trains FCN-8s in one go


class FCN(nn.Module):
    """`forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size and, with `aux`, "aux" in training.

    head      "fcn": the paper's network (`Deconvolved`) on a VGG, AlexNet or GoogLeNet; "torchvision": the library's of
              this name (`Dilated`) on a ResNet, for which `norm`, `weights` and `aux` are all there is to choose. None:
              the one that goes with the backbone.
    norm      None: what the network has, "none" in the paper's, "batch" in torchvision's.
    The other arguments are those of the two classes. Raises UserError for a combination that neither has.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        head: Literal["fcn", "torchvision"] | None = None,
        stride: Literal[32, 16, 8] = 8,
        norm: Literal["none", "batch", "group"] | None = None,
        weights: Literal["imagenet", "features"] | None = None,
        pad: int = 100,
        learned_upsampling: Literal["none", "intermediate", "all"] = "none",
        at_once: bool = False,
        width: int = 4096,
        aux: bool = False,
    ) -> None:
        super().__init__()
        head = head or ("torchvision" if backbone.startswith("resnet") else "fcn")
        norm = norm or ("batch" if head == "torchvision" else "none")
        check_head(head, backbone, norm, weights, aux)
        if head == "torchvision" and (stride, learned_upsampling, at_once) != (8, "none", False):
            raise UserError(
                f"stride={stride} learned_upsampling={learned_upsampling} at_once={at_once}: head=torchvision has stride 8, "
                f"none and false; take a VGG for others"
            )
        if head == "torchvision":
            self.net: Deconvolved | Dilated = Dilated(num_classes, backbone, norm, weights, aux)  # ty: ignore
        else:
            self.net = Deconvolved(
                num_classes,
                backbone,
                stride,
                norm,
                weights,
                pad,
                learned_upsampling,
                at_once,
                width,  # ty: ignore
            )
        self.preprocess = self.net.preprocess

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters with the backbone's learning-rate factor."""
        return self.net.backbone_parameters()

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """See the class."""
        return self.net(batch)


class Deconvolved(nn.Module):
    """A classifier made convolutional, its scores brought to the image's size by bilinear deconvolution.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size, whatever it is. With stride 16 and 8 the
    scores of pool4, and of pool3, are added on the way up (section 4.2). Scores start at zero: so does every logit.
    FCN-32s, 16s and 8s name their parameters alike, so that each starts from the one before (train.init).

    backbone   "alexnet" and "googlenet" are the papers' networks; with "_torchvision" those that weights exist for. These
               four have no skips: stride 32.
    norm       "none" (the paper), or "batch" after every convolution up to fc7: without it nothing starts from scratch.
    weights    "imagenet": torchvision's classifier, fc6 and fc7 included; "features": see `VGG`.
    pad        zeros around the image, in pixels. The paper's 100 serves every size; from 33 pixels on 81 is enough on a
               VGG, 85 on an AlexNet, and a GoogLeNet needs no more than its own 3.
    learned_upsampling   which deconvolutions learn, one kernel per class: none (the release), all but the last
               ("intermediate", the paper), or all.
    at_once    scales pool4 and pool3 down, to train stride 16 or 8 without the stages before.
    width      channels of fc6 and fc7 (GoogLeNet has none); 4096 is the classifier's.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "vgg11",
            "vgg13",
            "vgg16",
            "alexnet",
            "alexnet_torchvision",
            "googlenet",
            "googlenet_torchvision",
        ] = "vgg16",
        stride: Literal[32, 16, 8] = 8,
        norm: Literal["none", "batch"] = "none",
        weights: Literal["imagenet", "features"] | None = None,
        pad: int = 100,
        learned_upsampling: Literal["none", "intermediate", "all"] = "none",
        at_once: bool = False,
        width: int = 4096,
    ) -> None:
        super().__init__()
        check_arguments(backbone, stride, pad, learned_upsampling, at_once)
        self.backbone = trunk(backbone, norm, weights, pad)
        self.preprocess = self.backbone.preprocess
        self.fc = fully_connected(backbone, norm, weights, width)
        self.scales = AT_ONCE if at_once else (1.0, 1.0)
        self.score_fr = scores(
            self.backbone.channels[-1] if backbone.startswith("googlenet") else width, num_classes
        )
        skipped = {32: [], 16: ["pool4"], 8: ["pool4", "pool3"]}[stride]
        channels = dict(zip(skipped, self.backbone.channels[-2::-1], strict=False))
        self.score = nn.ModuleDict({name: scores(channels[name], num_classes) for name in skipped})
        inner, last = learned_upsampling != "none", learned_upsampling == "all"
        self.up = nn.ModuleDict({name: Bilinear(num_classes, 4, 2, inner) for name in self.score})
        self.crops, self.crop, kernel = alignment(self.backbone, self.fc, stride)
        self.upscore = Bilinear(num_classes, kernel, stride, last)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters with the backbone's learning-rate factor: all that ImageNet trained, so fc6 and fc7 too."""
        return chain(self.backbone.parameters(), self.fc.parameters())

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """See the class."""
        x = model_input(batch, self.preprocess)
        pools = self.backbone(x)
        fused = self.score_fr(self.fc(pools[-1]))
        for name, pooled, crop, scale in zip(
            self.score, pools[-2::-1], self.crops, self.scales, strict=False
        ):
            fused = self.up[name](fused)
            pooled = pooled * scale if scale != 1 else pooled
            fused = fused + window(self.score[name](pooled), crop, fused)
        return {"logits": window(self.upscore(fused), self.crop, x)}


class Dilated(nn.Module):
    """torchvision's fcn_resnet50 and fcn_resnet101: a dilated ResNet at output stride 8 and a 3x3 head.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size and, in training with `aux`, "aux" of the
    same shape from the third stage. Heads are a quarter as wide as what they read.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50",
        norm: Literal["batch", "group"] = "batch",
        weights: Literal["imagenet"] | None = None,
        aux: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(backbone, 8, None, norm, weights, pattern="delayed")
        self.preprocess = self.backbone.preprocess
        self.classifier = quarter_head(self.backbone.channels[-1], num_classes, norm)
        self.aux = quarter_head(self.backbone.channels[-2], num_classes, norm) if aux else None

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that get the backbone's learning-rate factor."""
        return self.backbone.parameters()

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """See the class."""
        x = model_input(batch, self.preprocess)
        *_, middle, deep = self.backbone(x)
        output = {"logits": resize(self.classifier(deep), x, align_corners=False)}
        if self.aux is not None and self.training:
            output["aux"] = resize(self.aux(middle), x, align_corners=False)
        return output


class Bilinear(nn.Module):
    """`(B, channels, h, w) -> (B, channels, (h - 1) * stride + kernel, ...)`: bilinear deconvolution, channel by channel.

    Fixed, it is no weight and in no checkpoint; `learned`, it is a parameter that starts bilinear.
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
        """See the class."""
        return F.conv_transpose2d(x, self.weight, stride=self.stride, groups=len(self.weight))


class Grid(NamedTuple):
    """Where a map sits in the image: value i is centred at pixel `first + stride * i`, in rows and columns alike."""

    first: float
    stride: int


def bilinear_kernel(size: int) -> Tensor:
    """(size, size): 1 in the middle, falling linearly to 0 just outside, for upsampling by (size + 1) // 2."""
    half = (size + 1) // 2
    ramp = 1 - (torch.arange(size) - (size - 1) / 2).abs() / half
    return ramp[:, None] * ramp


def grid_behind(layers: Iterable[nn.Module], grid: Grid) -> Grid:
    """The grid of the last layer's output; other modules than convolutions and pools leave it where it is.

    Branches side by side may be passed one after the other if they move nothing, as those of an inception module.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, step, padding = (
                value if isinstance(value, int) else int(value[0])
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            grid = Grid(grid.first + grid.stride * ((kernel - 1) / 2 - padding), grid.stride * step)
    return grid


def alignment(
    backbone: VGG | AlexNet | GoogLeNet, fc: nn.Module, stride: int
) -> tuple[list[int], int, int]:
    """(crops, crop, kernel): where the skips' windows start, where the output's starts, the last deconvolution's kernel.

    On the papers' VGG [5, 9], 31, 16 for stride 8; [5], 27, 32 for 16; [], 19, 64 for 32; on their AlexNet [], 18, 63.
    """
    grids = list(pool_grids(backbone))
    grid = grid_behind(fc.modules(), grids[-1])
    crops = []
    for own in grids[-2::-1]:
        if grid.stride == stride:
            break
        finer = grid.stride // 2
        grid = Grid(grid.first - 1.5 * finer, finer)  # behind a deconvolution k4 s2
        crops.append(round((grid.first - own.first) / own.stride))
    # Of the two kernels that interpolate by this stride, the one whose values fall onto pixels, not between them.
    kernel = 2 * stride - (grid.first % 1 == 0)
    return crops, round((kernel - 1) / 2 - grid.first), kernel


def pool_grids(backbone: VGG | AlexNet | GoogLeNet) -> Iterator[Grid]:
    """The grid of each map that the trunk gives."""
    grid = Grid(0.0, 1)
    if not isinstance(backbone, VGG):
        yield grid_behind(backbone.modules(), grid)
        return
    for block, pool in zip(backbone.blocks, backbone.pools, strict=True):
        grid = grid_behind([*block.modules(), pool], grid)
        yield grid


def window(x: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of x from row and column `start` on that is as high and wide as `like`."""
    height, width = like.shape[-2:]
    return x[..., start : start + height, start : start + width]


def scores(inputs: int, num_classes: int) -> nn.Conv2d:
    """1x1 to scores that start at zero."""
    conv = nn.Conv2d(inputs, num_classes, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def quarter_head(inputs: int, num_classes: int, norm: str) -> nn.Sequential:
    """3x3 to a quarter of the channels, norm, ReLU, dropout, scores (torchvision's FCNHead)."""
    conv = conv_norm_relu(inputs, inputs // 4, 3, norm=norm)
    initialise(conv)
    return nn.Sequential(conv, nn.Dropout(0.1), classifier(inputs // 4, num_classes))


def trunk(
    name: str,
    norm: Literal["none", "batch"],
    weights: Literal["imagenet", "features"] | None,
    pad: int,
) -> VGG | AlexNet | GoogLeNet:
    """The classifier's convolutions, with `pad` zeros around the image."""
    if name in vgg.DEPTHS:
        return VGG(name, norm, weights, pad=pad)
    if weights == "features":
        raise UserError(
            f"weights=features exist for backbone=vgg16 only, {name} takes imagenet or null"
        )
    if name.startswith("alexnet"):
        return AlexNet(
            "torchvision" if name.endswith("_torchvision") else "caffe", norm, weights, pad
        )
    return GoogLeNet(
        "torchvision" if name.endswith("_torchvision") else "paper", norm, weights, pad
    )


def fully_connected(name: str, norm: str, weights: str | None, width: int) -> nn.Sequential:
    """fc6 and fc7 as convolutions, each with ReLU and dropout 0.5; GoogLeNet has no such layers."""
    if name.startswith("googlenet"):
        return nn.Sequential()
    alex = name.startswith("alexnet")
    convs = (
        alexnet.fully_convolutional(weights, width)
        if alex
        else vgg.fully_convolutional(name, norm, weights, width)
    )
    return wide_layers(convs, norm, 0.5)


def check_head(head: str, backbone: str, norm: str, weights: str | None, aux: bool) -> None:
    """UserError with the way out where a head does not fit the rest."""
    if head not in ("fcn", "torchvision"):
        raise UserError(
            f"head={head} is unknown.{did_you_mean(head, ['fcn', 'torchvision'])} Known: fcn, torchvision"
        )
    residual = backbone.startswith("resnet")
    if residual != (head == "torchvision"):
        way = "head=torchvision" if residual else "head=fcn, or backbone=resnet50"
        raise UserError(f"backbone={backbone} does not go with head={head}: use {way}")
    if residual and (norm not in ("batch", "group") or weights == "features"):
        raise UserError(
            f"norm={norm} weights={weights}: {backbone} offers norm batch and group, weights imagenet and null"
        )
    if not residual and (norm == "group" or aux):
        raise UserError(
            f"norm={norm} aux={aux}: head=fcn offers norm none and batch, and no auxiliary head"
        )


def check_arguments(
    backbone: str, stride: int, pad: int, learned_upsampling: str, at_once: bool
) -> None:
    """UserError with the way out for a combination that is not offered."""
    known = (*vgg.DEPTHS, *OTHERS)
    if backbone not in known:
        raise UserError(
            f"backbone `{backbone}` is unknown.{did_you_mean(backbone, known)} Known: {', '.join(known)}"
        )
    if stride not in (32, 16, 8):
        raise UserError(f"stride={stride}: an FCN offers 32, 16 and 8")
    if backbone in OTHERS and stride != 32:
        raise UserError(
            f"stride={stride}: {backbone} has no skips, use stride=32, or a VGG for 16 and 8"
        )
    least = next(value for prefix, value in LEAST_PAD.items() if backbone.startswith(prefix))
    if pad < least:
        raise UserError(
            f"pad={pad}: the scores of {backbone} cover the image from pad={least} on; the paper has 100"
        )
    if learned_upsampling not in ("none", "intermediate", "all"):
        raise UserError(
            f"learned_upsampling={learned_upsampling} is unknown. Known: none, intermediate, all"
        )
    if at_once and stride == 32:
        raise UserError(
            "at_once=true scales the skips, and stride=32 has none: use stride=8 or 16, or at_once=false"
        )
