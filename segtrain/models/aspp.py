"""Atrous spatial pyramid pooling with image-level features (DeepLabv3, arXiv:1706.05587, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.models.layers import conv3x3, conv_norm_relu


def aspp_rates(output_stride: int) -> list[int]:
    """The paper's 6, 12, 18 at output stride 16, scaled so that the field of view in input pixels stays the same."""
    return [rate * 16 // output_stride for rate in (6, 12, 18)]


class ImagePooling(nn.Module):
    """`(B, C, H, W) -> (B, width, H, W)`: the mean over the image, 1x1, norm, ReLU, spread over all positions.

    `mean` instead of adaptive pooling: its backward pass is deterministic on CUDA. BatchNorm over one image has one
    value per channel and no variance: such a training batch is refused (`min_train_batch` tells before the first step).
    """

    def __init__(self, inputs: int, width: int, norm: str = "batch") -> None:
        super().__init__()
        self.project = conv_norm_relu(inputs, width, norm=norm)

    @property
    def min_train_batch(self) -> int:
        """Images that one process needs in a training batch. SyncBatchNorm sees the other processes' images."""
        return 2 if isinstance(self.project[1], nn.BatchNorm2d) else 1

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.training and len(x) < self.min_train_batch:
            raise UserError(
                "a training batch of 1 image per process leaves BatchNorm of the image pooling branch nothing to "
                "average: set batch_size to at least 2 per process, or model.norm=group"
            )
        return self.project(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])


class ASPP(nn.Module):
    """`(B, inputs, H, W) -> (B, width, H, W)`: 1x1, a 3x3 per rate and image pooling, concatenated and projected."""

    def __init__(
        self, inputs: int, rates: list[int], width: int = 256, separable: bool = False, norm: str = "batch",
        dropout: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        branches: list[nn.Module] = [conv_norm_relu(inputs, width, norm=norm)]
        branches += [conv3x3(inputs, width, rate, separable, norm) for rate in rates]
        self.pooling = ImagePooling(inputs, width, norm)
        self.branches = nn.ModuleList(branches)
        self.project = nn.Sequential(conv_norm_relu(width * (len(branches) + 1), width, norm=norm), nn.Dropout(dropout))

    @property
    def min_train_batch(self) -> int:
        """Images that one process needs in a training batch."""
        return self.pooling.min_train_batch

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.project(torch.cat([*(branch(x) for branch in self.branches), self.pooling(x)], dim=1))
