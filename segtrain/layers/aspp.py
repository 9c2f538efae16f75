"""Atrous spatial pyramid pooling with image-level features (DeepLabv3, arXiv:1706.05587, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.layers.blocks import conv3x3, conv_norm_relu, need_images

RATES = (6, 12, 18)  # at output stride 16


def aspp_rates(output_stride: int, rates: Sequence[int] = RATES) -> list[int]:
    """`rates` are those at output stride 16, scaled here so that the field of view in input pixels stays the same."""
    if any(rate < 1 for rate in rates):
        raise UserError(
            f"rates={list(rates)}: dilations at output stride 16, 1 or more, such as {list(RATES)}"
        )
    return [max(rate * 16 // output_stride, 1) for rate in rates]


class ImagePooling(nn.Module):
    """`(B, C, H, W) -> (B, width, H, W)`: the mean over the image, 1x1, norm, ReLU, spread over all positions.

    The mean is over all that is given, padding included, as in the authors' code: in training the padded crop, in
    evaluation the image, or what an inference pads it to.
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
        if self.training:
            need_images(x, self.min_train_batch, "the image pooling branch")
        return self.project(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])


class ASPP(nn.Module):
    """`(B, inputs, H, W) -> (B, width, H, W)`: 1x1, a 3x3 per rate and image pooling, concatenated and projected."""

    def __init__(
        self,
        inputs: int,
        rates: list[int],
        width: int = 256,
        separable: bool = False,
        norm: str = "batch",
        dropout: float = 0.1,
        image_pooling: bool = True,
    ) -> None:
        super().__init__()
        branches: list[nn.Module] = [conv_norm_relu(inputs, width, norm=norm)]
        branches += [conv3x3(inputs, width, rate, separable, norm) for rate in rates]
        self.pooling = ImagePooling(inputs, width, norm) if image_pooling else None
        self.branches = nn.ModuleList(branches)
        joined = width * (len(branches) + image_pooling)
        self.project = nn.Sequential(conv_norm_relu(joined, width, norm=norm), nn.Dropout(dropout))

    @property
    def min_train_batch(self) -> int:
        """Images that one process needs in a training batch."""
        return self.pooling.min_train_batch if self.pooling is not None else 1

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        parts = [branch(x) for branch in self.branches]
        if self.pooling is not None:
            parts.append(self.pooling(x))
        return self.project(torch.cat(parts, dim=1))
