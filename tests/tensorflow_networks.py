"""Networks as TensorFlow's slim computes them, and the checkpoints that it saves of them.

As in `caffe_networks`, a variable is drawn when a network first asks for it by its name, in
TensorFlow's order of dimensions. Maps are (B, C, H, W) here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import weight_files as files
from torch import Tensor
from torch.nn import functional as F

ENTRY = {41: [(128, 2), (256, 2), (728, 2)]}
ENTRY[65] = ENTRY[41]
ENTRY[71] = [(128, 2), (256, 1), (256, 2), (728, 1), (728, 2)]
MIDDLE = {41: 8, 65: 16, 71: 16}


class Slim:
    """Variables with random values by the names of a release."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.variables: dict[str, np.ndarray] = {}

    def variable(self, name: str, make: Callable[[], np.ndarray]) -> Tensor:
        if name not in self.variables:
            self.variables[name] = np.asarray(make(), np.float32)
        return torch.from_numpy(self.variables[name])

    def conv(
        self,
        x: Tensor,
        scope: str,
        outputs: int | None,
        kernel: int = 1,
        stride: int = 1,
        rate: int = 1,
        eps: float | None = 1e-5,
        explicit: bool = False,
    ) -> Tensor:
        """slim.conv2d, or with `outputs` None slim.separable_conv2d's depthwise part, and norm.

        It pads SAME, or with `explicit` alike on both sides (conv2d_same, fixed_padding). An `eps`
        of None is a bias without norm.
        """
        inputs = x.shape[1]
        if outputs is None:
            shape, name, groups = (kernel, kernel, inputs, 1), "depthwise_weights", inputs
            fan_in = kernel**2
        else:
            shape, name, groups = (kernel, kernel, inputs, outputs), "weights", 1
            fan_in = kernel**2 * inputs
        scale = math.sqrt(2 / fan_in)
        weight = self.variable(
            f"{scope}/{name}", lambda: self.random.standard_normal(shape) * scale
        )
        weight = weight.permute((2, 3, 0, 1) if outputs is None else (3, 2, 0, 1))
        x = same(x, kernel, stride, rate, explicit)
        x = F.conv2d(x, weight, None, stride, 0, rate, groups)
        if eps is None:
            bias = self.variable(f"{scope}/biases", lambda: self.random.standard_normal(outputs))
            return x + bias[:, None, None]
        return self.norm(x, f"{scope}/BatchNorm", eps)

    def norm(self, x: Tensor, scope: str, eps: float) -> Tensor:
        width, random = x.shape[1], self.random
        parts = {
            "gamma": lambda: random.uniform(0.5, 1.0, width),
            "beta": lambda: 0.1 * random.standard_normal(width),
            "moving_mean": lambda: 0.1 * random.standard_normal(width),
            "moving_variance": lambda: random.uniform(0.5, 1.5, width),
        }
        gamma, beta, mean, variance = (
            self.variable(f"{scope}/{part}", make)[:, None, None] for part, make in parts.items()
        )
        return (x - mean) / (variance + eps).sqrt() * gamma + beta

    def checkpoint(self, folder: Path) -> Path:
        """Save what tf.train.Saver does: a step, an optimiser's slot and a moving average too."""
        first = next(iter(self.variables))
        more = {
            "global_step": np.array(30000, np.int64),
            f"{first}/Momentum": self.variables[first],
            f"{first}/ExponentialMovingAverage": self.variables[first] + 1,
        }
        return files.checkpoint(folder, self.variables | more)

    def graph(self, path: Path) -> Path:
        """Freeze them, with a constant that is no variable."""
        size = {"ResizeBilinear/size": np.array([33, 33], np.int32)}
        path.write_bytes(files.graph(self.variables | size))
        return path


def same(x: Tensor, kernel: int, stride: int, rate: int, explicit: bool) -> Tensor:
    """Pad for a convolution: SAME, or `explicit`ly by what its kernel reaches."""
    reach = (kernel - 1) * rate
    pads = []
    for side in (x.shape[-1], x.shape[-2]):
        steps = math.ceil(side / stride)
        total = reach if explicit else max((steps - 1) * stride + reach + 1 - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def resized(x: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def xception(net: Slim, x: Tensor, depth: int, output_stride: int) -> tuple[Tensor, Tensor]:
    """The trunk of xception.py: what its decoder reads, and its end."""
    name = f"xception_{depth}"

    def module(
        x: Tensor, scope: str, widths: tuple[int, int, int], stride: int, rate: int, skip: str
    ) -> tuple[Tensor, Tensor]:
        scope = f"{name}/{scope}/xception_module"
        y, second = x, x
        inside = skip == "none"
        for n, width in enumerate(widths, 1):
            own = stride if n == 3 else 1
            y = y if inside else y.relu()
            part = f"{scope}/separable_conv{n}"
            y = net.conv(y, f"{part}_depthwise", None, 3, own, rate, 1e-3, explicit=own > 1)
            y = net.conv(y.relu() if inside else y, f"{part}_pointwise", width, eps=1e-3)
            y = y.relu() if inside else y
            second = y if n == 2 else second
        if skip == "conv":
            x = net.conv(x, f"{scope}/shortcut", widths[-1], 1, stride, eps=1e-3)
        return (y if inside else x + y), second

    x = net.conv(x, f"{name}/entry_flow/conv1_1", 32, 3, 2, eps=1e-3, explicit=True).relu()
    x = net.conv(x, f"{name}/entry_flow/conv1_2", 64, 3, eps=1e-3).relu()
    low = x
    current, rate = 2, 1
    blocks = [
        (f"entry_flow/block{n}/unit_1", (width,) * 3, stride, "conv")
        for n, (width, stride) in enumerate(ENTRY[depth], 1)
    ]
    blocks += [
        (f"middle_flow/block1/unit_{n}", (728,) * 3, 1, "sum") for n in range(1, MIDDLE[depth] + 1)
    ]
    blocks.append(("exit_flow/block1/unit_1", (728, 1024, 1024), 2, "conv"))
    blocks.append(("exit_flow/block2/unit_1", (1536, 1536, 2048), 1, "none"))
    decoder = {41: "entry_flow/block2", 65: "entry_flow/block2", 71: "entry_flow/block3"}[depth]
    for scope, widths, stride, skip in blocks:
        denied = current == output_stride
        x, second = module(x, scope, widths, 1 if denied else stride, rate, skip)
        rate *= stride if denied else 1
        current *= 1 if denied else stride
        low = second if scope.startswith(decoder) else low
    return low, x


def head(net: Slim, x: Tensor, separable: bool | None, pooling: bool, rate: int = 6) -> Tensor:
    """ASPP and its projection; `separable` None: without 3x3 branches."""
    parts = []
    if pooling:
        mean = net.conv(x.mean((2, 3), keepdim=True), "image_pooling", 256).relu()
        parts.append(mean.expand(-1, -1, *x.shape[-2:]))
    parts.append(net.conv(x, "aspp0", 256).relu())
    numbers = () if separable is None else (1, 2, 3)
    parts += [split(net, x, f"aspp{n}", n * rate, bool(separable)) for n in numbers]
    return net.conv(torch.cat(parts, 1), "concat_projection", 256).relu()


def split(net: Slim, x: Tensor, scope: str, rate: int, separable: bool) -> Tensor:
    if not separable:
        return net.conv(x, scope, 256, 3, rate=rate).relu()
    x = net.conv(x, f"{scope}_depthwise", None, 3, rate=rate).relu()
    return net.conv(x, f"{scope}_pointwise", 256).relu()


def refined(net: Slim, x: Tensor, low: Tensor, separable: bool) -> Tensor:
    """The decoder."""
    low = net.conv(low, "decoder/feature_projection0", 48).relu()
    x = torch.cat([resized(x, low.shape[-2:]), low], 1)
    for n in (0, 1):
        name = f"decoder_conv{n}" if separable else f"decoder_conv0/decoder_conv0_{n + 1}"
        x = split(net, x, f"decoder/{name}", 1, separable)
    return x


def mobilenet(net: Slim, x: Tensor, output_stride: int) -> Tensor:
    """The trunk of slim's mobilenet_v2 up to layer_18."""

    def six(x: Tensor) -> Tensor:
        return x.clamp(0, 6)

    x = six(net.conv(x, "MobilenetV2/Conv", 32, 3, 2, eps=1e-3))
    current, rate, number = 2, 1, 0
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    for expansion, width, count, first in [*rows, (6, 160, 3, 2), (6, 320, 1, 1)]:
        for n in range(count):
            stride = first if n == 0 else 1
            own, used = (1, rate) if current == output_stride else (stride, 1)
            rate *= stride if current == output_stride else 1
            current *= own
            scope = "MobilenetV2/expanded_conv" + (f"_{number}" if number else "")
            y = x
            if expansion > 1:
                y = six(net.conv(y, f"{scope}/expand", x.shape[1] * expansion, eps=1e-3))
            y = six(net.conv(y, f"{scope}/depthwise", None, 3, own, used, 1e-3))
            y = net.conv(y, f"{scope}/project", width, eps=1e-3)
            x = x + y if own == 1 and x.shape[1] == width else y
            number += 1
    return x


def beta(
    net: Slim, x: Tensor, depth: int, output_stride: int, grid: tuple[int, ...] = (1, 1, 1)
) -> Tensor:
    """The trunk of resnet_v1_beta.py: a block's stride is in its last unit."""
    scope = f"resnet_v1_{depth}"
    x = net.conv(x, f"{scope}/conv1_1", 64, 3, 2, explicit=True).relu()
    x = net.conv(x, f"{scope}/conv1_2", 64, 3).relu()
    x = net.conv(x, f"{scope}/conv1_3", 128, 3).relu()
    x = F.max_pool2d(x, 3, 2, 1)  # SAME, on an odd side
    current = 4
    rate = 1
    for block, units in enumerate({50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth], 1):
        width = 32 << block
        for unit in range(1, units + 1):
            name = f"{scope}/block{block}/unit_{unit}/bottleneck_v1"
            stride = 2 if unit == units and block < 4 else 1
            denied = current == output_stride
            own = 1 if denied else stride
            used = (rate if denied else 1) * (grid[unit - 1] if block == 4 else 1)
            if x.shape[1] == 4 * width:
                way = x[..., ::own, ::own]
            else:
                way = net.conv(x, f"{name}/shortcut", 4 * width, 1, own)
            y = net.conv(x, f"{name}/conv1", width).relu()
            y = net.conv(y, f"{name}/conv2", width, 3, own, used, explicit=own > 1).relu()
            x = (way + net.conv(y, f"{name}/conv3", 4 * width)).relu()
            rate *= stride if denied else 1
            current *= own
    return x
