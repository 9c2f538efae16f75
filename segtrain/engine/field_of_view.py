"""Name the dilated convolutions that training crops are too small for.

A 3x3 convolution whose dilation is as wide as its feature map sees padding in training, but for its
centre: its outer weights stay as they were drawn. On whole images, which are larger, they see
something, and add noise. DeepLabv3 needs large crops for that reason (arXiv:1706.05587, section
4.1). Measured on CamVid in docs/results/mobilenet.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from segtrain.config.schema import RunConf

SMALLEST = 6  # dilation of a context branch; most of those of a backbone are below


def crop_of(augment: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and width of the crops that one of our augmentations makes."""
    crop = augment.get("crop")
    if not str(augment.get("_target_")).startswith("segtrain.data.") or not crop:
        return None
    height, width = crop
    return height, width


def blind_branches(run: RunConf, network: nn.Module, image: Sequence[int]) -> str:
    """Say which dilations the crops leave without a neighbour, though images do not; "" if none.

    `image` is the height and width of a validation image.
    """
    crop = crop_of(run.augment)
    try:
        stride = cast(Any, network.get_submodule("backbone")).strides[-1]
    except AttributeError:  # a network of somebody's that has no backbone of ours
        return ""
    if not crop:
        return ""
    seen, whole = ([-(-int(side) // stride) for side in size[:2]] for size in (crop, image))
    dilations = {
        module.dilation[0]
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    }
    blind = sorted(d for d in dilations if d >= SMALLEST and min(seen) <= d < max(whole))
    if not blind:
        return ""
    return (
        f"crops of {crop[0]} x {crop[1]} pixels are {seen[0]} x {seen[1]} features: convolutions "
        f"of dilation {', '.join(map(str, blind))} see little but padding in training, and on "
        "whole images weights that were never trained count; take dataset.crop from "
        f"{stride * blind[-1] + 1} pixels on, or measure windows of the crop by inference=slide"
    )
