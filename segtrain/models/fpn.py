"""Mask proposals on a feature pyramid (Lin et al., FPN, CVPR 2017, arXiv:1612.03144).

They are section 6 and appendix A of the paper. Windows of k x k cells slide over every level, in
the manner of DeepMask (Pinheiro et al., NeurIPS 2015): each says whether an object of its size lies
in its middle, and that object's mask.

Shapes: A positions of an image, scale by scale (`Scale`), row by row; M x M cells of a mask, which
fills the region of its position. Boxes are x1, y1, x2, y2 in pixels of the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.backbones.staged import freeze_parts, make_staged
from segtrain.errors import UserError
from segtrain.layers.blocks import initialise, input_of_objects
from segtrain.layers.preprocess import Input, chosen
from segtrain.layers.pyramid import FeaturePyramid, padded, with_coarser
from segtrain.layers.regions import Objects, mask_targets, sample, sampling_generator, usable
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

# Regions (n, 4), scores (n,) in [0, 1], masks (n, M, M) in [0, 1].
Proposed = tuple[Tensor, Tensor, Tensor]
Geometry = Literal["paper", "cells"]


class Scale(NamedTuple):
    """One head on one level: `rows` x `columns` positions, one in the middle of each cell.

    A head of `kernel` x `kernel` cells of `stride` pixels judges there an object of `canonical`
    pixels, and its mask fills a region of `side` pixels. `geometry` says how large they are:

    paper    objects of 8 strides for 5 x 5, the half octave above them for 7 x 7 (11.3 strides); a
             region has a quarter more, 10 and 14.1 strides (appendix A). That is twice what the
             kernel covers: the network sees more than the cells under it.
    cells    objects of 4 and 5.7 strides, and the region is what the kernel covers, 5 and 7
             strides. It is no published rule; segtrain had it while the appendix was not known.
    """

    kernel: int
    stride: int
    rows: int
    columns: int
    geometry: Geometry = "paper"

    @property
    def canonical(self) -> float:
        """Return the pixels of the longest side of the objects it is made for."""
        half_octaves = round(2 * math.log2(self.kernel / 5))
        strides = 8 if self.geometry == "paper" else 4
        return strides * self.stride * 2 ** (half_octaves / 2)

    @property
    def side(self) -> float:
        """Return the pixels of a region's side."""
        return 1.25 * self.canonical if self.geometry == "paper" else self.kernel * self.stride


class Sampling:
    """Choose the positions that train the heads, image by image, by the paper's rules (appendix A).

    An object belongs to the scale whose canonical size is nearest to its box's longest side, as
    octaves count. Positive are there the positions within one cell of the box's middle, in x and in
    y. Negative are all others in the image.

    What the paper leaves open is ours: where several objects claim a position, the one nearest in
    scale has it, then the one nearest in place, then the first; a crowd is no object, and positions
    in its box are no negatives, nor are those of the padding. At most `count` are drawn, `share` of
    them positive at most; negatives take the places of missing positives.
    """

    def __init__(self, count: int = 128, share: float = 0.25) -> None:
        self.count = count
        self.share = share
        check_fraction("share", share)
        if count < 1 or int(count * share) < 1:
            raise UserError(
                f"model.sampling.count={count}: of which {share:g} may be positive, which is none; "
                f"the paper has 128"
            )

    def kinds(
        self, objects: Objects, scales: list[Scale], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return (which (A,) int64, kind (A,) int8) of all positions.

        `which` is the object that a positive position shows, `kind` is 1 positive, 0 negative, -1
        neither. `size` (height, width) of the image without its padding.
        """
        position, owner = self.positives(objects.boxes, scales)
        kind = self.negatives(objects, scales, size).to(torch.int8) - 1
        kind[position] = 1
        which = torch.zeros(len(kind), dtype=torch.int64, device=kind.device)
        which[position] = owner
        return which, kind

    def positives(self, boxes: Tensor, scales: list[Scale]) -> tuple[Tensor, Tensor]:
        """Return (positions (P,) ascending, their objects (P,)) of boxes (N, 4)."""
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        octaves = octaves_from(boxes, scales).abs()
        serves = self.serves(octaves)
        claims = []
        first = 0
        for number, scale in enumerate(scales):
            mine = torch.nonzero(serves[:, number]).flatten()
            point, cell, offset = around(middles[mine], self.reach(scale), scale)
            claims.append(
                (cell + first, mine[point], octaves[mine[point], number], offset.norm(dim=1))
            )
            first += scale.rows * scale.columns
        position, owner, octave, distance = (
            torch.cat(column) for column in zip(*claims, strict=True)
        )
        order = torch.arange(len(position), device=position.device)
        for key in (distance, octave, position):  # the last key sorted by counts most
            order = order[key[order].argsort(stable=True)]
        position = position[order]
        owner = owner[order]
        wins = torch.ones_like(position, dtype=torch.bool)
        wins[1:] = position[1:] != position[:-1]
        return position[wins], owner[wins]

    def serves(self, octaves: Tensor) -> Tensor:
        """Return which scales learn which objects, (N, scales) bool.

        `octaves` (N, scales) lie between the objects and the canonical sizes.
        """
        nearest = torch.zeros_like(octaves, dtype=torch.bool)
        return (
            nearest.scatter_(1, octaves.argmin(1, keepdim=True), True) if len(octaves) else nearest
        )

    def reach(self, scale: Scale) -> float:
        """Return how many pixels a positive may lie from its object's middle, in x and in y."""
        return scale.stride

    def negatives(self, objects: Objects, scales: list[Scale], size: tuple[int, int]) -> Tensor:
        """Return which of the A positions are negative unless they are positive, (A,) bool."""
        inside = within(scales, size, objects.boxes.device)
        return inside & outside_crowds(objects.crowds, scales, size)


class DeepMaskSampling(Sampling):
    """Choose the positions by the rules that DeepMask's release has for its crops.

    Its lengths are relative to the region here. An object belongs to all scales whose canonical
    size is within `octaves` of its box's longest side, and always to the nearest one. Positive are
    there the positions within `shift` regions of the box's middle, in x and in y, and always the
    nearest position. Negative are the positions at least `far` regions (Euclidean) from the middle
    of every object whose longest side is within `far_octaves` of the scale; those between are
    neither. All else is as in `Sampling`.
    """

    def __init__(
        self,
        count: int = 128,
        share: float = 0.25,
        shift: float = 0.1,
        octaves: float = 0.25,
        far: float = 0.3,
        far_octaves: float = 2.5,
    ) -> None:
        super().__init__(count, share)
        self.shift = shift
        self.octaves = octaves
        self.far = far
        self.far_octaves = far_octaves
        check_fraction("shift", shift)
        check_fraction("far", far)
        if min(octaves, far_octaves) < 0:
            raise UserError(
                f"model.sampling.octaves={octaves}, far_octaves={far_octaves}: octaves from 0 on"
            )

    def serves(self, octaves: Tensor) -> Tensor:
        """Return which scales learn which objects, (N, scales) bool."""
        return super().serves(octaves) | (octaves <= self.octaves)

    def reach(self, scale: Scale) -> float:
        """Return how many pixels a positive may lie from its object's middle, in x and in y."""
        return self.shift * scale.side

    def negatives(self, objects: Objects, scales: list[Scale], size: tuple[int, int]) -> Tensor:
        """Return which of the A positions are negative unless they are positive, (A,) bool."""
        boxes = objects.boxes
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        octaves = octaves_from(boxes, scales).abs()
        free = super().negatives(objects, scales, size)
        first = 0
        for number, scale in enumerate(scales):
            near = middles[octaves[:, number] <= self.far_octaves]
            _, cell, offset = around(near, self.far * scale.side, scale)
            free[cell[offset.norm(dim=1) < self.far * scale.side] + first] = False
            first += scale.rows * scale.columns
        return free


class FPN(SegmentationModel):
    """Propose masks of objects of any class. `num_classes` is not used.

    `forward(batch)` draws positions (`Sampling`) and gives what the loss reads: `object` (S,)
    logits and 0 or 1, `mask` (P, M, M) logits and targets of the positive ones; {} for a batch
    without instances. `propose_masks` gives the best masks.

    `levels` is the coarsest of the levels, which begin with P2 at stride 4 and end with P6 in the
    paper; those above P5 are every other cell of the one before. `heads` are the kernels' sides in
    cells ([5], [7] or both in the paper); each head has weights of its own, shared by all levels: a
    convolution of `hidden` channels with ReLU, a linear layer to the mask of `mask_size` x
    `mask_size` cells, one to the objectness. `geometry` is the sizes of objects and of the regions
    that masks fill (`Scale`). `width` is the pyramid's. `freeze` keeps the backbone's stem (1) and
    its first stages (2 and more) as they are; None: 2 with `weights`, else 0 (Detectron's habit;
    the paper does not say). `norm` is the backbone's, `head_norm` the pyramid's; heads have none,
    so that training computes them at the drawn positions only. Raises UserError for values that are
    not offered.
    """

    learns_from = "instances"

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"
        ] = "resnet50",
        levels: Literal[5, 6, 7] = 6,
        heads: list[int] | None = None,
        mask_size: int = 14,
        geometry: Geometry = "paper",
        width: int = 128,
        hidden: int = 512,
        freeze: int | None = None,
        norm: Literal["batch", "group", "frozen"] = "frozen",
        head_norm: Literal["none", "group", "batch"] = "none",
        weights: Literal["imagenet"] | Path | None = None,
        sampling: Sampling | None = None,
        input: Input = None,
    ) -> None:
        super().__init__()
        kernels = [5, 7] if heads is None else [int(kernel) for kernel in heads]
        check_arguments(levels, kernels, mask_size, geometry)
        self.levels = levels
        self.mask_size = mask_size
        self.geometry: Geometry = geometry
        self.sampling = Sampling() if sampling is None else sampling
        self.backbone = make_staged(backbone, norm=norm, weights=weights)
        self.preprocess = chosen(input, self.backbone.preprocess)
        freeze_parts(self.backbone, freeze, weights)
        self.pyramid = FeaturePyramid(self.backbone.channels, width, head_norm)
        self.heads = nn.ModuleList(Head(width, hidden, kernel, mask_size) for kernel in kernels)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training, beside targets."""
        return ("object", "mask")

    def class_rows(self) -> dict[str, ClassRows]:
        """Return {}: proposals have no class."""
        return {}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the loss reads. Errors: UserError when training without objects' masks."""
        x = input_of_objects(batch, self.preprocess)
        if not batch.instances:
            if self.training:
                raise UserError(
                    "model=fpn learns from objects and their masks: take dataset=coco_proposal or "
                    "such"
                )
            return {}
        return self.learn(self.features(x), batch.instances, batch.sizes.tolist())

    def features(self, x: Tensor) -> list[Tensor]:
        """Return P2 to the coarsest level of an input (B, 3, H, W).

        It is padded so that all strides are exact; cell 0 begins at pixel 0.
        """
        return with_coarser(self.pyramid(self.backbone(padded(x, 32))), self.levels - 5)

    def scales(self, features: list[Tensor]) -> list[Scale]:
        """Return the scales level by level, and on each level head by head."""
        shapes = [tuple(level.shape[-2:]) for level in features]
        kernels = [head.kernel for head in self.each_head()]
        return [
            Scale(kernel, 4 * 2**i, *shape, self.geometry)
            for i, shape in enumerate(shapes)
            for kernel in kernels
        ]

    def each_head(self) -> list[Head]:
        """Return the heads with their type."""
        return [head for head in self.heads if isinstance(head, Head)]

    def learn(
        self, features: list[Tensor], targets: list[Instances], sizes: list[list[int]]
    ) -> dict[str, Tensor]:
        """Return what the loss reads of positions drawn from each image."""
        scales = self.scales(features)
        generator = sampling_generator(self.training)
        regions = regions_of(scales, features[0].device)
        columns: dict[str, list[Tensor]] = {"image": [], "position": [], "truth": [], "mask": []}
        for number, (target, (height, width)) in enumerate(zip(targets, sizes, strict=True)):
            objects = usable(target)
            which, kind = self.sampling.kinds(objects, scales, (height, width))
            positive, negative = sample(kind, self.sampling.count, self.sampling.share, generator)
            position = torch.cat([positive, negative])
            columns["position"].append(position)
            columns["image"].append(torch.full_like(position, number))
            columns["truth"].append(kind[position] == 1)
            columns["mask"].append(
                mask_targets(objects.masks, regions[positive], which[positive], self.mask_size)
            )
        image, position, truth, wanted = (torch.cat(parts) for parts in columns.values())
        drawn = []
        scores = []
        masks = []
        for head, here, vectors in self.vectors(features, scales, image, position):
            drawn.append(here)
            scores.append(head.object(vectors).flatten())
            masks.append(head.mask(vectors[truth[here]]))
        order = torch.cat(drawn)
        # The rows of `wanted` in the order of the masks.
        positives = (truth.cumsum(0) - 1)[order[truth[order]]]
        return {
            "object": torch.cat(scores).float(),
            "object_target": truth[order].float(),
            "mask": torch.cat(masks).float().unflatten(1, (self.mask_size, self.mask_size)),
            "mask_target": wanted[positives],
        }

    def vectors(
        self, features: list[Tensor], scales: list[Scale], image: Tensor, position: Tensor
    ) -> Iterator[tuple[Head, Tensor, Tensor]]:
        """Yield scale by scale (head, which (n,) of the S positions are of it, their vectors).

        The vectors are (n, hidden). `image` (S,) tells of which image of the batch. Every head and
        level takes part, if with nothing.
        """
        heads = self.each_head()
        first = 0
        for number, scale in enumerate(scales):
            head = heads[number % len(heads)]
            level = features[number // len(heads)]
            last = first + scale.rows * scale.columns
            here = torch.nonzero((position >= first) & (position < last)).flatten()
            cell = position[here] - first
            first = last
            row = cell // scale.columns
            yield head, here, head.at(level, image[here], row, cell % scale.columns)

    def objectness(self, features: list[Tensor]) -> Tensor:
        """Return the logits (B, A) float32 of all positions."""
        parts = [head.everywhere(level) for level in features for head in self.each_head()]
        return torch.cat(parts, 1).float()

    def propose_masks(self, batch: Batch, count: int = 1000) -> list[Proposed]:
        """Return per image its `count` best positions, best first.

        They are (regions (n, 4), objectness (n,), masks (n, M, M)). Regions reach beyond the image.
        Positions of the batch's padding are left out; equal scores go by position.
        """
        features = self.features(input_of_objects(batch, self.preprocess))
        scales = self.scales(features)
        logits = self.objectness(features)
        regions = regions_of(scales, logits.device)
        proposals = []
        for number, (height, width) in enumerate(batch.sizes.tolist()):
            inside = torch.nonzero(within(scales, (height, width), logits.device)).flatten()
            scores, best = logits[number, inside].sort(descending=True, stable=True)
            position = inside[best[:count]]
            masks = logits.new_zeros((len(position), self.mask_size**2))
            for head, here, vectors in self.vectors(
                features, scales, torch.full_like(position, number), position
            ):
                masks[here] = head.mask(vectors).float()
            masks = masks.unflatten(1, (self.mask_size, self.mask_size)).sigmoid()
            proposals.append((regions[position], scores[:count].sigmoid(), masks))
        return proposals


class Head(nn.Module):
    """Judge objects of one size.

    It is a k x k convolution of `hidden` channels, ReLU, and linear layers to a mask and to the
    objectness.
    """

    def __init__(self, width: int, hidden: int, kernel: int, mask_size: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.conv = nn.Conv2d(width, hidden, kernel, padding=kernel // 2)
        self.mask = nn.Linear(hidden, mask_size**2)
        self.object = nn.Linear(hidden, 1)
        initialise(self.conv)
        for layer in (self.mask, self.object):
            nn.init.normal_(layer.weight, std=0.01)
        for layer in (self.conv, self.mask, self.object):
            nn.init.zeros_(layer.get_parameter("bias"))

    def everywhere(self, level: Tensor) -> Tensor:
        """Return the objectness (B, h * w) of a level (B, C, h, w)."""
        hidden = self.conv(level).relu_()
        return self.object(hidden.permute(0, 2, 3, 1)).flatten(1)

    def at(self, level: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return what convolution and ReLU give at n cells, (n, hidden), computed for these alone.

        Training reads 128 of some 145,000 positions of a COCO image. Everywhere, the heads would
        cost five times a ResNet-50.
        """
        reach = torch.arange(self.kernel, device=level.device)
        padded = F.pad(level, (self.kernel // 2,) * 4).permute(0, 2, 3, 1)
        rows = row[:, None, None] + reach[:, None]
        columns = column[:, None, None] + reach
        patches = padded[image[:, None, None], rows, columns]  # (n, k, k, C)
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches.flatten(1), weight, self.conv.bias).relu()


def middles_of(scales: list[Scale], device: torch.device) -> Tensor:
    """Return x, y of the middle of every position's cell and region, (A, 2) float32."""
    parts = []
    for scale in scales:
        x = (torch.arange(scale.columns, device=device) + 0.5) * scale.stride
        y = (torch.arange(scale.rows, device=device) + 0.5) * scale.stride
        parts.append(
            torch.stack(
                [x.expand(scale.rows, -1), y[:, None].expand(-1, scale.columns)], 2
            ).flatten(0, 1)
        )
    return torch.cat(parts)


def regions_of(scales: list[Scale], device: torch.device) -> Tensor:
    """Return the region of every position, (A, 4) float32; it may reach beyond the image."""
    middles = middles_of(scales, device).split([scale.rows * scale.columns for scale in scales])
    halves = [scale.side / 2 for scale in scales]
    return torch.cat([torch.cat([m - h, m + h], 1) for m, h in zip(middles, halves, strict=True)])


def within(scales: list[Scale], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return which positions' cells have a part of the image of `size` (height, width), (A,) bool.

    The others lie in the padding.
    """
    parts = []
    for scale in scales:
        row = torch.arange(scale.rows, device=device) * scale.stride < size[0]
        column = torch.arange(scale.columns, device=device) * scale.stride < size[1]
        parts.append((row[:, None] & column).flatten())
    return torch.cat(parts)


def outside_crowds(crowds: Tensor, scales: list[Scale], size: tuple[int, int]) -> Tensor:
    """Return which positions have their middle in none of the boxes `crowds` (C, 4), (A,) bool.

    `size` (height, width) of the image without its padding.
    """
    x, y = middles_of(scales, crowds.device).unbind(1)
    # Of a cell that the image covers less than half, the middle lies beyond the image.
    x = x.clamp(max=size[1] - 1)
    y = y.clamp(max=size[0] - 1)
    free = torch.ones_like(x, dtype=torch.bool)
    for x1, y1, x2, y2 in crowds.unbind():
        free &= ~((x >= x1) & (x < x2) & (y >= y1) & (y < y2))
    return free


def octaves_from(boxes: Tensor, scales: list[Scale]) -> Tensor:
    """Return by how many octaves boxes surpass the canonical sizes, (N, scales)."""
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    return longest.log2()[:, None] - boxes.new_tensor([scale.canonical for scale in scales]).log2()


def around(points: Tensor, reach: float, scale: Scale) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells whose middle is within `reach` pixels of points (N, 2), in x and in y.

    They are (point (n,), cell (n,), offset (n, 2)).
    The cell that a point lies in is among them whatever the reach, the outermost for a point beyond
    the map. `offset` x, y in pixels from the point to the middle. Point by point, row by row; only
    that few cells are looked at.
    """
    most = points.new_tensor([scale.columns - 1, scale.rows - 1])
    nearest = (points / scale.stride).floor().clamp(min=0).minimum(most)
    first = ((points - reach) / scale.stride - 0.5).ceil().clamp(min=0).minimum(nearest)
    last = ((points + reach) / scale.stride - 0.5).floor().minimum(most).maximum(nearest)
    steps = torch.arange(math.floor(2 * reach / scale.stride) + 2, device=points.device)
    x = first[:, :1] + steps  # (N, steps)
    y = first[:, 1:] + steps
    held = (y <= last[:, 1:])[:, :, None] & (x <= last[:, :1])[:, None, :]
    point, down, right = torch.nonzero(held, as_tuple=True)
    x = x[point, right]
    y = y[point, down]
    offset = (torch.stack([x, y], 1) + 0.5) * scale.stride - points[point]
    return point, (y * scale.columns + x).long(), offset


def check_fraction(name: str, value: float) -> None:
    """Raise UserError with the way out for an argument of the sampling that is no fraction."""
    if not 0 < value <= 1:
        raise UserError(f"model.sampling.{name}={value}: a fraction above 0, up to 1")


def check_arguments(levels: int, kernels: list[int], mask_size: int, geometry: str) -> None:
    """Raise UserError with the way out for a value that is not offered."""
    if levels not in (5, 6, 7):
        raise UserError(f"model.levels={levels}: the coarsest level, 5, 6 or 7")
    if (
        not kernels
        or len(set(kernels)) < len(kernels)
        or any(kernel < 3 or kernel % 2 == 0 for kernel in kernels)
    ):
        raise UserError(
            f"model.heads={kernels}: different odd numbers of cells from 3 on, e.g. [5, 7]"
        )
    if mask_size < 1:
        raise UserError(f"model.mask_size={mask_size}: cells of a mask's side, e.g. 14 or 28")
    if geometry not in get_args(Geometry):
        raise UserError(f"model.geometry={geometry}: paper or cells")
