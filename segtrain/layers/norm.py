"""Normalisation layers by name.

Frozen batch norm is a type of its own, so that neither `train()` nor SyncBN conversion wakes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from segtrain.errors import UserError

KINDS = ("batch", "group", "frozen", "none")


class FrozenBatchNorm(nn.Module):
    """Normalise by fixed statistics: weight * (x - running_mean) / sqrt(running_var + eps) + bias.

    Nothing of it trains (DeepLabv2, arXiv:1606.00915; Mask R-CNN). The names are BatchNorm2d's, so
    its weights load; weight and bias count as parameters that need no gradient. From scratch it is
    the identity: there, frozen means no normalisation.
    """

    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map, (B, C, H, W) of the same dtype."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(
            shift.to(x.dtype).view(1, -1, 1, 1), x, scale.to(x.dtype).view(1, -1, 1, 1)
        )

    def extra_repr(self) -> str:
        """Return what stands in brackets when the model is printed."""
        return f"{len(self.weight)}, eps={self.eps:g}"


def norm_factory(kind: str, momentum: float = 0.1, eps: float = 1e-5) -> Callable[[int], nn.Module]:
    """Return the function `channels -> layer` of a kind of normalisation.

    "batch" is BatchNorm2d. "group" is GroupNorm of 32 groups, or gcd(32, channels) if that is
    fewer, each of two channels at least. "frozen" is `FrozenBatchNorm`, "none" is nothing.
    `momentum` is PyTorch's, which is 1 - decay: the 0.9997 of TensorFlow recipes is 0.0003 here.
    Errors: UserError.
    """
    if kind == "batch":
        return lambda channels: nn.BatchNorm2d(channels, eps, momentum)
    if kind == "group":
        # A group of one channel has a single value on a map of one cell, and no variance.
        return lambda channels: nn.GroupNorm(
            min(math.gcd(32, channels), max(channels // 2, 1)), channels, eps
        )
    if kind == "frozen":
        return lambda channels: FrozenBatchNorm(channels, eps)
    if kind == "none":
        return lambda channels: nn.Identity()
    raise UserError(f"norm={kind} is unknown. Known: {', '.join(KINDS)}")
