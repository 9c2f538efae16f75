"""ResNet trunks (He et al., CVPR 2016, arXiv:1512.03385) with dilated late stages, built from torchvision's.

The strides of 2 sit in the 3x3 of a stage's first block ("Torch/FB" variant). Where the output stride asks for it, a
stage loses its stride and *every* 3x3 of it is dilated, the first block included (DeepLabv3, arXiv:1706.05587, section
3.1; PSPNet). torchvision's own `replace_stride_with_dilation` leaves the first block at the old rate and refuses basic
blocks.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from segtrain.errors import UserError, did_you_mean
from segtrain.preprocess import imagenet

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101")
DOWNLOAD_SILENCE_S = 20.0


class ResNet(nn.Module):
    """`(B, 3, H, W) -> [c2, c3, c4, c5]`: the outputs of the four stages, `channels[i]` wide at stride `strides[i]`.

    Odd sizes round up: stride s gives ceil(H / s). `multi_grid` multiplies the rates of the last stage's blocks, its
    first n entries for n blocks (blocks beyond the list keep the plain rate). `weights="imagenet"` is torchvision's
    IMAGENET1K_V1 and needs norm="batch"; `preprocess` is what those weights were trained with. `momentum` is PyTorch's
    (1 - decay). Raises UserError for a value that is not offered and for weights that cannot be had.
    """

    def __init__(
        self,
        name: Literal["resnet18", "resnet34", "resnet50", "resnet101"],
        output_stride: Literal[8, 16, 32] = 32,
        multi_grid: list[int] | None = None,
        norm: Literal["batch", "group"] = "batch",
        weights: Literal["imagenet"] | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        check_arguments(name, output_stride, norm, weights)
        trunk = getattr(torchvision.models, name)(norm_layer=norm_factory(norm, momentum))
        if weights is not None:
            trunk.load_state_dict(download(name))
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        stages = [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
        self.stages = nn.ModuleList(stages)
        self.channels: list[int] = [stage[-1].conv1.in_channels for stage in stages]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        for stage, stride in zip(stages, (4, 8, 16, 32), strict=True):
            if stride > output_stride:
                dilate(stage, [stride // output_stride] * len(stage))
        grid = list(multi_grid or [])[: len(trunk.layer4)]
        rate = 32 // output_stride
        rates = [rate * factor for factor in grid] + [rate] * (len(trunk.layer4) - len(grid))
        if max(rates) > 1:
            dilate(trunk.layer4, rates, keep_stride=output_stride == 32)
        self.preprocess = imagenet()

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def check_arguments(name: str, output_stride: int, norm: str, weights: str | None) -> None:
    """UserError with the way out for a combination that is not offered."""
    if name not in NAMES:
        raise UserError(f"backbone `{name}` is unknown.{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}")
    if output_stride not in (8, 16, 32):
        raise UserError(f"output_stride={output_stride}: a ResNet offers 8, 16 and 32")
    if weights not in (None, "imagenet"):
        raise UserError(f"weights={weights}: {name} offers `imagenet`, or null to start from scratch")
    if weights is not None and norm != "batch":
        raise UserError(f"weights={weights} needs norm=batch, got norm={norm}: use norm=batch or weights=null")


def norm_factory(kind: str, momentum: float = 0.1) -> Callable[[int], nn.Module]:
    """`channels -> layer`: BatchNorm2d ("batch"), or GroupNorm ("group") of 32 groups, gcd(32, channels) if fewer."""
    if kind == "batch":
        return lambda channels: nn.BatchNorm2d(channels, momentum=momentum)
    if kind == "group":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)
    raise UserError(f"norm={kind} is unknown. Known: batch, group")


def dilate(stage: nn.Sequential, rates: list[int], keep_stride: bool = False) -> None:
    """Give block i of a stage the rate `rates[i]` in all its 3x3 convolutions, and take the stage's stride away."""
    for block, rate in zip(stage, rates, strict=True):
        for conv in block.modules():
            if not isinstance(conv, nn.Conv2d):
                continue
            if not keep_stride:
                conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (rate, rate)


def download(name: str) -> dict[str, Tensor]:
    """ImageNet weights from torch's cache or, failing that, the network; one clear UserError when neither has them."""
    source = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    cached = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(source.url))
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SILENCE_S)  # torch.hub sets none: a dead network would hang for minutes
    try:
        return source.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, no right to write, a cut file: all are the user's to solve, in one line
        raise UserError(
            f"no ImageNet weights for {name}: {source.url} -> {cached} failed ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Put the file there (TORCH_HOME moves the "
            f"folder; delete a damaged one), or start from scratch with model.weights=null"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
