"""The trunk of feature pyramid networks (Lin et al., CVPR 2017, arXiv:1612.03144, section 3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.layers.norm import norm_factory

STRIDES = [4, 8, 16, 32, 64]  # of P2 to P6


class FeaturePyramid(nn.Module):
    """`[c2, c3, c4, c5] -> [p2, p3, p4, p5]`: the same sizes, each `width` channels, fine to coarse, any number of them.

    A 1x1 on each input, plus the coarser sum repeated 2x2 (nearest neighbour), then a 3x3. Each map is half its finer
    neighbour, rounded up. The convolutions have a bias and no activation; with a `norm` ("batch", "group", "frozen") they
    have that instead of the bias.
    """

    def __init__(self, channels: list[int], width: int = 256, norm: str = "none") -> None:
        super().__init__()
        self.lateral = nn.ModuleList(plain_conv(inputs, width, 1, norm) for inputs in channels)
        self.output = nn.ModuleList(plain_conv(width, width, 3, norm) for _ in channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """See the class."""
        sums = [layer(feature) for layer, feature in zip(self.lateral, features, strict=True)]
        for i in range(len(sums) - 2, -1, -1):
            # To a size of 2n or 2n - 1 this takes value j // 2 at j: a repetition, cut where the size is odd.
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        return [layer(merged) for layer, merged in zip(self.output, sums, strict=True)]


def plain_conv(inputs: int, outputs: int, kernel: int, norm: str) -> nn.Sequential:
    """A convolution without activation that keeps the size; uniform weights of variance 1 / fan-in, bias 0."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=norm == "none")
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return (
        nn.Sequential(conv) if norm == "none" else nn.Sequential(conv, norm_factory(norm)(outputs))
    )


def with_coarser(levels: list[Tensor], count: int = 1) -> list[Tensor]:
    """`levels` and `count` coarser ones (P6, P7), each every other cell of the one before."""
    found = list(levels)
    for _ in range(count):
        found.append(F.max_pool2d(found[-1], 1, 2))
    return found


def padded(x: Tensor, divisor: int) -> Tensor:
    """(B, C, H, W) with zeros below and to the right, to multiples of `divisor`."""
    return F.pad(x, (0, -x.shape[-1] % divisor, 0, -x.shape[-2] % divisor))
