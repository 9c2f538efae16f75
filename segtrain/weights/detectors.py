"""Facts that families of detectors share: rows of classes, anchors, and what a trunk reads.

Our class rows begin with the background, in boxes and masks too. Our channels of anchors go ratio
by ratio, size by size within a ratio.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from segtrain.weights.family import Unfit, Values, width

NORM_EPS = 1e-5  # of our norms
# The edges of Detectron's baselines, which all these projects follow.
MEASURED = ("inference=instances", "inference.shorter=800", "inference.longest=1333")
# Of an import that has to assume one of two kinds of ResNets with the same names.
ASSUMED = (
    "the file does not tell whether the backbone strides in its 1x1 and reads bytes (MSRA's "
    "ResNets) or strides in its 3x3 and reads pixels divided by their deviation (torchvision's); "
    "taken is what most of the project's files are"
)
PASTED = "inference.paste=expanded"  # as torchvision and Detectron do
MEASURED_PROPOSALS = ("inference=box_proposals",)
# Shape (outputs, inputs of a group) of the 3x3 in the first block -> the ResNeXt of 101 layers.
RESNEXTS = {(256, 8): "resnext101_32x8d", (256, 4): "resnext101_64x4d"}
# Of the first convolution, the median over its filters of the variance of what they give, divided
# by the sum of their squared weights. It is 0.6 for MobileNet-v2's filters on normalised photos of
# VOC, and would be 2,000 on bytes: three decades apart, and this lies in the middle.
BYTES_FROM = 30.0


def background_first(rows: Tensor) -> Tensor:
    """Return class rows (K + 1, ...) whose background is last in our order."""
    return torch.cat([rows[-1:], rows[:-1]])


def with_background(each: int) -> Callable[[Tensor], Tensor]:
    """Return what puts zeros before rows (K * each, ...) that have none for the background."""
    return lambda rows: torch.cat([rows.new_zeros(each, *rows.shape[1:]), rows])


def turned(values: Values, turns: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """Return the tensors, those whose whole name fits a pattern turned by its function."""
    result = dict(values)
    for pattern, turn in turns.items():
        for key in values:
            if re.fullmatch(pattern, key):
                result[key] = turn(values[key])
    return result


def refuse(values: Values, others: Mapping[str, str]) -> None:
    """Refuse what holds a key that begins with a pattern, by its reason. Errors: Unfit."""
    for pattern, reason in others.items():
        if any(re.match(pattern, key) for key in values):
            raise Unfit(reason)


def need_masks(values: Values, key: str) -> None:
    """Refuse a detector of boxes alone, which lacks `key`. Errors: Unfit."""
    if key not in values:
        raise Unfit("it draws no masks (Faster R-CNN): our detectors do")


def need_rows(values: Values, boxes: str, masks: str, outputs: int) -> None:
    """Refuse boxes or masks that do not depend on the class. Errors: Unfit."""
    if width(values, boxes) != 4 * outputs or width(values, masks) != outputs:
        raise Unfit("its boxes or masks are the same for all classes, ours are one for each")


def widened(depth: str, values: Values, key: str) -> str:
    """Return the name of a ResNet or ResNeXt by the 3x3 `key` of its first block. Errors: Unfit."""
    shape = (values[key].shape[0], values[key].shape[1])
    if shape == (64, 64):
        return depth
    if depth == "resnet101" and shape in RESNEXTS:
        return RESNEXTS[shape]
    groups = shape[0] // shape[1] if shape[1] else 0
    raise Unfit(
        f"its backbone is a {depth} whose first 3x3 is {shape[0]} wide in {groups} groups, which "
        "is none of ours"
    )


def norm_of(values: Values, name: str) -> str:
    """Return the kind of the norm `name` by its tensors: none, batch or group."""
    if f"{name}.weight" not in values:
        return "none"
    return "batch" if f"{name}.running_var" in values else "group"


def reads_bytes(values: Values, weight: str, variance: str) -> bool | None:
    """Tell whether the first convolution reads bytes, or pixels divided by their deviation.

    The running `variance` of its norm says so. None where there is none.
    """
    if weight not in values or variance not in values:
        return None
    power = values[weight].double().flatten(1).square().sum(1)
    return bool((values[variance].double() / power).nanmedian() > BYTES_FROM)


def affine_as_norm(values: Values, scale: str, mean: str, variance: str) -> dict[str, Tensor]:
    """Return tensors with the statistics that make batch norms of scales and shifts.

    `scale` is the pattern of a scale's name, `mean` and `variance` are what the other two are
    called, as replacements of it. The mean is 0, and the variance is 1 with eps.
    """
    result = dict(values)
    for key, value in values.items():
        if match := re.fullmatch(scale, key):
            result[match.expand(mean)] = torch.zeros_like(value)
            result[match.expand(variance)] = torch.full_like(value, 1 - NORM_EPS)
    return result
