"""Weight files in torchvision's layouts, written from its key names, small enough for a test."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_norm(name: str, width: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.rand(width) + 0.5,
        f"{name}.bias": torch.randn(width) / 10,
        f"{name}.running_mean": torch.randn(width) / 10,
        f"{name}.running_var": torch.rand(width) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def convolution(name: str, outputs: int, inputs: int, kernel: int) -> dict[str, Tensor]:
    bound = (inputs * kernel * kernel) ** -0.5
    return {f"{name}.weight": torch.randn(outputs, inputs, kernel, kernel) * bound}


def resnet18(prefix: str = "") -> dict[str, Tensor]:
    """The convolutions and batch norms of torchvision's resnet18."""
    state = convolution(f"{prefix}conv1", 64, 3, 7) | batch_norm(f"{prefix}bn1", 64)
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            key = f"{prefix}layer{stage}.{block}"
            state |= convolution(f"{key}.conv1", width, inputs, 3)
            state |= batch_norm(f"{key}.bn1", width)
            state |= convolution(f"{key}.conv2", width, width, 3)
            state |= batch_norm(f"{key}.bn2", width)
            if inputs != width:
                state |= convolution(f"{key}.downsample.0", width, inputs, 1)
                state |= batch_norm(f"{key}.downsample.1", width)
            inputs = width
    return state


def fcn_resnet18(classes: int) -> dict[str, Tensor]:
    """What torchvision's FCN would be called on a resnet18, without an auxiliary head."""
    return {
        **resnet18("backbone."),
        **convolution("classifier.0", 128, 512, 3),
        **batch_norm("classifier.1", 128),
        **convolution("classifier.4", classes, 128, 1),
        "classifier.4.bias": torch.randn(classes),
    }
