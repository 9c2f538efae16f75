"""Networks as Caffe computes them, and files as it writes them, from what its layers are.

A network is a function that asks a `Caffe` for one layer after the other, by the names and numbers
of a prototxt. The first time a layer is asked for, it gets random weights; `file` writes what they
are. So the same lines are the definition of the file and the reference that its import must equal.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import weight_files as files
from torch import Tensor
from torch.nn import functional as F


class Caffe:
    """Layers with random blobs by the names of a release."""

    def __init__(self, seed: int = 0, v1: bool = False) -> None:
        self.random = np.random.default_rng(seed)
        self.blobs: dict[str, list[np.ndarray]] = {}
        self.v1 = v1

    def layer(self, name: str, *shapes: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
        """The blobs of a layer: drawn from a normal distribution when they are first asked for."""
        if name not in self.blobs:
            self.blobs[name] = [
                (self.random.standard_normal(shape) * scale).astype(np.float32) for shape in shapes
            ]
        return [torch.from_numpy(blob) for blob in self.blobs[name]]

    def conv(
        self,
        x: Tensor,
        name: str,
        outputs: int,
        kernel: int = 3,
        pad: int = 0,
        stride: int = 1,
        dilation: int = 1,
        group: int = 1,
        bias: bool = True,
    ) -> Tensor:
        inputs = x.shape[1] // group
        scale = math.sqrt(2 / (inputs * kernel**2))
        shapes = [(outputs, inputs, kernel, kernel)] + [(outputs,)] * bias
        blobs = self.layer(name, *shapes, scale=scale)
        return F.conv2d(x, blobs[0], blobs[1] if bias else None, stride, pad, dilation, group)

    def deconv(self, x: Tensor, name: str, outputs: int, kernel: int, stride: int = 1) -> Tensor:
        """With a pad of (kernel - 1) / 2 for an odd kernel of 3, and none otherwise."""
        scale = math.sqrt(2 / (x.shape[1] * (kernel / stride) ** 2))
        shape = (x.shape[1], outputs, kernel, kernel)
        weight, bias = self.layer(name, shape, (outputs,), scale=scale)
        return F.conv_transpose2d(x, weight, bias, stride, 1 if kernel == 3 else 0)

    def batch_norm_and_scale(self, x: Tensor, norm: str, scale: str, eps: float = 1e-5) -> Tensor:
        """BatchNorm with a factor that mean and variance are to be divided by, and Scale."""
        channels = x.shape[1]
        factor = np.float32(999.98)
        if norm not in self.blobs:
            mean = 0.1 * self.random.standard_normal(channels).astype(np.float32)
            variance = self.random.uniform(0.5, 1.5, channels).astype(np.float32)
            self.blobs[norm] = [mean * factor, variance * factor, np.array([factor])]
            gamma = self.random.uniform(0.5, 1.0, channels).astype(np.float32)
            self.blobs[scale] = [gamma, 0.1 * gamma[::-1].copy()]
        mean, variance, divisor = map(torch.from_numpy, self.blobs[norm])
        gamma, beta = map(torch.from_numpy, self.blobs[scale])
        x = (x - (mean / divisor)[:, None, None]) / (variance / divisor + eps).sqrt()[:, None, None]
        return x * gamma[:, None, None] + beta[:, None, None]

    def bn(self, x: Tensor, name: str, statistics: bool = True, eps: float = 1e-5) -> Tensor:
        """BN of PSPNet's Caffe (scale, shift, mean, variance); DeconvNet's has the first two."""
        channels = x.shape[1]
        if name not in self.blobs:
            gamma = self.random.uniform(0.2, 0.45, channels).astype(np.float32)
            blobs = [gamma + 0.4 * statistics, 0.1 * gamma]
            if statistics:
                blobs += [0.1 * gamma, self.random.uniform(0.5, 1.5, channels).astype(np.float32)]
            self.blobs[name] = blobs
        gamma, beta, *rest = (torch.from_numpy(b)[:, None, None] for b in self.blobs[name])
        if statistics:
            mean, variance = rest
            x = (x - mean) / (variance + eps).sqrt()
        return x * gamma + beta

    def bilinear(self, x: Tensor, name: str, kernel: int, stride: int) -> Tensor:
        """A deconvolution over all channels that interpolates each."""
        channels = x.shape[1]
        if name not in self.blobs:
            centre = (kernel - 1) / 2
            ramp = 1 - np.abs(np.arange(kernel) - centre) / ((kernel + 1) // 2)
            weight = np.zeros((channels, channels, kernel, kernel), np.float32)
            weight[range(channels), range(channels)] = np.outer(ramp, ramp)
            self.blobs[name] = [weight]
        return F.conv_transpose2d(x, torch.from_numpy(self.blobs[name][0]), stride=stride)

    def file(self, path: Path, without: tuple[str, ...] = ()) -> Path:
        """Write the layers as Caffe does, in the form of 2014 with `v1`."""
        layers = {name: blobs for name, blobs in self.blobs.items() if name not in without}
        path.write_bytes((_v1 if self.v1 else _layers)(layers))
        return path


def _layers(layers: dict[str, list[np.ndarray]]) -> bytes:
    return files.caffemodel(
        {n: [files.blob(b.shape, b.tobytes()) for b in blobs] for n, blobs in layers.items()}
    )


def _v1(layers: dict[str, list[np.ndarray]]) -> bytes:
    """V1 layers (4 name, 5 type, 6 blobs), whose blobs have num, channels, height and width."""
    content = files.field(1, "net")
    for name, blobs in layers.items():
        layer = files.field(4, name) + files.field(5, 4)
        for blob in blobs:
            shape = (1,) * (4 - blob.ndim) + blob.shape
            if ".bn" in name or "bn" in name:  # (1, C, 1, 1) there
                shape = (1, blob.size, 1, 1)
            sizes = b"".join(files.field(i, n) for i, n in enumerate(shape, 1))
            layer += files.field(6, sizes + files.field(5, blob.tobytes()))
        content += files.field(2, layer)
    return content


def pool(x: Tensor, kernel: int, stride: int, pad: int = 0) -> Tensor:
    """Caffe's max-pool: sizes round up, and no window begins behind the image and its padding."""
    sizes = []
    for side in x.shape[-2:]:
        size = math.ceil((side + 2 * pad - kernel) / stride) + 1
        if pad and (size - 1) * stride >= side + pad:
            size -= 1
        sizes.append(size)
    need = [(size - 1) * stride + kernel for size in sizes]
    after = [max(n - side - pad, 0) for n, side in zip(need, x.shape[-2:], strict=True)]
    x = F.pad(x, (pad, after[1], pad, after[0]), value=-math.inf)
    return F.max_pool2d(x, kernel, stride)[..., : sizes[0], : sizes[1]]


def lrn(x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """Local response normalisation across channels: x / (1 + alpha / size * sum x^2)^beta."""
    half = size // 2
    squares = F.pad(x.square(), (0, 0, 0, 0, half, half))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return x / (1 + alpha / size * total) ** beta


def vgg(net: Caffe, x: Tensor, large: bool = False, pad: int = 1) -> list[Tensor]:
    """What the pools of VGG16 give; `large` is DeepLab's, with stride 8."""
    pools = []
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        dilation = 2 if large and block == 5 else 1
        for i in range(1, depth + 1):
            own = pad if block == i == 1 else dilation
            width = min(64 << (block - 1), 512)
            x = net.conv(x, f"conv{block}_{i}", width, 3, own, dilation=dilation).relu()
        x = pool(x, 3, 1 if block > 3 else 2, 1) if large else pool(x, 2, 2)
        pools.append(x)
    return pools


def msra(net: Caffe, x: Tensor, depths: tuple[int, ...], dilated: bool, end: str = "") -> Tensor:
    """He et al.'s ResNet up to res5; `dilated` as DeepLab's, `end` of its layers' names."""

    def layer(x: Tensor, name: str, outputs: int, kernel: int = 1, **more: int) -> Tensor:
        x = net.conv(x, f"res{name}{end}", outputs, kernel, bias=False, **more)
        return net.batch_norm_and_scale(x, f"bn{name}{end}", f"scale{name}{end}")

    x = net.conv(x, f"conv1{end}", 64, 7, 3, 2, bias=not dilated and depths[2] == 6)
    x = net.batch_norm_and_scale(x, f"bn_conv1{end}", f"scale_conv1{end}").relu()
    x = pool(x, 3, 2, 1)  # the classifier has no padding there; who starts from it pads
    for stage, depth in enumerate(depths, 2):
        width = 64 << (stage - 2)
        dilation = {4: 2, 5: 4}.get(stage, 1) if dilated else 1
        for block in range(depth):
            letter = "abcdef"[block] if depth <= 6 else f"b{block}" if block else "a"
            name = f"{stage}{letter}_branch"
            stride = 2 if block == 0 and stage > 2 and dilation == 1 else 1
            way = layer(x, f"{name}1", 4 * width, stride=stride) if block == 0 else x
            y = layer(x, f"{name}2a", width, stride=stride).relu()
            y = layer(y, f"{name}2b", width, 3, pad=dilation, dilation=dilation).relu()
            x = (way + layer(y, f"{name}2c", 4 * width)).relu()
    return x
