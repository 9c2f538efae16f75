"""AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012).

Its fully connected layers are offered as convolutions. Two networks bear the name, and the weights
of one do not fit the other:

layout "caffe"        96, 256, 384, 384, 256 wide, three convolutions in two groups, local response
                      normalisation behind the first two pools: the ImageNet winner as Caffe
                      released it, which FCN starts from
layout "torchvision"  64, 192, 384, 256, 256 wide, no groups, no normalisation (arXiv:1404.5997):
                      the one that torchvision has weights of

Pools are 3x3 with stride 2 and round up; on a classifier's 224 or 227 pixels there is nothing to
round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from segtrain.backbones import classifier
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import goes_with, preprocess
from segtrain.weights import backbone_file
from segtrain.weights.torchvision_weights import download

WIDTHS = {"caffe": (96, 256, 384, 384, 256), "torchvision": (64, 192, 384, 256, 256)}
GROUPS = {"caffe": (1, 2, 1, 2, 2), "torchvision": (1, 1, 1, 1, 1)}
KERNELS = (11, 5, 3, 3, 3)
POOLED_CONVOLUTIONS = (0, 1, 4)
TORCHVISION_NUMBERS = (0, 3, 6, 8, 10)  # of the convolutions in its `features`


class AlexNet(nn.Module):
    """Give what the last pool gives: `(B, 3, H, W) -> [p5]`.

    It is 256 wide at stride 32, as `channels[0]` and `strides[0]` say.

    norm      "none" (the paper), or "batch" after every convolution, then without local response
              normalisation.
    weights   "imagenet": torchvision's, for its own layout without norm; a path: a published file
              of this layout.
    pad       zero padding of the first convolution in pixels: 2 in torchvision's classifier, 0 in
              Caffe's, 100 in FCN.
    """

    def __init__(
        self,
        layout: Literal["caffe", "torchvision"] = "caffe",
        norm: Literal["none", "batch"] = "none",
        weights: Literal["imagenet"] | Path | None = None,
        pad: int = 2,
    ) -> None:
        super().__init__()
        named, file = backbone_file.split(weights)
        check_arguments(layout, norm, named)
        self.channels = [WIDTHS[layout][-1]]
        self.strides = [32]
        layers: list[nn.Module] = []
        inputs = 3
        for number, (width, groups, kernel) in enumerate(
            zip(WIDTHS[layout], GROUPS[layout], KERNELS, strict=True)
        ):
            stride, padding = (4, pad) if number == 0 else (1, kernel // 2)
            layers.append(nn.Conv2d(inputs, width, kernel, stride, padding, groups=groups))
            layers += [norm_factory(norm)(width)] if norm == "batch" else []
            layers.append(nn.ReLU(inplace=True))
            if number in POOLED_CONVOLUTIONS:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
                response = layout == "caffe" and norm == "none" and number < 2
                if response:  # the paper's size, alpha and beta, with Caffe's k of 1
                    layers.append(nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75))
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.preprocess = preprocess(goes_with("alexnet", named))
        if file is not None:
            reads = backbone_file.fill(self, file, layout=layout, norm=norm)
            self.preprocess = preprocess(reads)
        elif named is None:
            classifier.start(self.layers)
        else:
            classifier.load_layers(
                self.layers,
                [f"features.{number}" for number in TORCHVISION_NUMBERS],
                download("alexnet"),
            )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return one map, the last pool's."""
        return [self.layers(x)]


def check_arguments(layout: str, norm: str, weights: str | None) -> None:
    """Raise UserError with the way out for a combination that is not offered."""
    if layout not in WIDTHS:
        near = did_you_mean(layout, WIDTHS)
        raise UserError(f"layout={layout} is unknown.{near} Known: {', '.join(WIDTHS)}")
    if norm not in ("none", "batch"):
        raise UserError(f"norm={norm}: an AlexNet offers none and batch")
    if weights not in (None, "imagenet"):
        raise UserError(
            f"weights={weights}: an AlexNet offers imagenet, or null to start from scratch"
        )
    if weights is not None and layout != "torchvision":
        raise UserError(
            f"weights={weights} are torchvision's, which do not fit the paper's AlexNet: use "
            f"backbone=alexnet_torchvision, or weights=null (and train.init=FILE for weights of "
            f"your own)"
        )
    if weights is not None and norm != "none":
        raise UserError(
            f"weights={weights} come without norm, got norm={norm}: use norm=none or weights=null"
        )


def fully_convolutional(
    weights: str | Path | None = None, width: int = 4096
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return (fc6, fc7), the classifier's fully connected layers as convolutions.

    They are (256 -> width, 6x6, no padding) and (width -> width, 1x1). With weights="imagenet" they
    are torchvision's, reshaped (out, 256, 6, 6); a smaller `width` takes evenly spaced filters.
    """
    named, file = backbone_file.split(weights)
    state = None if named is None else download("alexnet")
    if file is not None:
        state = backbone_file.classifier_of(file, classifier.shapes(256, 6, (1, 4)))
    return classifier.fully_convolutional(256, 6, width, 6, state, (1, 4))
