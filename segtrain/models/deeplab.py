"""DeepLab v2 (Chen et al., TPAMI 2017, arXiv:1606.00915); its CRF is a matter of inference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.backbones.large_fov import WIDTH, large_fov
from segtrain.backbones.resnet import ResNet
from segtrain.backbones.vgg import DEPTHS, VGG
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.blocks import classifier, model_input, resize
from segtrain.layers.preprocess import Preprocess
from segtrain.models.base import SegmentationModel
from segtrain.structures.samples import Batch

STRIDE = 8  # input pixels per score
RATES = {"aspp": [6, 12, 18, 24], "largefov": [12]}  # ASPP-L and LargeFOV (section 4.1.2)


class DeepLab(SegmentationModel):
    """A trunk at output stride 8 and dilated classifiers whose scores are added, over several scales of the image.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size: the largest score that a class has at any
    of `scales`, in training too (section 4.3.1). In training with more than one scale, the scores of each come too, as
    "scale_100", "scale_75", "scale_50" (percent), for a loss each.

    head      "aspp": several branches, "largefov": one. On a ResNet a branch is a 3x3 to the classes; on a VGG fc6 (3x3
              at the rate), fc7 and a 1x1 to the classes, with `dropout`. `rates` is one per branch, null for the paper's.
    scales    factors on the input in whole percent, 1.0 first; [1.0] looks at the image once.
    norm      of the trunk. ResNet: "frozen" (the paper; from scratch that is none at all), "batch" (its running
              statistics see every scale), "group", "none". VGG: "none" (the paper), or "batch", in fc6 and fc7 too.
    weights   "imagenet" (torchvision's), on a VGG also "features" (convolutions of the authors' Caffe model).
    style     "caffe": stride in the 1x1, a stem pool that rounds up, BGR input minus the mean: the released models,
              without `weights`, to be loaded with train.init. "torchvision": what `weights` were trained with.
    upsample  false keeps *training* outputs small, as the paper: stride 8, for every 8th label (loss.shrink), those of
              a scale 1/n at stride 8n, for every 8n-th.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg11", "vgg13", "vgg16"
        ] = "resnet101",
        head: Literal["aspp", "largefov"] = "aspp",
        rates: list[int] | None = None,
        scales: list[float] | None = None,
        norm: Literal["frozen", "batch", "group", "none"] = "frozen",
        weights: Literal["imagenet", "features"] | None = None,
        style: Literal["torchvision", "caffe"] = "torchvision",
        upsample: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        rates = branch_rates(head, rates)
        self.percents = percents([1.0, 0.75, 0.5] if scales is None else scales)
        self.upsample = upsample
        check_style(style, weights)
        self.fc = nn.ModuleList()  # fc6 and fc7 of each branch, on a VGG
        if backbone in DEPTHS:
            self.backbone: ResNet | VGG = vgg(backbone, norm, weights)
            self.fc.extend(large_fov(backbone, norm, weights, rates, dropout))
            self.classifiers = nn.ModuleList(classifier(WIDTH, num_classes) for _ in rates)
        else:
            self.backbone = resnet(backbone, norm, weights, style)
            inputs = self.backbone.channels[-1]
            self.classifiers = nn.ModuleList(
                dilated_classifier(inputs, num_classes, rate) for rate in rates
            )
        self.preprocess = caffe_bgr() if style == "caffe" else self.backbone.preprocess

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters with the backbone's learning-rate factor: all that ImageNet trained, so fc6 and fc7 too."""
        return chain(self.backbone.parameters(), self.fc.parameters())

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """See the class."""
        x = model_input(batch, self.preprocess)
        scores = {percent: self.scores(shrink(x, percent)) for percent in self.percents}
        full = scores[100]
        aligned = {
            percent: resize(score, full, align_corners=True) for percent, score in scores.items()
        }
        fused = torch.stack(list(aligned.values())).amax(0) if len(aligned) > 1 else full
        output = {"logits": fused}
        if self.training and len(scores) > 1:
            output |= {f"scale_{percent}": score for percent, score in aligned.items()}
        if self.upsample or not self.training:
            return {name: resize(score, x, align_corners=True) for name, score in output.items()}
        # At input sizes 16k + 1 this only takes every second score of scale 1/2, which is what its small map held.
        factors = {name: STRIDE for name in output} | {
            f"scale_{p}": STRIDE * 100 // p for p in scores if 100 % p == 0
        }
        return {name: onto_labels(score, x, factors[name]) for name, score in output.items()}

    def scores(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) at one scale -> (B, num_classes, H / 8, W / 8): the sum over the branches."""
        deep = self.backbone(x)[-1]
        features = [fc(deep) for fc in self.fc] or [deep] * len(self.classifiers)
        scores = [layer(feature) for layer, feature in zip(self.classifiers, features, strict=True)]
        return torch.stack(scores).sum(0) if len(scores) > 1 else scores[0]


def shrink(x: Tensor, percent: int) -> Tensor:
    """The input at `percent` of its size, corners aligned; 321 pixels give 241 at 75 and 161 at 50 percent."""
    if percent == 100:
        return x
    height, width = ((n - 1) * percent // 100 + 1 for n in x.shape[-2:])
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)


def onto_labels(score: Tensor, x: Tensor, factor: int) -> Tensor:
    """Scores for each `factor`-th pixel of x, first one included."""
    size = [(n + factor - 1) // factor for n in x.shape[-2:]]
    if list(score.shape[-2:]) == size:
        return score
    return F.interpolate(score, size, mode="bilinear", align_corners=True)


def dilated_classifier(inputs: int, num_classes: int, rate: int) -> nn.Conv2d:
    """3x3 to logits that keeps the size; weights from N(0, 0.01), bias 0."""
    conv = nn.Conv2d(inputs, num_classes, 3, padding=rate, dilation=rate)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def caffe_bgr() -> Preprocess:
    """What the released Caffe models read on VOC."""
    return Preprocess([104.008, 116.669, 122.675], [1.0, 1.0, 1.0], order="bgr", scale=255.0)


def resnet(
    name: str,
    norm: Literal["frozen", "batch", "group", "none"],
    weights: str | None,
    style: Literal["torchvision", "caffe"],
) -> ResNet:
    """The trunk: every 3x3 of the fourth stage at rate 2, of the fifth at rate 4."""
    if weights == "features":
        raise UserError(
            f"weights=features belong to a VGG, {name} has imagenet: use weights=imagenet or null"
        )
    return ResNet(name, STRIDE, None, norm, weights, style=style, pattern="uniform")  # ty: ignore


def vgg(name: str, norm: str, weights: Literal["imagenet", "features"] | None) -> VGG:
    """The trunk in the LargeFOV layout, or UserError for a norm that it cannot have."""
    if norm == "none" or norm == "batch":
        return VGG(name, norm, weights, layout="largefov")
    raise UserError(
        f"norm={norm}: {name} has no batch norm to freeze or replace: use norm=none (the paper) or norm=batch"
    )


def branch_rates(head: str, rates: list[int] | None) -> list[int]:
    """One rate per branch. Errors: UserError where head and rates do not fit."""
    if head not in RATES:
        raise UserError(
            f"head={head} is unknown.{did_you_mean(head, RATES)} Known: {', '.join(RATES)}"
        )
    rates = list(RATES[head] if rates is None else rates)
    if not rates or min(rates) < 1:
        raise UserError(
            f"rates={rates}: one rate of 1 or more per branch, or null for the paper's {RATES[head]}"
        )
    if head == "largefov" and len(rates) > 1:
        raise UserError(
            f"rates={rates}: head=largefov has one branch; use one rate, null, or head=aspp"
        )
    return rates


def percents(scales: list[float]) -> list[int]:
    """[1.0, 0.75, 0.5] -> [100, 75, 50], the names of the outputs. Errors: UserError for scales that cannot be had."""
    found = [round(100 * scale) for scale in scales]
    exact = all(
        abs(100 * scale - percent) < 1e-6 for scale, percent in zip(scales, found, strict=True)
    )
    if (
        not exact
        or found[:1] != [100]
        or not all(1 <= p <= 100 for p in found)
        or len(set(found)) < len(found)
    ):
        raise UserError(
            f"scales={list(scales)}: different ones in whole percent, 1.0 first and largest: [1.0, 0.75, 0.5]"
        )
    return found


def check_style(style: str, weights: str | None) -> None:
    """UserError where weights and style do not fit."""
    if style not in ("torchvision", "caffe"):
        raise UserError(
            f"style={style} is unknown.{did_you_mean(style, ['torchvision', 'caffe'])} Known: torchvision, caffe"
        )
    if style == "caffe" and weights is not None:
        raise UserError(
            f"weights={weights} read RGB and do not fit style=caffe: use style=torchvision, or weights=null and "
            f"train.init=FILE for the released models"
        )
