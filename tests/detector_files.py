"""Detectors with random weights in nobody's names, and a short statement of what they compute.

Layers are named as in the papers: "stem", "res2.0.a" to "c" and "short" of a block, "lateral2",
"output2", "rpn", "objectness", "deltas", "boxconv1", "fc1", "fc2", "class", "background", "box",
"mask1", "up", "mask". Each has "w" and may have "b"; a norm has "scale" and "shift", and may have
"mean" and "var"; a group norm has "gain" and "offset" instead. Rows of classes are without
background, which stands for itself. Tests write them in a release's names and order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_align

import segtrain
from segtrain.checkpoints import match
from segtrain.inference.maps import batch_of
from segtrain.weights.families import read_published

Net = dict[str, Tensor]
Names = Sequence[tuple[str, str]]
CLASSES = 5
BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}  # of a ResNet-50
RATIOS = (0.5, 1.0, 2.0)
SIDES = (32, 64, 128, 256, 512)
SIZE = (128, 160)  # of an image
KEPT = 100  # proposals, and as many of each level enter their suppression


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    """An image (3, height, width) uint8 with large and small things, as a photo has."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.zeros(1, 3, height, width)
    for cells in (4, 8, 16, 32, 64):
        noise = torch.randn(1, 3, cells, cells, generator=g)
        pixels += F.interpolate(noise, size=(height, width), mode="bilinear") * 28
    return (pixels[0] + 118).round().clamp(0, 255).to(torch.uint8)


def brought_in(path: Path, **changes: Any) -> nn.Module:
    """The network of a published file, all of whose tensors are found on both sides."""
    read = read_published(path)
    arguments = {**read.published.arguments, "weights": None, "input": read.published.input}
    model = segtrain.create_model(
        read.published.model, read.published.num_classes or 1, **{**arguments, **changes}
    )
    match.load_exactly(model, read.state, path)
    return model.eval()


def renamed(net: Net, names: Names) -> Net:
    """The tensors by a release's names: for each the first pattern that fits the whole name."""
    written = {}
    for key, value in net.items():
        name = next(match_.expand(new) for old, new in names if (match_ := re.fullmatch(old, key)))
        assert name not in written
        written[name] = value
    return written


class Maker:
    """Random weights, of which every layer gives values of about the size that it reads."""

    def __init__(self, seed: int = 0, grouped: bool = False) -> None:
        self.net: Net = {}
        self.grouped = grouped
        self.g = torch.Generator().manual_seed(seed)

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self.g) * (high - low) + low

    def layer(self, name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> None:
        std = gain * (2 / math.prod(shape[1:])) ** 0.5
        self.net[f"{name}.w"] = torch.randn(*shape, generator=self.g) * std
        if bias:
            self.net[f"{name}.b"] = torch.randn(shape[0], generator=self.g) * 0.05

    def norm(self, name: str, count: int, affine: bool, high: float = 1.5) -> None:
        if self.grouped:
            self.net[f"{name}.gain"] = self.uniform(count, high / 3, high)
            self.net[f"{name}.offset"] = self.uniform(count, -0.2, 0.2)
            return
        self.net[f"{name}.scale"] = self.uniform(count, high / 3, high)
        self.net[f"{name}.shift"] = self.uniform(count, -0.2, 0.2)
        if not affine:
            self.net[f"{name}.mean"] = self.uniform(count, -0.2, 0.2)
            self.net[f"{name}.var"] = self.uniform(count, 0.5, 1.5)

    def trunk(
        self, blocks: Mapping[int, int], affine: bool, groups: int, group: int, deviation: float
    ) -> None:
        """A stem that reads pixels with a standard `deviation`, and the stages' blocks."""
        self.layer("stem", 64, 3, 7, 7, bias=False, gain=1 / deviation if affine else 1)
        self.norm("stem", 64, affine)
        if not affine and not self.grouped:
            power = self.net["stem.w"].flatten(1).square().sum(1)
            self.net["stem.var"] = power * deviation**2 * self.uniform(64, 0.5, 1.5)
        inputs = 64
        for stage, count in blocks.items():
            inner = (64 if groups == 1 else groups * group) * 2 ** (stage - 2)
            outputs = 256 * 2 ** (stage - 2)
            for block in range(count):
                name = f"res{stage}.{block}"
                self.layer(f"{name}.a", inner, inputs, 1, 1, bias=False)
                self.layer(f"{name}.b", inner, inner // groups, 3, 3, bias=False)
                self.layer(f"{name}.c", outputs, inner, 1, 1, bias=False)
                if block == 0:
                    self.layer(f"{name}.short", outputs, inputs, 1, 1, bias=False)
                    self.norm(f"{name}.short", outputs, affine, 1.0)
                for part, width, high in (
                    ("a", inner, 1.5),
                    ("b", inner, 1.5),
                    ("c", outputs, 0.4),
                ):
                    self.norm(f"{name}.{part}", width, affine, high)
                inputs = outputs


def random_net(
    pyramid: int | None = 32,
    heads: bool = True,
    affine: bool = False,
    groups: int = 1,
    group: int = 64,
    blocks: Mapping[int, int] = BLOCKS,
    deviation: float = 57.0,
    grouped: bool = False,
) -> Net:
    """A detector with a pyramid of so many channels, or C4 with None; without heads its RPN.

    `grouped` has group norms everywhere but in the RPN, and a box head of convolutions.
    """
    made = Maker(grouped=grouped)
    made.trunk(blocks, affine, groups, group, deviation)
    width = pyramid or 1024
    if pyramid:
        for level in (2, 3, 4, 5):
            made.layer(f"lateral{level}", width, 256 * 2 ** (level - 2), 1, 1, bias=not grouped)
            made.layer(f"output{level}", width, width, 3, 3, bias=not grouped)
            if grouped:
                made.norm(f"lateral{level}", width, True)
                made.norm(f"output{level}", width, True)
    anchors = len(RATIOS) * (1 if pyramid else len(SIDES))
    made.layer("rpn", width, width, 3, 3)
    made.layer("objectness", anchors, width, 1, 1, gain=0.2)
    made.layer("deltas", 4 * anchors, width, 1, 1, gain=0.1)
    if heads:
        inputs = 2048
        if pyramid:
            made.layer("fc1", 1024, width * 49)
            if not grouped:
                made.layer("fc2", 1024, 1024)
            for number in (1, 2, 3, 4):
                for head in ("boxconv", "mask") if grouped else ("mask",):
                    made.layer(f"{head}{number}", width, width, 3, 3, bias=not grouped)
                    if grouped:
                        made.norm(f"{head}{number}", width, True)
            inputs = 1024
        made.layer("class", CLASSES, inputs, gain=2)
        made.layer("background", 1, inputs, gain=2)
        made.layer("box", 4 * CLASSES, inputs, gain=0.3)
        deep = width if pyramid else 2048
        made.layer("up", deep, width if pyramid else 256, 2, 2)
        made.layer("mask", CLASSES, width if pyramid else 256, 1, 1)
        made.net["up.b"] = made.uniform(width if pyramid else 256, -0.1, 0.1)
    return made.net


@dataclass(frozen=True)
class Convention:
    """What releases do otherwise than each other with one network."""

    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)  # BGR, of bytes
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    stride_first: bool = True  # in the 1x1
    groups: int = 1
    inclusive: bool = False  # boxes with + 1 and quantised anchors, as Detectron has them
    aligned: bool = True  # half a cell off in RoIAlign
    samples: int = 0
    size_first: bool = False  # anchors of C4 size by size


def layer(net: Net, name: str, x: Tensor, **how: Any) -> Tensor:
    """A convolution or fully connected layer."""
    weight = net[f"{name}.w"]
    function = F.conv2d if weight.dim() == 4 else F.linear
    x = function(x, weight, net.get(f"{name}.b"), **how)
    if f"{name}.gain" in net:
        x = F.group_norm(x, 32, net[f"{name}.gain"], net[f"{name}.offset"])
    return x


def norm(net: Net, name: str, x: Tensor) -> Tensor:
    """A norm of fixed statistics; without any, its scale and shift alone.

    A group norm is a part of its layer.
    """
    if f"{name}.scale" not in net:
        return x
    mean = net.get(f"{name}.mean", torch.zeros(1))[:, None, None]
    var = net.get(f"{name}.var", torch.ones(1) - 1e-5)[:, None, None]
    scale, shift = (net[f"{name}.{part}"][:, None, None] for part in ("scale", "shift"))
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def stage(net: Net, number: int, x: Tensor, how: Convention) -> Tensor:
    """The bottlenecks of a stage."""
    block = 0
    while f"res{number}.{block}.a.w" in net:
        name = f"res{number}.{block}"
        stride = 2 if block == 0 and number > 2 else 1
        first, second = (stride, 1) if how.stride_first else (1, stride)
        y = F.relu(norm(net, f"{name}.a", layer(net, f"{name}.a", x, stride=first)))
        y = layer(net, f"{name}.b", y, stride=second, padding=1, groups=how.groups)
        y = F.relu(norm(net, f"{name}.b", y))
        y = norm(net, f"{name}.c", layer(net, f"{name}.c", y))
        if block == 0:
            x = norm(net, f"{name}.short", layer(net, f"{name}.short", x, stride=stride))
        x = F.relu(x + y)
        block += 1
    return x


def trunk(net: Net, image: Tensor, how: Convention) -> dict[int, Tensor]:
    """The stages' maps of an image (3, H, W) RGB whose sides 32 divides, without conv5 with C4."""
    bgr = image.flip(0).float()
    x = (bgr - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]
    x = F.relu(norm(net, "stem", layer(net, "stem", x[None], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    maps = {}
    for number in (2, 3, 4, 5):
        if number < 5 or "lateral2.w" in net:
            x = maps[number] = stage(net, number, x, how)
    return maps


def features(net: Net, image: Tensor, how: Convention) -> list[Tensor]:
    """P2 to P6 of an image, or conv4."""
    maps = trunk(net, image, how)
    if "lateral2.w" not in net:
        return [maps[4]]
    top = layer(net, "lateral5", maps[5])
    levels = [layer(net, "output5", top, padding=1)]
    for number in (4, 3, 2):
        top = layer(net, f"lateral{number}", maps[number]) + top.repeat_interleave(
            2, 2
        ).repeat_interleave(2, 3)
        levels.insert(0, layer(net, f"output{number}", top, padding=1))
    return [*levels, levels[-1][:, :, ::2, ::2]]


def anchors(sides: Sequence[int], stride: int, map_: Tensor, how: Convention) -> Tensor:
    """Anchors (h * w * A, 4), x2 and y2 in the box if boxes are inclusive."""
    cell = []
    order = [(ratio, side) for ratio in RATIOS for side in sides]
    if how.size_first:
        order = [(ratio, side) for side in sides for ratio in RATIOS]
    for ratio, side in order:
        if how.inclusive:
            width = round((stride**2 / ratio) ** 0.5)
            height = round(width * ratio)
            half = (width * side / stride - 1) / 2, (height * side / stride - 1) / 2
            middle = (stride - 1) / 2
        else:
            half = side / ratio**0.5 / 2, side * ratio**0.5 / 2
            middle = 0.0
        cell.append([middle - half[0], middle - half[1], middle + half[0], middle + half[1]])
    rows, columns = (torch.arange(n) * stride for n in map_.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (torch.stack([x, y, x, y], 2)[:, :, None] + torch.tensor(cell)).reshape(-1, 4)


def moved(boxes: Tensor, deltas: Tensor, size: tuple[int, int], how: Convention) -> Tensor:
    """Boxes (..., 4) after their deltas, cut to the image."""
    one = 1 if how.inclusive else 0
    width, height = (boxes[..., 2 + i] - boxes[..., i] + one for i in (0, 1))
    x = boxes[..., 0] + width / 2 + deltas[..., 0] * width
    y = boxes[..., 1] + height / 2 + deltas[..., 1] * height
    limit = math.log(1000 / 16)
    width = width * deltas[..., 2].clamp(max=limit).exp()
    height = height * deltas[..., 3].clamp(max=limit).exp()
    ends = [x - width / 2, y - height / 2, x + width / 2 - one, y + height / 2 - one]
    limits = (size[1] - one, size[0] - one) * 2
    return torch.stack([end.clamp(0, most) for end, most in zip(ends, limits, strict=True)], -1)


def proposals(
    net: Net, maps: list[Tensor], size: tuple[int, int], how: Convention
) -> tuple[Tensor, Tensor]:
    """The best proposals (n, 4) with their scores."""
    pyramid = len(maps) > 1
    found, scores, levels = [], [], []
    for level, map_ in enumerate(maps):
        seen = F.relu(layer(net, "rpn", map_, padding=1))
        score = layer(net, "objectness", seen).permute(0, 2, 3, 1).flatten().sigmoid()
        delta = layer(net, "deltas", seen).permute(0, 2, 3, 1).reshape(-1, 4)
        stride = 4 * 2**level if pyramid else 16
        sides = SIDES[level : level + 1] if pyramid else SIDES
        boxes = moved(anchors(sides, stride, map_, how), delta, size, how)
        best = score.argsort(descending=True)[: KEPT if pyramid else 6000]
        if not how.inclusive:  # what was cut away is no proposal; inclusive boxes keep a pixel
            best = best[(boxes[best, 2:] > boxes[best, :2]).all(1)]
        found.append(boxes[best])
        scores.append(score[best])
        levels.append(torch.full_like(best, level))
    boxes, score, level = torch.cat(found), torch.cat(scores), torch.cat(levels)
    one = boxes.new_tensor([0, 0, 1, 1]) if how.inclusive else 0
    kept = batched_nms(boxes + one, score, level, 0.7)[:KEPT]
    return boxes[kept], score[kept]


def regions(maps: list[Tensor], boxes: Tensor, cells: int, how: Convention) -> Tensor:
    """What the heads read of boxes (n, 4)."""
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    if len(maps) == 1:
        return roi_align(maps[0], rois, cells, 1 / 16, how.samples or -1, how.aligned)
    one = 1 if how.inclusive else 0
    sides = (boxes[:, 2:] - boxes[:, :2] + one).prod(1).sqrt()
    level = (4 + (sides / 224 + 1e-6).log2()).floor().clamp(2, 5)
    read = torch.zeros(len(boxes), maps[0].shape[1], cells, cells)
    for number in (2, 3, 4, 5):
        own = level == number
        scale = 1 / 2**number
        read[own] = roi_align(
            maps[number - 2], rois[own], cells, scale, how.samples or -1, how.aligned
        )
    return read


def classified(
    net: Net, maps: list[Tensor], boxes: Tensor, size: tuple[int, int], how: Convention
) -> tuple[Tensor, Tensor]:
    """Probabilities (n, K) and boxes (n, K, 4) of proposals (n, 4)."""
    if len(maps) == 1:
        x = stage(net, 5, regions(maps, boxes, 14, how), how).mean((2, 3))
    else:
        x = regions(maps, boxes, 7, how)
        for number in (1, 2, 3, 4) if "boxconv1.w" in net else ():
            x = F.relu(layer(net, f"boxconv{number}", x, padding=1))
        x = F.relu(layer(net, "fc1", x.flatten(1)))
        if "fc2.w" in net:
            x = F.relu(layer(net, "fc2", x))
    scores = torch.cat([layer(net, "class", x), layer(net, "background", x)], 1).softmax(1)
    deltas = layer(net, "box", x).reshape(len(boxes), -1, 4) / torch.tensor([10.0, 10, 5, 5])
    return scores[:, :-1], moved(boxes[:, None].expand_as(deltas), deltas, size, how)


def drawn(net: Net, maps: list[Tensor], boxes: Tensor, labels: Tensor, how: Convention) -> Tensor:
    """The masks (n, 2M, 2M) of boxes (n, 4) of classes (n,)."""
    x = regions(maps, boxes, 14, how)
    if len(maps) == 1:
        x = stage(net, 5, x, how)
    else:
        for number in (1, 2, 3, 4):
            x = F.relu(layer(net, f"mask{number}", x, padding=1))
    x = F.relu(F.conv_transpose2d(x, net["up.w"], net["up.b"], stride=2))
    return layer(net, "mask", x).sigmoid()[torch.arange(len(boxes)), labels]


def worst(mine: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    assert mine.shape == other.shape
    return float((mine - other).abs().max() / other.abs().max().clamp(min=1))


def exclusive(boxes: Tensor, how: Convention) -> Tensor:
    """Boxes as ours are, x2 and y2 behind them."""
    return boxes + boxes.new_tensor([0, 0, 1, 1]) if how.inclusive else boxes


def check(path: Path, net: Net, how: Convention) -> nn.Module:
    """Bring a file in and compare all that its network gives on an image with the statement."""
    size = SIZE
    image = photo(*size)
    heads = "class.w" in net
    model = brought_in(path, proposals=[KEPT, KEPT] if heads else KEPT)
    with torch.inference_mode():
        batch = batch_of(image[None], size)
        maps = features(net, image, how)
        ours = model.features(batch)
        assert max(worst(mine, other) for mine, other in zip(ours, maps, strict=True)) < 1e-4

        expected, scores = proposals(net, maps, size, how)
        rpn = model.stages.rpn if heads else model.rpn
        boxes, mine = rpn.propose(rpn(ours), batch.sizes)[0]
        # Rounding swaps neighbours of nearly one score, and may decide a few suppressions.
        assert abs(len(expected) - len(boxes)) <= 2
        nearest, same = (exclusive(expected, how)[:, None] - boxes).abs().amax(2).min(1)
        assert (nearest < 1e-2).float().mean() > 0.98
        assert (scores - mine[same])[nearest < 1e-2].abs().max() < 1e-4
        if not heads:
            return model

        # Of the same proposals, the heads must say the same.
        probabilities, refined = classified(net, maps, expected, size, how)
        outputs = model.stages.box_head(ours, [exclusive(expected, how)])
        assert worst(outputs[0].softmax(1)[:, 1:], probabilities) < 1e-4
        # All our detections are among the statement's, whose boxes are refined as ours.
        found, found_boxes = model.detect(ours, batch.sizes)[0]
        pairs = (exclusive(refined, how)[:, None] - found_boxes).abs().amax((2, 3)).min(1)
        assert (pairs.values < 1e-2).float().mean() > 0.97
        close = pairs.values < 1e-2
        assert worst(found[pairs.indices[close]], probabilities[close]) < 1e-4

        labels = probabilities.argmax(1)
        chosen = refined[torch.arange(len(labels)), labels]
        real = (chosen[:, 2:] - chosen[:, :2]).amin(1) >= 1
        masks = drawn(net, maps, chosen[real], labels[real], how)
        ours_masks = model.masks(ours, [exclusive(chosen[real], how)], labels[real])
        assert worst(ours_masks, masks) < 1e-4
        assert masks.std() > 0.05  # not all the same
    return model
