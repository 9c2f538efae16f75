"""DeepLab v2 (Chen et al., TPAMI 2017, arXiv:1606.00915).

Its CRF is a matter of inference: segtrain/inference/crf.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.backbones.large_fov import WIDTH, large_fov
from segtrain.backbones.resnet import ResNet
from segtrain.backbones.vgg import DEPTHS, VGG
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.blocks import classifier, model_input, resize
from segtrain.layers.preprocess import Input, chosen, goes_with, preprocess
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

STRIDE = 8  # input pixels per score
# Of the branches of each head: ASPP-L and LargeFOV (section 4.1.2), and a 1x1, which has none.
DILATIONS = {"aspp": [6, 12, 18, 24], "largefov": [12], "plain": [1]}


class DeepLab(SegmentationModel):
    """Add the scores of dilated classifiers on a backbone at output stride 8, over several scales.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size: the largest score
    that a class has at any of `scales`, in training too (section 4.3.1). In training with more than
    one scale, the scores of each come too, as "scale_100", "scale_75", "scale_50" (percent), for a
    loss each.

    head      "aspp": several branches, "largefov": one. On a ResNet a branch is a 3x3 to the
              classes; on a VGG it is fc6 (a dilated 3x3), fc7 and a 1x1 to the classes, with
              `dropout`. "plain", on a ResNet only: one 1x1 to the classes, as in the network that
              the authors trained on COCO and released to start from (init.caffemodel).
    dilations   one per branch; None takes the paper's.
    scales    factors on the input in whole percent, 1.0 first; [1.0] looks at the image once.
    norm      of the backbone. ResNet: "frozen" (the paper; from scratch that is none at all),
              "batch" (its running statistics see every scale), "group", "none". VGG: "none" (the
              paper), or "batch", in fc6 and fc7 too.
    weights   "imagenet" (torchvision's), on a VGG also "features" (convolutions of the authors'
              Caffe model).
    style     "caffe": stride in the 1x1, a stem pool that rounds up, BGR input minus the mean: the
              released models, to be loaded with train.init, or with a path of He et al.'s ResNet as
              `weights`. "torchvision": what weights="imagenet" were trained with.
    upsample  false keeps *training* outputs small, as the paper: stride 8, for every 8th label
              (loss.shrink), those of a scale 1/n at stride 8n, for every 8n-th. Without aligned
              corners each scale keeps the size of its own map (loss.nearest).
    align_corners  of every resize, of the input and of scores: true is the authors' Caffe, false
              kazuto1011's deeplab-pytorch (libs/models/msc.py, main.py).

    Errors: UserError for arguments that make no sense together.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg11", "vgg13", "vgg16"
        ] = "resnet101",
        head: Literal["aspp", "largefov", "plain"] = "aspp",
        dilations: list[int] | None = None,
        scales: list[float] | None = None,
        norm: Literal["frozen", "batch", "group", "none"] = "frozen",
        weights: Literal["imagenet", "features"] | Path | None = None,
        style: Literal["torchvision", "caffe"] = "torchvision",
        upsample: bool = True,
        dropout: float = 0.5,
        align_corners: bool = True,
        input: Input = None,
    ) -> None:
        super().__init__()
        dilations = branch_dilations(head, dilations)
        self.percents = percents([1.0, 0.75, 0.5] if scales is None else scales)
        self.upsample = upsample
        self.align_corners = align_corners
        check_style(style, weights)
        if head == "plain" and backbone in DEPTHS:
            raise UserError(
                f"head=plain belongs to a ResNet: on {backbone} use head=largefov or head=aspp"
            )
        self.fc = nn.ModuleList()  # fc6 and fc7 of each branch, on a VGG
        if backbone in DEPTHS:
            self.backbone: ResNet | VGG = vgg(backbone, norm, weights)
            self.fc.extend(large_fov(backbone, norm, weights, dilations, dropout))
            self.classifiers = nn.ModuleList(classifier(WIDTH, num_classes) for _ in dilations)
        else:
            self.backbone = resnet(backbone, norm, weights, style)
            inputs = self.backbone.channels[-1]
            self.classifiers = nn.ModuleList(
                classifier(inputs, num_classes)
                if head == "plain"
                else dilated_classifier(inputs, num_classes, dilation)
                for dilation in dilations
            )
        usual = self.backbone.preprocess
        if style == "caffe" and weights is None:
            usual = preprocess(goes_with("deeplab", style))
        self.preprocess = chosen(input, usual)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training."""
        scales = self.percents if len(self.percents) > 1 else []
        return ("logits", *(f"scale_{percent}" for percent in scales))

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        layers = (f"classifiers.{branch}" for branch in range(len(self.classifiers)))
        return dict.fromkeys(layers, ClassRows())

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all that ImageNet trained, so fc6 and fc7 too: they get the backbone's factor."""
        return chain(self.backbone.parameters(), self.fc.parameters())

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) and, in training, what `outputs` names."""
        x = model_input(batch, self.preprocess)
        scores = {
            percent: self.scores(shrink(x, percent, self.align_corners))
            for percent in self.percents
        }
        full = scores[100]
        alike = {p: resize(score, full, self.align_corners) for p, score in scores.items()}
        fused = torch.stack(list(alike.values())).amax(0) if len(alike) > 1 else full
        output = {"logits": fused}
        own_sizes = not (self.upsample or self.align_corners)
        if self.training and len(scores) > 1:
            maps = scores if own_sizes else alike
            output |= {f"scale_{percent}": score for percent, score in maps.items()}
        if self.upsample or not self.training:
            return {name: resize(score, x, self.align_corners) for name, score in output.items()}
        if own_sizes:
            return output
        # At input sizes 16k + 1 this only takes every second score of scale 1/2: what its small map
        # held.
        factors = dict.fromkeys(output, STRIDE)
        factors |= {f"scale_{p}": STRIDE * 100 // p for p in scores if 100 % p == 0}
        return {name: onto_labels(score, x, factors[name]) for name, score in output.items()}

    def scores(self, x: Tensor) -> Tensor:
        """Return the sum over the branches (B, num_classes, H / 8, W / 8) at one scale."""
        deep = self.backbone(x)[-1]
        features = [fc(deep) for fc in self.fc] or [deep] * len(self.classifiers)
        scores = [layer(feature) for layer, feature in zip(self.classifiers, features, strict=True)]
        return torch.stack(scores).sum(0) if len(scores) > 1 else scores[0]


def shrink(x: Tensor, percent: int, align_corners: bool = True) -> Tensor:
    """Resize the input to `percent` of its size.

    With aligned corners 321 pixels give 241 at 75 and 161 at 50 percent; else 240 and 160.
    """
    if percent == 100:
        return x
    if not align_corners:
        # By the factor, not by the sizes: between the new pixels lie exactly 1 / factor old ones.
        return F.interpolate(x, scale_factor=percent / 100, mode="bilinear", align_corners=False)
    height, width = ((n - 1) * percent // 100 + 1 for n in x.shape[-2:])
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)


def onto_labels(score: Tensor, x: Tensor, factor: int) -> Tensor:
    """Resize scores to one for each `factor`-th pixel of `x`, the first one included."""
    size = [(n + factor - 1) // factor for n in x.shape[-2:]]
    if list(score.shape[-2:]) == size:
        return score
    return F.interpolate(score, size, mode="bilinear", align_corners=True)


def dilated_classifier(inputs: int, num_classes: int, dilation: int) -> nn.Conv2d:
    """Return a 3x3 to logits that keeps the size; weights from N(0, 0.01), bias 0."""
    conv = nn.Conv2d(inputs, num_classes, 3, padding=dilation, dilation=dilation)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def resnet(
    name: str,
    norm: Literal["frozen", "batch", "group", "none"],
    weights: Literal["imagenet", "features"] | Path | None,
    style: Literal["torchvision", "caffe"],
) -> ResNet:
    """Return the backbone: every 3x3 of conv4 is dilated by 2, of conv5 by 4."""
    if weights == "features":
        raise UserError(
            f"weights=features belong to a VGG, {name} has imagenet: use weights=imagenet or null"
        )
    return ResNet(name, STRIDE, None, norm, weights, style=style, pattern="uniform")


def vgg(name: str, norm: str, weights: Literal["imagenet", "features"] | Path | None) -> VGG:
    """Return the backbone in the LargeFOV layout, or raise UserError for a norm it cannot have."""
    if norm == "none" or norm == "batch":
        return VGG(name, norm, weights, layout="largefov")
    raise UserError(
        f"norm={norm}: {name} has no batch norm to freeze or replace: use norm=none (the paper) or "
        f"norm=batch"
    )


def branch_dilations(head: str, dilations: list[int] | None) -> list[int]:
    """Return one dilation per branch. Errors: UserError where head and dilations do not fit."""
    if head not in DILATIONS:
        near = did_you_mean(head, DILATIONS)
        raise UserError(f"head={head} is unknown.{near} Known: {', '.join(DILATIONS)}")
    dilations = list(DILATIONS[head] if dilations is None else dilations)
    if not dilations or min(dilations) < 1:
        raise UserError(
            f"dilations={dilations}: one of 1 or more per branch, or null for the paper's "
            f"{DILATIONS[head]}"
        )
    if head == "largefov" and len(dilations) > 1:
        raise UserError(
            f"dilations={dilations}: head=largefov has one branch; use one dilation, null, or "
            f"head=aspp"
        )
    if head == "plain" and dilations != [1]:
        raise UserError(
            f"dilations={dilations}: head=plain is a 1x1, which has none; use null, head=largefov "
            f"or head=aspp"
        )
    return dilations


def percents(scales: list[float]) -> list[int]:
    """Turn [1.0, 0.75, 0.5] into [100, 75, 50], of which outputs are named.

    Errors: UserError for scales that cannot be had.
    """
    rounded = [round(100 * scale) for scale in scales]
    exact = all(abs(100 * s - percent) < 1e-6 for s, percent in zip(scales, rounded, strict=True))
    within = all(1 <= percent <= 100 for percent in rounded)
    different = len(set(rounded)) == len(rounded)
    if not (exact and within and different and rounded[:1] == [100]):
        raise UserError(
            f"scales={list(scales)}: different ones in whole percent, 1.0 first and largest: "
            f"[1.0, 0.75, 0.5]"
        )
    return rounded


def check_style(style: str, weights: str | Path | None) -> None:
    """Raise UserError where weights and style do not fit."""
    if style not in ("torchvision", "caffe"):
        near = did_you_mean(style, ["torchvision", "caffe"])
        raise UserError(f"style={style} is unknown.{near} Known: torchvision, caffe")
    if style == "caffe" and weights in ("imagenet", "features"):
        raise UserError(
            f"weights={weights} read RGB and do not fit style=caffe: use style=torchvision, or "
            f"weights=null (or weights=FILE, or train.init=FILE for the released models)"
        )
