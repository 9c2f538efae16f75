"""The depthwise 3x3 convolution that Xceptions and separable heads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Depthwise(nn.Conv2d):
    """Convolve each channel with a 3x3 of its own, without bias.

    `(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))`. It pads the same on all sides, so
    output i stands over input `stride` x i on every size. TensorFlow's SAME pads only at the right
    and bottom where a stride meets an even size, which moves everything by a pixel.
    """

    def __init__(self, channels: int, dilation: int, stride: int = 1) -> None:
        super().__init__(
            channels,
            channels,
            3,
            stride,
            padding=dilation,
            dilation=dilation,
            groups=channels,
            bias=False,
        )

    def forward(self, input: Tensor) -> Tensor:  # nn.Conv2d's name for it
        """Return the convolved channels, in the memory layout that nn.Conv2d gives."""
        # On a CPU the channels-last kernel takes 3 times as long where most taps fall on the
        # padding.
        if input.device.type != "cpu" or 2 * self.dilation[0] <= min(input.shape[-2:]):
            return super().forward(input)
        # With one input channel the weight counts as contiguous *and* channels last, and torch then
        # takes the slow kernel. The detour makes it contiguous only.
        weight = self.weight.flatten(1).view(-1, 1, 3, 3)
        y = F.conv2d(
            input.contiguous(), weight, None, self.stride, self.padding, self.dilation, self.groups
        )
        return y.contiguous(memory_format=torch.channels_last)
