"""Networks of releases, stated as functions of their own tensors.

A function asks a `Release` for a tensor by the release's name as it uses it, and there it comes
into being, with random values. So one call gives a file in the release's layout and the output that
the release has for it, and neither knows our names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Release:
    """Tensors by name; `empty` ones are a zero in all places, and take no memory and no time."""

    def __init__(self, empty: bool = False, counts: bool = True) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.empty = empty
        self.counts = counts  # torch before 0.4.1 wrote no num_batches_tracked
        self.random = torch.Generator().manual_seed(0)

    def image(self, height: int, width: int) -> Tensor:
        """One image, or none where the tensors are empty."""
        return self.values(0 if self.empty else 1, 3, height, width)

    def values(self, *shape: int) -> Tensor:
        if self.empty:
            return torch.zeros(()).expand(shape)
        return torch.randn(shape, generator=self.random)

    def put(self, name: str, value: Tensor) -> Tensor:
        assert name not in self.tensors or self.tensors[name].shape == value.shape
        return self.tensors.setdefault(name, value)

    def weight(self, name: str, *shape: int) -> Tensor:
        """A weight (out, in, ...) that keeps the size of what it reads."""
        if name in self.tensors:
            return self.tensors[name]
        values = self.values(*shape)
        if not self.empty:
            values *= (1.5 / values[0].numel()) ** 0.5
        return self.put(name, values)

    def conv(
        self,
        x: Tensor,
        name: str,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        bias: bool = False,
        groups: int = 1,
    ) -> Tensor:
        weight = self.weight(f"{name}.weight", outputs, x.shape[1] // groups, kernel, kernel)
        added = self.put(f"{name}.bias", 0.1 * self.values(outputs)) if bias else None
        margin = dilation * (kernel // 2) if padding is None else padding
        return F.conv2d(x, weight, added, stride, margin, dilation, groups)

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        width = x.shape[1]
        weight = self.put(f"{name}.weight", 1 + 0.2 * self.values(width))
        bias = self.put(f"{name}.bias", 0.1 * self.values(width))
        mean = self.put(f"{name}.running_mean", 0.1 * self.values(width))
        variance = self.put(f"{name}.running_var", 1 + 0.2 * self.values(width).abs())
        if self.counts:
            self.put(f"{name}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    def linear(self, x: Tensor, name: str, outputs: int) -> Tensor:
        weight = self.weight(f"{name}.weight", outputs, x.shape[1])
        return F.linear(x, weight, self.put(f"{name}.bias", 0.1 * self.values(outputs)))

    def bottleneck(
        self,
        x: Tensor,
        name: str,
        width: int,
        stride: int,
        dilation: int,
        shortcut: bool,
        groups: int = 1,
        per_group: int = 64,
    ) -> Tensor:
        """A block with torchvision's names, of a ResNeXt where it has groups."""
        inner = width * per_group * groups // 64
        y = self.norm(self.conv(x, f"{name}.conv1", inner), f"{name}.bn1").relu()
        y = self.conv(y, f"{name}.conv2", inner, 3, stride, dilation, groups=groups)
        y = self.norm(y, f"{name}.bn2").relu()
        y = self.norm(self.conv(y, f"{name}.conv3", 4 * width), f"{name}.bn3")
        if shortcut:
            x = self.conv(x, f"{name}.downsample.0", 4 * width, 1, stride)
            x = self.norm(x, f"{name}.downsample.1")
        return (x + y).relu()

    def stages(
        self,
        x: Tensor,
        depth: int,
        prefix: str = "",
        strides: Sequence[int] = (1, 2, 1, 1),
        dilations: Sequence[tuple[int, int]] = ((1, 1), (1, 1), (2, 2), (4, 4)),
        *groups: int,
    ) -> list[Tensor]:
        """layer1 to layer4 with torchvision's names; `dilations` of the first block, of others."""
        maps = []
        for n, blocks in enumerate(BLOCKS[depth]):
            for i in range(blocks):
                name = f"{prefix}layer{n + 1}.{i}"
                stride, dilation = (strides[n], dilations[n][0]) if i == 0 else (1, dilations[n][1])
                x = self.bottleneck(x, name, 64 << n, stride, dilation, i == 0, *groups)
            maps.append(x)
        return maps


def upsampled(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    size = like.shape[-2:]
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
