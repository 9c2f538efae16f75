"""GoogLeNet (Szegedy et al., CVPR 2015, arXiv:1409.4842) up to its last inception module, without the side classifiers.

layout "paper"        5x5 in the third branch, 3x3 pools, local response normalisation around the second convolutions
layout "torchvision"  3x3 in the third branch, a 2x2 fourth pool, batch norm everywhere: the one that torchvision has weights of

Pools round up.
"""

from __future__ import annotations

from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from segtrain.backbones import classifier
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import Preprocess, imagenet
from segtrain.weights.torchvision_weights import download

LAYOUTS = ("paper", "torchvision")
# 1x1; reduction and 3x3; reduction and 5x5; projection behind the pool (table 1). Between the stages stands a pool.
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
    """`(B, 3, H, W) -> [5b]`, the last inception module: 1024 channels at stride 32, `channels[0]` and `strides[0]`.

    norm      "none" (the paper), or "batch" after every convolution, then without local response normalisation.
    weights   "imagenet": torchvision's, for its own layout with norm="batch". They were trained on RGB in [-1, 1], as
              `preprocess` gives it, not on ImageNet's mean and deviation.
    pad       zero padding of the first convolution in pixels: 3 in the classifier.
    """

    def __init__(
        self,
        layout: Literal["paper", "torchvision"] = "paper",
        norm: Literal["none", "batch"] = "none",
        weights: Literal["imagenet"] | None = None,
        pad: int = 3,
    ) -> None:
        super().__init__()
        check_arguments(layout, norm, weights)
        self.channels, self.strides = [1024], [32]
        paper = layout == "paper"
        response = [nn.LocalResponseNorm(5, 1e-4, 0.75)] if paper and norm == "none" else []
        layers: list[nn.Module] = [conv(3, 64, 7, norm, 2, pad), pool(3), *response]
        layers += [conv(64, 64, 1, norm), conv(64, 192, 3, norm, 1, 1), *response, pool(3)]
        inputs = 192
        for number, stage in enumerate(STAGES):
            if number > 0:
                layers.append(pool(2 if number == 2 and not paper else 3))
            for widths in stage:
                layers.append(Inception(inputs, widths, 5 if paper else 3, norm))
                inputs = widths[0] + widths[2] + widths[4] + widths[5]
        self.layers = nn.Sequential(*layers)
        self.preprocess = imagenet() if weights is None else Preprocess([0.5] * 3, [0.5] * 3)
        if weights is None:
            classifier.start(self.layers)
        else:  # torchvision's layers have other names, in the same order
            with torch.device("meta"):
                theirs = torchvision.models.GoogLeNet(aux_logits=False, init_weights=False)
            names = [
                name
                for name, layer in theirs.named_modules()
                if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
            ]
            classifier.load_layers(self.layers, names, download("googlenet"))

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        return [self.layers(x)]


class Inception(nn.Module):
    """1x1, 3x3, 5x5 and pooled branches side by side, concatenated (figure 2b); the size stays."""

    def __init__(self, inputs: int, widths: tuple[int, ...], kernel: int, norm: str) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, projected = widths
        branches = [
            conv(inputs, one, 1, norm),
            nn.Sequential(conv(inputs, reduce3, 1, norm), conv(reduce3, three, 3, norm, 1, 1)),
            nn.Sequential(
                conv(inputs, reduce5, 1, norm), conv(reduce5, five, kernel, norm, 1, kernel // 2)
            ),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, projected, 1, norm)),
        ]
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def conv(
    inputs: int, outputs: int, kernel: int, norm: str, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """Convolution (with bias where no norm follows), norm, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=norm == "none")
    ]
    layers += [norm_factory(norm, eps=1e-3)(outputs)] if norm != "none" else []
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def pool(kernel: int) -> nn.MaxPool2d:
    """Halves the size and rounds up."""
    return nn.MaxPool2d(kernel, 2, ceil_mode=True)


def check_arguments(layout: str, norm: str, weights: str | None) -> None:
    """UserError with the way out for a combination that is not offered."""
    if layout not in LAYOUTS:
        raise UserError(
            f"layout={layout} is unknown.{did_you_mean(layout, LAYOUTS)} Known: {', '.join(LAYOUTS)}"
        )
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
            f"weights={weights} of a GoogLeNet need norm=batch, got norm={norm}: use norm=batch or weights=null"
        )
