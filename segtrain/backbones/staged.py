"""The backbones of four stages, by name: what a feature pyramid can stand on.

They offer alike `stem`, `stages`, `channels`, `strides` and `preprocess`, and give the outputs of
the stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from segtrain.backbones import mobilenet, resnet
from segtrain.backbones.mobilenet import MobileNetV2
from segtrain.backbones.resnet import ResNet
from segtrain.errors import UserError, did_you_mean

Staged = ResNet | MobileNetV2
KNOWN = (*resnet.SHAPES, *mobilenet.NAMES)


def make_staged(
    name: str,
    output_stride: Literal[8, 16, 32] = 32,
    multi_grid: list[int] | None = None,
    norm: Literal["batch", "group", "frozen", "none"] = "batch",
    weights: Literal["imagenet"] | Path | None = None,
    style: resnet.Style = "torchvision",
    pattern: Literal["uniform", "delayed"] = "uniform",
) -> Staged:
    """Return the backbone `name`.

    The arguments are those of `ResNet`. A MobileNet-v2 has no layouts and no factors on dilations,
    and one pattern, its own. Errors: UserError.
    """
    if name in resnet.SHAPES:
        return ResNet(name, output_stride, multi_grid, norm, weights, style=style, pattern=pattern)
    if name not in mobilenet.NAMES:
        near = did_you_mean(name, KNOWN)
        raise UserError(f"backbone `{name}` is unknown.{near} Known: {', '.join(KNOWN)}")
    if multi_grid:
        raise UserError(f"multi_grid={multi_grid} belongs to a ResNet: set it to null for {name}")
    if style != "torchvision":
        raise UserError(f"style={style} belongs to a ResNet: set style=torchvision for {name}")
    return MobileNetV2(name, output_stride, norm, weights)


def freeze_parts(backbone: Staged, freeze: int | None, weights: str | Path | None) -> None:
    """Take the gradient from the stem and the first `freeze` - 1 stages.

    None is 2 with `weights`, as in Detectron, else 0. Errors: UserError.
    """
    count = (2 if weights else 0) if freeze is None else freeze
    if not 0 <= count <= 5:
        raise UserError(
            f"model.freeze={count}: 0 for nothing, 1 for the stem, up to 5 for the whole backbone"
        )
    for part in [backbone.stem, *backbone.stages][:count]:
        part.requires_grad_(False)
