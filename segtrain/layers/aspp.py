"""Atrous spatial pyramid pooling with image-level features.

It is DeepLabv3's (arXiv:1706.05587, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.layers.blocks import conv3x3, conv_norm_relu, need_images

DILATIONS = (6, 12, 18)  # at output stride 16, as in the paper (section 3.3)


def aspp_dilations(output_stride: int, dilations: Sequence[int] = DILATIONS) -> list[int]:
    """Return the dilations at `output_stride` of those given for output stride 16.

    So the field of view in input pixels stays the same. Errors: UserError.
    """
    if any(dilation < 1 for dilation in dilations):
        raise UserError(
            f"dilations={list(dilations)}: they are given for output stride 16, 1 or more each, "
            f"such as {list(DILATIONS)}"
        )
    return [max(dilation * 16 // output_stride, 1) for dilation in dilations]


class ImagePooling(nn.Module):
    """Spread what the image looks like over all positions: `(B, C, H, W) -> (B, width, H, W)`.

    It is the mean over the image, then 1x1, norm and ReLU. The mean is over all that is given,
    padding included, as in the authors' code: in training the padded crop, in evaluation the image,
    or what an inference pads it to. `mean` stands here instead of adaptive pooling because its
    backward pass is deterministic on CUDA.

    BatchNorm over one image has one value per channel and no variance: such a training batch is
    refused, and `min_train_batch` tells so before the first step.
    """

    def __init__(self, inputs: int, width: int, norm: str = "batch") -> None:
        super().__init__()
        self.project = conv_norm_relu(inputs, width, norm=norm)

    @property
    def min_train_batch(self) -> int:
        """Return how many images one process needs in a training batch.

        SyncBatchNorm sees the other processes' images.
        """
        return 2 if isinstance(self.project[1], nn.BatchNorm2d) else 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected mean at every position."""
        if self.training:
            need_images(x, self.min_train_batch, "the image pooling branch")
        return self.project(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])


class ASPP(nn.Module):
    """See each position at several scales: `(B, inputs, H, W) -> (B, width, H, W)`.

    A 1x1, a 3x3 per dilation and image pooling are concatenated and projected, by a 1x1 or, in
    mmsegmentation, a 3x3. The default dropout behind it is that of the authors' code.
    """

    def __init__(
        self,
        inputs: int,
        dilations: list[int],
        width: int = 256,
        separable: bool = False,
        norm: str = "batch",
        dropout: float = 0.1,
        image_pooling: bool = True,
        project_kernel: Literal[1, 3] = 1,
    ) -> None:
        super().__init__()
        branches: list[nn.Module] = [conv_norm_relu(inputs, width, norm=norm)]
        branches += [conv3x3(inputs, width, dilation, separable, norm) for dilation in dilations]
        self.pooling = ImagePooling(inputs, width, norm) if image_pooling else None
        self.branches = nn.ModuleList(branches)
        joined = width * (len(branches) + image_pooling)
        if project_kernel == 1:
            project = conv_norm_relu(joined, width, norm=norm)
        else:
            project = conv3x3(joined, width, 1, separable, norm)
        self.project = nn.Sequential(project, nn.Dropout(dropout))

    @property
    def min_train_batch(self) -> int:
        """Return how many images one process needs in a training batch."""
        return self.pooling.min_train_batch if self.pooling is not None else 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection of all branches."""
        parts = [branch(x) for branch in self.branches]
        if self.pooling is not None:
            parts.append(self.pooling(x))
        return self.project(torch.cat(parts, dim=1))


def check_aspp(width: int, project_kernel: int) -> None:
    """Raise UserError for a width and a projection that no ASPP can have."""
    if width < 1 or project_kernel not in (1, 3):
        raise UserError(
            f"aspp_width={width} project_kernel={project_kernel}: the channels of a branch, 256 in "
            "the papers, and 1 or 3"
        )
