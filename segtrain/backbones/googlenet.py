"""GoogLeNet (Szegedy et al., CVPR 2015, arXiv:1409.4842) up to its last inception module.

The side classifiers are left out. Two layouts bear the name:

layout "paper"        5x5 in the third branch, 3x3 pools, local response normalisation around the
                      second convolutions
layout "torchvision"  3x3 in the third branch, a 2x2 fourth pool; torchvision's weights, which are
                      of this layout, need norm="batch"

Pools round up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.backbones import classifier
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import goes_with, preprocess
from segtrain.weights import backbone_file
from segtrain.weights.torchvision_weights import download

LAYOUTS = ("paper", "torchvision")
# 1x1; reduction and 3x3; reduction and 5x5; projection behind the pool (table 1). Between the
# stages stands a pool.
STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class GoogLeNet(nn.Module):
    """Return the last inception module's map, called 5b: (B, 3, H, W) -> [(B, 1024, h, w)].

    It is at stride 32. `channels` and `strides` say so, too.

    norm      "none" (the paper), or "batch" after every convolution, then without local response
              normalisation.
    weights   "imagenet": torchvision's, for its own layout with norm="batch". They were trained on
              RGB in [-1, 1], as `preprocess` gives it, not on ImageNet's mean and deviation. A
              path: a published file of this layout and norm.
    pad       zero padding of the first convolution in pixels: 3 in the classifier.
    """

    def __init__(
        self,
        layout: Literal["paper", "torchvision"] = "paper",
        norm: Literal["none", "batch"] = "none",
        weights: Literal["imagenet"] | Path | None = None,
        pad: int = 3,
    ) -> None:
        super().__init__()
        named, file = backbone_file.split(weights)
        check_arguments(layout, norm, named)
        self.channels = [1024]
        self.strides = [32]
        paper = layout == "paper"
        response: list[nn.Module] = []
        if paper and norm == "none":
            # The paper gives no values; these are those of Caffe's bvlc_googlenet.
            response = [nn.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75)]
        layers: list[nn.Module] = [conv(3, 64, 7, norm, stride=2, padding=pad), pool(3), *response]
        layers += [conv(64, 64, 1, norm), conv(64, 192, 3, norm, padding=1), *response, pool(3)]
        inputs = 192
        for number, stage in enumerate(STAGES):
            if number > 0:
                layers.append(pool(2 if number == 2 and not paper else 3))
            for widths in stage:
                layers.append(Inception(inputs, widths, 5 if paper else 3, norm))
                inputs = widths[0] + widths[2] + widths[4] + widths[5]
        self.layers = nn.Sequential(*layers)
        self.preprocess = preprocess(goes_with("googlenet", named))
        if file is not None:
            reads = backbone_file.fill(self, file, layout=layout, norm=norm)
            self.preprocess = preprocess(reads)
        elif named is None:
            classifier.start(self.layers)
        else:
            classifier.load_layers(self.layers, torchvision_names(), download("googlenet"))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one map, the last inception module's."""
        return [self.layers(x)]


class Inception(nn.Module):
    """Concatenate 1x1, 3x3, 5x5 and pooled branches (figure 2b).

    `(B, inputs, H, W) -> (B, widths[0] + widths[2] + widths[4] + widths[5], H, W)`.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], kernel: int, norm: str) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, projected = widths
        branches = [
            conv(inputs, one, 1, norm),
            nn.Sequential(conv(inputs, reduce3, 1, norm), conv(reduce3, three, 3, norm, padding=1)),
            nn.Sequential(
                conv(inputs, reduce5, 1, norm),
                conv(reduce5, five, kernel, norm, padding=kernel // 2),
            ),
            nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(inputs, projected, 1, norm)),
        ]
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches' maps side by side."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def conv(
    inputs: int, outputs: int, kernel: int, norm: str, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """Return convolution (with bias where no norm follows), norm, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=norm == "none")
    ]
    if norm != "none":
        layers.append(norm_factory(norm, eps=1e-3)(outputs))  # torchvision's eps
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def pool(kernel: int) -> nn.MaxPool2d:
    """Return a max-pool that halves the size and rounds up."""
    return nn.MaxPool2d(kernel, 2, ceil_mode=True)


def torchvision_names() -> list[str]:
    """Return what torchvision calls our convolutions and norms, in our order."""
    modules = ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
    branches = ["branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1"]
    blocks = ["conv1", "conv2", "conv3"]
    blocks += [f"inception{module}.{branch}" for module in modules for branch in branches]
    return [f"{block}.{layer}" for block in blocks for layer in ("conv", "bn")]


def check_arguments(layout: str, norm: str, weights: str | None) -> None:
    """Raise UserError with the way out for a combination that is not offered."""
    if layout not in LAYOUTS:
        near = did_you_mean(layout, LAYOUTS)
        raise UserError(f"layout={layout} is unknown.{near} Known: {', '.join(LAYOUTS)}")
    if norm not in ("none", "batch"):
        raise UserError(f"norm={norm}: a GoogLeNet offers none and batch")
    if weights not in (None, "imagenet"):
        raise UserError(
            f"weights={weights}: a GoogLeNet offers imagenet, or null to start from scratch"
        )
    if weights is not None and layout != "torchvision":
        raise UserError(
            f"weights={weights} are torchvision's, which do not fit the paper's GoogLeNet: use "
            f"backbone=googlenet_torchvision with norm=batch, or weights=null"
        )
    if weights is not None and norm != "batch":
        raise UserError(
            f"weights={weights} of a GoogLeNet need norm=batch, got norm={norm}: use norm=batch or "
            f"weights=null"
        )
