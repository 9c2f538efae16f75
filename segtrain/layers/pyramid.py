"""Feature pyramids (Lin et al., CVPR 2017, arXiv:1612.03144, section 3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.layers.norm import norm_factory

STRIDES = [4, 8, 16, 32, 64]  # of P2 to P6


class FeaturePyramid(nn.Module):
    """Bring what coarse maps know to fine ones: `[c2, c3, c4, c5] -> [p2, p3, p4, p5]`.

    The maps keep their sizes and get `width` channels; there may be any number of them, fine to
    coarse, each half its finer neighbour, rounded up. A 1x1 reads each input, the coarser sum is
    added, repeated 2x2 (nearest neighbour), and a 3x3 gives the output. The convolutions have a
    bias and no activation; with a `norm` ("batch", "group", "frozen") they have that instead of the
    bias.
    """

    def __init__(self, channels: list[int], width: int = 256, norm: str = "none") -> None:
        super().__init__()
        self.lateral = nn.ModuleList(plain_conv(inputs, width, 1, norm) for inputs in channels)
        self.output = nn.ModuleList(plain_conv(width, width, 3, norm) for _ in channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the pyramid's maps, fine to coarse."""
        sums = [layer(feature) for layer, feature in zip(self.lateral, features, strict=True)]
        for i in range(len(sums) - 2, -1, -1):
            # To a size of 2n or 2n - 1 this takes value j // 2 at j: a repetition, cut at odd
            # sizes.
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        return [layer(merged) for layer, merged in zip(self.output, sums, strict=True)]


def plain_conv(inputs: int, outputs: int, kernel: int, norm: str) -> nn.Sequential:
    """Return a convolution without activation that keeps the size.

    Its weights start uniform with variance 1 / fan-in, its bias at 0.
    """
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=norm == "none")
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return (
        nn.Sequential(conv) if norm == "none" else nn.Sequential(conv, norm_factory(norm)(outputs))
    )


def with_coarser(levels: list[Tensor], count: int = 1) -> list[Tensor]:
    """Add `count` coarser levels (P6, P7), each every other cell of the one before."""
    extended = list(levels)
    for _ in range(count):
        extended.append(F.max_pool2d(extended[-1], 1, 2))
    return extended


def padded(x: Tensor, divisor: int) -> Tensor:
    """Pad (B, C, H, W) with zeros below and to the right, to multiples of `divisor`."""
    return F.pad(x, (0, -x.shape[-1] % divisor, 0, -x.shape[-2] % divisor))
