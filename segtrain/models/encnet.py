"""EncNet, the context encoding network (Zhang et al., CVPR 2018, arXiv:1803.08904), on a ResNet."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.backbones.resnet import ResNet
from segtrain.layers.blocks import (
    Dropped,
    HeadInit,
    check_stem,
    classifier,
    conv_norm_relu,
    fcn_head,
    head_dropout,
    initialise,
    initialise_head,
    model_input,
    resize,
)
from segtrain.layers.encoding import ContextEncoding
from segtrain.layers.preprocess import Input, chosen
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

STRIDE = 8  # input pixels per feature
WIDTH = 512


class EncNet(SegmentationModel):
    """Let a vector of the scene's content gate the channels of the deepest feature.

    The vector also tells which classes are there.
    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size and, in training,
    what is asked for of "se" and "se_aux" (B, num_classes), scores before the sigmoid of "the class
    is in the image", and "aux", logits. With code e (B, 512) of feature x, the gate is relu(x + x *
    sigmoid(W e)) (section 3.1).

    stem       "deep": three 3x3, as the authors' ResNets, for `weights` from a file; "torchvision":
               7x7.
    codewords  K of the encoding layer; 0 takes the mean over the image instead.
    se         the head of the SE-loss (section 3.2).
    se_aux     a second one, with an encoding of its own, on the third stage (section 3.3), instead
               of `aux` in the paper; that it starts with a 1x1 to 512, like the first, is our
               reading.
    lateral    adds the second and third stage, 1x1 to 512 each, and a 3x3 (the authors' code, for
               the PASCAL data sets).
    aux        an FCN head on the third stage (the authors' code, which has no `se_aux`).
    dropout    of 0.1 before both classifiers: of each "element", or of whole channels ("channel"),
               as in the authors' code.
    head_init  the first weights of the new layers. "small": by He's rule, but the layers to classes
               near 0; "he": all convolutions by He's rule; "torch": torch's, as in the authors'
               code.

    The third and fourth stage lose their stride and are dilated 2 and 4, their first blocks 1 and 2
    (pattern "delayed").
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"
        ] = "resnet50",
        stem: Literal["deep", "torchvision"] = "deep",
        codewords: int = 32,
        se: bool = True,
        se_aux: bool = False,
        lateral: bool = True,
        aux: bool = True,
        norm: Literal["batch", "group"] = "batch",
        weights: Literal["imagenet"] | Path | None = None,
        input: Input = None,
        dropout: Dropped = "element",
        head_init: HeadInit = "small",
    ) -> None:
        super().__init__()
        check_stem(stem, weights)
        self.backbone = ResNet(backbone, STRIDE, None, norm, weights, style=stem, pattern="delayed")
        self.preprocess = chosen(input, self.backbone.preprocess)
        _, second, third, fourth = self.backbone.channels
        self.reduce = conv_norm_relu(fourth, WIDTH, 3, norm=norm)
        sides = [second, third] if lateral else []
        self.lateral = nn.ModuleList(
            conv_norm_relu(channels, WIDTH, norm=norm) for channels in sides
        )
        self.fuse = conv_norm_relu(3 * WIDTH, WIDTH, 3, norm=norm) if lateral else None
        self.context = ContextEncoding(WIDTH, WIDTH, codewords, norm)
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Sequential(head_dropout(dropout), classifier(WIDTH, num_classes))
        self.se = presence_head(num_classes) if se else None
        self.aux = fcn_head(third, num_classes, norm, dropout) if aux else None
        self.se_aux = None
        if se_aux:
            self.se_aux = nn.Sequential(
                ContextEncoding(third, WIDTH, codewords, norm), presence_head(num_classes)
            )
        initialise(self.reduce, self.lateral, *([self.fuse] if self.fuse is not None else []))
        body = (self.reduce, self.lateral, self.fuse, self.context, self.gate)
        initialise_head(head_init, *body, self.classifier, self.se, self.aux, self.se_aux)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training."""
        heads = {"aux": self.aux, "se": self.se, "se_aux": self.se_aux}
        return ("logits", *(name for name, head in heads.items() if head is not None))

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        heads = {"aux.2": self.aux, "se": self.se, "se_aux.1": self.se_aux}
        layers = (layer for layer, head in heads.items() if head is not None)
        return dict.fromkeys(["classifier.1", *layers], ClassRows())

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) and, in training, what `outputs` names."""
        x = model_input(batch, self.preprocess)
        _, second, third, fourth = self.backbone(x)
        deep = self.reduce(fourth)
        if self.fuse is not None:
            sides = [
                layer(feature) for layer, feature in zip(self.lateral, (second, third), strict=True)
            ]
            deep = self.fuse(torch.cat([deep, *sides], dim=1))
        code = self.context(deep)
        gated = gate(deep, self.gate(code))
        output = {"logits": resize(self.classifier(gated), x, align_corners=True)}
        if self.training and self.aux is not None:
            output["aux"] = resize(self.aux(third), x, align_corners=True)
        if self.training and self.se is not None:
            output["se"] = self.se(code)
        if self.training and self.se_aux is not None:
            output["se_aux"] = self.se_aux(third)
        return output


def gate(x: Tensor, scores: Tensor) -> Tensor:
    """Let each channel of (B, C, H, W) through once to twice, by its score of (B, C)."""
    return (x + x * scores.sigmoid()[:, :, None, None]).relu()


def presence_head(num_classes: int) -> nn.Linear:
    """Return the layer from a code to a score per class.

    Its weights are small, so that the first SE-loss is near log(2).
    """
    head = nn.Linear(WIDTH, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
