"""Published networks of semantic systems come in as they are: names, settings and outputs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_networks import INCEPTIONS
from release import Release, upsampled
from torch import Tensor
from torch.nn import functional as F

import segtrain
from segtrain.backbones.alexnet import AlexNet
from segtrain.backbones.googlenet import GoogLeNet
from segtrain.backbones.resnet import ResNet
from segtrain.backbones.vgg import VGG
from segtrain.checkpoints import match
from segtrain.engine import imported
from segtrain.errors import UserError
from segtrain.layers.preprocess import INPUTS
from segtrain.weights import families, formats
from segtrain.weights.content import Weights
from segtrain.weights.families import FAMILIES, Recognised

CLASSES = Path(segtrain.__file__).parent / "structures" / "classes"

INFERENCE = Path(__file__).resolve().parents[2] / "conf" / "inference"

Statement = Callable[[Release, Tensor], Tensor]


# The networks, from their releases. ------------------------------------------------------------


@functools.cache
def semseg(depth: int = 50, classes: int = 21, pyramid: bool = True) -> Statement:
    """hszhao/semseg, model/pspnet.py."""

    def network(file: Release, image: Tensor) -> Tensor:
        x = image
        for i, width, stride in ((0, 64, 2), (3, 64, 1), (6, 128, 1)):
            x = file.norm(file.conv(x, f"layer0.{i}", width, 3, stride), f"layer0.{i + 1}").relu()
        *_, middle, deep = file.stages(F.max_pool2d(x, 3, 2, 1), depth)
        parts = [deep]
        for i, bins in enumerate((1, 2, 3, 6) if pyramid else ()):
            y = F.adaptive_avg_pool2d(deep, bins)
            y = file.norm(file.conv(y, f"ppm.features.{i}.1", 512), f"ppm.features.{i}.2").relu()
            parts.append(upsampled(y, deep, align_corners=True))
        x = file.norm(file.conv(torch.cat(parts, 1), "cls.0", 512, 3), "cls.1").relu()
        x = file.conv(x, "cls.4", classes, bias=True)
        aux = file.norm(file.conv(middle, "aux.0", 256, 3), "aux.1").relu()
        file.conv(aux, "aux.4", classes, bias=True)
        return upsampled(x, image, align_corners=True)

    return network


@functools.cache
def encnet(
    depth: int = 50,
    classes: int = 59,
    lateral: bool = True,
    deep_stem: bool = True,
    old: bool = False,
) -> Statement:
    """zhanghang1989/PyTorch-Encoding, encoding/models/sseg/encnet.py, nn/encoding.py."""

    def network(file: Release, image: Tensor) -> Tensor:
        if deep_stem:
            x = file.conv(image, "pretrained.conv1.0", 64, 3, 2)
            x = file.norm(x, "pretrained.conv1.1").relu()
            x = file.conv(x, "pretrained.conv1.3", 64, 3)
            x = file.norm(x, "pretrained.conv1.4").relu()
            x = file.conv(x, "pretrained.conv1.6", 128, 3)
        else:
            x = file.conv(image, "pretrained.conv1", 64, 7, 2)
        x = F.max_pool2d(file.norm(x, "pretrained.bn1").relu(), 3, 2, 1)
        dilations = ((1, 1), (1, 1), (1, 2), (2, 4))
        _, second, third, fourth = file.stages(x, depth, "pretrained.", dilations=dilations)
        if old:
            file.linear(fourth.mean((2, 3)), "pretrained.fc", 1000)
        x = file.norm(file.conv(fourth, "head.conv5.0", 512, 3), "head.conv5.1").relu()
        if lateral:
            sides = [
                file.norm(file.conv(y, f"head.connect.{i}.0", 512), f"head.connect.{i}.1").relu()
                for i, y in enumerate((second, third))
            ]
            x = file.conv(torch.cat([x, *sides], 1), "head.fusion.0", 512, 3)
            x = file.norm(x, "head.fusion.1").relu()
        name = "head.encmodule.encoding"
        y = file.norm(file.conv(x, f"{name}.0", 512), f"{name}.1").relu()
        y = y.flatten(2).transpose(1, 2)  # (1, N, 512)
        codewords = file.put(f"{name}.3.codewords", 0.1 * file.values(32, 512))
        scale = file.put(f"{name}.3.scale", -0.01 * file.values(32).abs())
        residuals = y[:, :, None] - codewords  # (1, N, 32, 512)
        assignment = (scale * residuals.square().sum(3)).softmax(2)
        encoded = (assignment[..., None] * residuals).sum(1)  # (1, 32, 512)
        code = file.norm(encoded, f"{name}.4").relu().mean(1)
        gate = file.linear(code, "head.encmodule.fc.0", 512).sigmoid()
        file.linear(code, "head.encmodule.selayer", classes)
        x = (x + x * gate[:, :, None, None]).relu()
        x = file.conv(x, "head.conv6.1", classes, bias=True)
        aux = file.norm(file.conv(third, "auxlayer.conv5.0", 256, 3), "auxlayer.conv5.1").relu()
        file.conv(aux, "auxlayer.conv5.4", classes, bias=True)
        return upsampled(x, image, align_corners=True)

    return network


def caffe_trunk(
    file: Release,
    image: Tensor,
    p: str,
    depth: int,
    strides: tuple[int, ...] = (1, 2, 1, 1),
    dilations: tuple[int, ...] = (1, 1, 2, 4),
    grid: tuple[int, ...] = (1, 1, 1),
) -> list[Tensor]:
    """kazuto1011/deeplab-pytorch, libs/models/resnet.py."""
    x = file.norm(file.conv(image, f"{p}layer1.conv1.conv", 64, 7, 2), f"{p}layer1.conv1.bn")
    x = F.max_pool2d(x.relu(), 3, 2, 1, ceil_mode=True)
    maps = []
    for n, blocks in enumerate({50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]):
        for i in range(blocks):
            name = f"{p}layer{n + 2}.block{i + 1}"
            stride = strides[n] if i == 0 else 1
            dilation = dilations[n] * (grid[i] if n == 3 else 1)

            def part(x: Tensor, which: str, *shape: int, name: str = name) -> Tensor:
                return file.norm(file.conv(x, f"{name}.{which}.conv", *shape), f"{name}.{which}.bn")

            y = part(x, "reduce", 64 << n, 1, stride).relu()
            y = part(y, "conv3x3", 64 << n, 3, 1, dilation).relu()
            y = part(y, "increase", 256 << n)
            x = (y + (part(x, "shortcut", 256 << n, 1, stride) if i == 0 else x)).relu()
        maps.append(x)
    return maps


@functools.cache
def kazuto_v2(
    depth: int = 101, classes: int = 21, scales: tuple[float, ...] = (0.5, 0.75)
) -> Statement:
    """kazuto1011/deeplab-pytorch, libs/models/deeplabv2.py and msc.py, and main.py's resize."""

    def base(file: Release, image: Tensor) -> Tensor:
        p = "base." if scales else ""
        deep = caffe_trunk(file, image, p, depth)[-1]
        scores = [
            file.conv(deep, f"{p}aspp.c{i}", classes, 3, 1, dilation, bias=True)
            for i, dilation in enumerate((6, 12, 18, 24))
        ]
        return sum(scores[1:], scores[0])

    def network(file: Release, image: Tensor) -> Tensor:
        full = base(file, image)
        views = [full]
        for factor in scales:
            smaller = F.interpolate(image, scale_factor=factor, mode="bilinear")
            views.append(upsampled(base(file, smaller), full, align_corners=False))
        return upsampled(torch.stack(views).amax(0), image, align_corners=False)

    return network


def bilinear(classes: int, side: int) -> Tensor:
    """The deconvolution of FCN's releases: 1 in the middle, falling to 0 just outside."""
    factor = (side + 1) // 2
    middle = factor - 1 if side % 2 else factor - 0.5
    ramp = torch.tensor([1 - abs(i - middle) / factor for i in range(side)])
    kernel = torch.zeros(classes, classes, side, side)
    for i in range(classes):
        kernel[i, i] = torch.outer(ramp, ramp)
    return kernel


@functools.cache
def wkentaro(stride: int = 8, classes: int = 21, wide: int = 4096) -> Statement:
    """wkentaro/pytorch-fcn, torchfcn/models/fcn32s.py, fcn16s.py and fcn8s.py."""

    def network(file: Release, image: Tensor) -> Tensor:
        x = image
        pools = []
        for block, (depth, width) in enumerate(
            zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True), 1
        ):
            for i in range(1, depth + 1):
                padding = 100 if (block, i) == (1, 1) else 1
                x = file.conv(x, f"conv{block}_{i}", width, 3, padding=padding, bias=True).relu()
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            pools.append(x)
        x = file.conv(x, "fc6", wide, 7, padding=0, bias=True).relu()
        x = file.conv(x, "fc7", wide, bias=True).relu()
        x = file.conv(x, "score_fr", classes, bias=True)

        def up(x: Tensor, name: str, side: int, step: int) -> Tensor:
            return F.conv_transpose2d(
                x, file.put(f"{name}.weight", bilinear(classes, side)), stride=step
            )

        def cut(x: Tensor, start: int, like: Tensor) -> Tensor:
            return x[:, :, start : start + like.shape[2], start : start + like.shape[3]]

        if stride == 32:
            return cut(up(x, "upscore", 64, 32), 19, image)
        x = up(x, "upscore2", 4, 2)
        x = x + cut(file.conv(pools[3], "score_pool4", classes, bias=True), 5, x)
        if stride == 16:
            return cut(up(x, "upscore16", 32, 16), 27, image)
        x = up(x, "upscore_pool4", 4, 2)
        x = x + cut(file.conv(pools[2], "score_pool3", classes, bias=True), 9, x)
        return cut(up(x, "upscore8", 16, 8), 31, image)

    return network


@functools.cache
def kazuto_v3(depth: int = 101, plus: bool = False, base: str = "base.") -> Statement:
    """kazuto1011/deeplab-pytorch, libs/models/deeplabv3.py, deeplabv3plus.py, output stride 16."""

    def network(file: Release, image: Tensor) -> Tensor:
        def part(x: Tensor, name: str, outputs: int, kernel: int = 1, dilation: int = 1) -> Tensor:
            x = file.conv(x, f"{base}{name}.conv", outputs, kernel, 1, dilation)
            return file.norm(x, f"{base}{name}.bn").relu()

        maps = caffe_trunk(file, image, base, depth, (1, 2, 2, 1), (1, 1, 1, 2), (1, 2, 4))
        deep = maps[-1]
        branches = [part(deep, "aspp.stages.c0", 256)]
        for i, dilation in enumerate((6, 12, 18), 1):
            branches.append(part(deep, f"aspp.stages.c{i}", 256, 3, dilation))
        pooled = part(deep.mean((2, 3), keepdim=True), "aspp.stages.imagepool.conv", 256)
        branches.append(upsampled(pooled, deep, align_corners=False))
        x = part(torch.cat(branches, 1), "fc1", 256)
        if plus:
            low = part(maps[0], "reduce", 48)
            x = torch.cat([upsampled(x, low, align_corners=False), low], 1)
            x = part(part(x, "fc2.conv1", 256, 3), "fc2.conv2", 256, 3)
        x = file.conv(x, f"{base}fc2.conv3" if plus else f"{base}fc2", 21, bias=True)
        return upsampled(x, image, align_corners=False)

    return network


@functools.cache
def vainf(depth: int = 50, plus: bool = True) -> Statement:
    """VainF/DeepLabV3Plus-Pytorch, network/_deeplab.py, output stride 16."""

    def network(file: Release, image: Tensor) -> Tensor:
        x = file.norm(file.conv(image, "backbone.conv1", 64, 7, 2), "backbone.bn1").relu()
        x = F.max_pool2d(x, 3, 2, 1)
        dilations = ((1, 1), (1, 1), (1, 1), (1, 2))
        maps = file.stages(x, depth, "backbone.", (1, 2, 2, 1), dilations)
        p = "classifier.aspp" if plus else "classifier.classifier.0"

        def part(x: Tensor, name: str, at: int, outputs: int, *shape: int) -> Tensor:
            x = file.conv(x, f"{name}.{at}", outputs, *shape)
            return file.norm(x, f"{name}.{at + 1}").relu()

        deep = maps[-1]
        branches = [part(deep, f"{p}.convs.0", 0, 256)]
        for i, dilation in enumerate((6, 12, 18), 1):
            branches.append(part(deep, f"{p}.convs.{i}", 0, 256, 3, 1, dilation))
        pooled = part(deep.mean((2, 3), keepdim=True), f"{p}.convs.4", 1, 256)
        branches.append(upsampled(pooled, deep, align_corners=False))
        x = part(torch.cat(branches, 1), f"{p}.project", 0, 256)
        if plus:
            low = part(maps[0], "classifier.project", 0, 48)
            x = torch.cat([low, upsampled(x, low, align_corners=False)], 1)
            x = part(x, "classifier.classifier", 0, 256, 3)
            x = file.conv(x, "classifier.classifier.3", 21, bias=True)
        else:
            x = part(x, "classifier.classifier", 1, 256, 3)
            x = file.conv(x, "classifier.classifier.4", 21, bias=True)
        return upsampled(x, image, align_corners=False)

    return network


@functools.cache
def milesial(channels: int = 3, first: int = 64) -> Statement:
    """milesial/Pytorch-UNet, unet/unet_parts.py and unet_model.py."""

    def network(file: Release, image: Tensor) -> Tensor:
        def double(x: Tensor, name: str, width: int) -> Tensor:
            for i in (0, 3):
                x = file.conv(x, f"{name}.double_conv.{i}", width, 3)
                x = file.norm(x, f"{name}.double_conv.{i + 1}").relu()
            return x

        x = double(image[:, :channels], "inc", first)
        skips = [x]
        for n in (1, 2, 3, 4):
            x = double(F.max_pool2d(x, 2), f"down{n}.maxpool_conv.1", first << n)
            skips.append(x)
        for n in (1, 2, 3, 4):
            width = first << (4 - n)
            weight = file.weight(f"up{n}.up.weight", 2 * width, width, 2, 2)
            bias = file.put(f"up{n}.up.bias", 0.1 * file.values(width))
            x = F.conv_transpose2d(x, weight, bias, stride=2)
            x = double(torch.cat([skips[4 - n], x], 1), f"up{n}.conv", width)
        return file.conv(x, "outc.conv", 2, bias=True)

    return network


@functools.cache
def mmsegmentation(
    head: str = "psp", depth: int = 50, classes: int = 19, v1c: bool = True
) -> Statement:
    """open-mmlab/mmsegmentation, models/decode_heads/psp_head.py, aspp_head.py, sep_aspp_head.py.

    Networks of configs/_base_/models/{pspnet,deeplabv3,deeplabv3plus}_r50-d8.py.
    """

    def network(file: Release, image: Tensor) -> Tensor:
        if v1c:
            x = image
            for i, width, stride in ((0, 32, 2), (3, 32, 1), (6, 64, 1)):
                x = file.conv(x, f"backbone.stem.{i}", width, 3, stride)
                x = file.norm(x, f"backbone.stem.{i + 1}").relu()
        else:
            x = file.norm(file.conv(image, "backbone.conv1", 64, 7, 2), "backbone.bn1").relu()
        dilations = ((1, 1), (1, 1), (1, 2), (2, 4))
        x = F.max_pool2d(x, 3, 2, 1)
        low, _, middle, deep = file.stages(x, depth, "backbone.", dilations=dilations)

        def part(x: Tensor, name: str, outputs: int, *shape: int, groups: int = 1) -> Tensor:
            x = file.conv(x, f"{name}.conv", outputs, *shape, groups=groups)
            return file.norm(x, f"{name}.bn").relu()

        def separable(x: Tensor, name: str, outputs: int, dilation: int = 1) -> Tensor:
            inputs = x.shape[1]
            x = part(x, f"{name}.depthwise_conv", inputs, 3, 1, dilation, groups=inputs)
            return part(x, f"{name}.pointwise_conv", outputs)

        h = "decode_head"
        plus = head == "sep_aspp"
        if head == "psp":
            parts = [deep]
            for i, bins in enumerate((1, 2, 3, 6)):
                y = part(F.adaptive_avg_pool2d(deep, bins), f"{h}.psp_modules.{i}.1", 512)
                parts.append(upsampled(y, deep, align_corners=False))
        else:
            pooled = part(deep.mean((2, 3), keepdim=True), f"{h}.image_pool.1", 512)
            parts = [upsampled(pooled, deep, align_corners=False)]
            parts.append(part(deep, f"{h}.aspp_modules.0", 512))
            for i, dilation in enumerate((12, 24, 36), 1):
                name = f"{h}.aspp_modules.{i}"
                if plus:
                    parts.append(separable(deep, name, 512, dilation))
                else:
                    parts.append(part(deep, name, 512, 3, 1, dilation))
        x = torch.cat(parts, 1)
        x = separable(x, f"{h}.bottleneck", 512) if plus else part(x, f"{h}.bottleneck", 512, 3)
        if plus:
            low = part(low, f"{h}.c1_bottleneck", 48)
            x = torch.cat([upsampled(x, low, align_corners=False), low], 1)
            x = separable(x, f"{h}.sep_bottleneck.0", 512)
            x = separable(x, f"{h}.sep_bottleneck.1", 512)
        x = file.conv(x, f"{h}.conv_seg", classes, bias=True)
        aux = part(middle, "auxiliary_head.convs.0", 256, 3)
        file.conv(aux, "auxiliary_head.conv_seg", classes, bias=True)
        return upsampled(x, image, align_corners=False)

    return network


# ImageNet classifiers. --------------------------------------------------------------------------

# What a backbone gives, of which the last is enough to compare.
Deepest = Callable[[Release, Tensor], Tensor]


@functools.cache
def resnet(stem: str = "conv1", depth: int = 50, groups: int = 1, per_group: int = 64) -> Deepest:
    """torchvision/models/resnet.py; stems of hszhao/semseg (conv2) and Encoding (conv1.0)."""

    def network(file: Release, image: Tensor) -> Tensor:
        if stem == "conv1":
            x = file.norm(file.conv(image, "conv1", 64, 7, 2), "bn1").relu()
        elif stem == "conv2":
            x = file.norm(file.conv(image, "conv1", 64, 3, 2), "bn1").relu()
            x = file.norm(file.conv(x, "conv2", 64, 3), "bn2").relu()
            x = file.norm(file.conv(x, "conv3", 128, 3), "bn3").relu()
        else:
            x = file.norm(file.conv(image, "conv1.0", 64, 3, 2), "conv1.1").relu()
            x = file.norm(file.conv(x, "conv1.3", 64, 3), "conv1.4").relu()
            x = file.norm(file.conv(x, "conv1.6", 128, 3), "bn1").relu()
        x = F.max_pool2d(x, 3, 2, 1)
        plain = ((1, 1),) * 4
        *_, deep = file.stages(x, depth, "", (1, 2, 2, 2), plain, groups, per_group)
        file.linear(deep.mean((2, 3)), "fc", 1000)
        return deep

    return network


@functools.cache
def vgg(depths: tuple[int, ...] = (2, 2, 3, 3, 3), norm: bool = False, wide: int = 16) -> Deepest:
    """torchvision/models/vgg.py."""

    def network(file: Release, image: Tensor) -> Tensor:
        x = image
        number = 0
        for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
            for _ in range(depth):
                x = file.conv(x, f"features.{number}", width, 3, bias=True)
                x = (file.norm(x, f"features.{number + 1}") if norm else x).relu()
                number += 3 if norm else 2
            x = F.max_pool2d(x, 2)
            number += 1
        classifier(file, x, 7, wide, (0, 3, 6))
        return x

    return network


@functools.cache
def alexnet(wide: int = 16) -> Deepest:
    """torchvision/models/alexnet.py."""

    def network(file: Release, image: Tensor) -> Tensor:
        x = file.conv(image, "features.0", 64, 11, 4, padding=2, bias=True).relu()
        x = file.conv(F.max_pool2d(x, 3, 2), "features.3", 192, 5, bias=True).relu()
        x = file.conv(F.max_pool2d(x, 3, 2), "features.6", 384, 3, bias=True).relu()
        x = file.conv(x, "features.8", 256, 3, bias=True).relu()
        x = F.max_pool2d(file.conv(x, "features.10", 256, 3, bias=True).relu(), 3, 2)
        classifier(file, x, 6, wide, (1, 4, 6))
        return x

    return network


def classifier(file: Release, x: Tensor, side: int, wide: int, numbers: tuple[int, ...]) -> None:
    x = F.adaptive_avg_pool2d(x, side).flatten(1)
    for number, outputs in zip(numbers, (wide, wide, 1000), strict=True):
        x = file.linear(x, f"classifier.{number}", outputs)


def googlenet(file: Release, image: Tensor) -> Tensor:
    """torchvision/models/googlenet.py."""

    def part(x: Tensor, name: str, *shape: int) -> Tensor:
        return file.norm(file.conv(x, f"{name}.conv", *shape), f"{name}.bn", eps=1e-3).relu()

    x = F.max_pool2d(part(image, "conv1", 64, 7, 2), 3, 2, ceil_mode=True)
    x = part(part(x, "conv2", 64), "conv3", 192, 3)
    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    for module, (one, reduce3, three, reduce5, five, projected) in INCEPTIONS.items():
        if module in ("4a", "5a"):
            x = F.max_pool2d(x, 3 if module == "4a" else 2, 2, ceil_mode=True)
        p = f"inception{module}"
        pooled = F.max_pool2d(x, 3, 1, 1, ceil_mode=True)
        branches = [
            part(x, f"{p}.branch1", one),
            part(part(x, f"{p}.branch2.0", reduce3), f"{p}.branch2.1", three, 3),
            part(part(x, f"{p}.branch3.0", reduce5), f"{p}.branch3.1", five, 3),
            part(pooled, f"{p}.branch4.1", projected),
        ]
        x = torch.cat(branches, 1)
        if module in ("4a", "4d"):
            n = 1 if module == "4a" else 2
            part(F.adaptive_avg_pool2d(x, 4), f"aux{n}.conv", 128)
    file.linear(x.mean((2, 3)), "fc", 1000)
    return x


# -----------------------------------------------------------------------------------------------


@functools.cache
def _layout(statement: Statement, counts: bool) -> dict[str, Tensor]:
    file = Release(empty=True, counts=counts)
    statement(file, file.image(64, 64))
    return file.tensors


def layout(statement: Statement, counts: bool = True) -> dict[str, Tensor]:
    """The names and shapes of a release's file, without values."""
    return dict(_layout(statement, counts))


def recognised(tensors: dict[str, Tensor]) -> Recognised:
    found = families.recognise("file.pth", Weights("torch", tensors, {}))
    assert found is not None
    return found


def made(found: Recognised) -> torch.nn.Module:
    published = found.published
    arguments = dict(published.arguments)
    if published.model != "unet":  # which has no pre-trained weights
        arguments["weights"] = None
    return segtrain.create_model(published.model, published.num_classes, **arguments).eval()


def refusal(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(UserError) as error:
        recognised(tensors)
    (line,) = str(error.value).splitlines()
    return line


def difference(statement: Statement, folder: Path, size: tuple[int, int], **file: Any) -> float:
    """The largest difference of our output from the release's, through a file."""
    release = Release(**file)
    image = release.image(*size)
    expected = statement(release, image)
    path = folder / "weights.pth"
    torch.save({"epoch": 3, "state_dict": release.tensors}, path)
    found = families.read_published(path)
    model = made(found)
    match.load_exactly(model, found.state, path)
    with torch.inference_mode():
        logits = model(image)["logits"]
    assert expected.std() > 0.1  # of an output that is all but constant, equality says nothing
    return float((logits - expected).abs().max() / expected.abs().max())


SLOW = pytest.mark.slow
RESNEXT = {"name": "resnext101_32x8d", "style": "torchvision"}
# Family -> networks of it, and the settings that are read off them.
RELEASES: dict[str, list[tuple[Statement, dict[str, Any]]]] = {
    "semseg": [
        (
            semseg(),
            {"backbone": "resnet50", "stem": "deep", "bins": [1, 2, 3, 6], "aux": True},
        ),
        (
            semseg(101, 19, pyramid=False),
            {"backbone": "resnet101", "stem": "deep", "bins": [], "aux": True},
        ),
    ],
    "PyTorch-Encoding": [
        (
            encnet(),
            {
                "backbone": "resnet50",
                "stem": "deep",
                "codewords": 32,
                "se": True,
                "lateral": True,
                "aux": True,
            },
        ),
        (
            encnet(101, 150, lateral=False, deep_stem=False, old=True),
            {
                "backbone": "resnet101",
                "stem": "torchvision",
                "codewords": 32,
                "se": True,
                "lateral": False,
                "aux": True,
            },
        ),
    ],
    "kazuto1011's DeepLab v2": [
        (
            kazuto_v2(classes=182),
            {
                "backbone": "resnet101",
                "head": "aspp",
                "dilations": [6, 12, 18, 24],
                "scales": [1.0, 0.75, 0.5],
                "norm": "frozen",
                "style": "caffe",
                "align_corners": False,
            },
        ),
    ],
    "kazuto1011's DeepLab v3": [
        (
            kazuto_v3(),
            {
                "backbone": "resnet101",
                "variant": "aspp",
                "head": "paper",
                "output_stride": 16,
                "style": "caffe",
                "align_corners": False,
            },
        ),
    ],
    "kazuto1011's DeepLab v3+": [
        (
            kazuto_v3(50, plus=True, base=""),
            {
                "backbone": "resnet50",
                "output_stride": 16,
                "separable": False,
                "style": "caffe",
                "align_corners": False,
            },
        ),
    ],
    "VainF's DeepLabv3": [
        (
            vainf(101, plus=False),
            {"backbone": "resnet101", "head": "torchvision", "output_stride": 16},
        ),
    ],
    "VainF's DeepLabv3+": [
        (
            vainf(),
            {
                "backbone": "resnet50",
                "output_stride": 16,
                "separable": False,
                "multi_grid": [1],
                "decoder": [256],
                "align_corners": False,
                "pattern": "delayed",
            },
        ),
    ],
    "milesial's U-Net": [
        (
            milesial(1, 8),
            {
                "in_channels": 1,
                "padding": "same",
                "norm": "batch",
                "width": 8,
                "dropout": 0.0,
            },
        ),
    ],
    "mmsegmentation": [
        (
            mmsegmentation(),
            {
                "backbone": "resnet50",
                "stem": "deep32",
                "bins": [1, 2, 3, 6],
                "aux": True,
                "pattern": "delayed",
                "align_corners": False,
            },
        ),
        (
            mmsegmentation("aspp", 101, v1c=False),
            {
                "backbone": "resnet101",
                "style": "torchvision",
                "output_stride": 8,
                "multi_grid": [1],
                "aspp_width": 512,
                "project_kernel": 3,
                "variant": "aspp",
                "head": "paper",
                "aux": True,
                "pattern": "delayed",
                "align_corners": False,
            },
        ),
        (
            mmsegmentation("sep_aspp"),
            {
                "backbone": "resnet50",
                "style": "deep32",
                "output_stride": 8,
                "multi_grid": [1],
                "aspp_width": 512,
                "project_kernel": 3,
                "separable": True,
                "decoder": [512, 512],
                "low_level_width": 48,
                "aux": True,
                "pattern": "delayed",
                "align_corners": False,
            },
        ),
    ],
    "torchvision's layout of ResNets": [
        (resnet(), {"name": "resnet50", "style": "torchvision"}),
        (resnet("conv2", 101), {"name": "resnet101", "style": "deep"}),
        (resnet("conv1.0"), {"name": "resnet50", "style": "deep"}),
        (resnet(depth=101, groups=32, per_group=8), RESNEXT),
    ],
    "torchvision's VGG": [
        (vgg(), {"name": "vgg16", "norm": "none"}),
        (vgg((1, 1, 2, 2, 2), norm=True), {"name": "vgg11", "norm": "batch"}),
    ],
    "torchvision's AlexNet": [(alexnet(), {"layout": "torchvision", "norm": "none"})],
    "torchvision's GoogLeNet": [(googlenet, {"layout": "torchvision", "norm": "batch"})],
    "wkentaro's FCN": [
        (
            wkentaro(16, wide=8),
            {
                "backbone": "vgg16",
                "head": "fcn",
                "stride": 16,
                "norm": "none",
                "width": 8,
            },
        ),
    ],
}


@pytest.mark.parametrize(
    "name", [name if name == "semseg" else pytest.param(name, marks=SLOW) for name in RELEASES]
)
def test_a_file_is_of_one_family_which_reads_its_settings(name: str) -> None:
    for statement, settings in RELEASES[name]:
        keys = layout(statement)
        assert [family.name for family in FAMILIES if family.knows(list(keys))] == [name]
        assert recognised(keys).published.arguments == settings


@pytest.mark.slow
def test_classes_are_counted_and_their_table_is_the_releases() -> None:
    def classes(statement: Statement) -> tuple[int | None, str | None]:
        published = recognised(layout(statement)).published
        return published.num_classes, published.classes

    assert classes(semseg(classes=19)) == (19, "cityscapes")
    assert classes(semseg(classes=150)) == (150, None)
    assert classes(encnet()) == (59, "context")
    assert classes(kazuto_v2(50, 182)) == (182, "coco_stuff")
    assert classes(wkentaro(32, 21, wide=8)) == (21, "voc")
    for statement in (statement for releases in RELEASES.values() for statement, _ in releases):
        published = recognised(layout(statement)).published
        assert published.input in INPUTS
        for setting in published.measured:
            key, _, name = setting.partition("=")
            assert key.startswith("inference.") or (INFERENCE / f"{name}.yaml").is_file()


@pytest.mark.slow
def test_other_networks_of_a_project_are_refused_in_a_line() -> None:
    tensors = layout(semseg())
    assert "a PSANet" in refusal({**tensors, "psa.conv.weight": torch.zeros(1)})
    tensors["ppm.features.4.1.weight"] = torch.zeros(1)
    assert "5 branches" in refusal(tensors)
    other = {key: value for key, value in layout(semseg()).items() if "layer3.5" not in key}
    assert "3, 4, 5, 3 blocks" in refusal(other)
    tensors = layout(encnet())
    assert "3x3 to 32 channels" in refusal(
        {**tensors, "pretrained.conv1.0.weight": torch.zeros(32, 3, 3, 3)}
    )
    tensors["head.encmodule.encoding.0.codewords"] = torch.zeros(32, 512)
    assert "version 0.4.2" in refusal(tensors)
    tensors = layout(mmsegmentation())
    tensors["decode_head.bottleneck.conv.weight"] = torch.zeros(128, 1, 3, 3)
    assert "128 features" in refusal(tensors)
    tensors = layout(mmsegmentation())
    without = {key: value for key, value in tensors.items() if "psp_modules" not in key}
    assert "its decode_head is none of" in refusal(without)
    tensors = layout(wkentaro(8, wide=8))
    learned = tensors["upscore8.weight"].clone()
    learned[3, 4, 0, 0] = 0.01
    assert "no bilinear interpolation" in refusal({**tensors, "upscore8.weight": learned})


def test_context_comes_in_the_order_of_our_table() -> None:
    tensors = layout(encnet())
    tensors["head.conv6.1.bias"] = torch.arange(59)
    tensors["head.encmodule.selayer.bias"] = torch.arange(59)
    tensors["auxlayer.conv5.4.bias"] = torch.arange(59)
    state = recognised(tensors).state
    table = json.loads((CLASSES / "context.json").read_text())["classes"][1:]
    # Release: encoding/datasets/pcontext.py sorts the labels; background is not among its rows.
    expected = [sorted(c["id_459"] for c in table).index(c["id_459"]) for c in table]
    assert expected[:3] == [0, 5, 6]
    assert state["classifier.1.bias"].tolist() == expected
    assert state["se.bias"].tolist() == expected
    assert state["aux.2.bias"].tolist() == expected


def test_who_starts_from_contexts_59_classes_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "encnet.pth"
    path.touch()
    file = Weights("torch", layout(encnet()), {})
    monkeypatch.setattr(formats, "read_weights", lambda source: file)
    start = imported.starting_weights(str(path))
    assert len(start.class_names) == 59
    assert start.class_names[:3] == ["aeroplane", "bicycle", "bird"]


def test_context_of_mmsegmentation_comes_in_the_order_of_our_table_too() -> None:
    tensors = layout(mmsegmentation(classes=60))
    tensors["decode_head.conv_seg.bias"] = torch.arange(60)
    table = json.loads((CLASSES / "context.json").read_text())["classes"]
    rows = recognised(tensors).state["classifier.bias"].tolist()
    assert rows == [c["sorted_index"] for c in table]
    assert rows[:3] == [0, 1, 6]


@pytest.mark.slow
def test_old_files_without_counts_of_batches_have_them_here() -> None:
    found = recognised(layout(encnet(old=True), counts=False))
    assert found.state["backbone.stem.1.num_batches_tracked"] == 0
    assert found.state["context.norm.num_batches_tracked"] == 0
    assert not any("fc" in key for key in found.state)  # ImageNet's classifier


@pytest.mark.slow
@pytest.mark.parametrize("statement", [semseg(101, 19), semseg(pyramid=False)])
def test_pspnet_of_semseg_is_ours(statement: Statement, tmp_path: Path) -> None:
    assert difference(statement, tmp_path, (65, 81)) < 1e-4


MMSEGMENTATION = [
    mmsegmentation(),
    mmsegmentation("psp", 101, 21, v1c=False),
    mmsegmentation("aspp"),
    mmsegmentation("sep_aspp"),
]


@pytest.mark.slow
@pytest.mark.parametrize("statement", MMSEGMENTATION)
def test_a_network_of_mmsegmentation_is_ours(statement: Statement, tmp_path: Path) -> None:
    assert difference(statement, tmp_path, (64, 81)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement", [encnet(50, 21), encnet(101, 150, lateral=False, deep_stem=False, old=True)]
)
def test_encnet_of_pytorch_encoding_is_ours(statement: Statement, tmp_path: Path) -> None:
    assert difference(statement, tmp_path, (65, 81)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("statement", [kazuto_v2(50), kazuto_v2(101, 182, scales=())])
def test_deeplab_of_kazuto1011_is_ours(statement: Statement, tmp_path: Path) -> None:
    assert difference(statement, tmp_path, (97, 65)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_fcn_of_wkentaro_is_ours(stride: int, tmp_path: Path) -> None:
    assert difference(wkentaro(stride, wide=64), tmp_path, (40, 33)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("plus", [False, True])
def test_deeplabv3_of_kazuto1011_is_ours(plus: bool, tmp_path: Path) -> None:
    assert difference(kazuto_v3(50, plus), tmp_path, (97, 66)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("plus", [False, True])
def test_deeplabv3_of_vainf_is_ours(plus: bool, tmp_path: Path) -> None:
    assert difference(vainf(50, plus), tmp_path, (97, 66)) < 1e-4


def test_unet_of_milesial_is_ours(tmp_path: Path) -> None:
    assert difference(milesial(3, 4), tmp_path, (32, 48)) < 1e-4


CLASSIFIERS: dict[str, tuple[Deepest, type[torch.nn.Module], str]] = {
    "resnet50": (resnet(), ResNet, "imagenet"),
    "semseg's resnet50_v2": (resnet("conv2"), ResNet, "imagenet"),
    "Encoding's resnet50s": (resnet("conv1.0"), ResNet, "imagenet"),
    "resnext101_64x4d": (resnet("conv1", 101, 64, 4), ResNet, "imagenet"),
    "vgg16": (vgg(), VGG, "imagenet"),
    "vgg11_bn": (vgg((1, 1, 2, 2, 2), norm=True), VGG, "imagenet"),
    "alexnet": (alexnet(), AlexNet, "imagenet"),
    "googlenet": (googlenet, GoogLeNet, "tensorflow"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_our_backbone(name: str) -> None:
    statement, backbone, read = CLASSIFIERS[name]
    release = Release()
    # Sides of which no pool leaves a rest, which ours would count.
    image = release.image(96, 128) if backbone is VGG else release.image(95, 127)
    expected = statement(release, image)
    found = recognised(release.tensors)
    assert (found.published.model, found.published.input) == ("", read)
    network = backbone(**found.published.arguments).eval()
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in found.state.items() if k.startswith(prefix)}
    match.load_exactly(network, state, name)
    with torch.inference_mode():
        deep = network(image)[-1]
    assert expected.std() > 0.01
    assert (deep - expected).abs().max() < 1e-4 * expected.abs().max()
    rest = {key for key in found.state if not key.startswith(prefix)}
    numbers = {VGG: (0, 3), AlexNet: (1, 4)}.get(backbone, ())
    assert rest == {f"classifier.{n}.{part}" for n in numbers for part in ("weight", "bias")}


def test_the_vgg_groups_convolutions_are_told_by_a_classifier_without_numbers() -> None:
    tensors = layout(vgg())
    tensors["classifier.0.weight"] = torch.full((4, 4), torch.nan)
    found = recognised(tensors)
    assert found.published.input == "features"
    assert not any("classifier" in key for key in found.state)


@pytest.mark.slow
def test_classifiers_that_are_none_of_ours_are_refused_in_a_line() -> None:
    assert "4 in a group" in refusal(layout(resnet(groups=32, per_group=4)))
    assert "vgg11, vgg13, vgg16" in refusal(layout(vgg((2, 2, 4, 4, 4))))
