"""Facts about ResNets that many families share: torchvision's names, and the depth by the blocks.

torchvision's names (`conv1`, `bn1`, `layer1.0.conv2`) are also those of semseg,
PyTorch-Encoding, the OpenMMLab projects and others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from segtrain.weights.family import Unfit, Values, renamed, width

# Blocks of the four stages -> the network, with and without a third convolution in a block.
BOTTLENECKS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
BASIC = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
STAGES = (1, 2, 3, 4)
BLOCK = r"layer(?P<stage>[1-4])\.(?P<block>\d+)\.conv(?P<conv>\d)\.weight"
DEEP_STEM = 64  # channels of the first of its three convolutions; mmsegmentation's and others: 32
# A block of our `ResNet`, whose stages count from 0.
OURS = r"(?:.*\.)?stages\.(?P<stage>[0-3])\.(?P<block>\d+)\.conv(?P<conv>\d)\.weight"


def names(prefix: str = "", to: str = "backbone.") -> list[tuple[str, str]]:
    """Return rules from torchvision's names below `prefix`, a pattern, to ours below `to`."""
    stages = [(rf"{prefix}layer{n}\.", f"{to}stages.{n - 1}.") for n in STAGES]
    return [
        (rf"{prefix}conv1\.", f"{to}stem.0."),
        (rf"{prefix}bn1\.", f"{to}stem.1."),
        *stages,
    ]


def deep_names(prefix: str = "", to: str = "backbone.") -> list[tuple[str, str]]:
    """Return the same for a stem of three convolutions, conv1 to conv3, bn1 to bn3."""
    stem = [
        (rf"{prefix}conv1\.", f"{to}stem.0.0."),
        (rf"{prefix}bn1\.", f"{to}stem.0.1."),
        (rf"{prefix}conv2\.", f"{to}stem.0.3."),
        (rf"{prefix}bn2\.", f"{to}stem.0.4."),
        (rf"{prefix}conv3\.", f"{to}stem.0.6."),
        (rf"{prefix}bn3\.", f"{to}stem.1."),
    ]
    return [*stem, *names(prefix, to)[2:]]


def depth(
    values: Values,
    block: str = BLOCK,
    stages: Sequence[int] = STAGES,
) -> str:
    """Return which ResNet a file holds by the number of its blocks.

    `block` is the pattern of a block's convolutions, `stages` are the numbers of its stages.
    Errors: Unfit for a network that is none of ours.
    """
    found: set[tuple[int, int, int]] = set()
    for key in values:
        if match := re.fullmatch(block, key):
            found.add((int(match["stage"]), int(match["block"]), int(match["conv"])))
    counts = [len({index for stage, index, _ in found if stage == n}) for n in stages]
    bottlenecks = any(conv == 3 for *_, conv in found)
    known = BOTTLENECKS if bottlenecks else BASIC
    for blocks, name in known.items():
        if counts == list(blocks):
            return name
    raise Unfit(
        f"its backbone has {', '.join(map(str, counts))} blocks in the four stages"
        f"{' of three convolutions' if bottlenecks else ''}, which is no ResNet of ours"
    )


def has_deep_stem(values: Values, *first: str) -> bool:
    """Return whether a ResNet starts with three 3x3 convolutions, and not with a 7x7.

    `first` are names that the first convolution may have. Errors: Unfit for a stem that is none of
    ours.
    """
    key = next((key for key in first if key in values), first[0])
    channels = width(values, key)
    kernel = width(values, key, axis=2)
    if (channels, kernel) not in ((DEEP_STEM, 3), (64, 7)):
        raise Unfit(
            f"its stem starts with {kernel}x{kernel} to {channels} channels, ours with 7x7 or 3x3 "
            "to 64"
        )
    return kernel == 3


def translated_depth(values: Values, names: Sequence[tuple[str, str]]) -> str:
    """Return which ResNet a file holds whose names the rules `names` make ours. Errors: Unfit."""
    ours = {renamed(key, names) or "": value for key, value in values.items()}
    return depth(ours, OURS, range(4))
