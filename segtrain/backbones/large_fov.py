"""The two wide layers of DeepLab-LargeFOV on a VGG trunk: fc6 dilated, fc7 1x1 (arXiv:1412.7062, section 4.1)."""

from __future__ import annotations

import copy

from torch import nn

from segtrain.backbones.vgg import fully_convolutional
from segtrain.layers.blocks import wide_layers

WIDTH = 1024  # 4096 in the classifier; the smaller one is as good and 4 times as fast


def large_fov(
    backbone: str, norm: str, weights: str | None, rates: list[int], dropout: float = 0.5
) -> list[nn.Sequential]:
    """One `(B, 512, H, W) -> (B, 1024, H, W)` per rate: fc6 3x3 at that rate, ReLU, dropout, fc7 1x1, ReLU, dropout.

    With weights="imagenet" all start as the classifier's layers, subsampled. norm="batch" normalises both, as the trunk.
    """
    # One look into the weights' file for all branches; without weights every branch starts with numbers of its own.
    layers = [fully_convolutional(backbone, norm, weights, WIDTH, kernel=3)]
    for _ in rates[1:]:
        fresh = weights != "imagenet"
        layers.append(
            fully_convolutional(width=WIDTH, kernel=3) if fresh else copy.deepcopy(layers[0])
        )
    for rate, (fc6, _) in zip(rates, layers, strict=True):
        fc6.padding = fc6.dilation = (rate, rate)
    return [wide_layers(convs, norm, dropout) for convs in layers]
