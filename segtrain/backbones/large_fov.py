"""The two wide layers of DeepLab-LargeFOV on a VGG (arXiv:1412.7062, section 4.1).

fc6 is dilated, fc7 is 1x1.
"""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from segtrain.backbones.classifier import fully_convolutional
from segtrain.backbones.vgg import classifier_state
from segtrain.layers.blocks import wide_layers

WIDTH = 1024  # 4096 in the classifier; the smaller one is as good and 4 times as fast


def large_fov(
    backbone: str, norm: str, weights: str | Path | None, dilations: list[int], dropout: float = 0.5
) -> list[nn.Sequential]:
    """Return one branch `(B, 512, H, W) -> (B, 1024, H, W)` per dilation of fc6.

    A branch is fc6 3x3, ReLU, dropout, fc7 1x1, ReLU, dropout. With weights="imagenet" all start as
    the classifier's layers, subsampled. norm="batch" normalises both, as the backbone.
    """
    # The weights' file has half a gigabyte: it is read once for all branches. Without weights every
    # branch starts with numbers of its own.
    state = classifier_state(backbone, norm, weights)
    layers = [fully_convolutional(512, 7, WIDTH, 3, state, (0, 3))]
    for _ in dilations[1:]:
        layers.append(
            fully_convolutional(512, 7, WIDTH, 3, None, (0, 3))
            if state is None
            else copy.deepcopy(layers[0])
        )
    for dilation, (fc6, _) in zip(dilations, layers, strict=True):
        fc6.padding = fc6.dilation = (dilation, dilation)
    return [wide_layers(convs, norm, dropout) for convs in layers]
