"""MobileNet-v2 by torchvision's names, and TensorFlow's DeepLabv3 on it with such names.

The DeepLabv3 of the files `deeplabv3_mnv2_pascal_quant` (github.com/google-coral/test_data) is
TensorFlow's: the 1x1 and the image's mean, no 3x3, and no decoder. Its batch norms are folded into
the convolutions, so those of the head are missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segtrain.weights.family import Family, Published, Values, width

EPS = 1e-5  # of batch norm, in torch
# features.0 and 1 are our stem, the others the blocks of our four stages.
BLOCKS = (2, 3, 7, 4)
NAMES = [(r"features\.([01])\.", r"backbone.stem.\1.")]
for _stage, _before in enumerate((2, 4, 7, 14)):
    NAMES += [
        (rf"features\.{_before + block}\.", f"backbone.stages.{_stage}.{block}.")
        for block in range(BLOCKS[_stage])
    ]
# Convolution of the head -> ours, of which each has a batch norm.
HEAD = {
    "aspp0": "context.branches.0",
    "image_pooling": "context.pooling.project",
    "concat_projection": "context.project.0",
}
BRANCH = 256  # channels of each branch


def identity_norm(name: str, bias: Tensor) -> dict[str, Tensor]:
    """Return a batch norm over as many channels as `bias` (C,) has, which adds it and no more."""
    return {
        f"{name}.weight": torch.full_like(bias, (1 + EPS) ** 0.5),
        f"{name}.bias": bias,
        f"{name}.running_mean": torch.zeros_like(bias),
        f"{name}.running_var": torch.ones_like(bias),
    }


def reading_tensorflow(values: Values) -> dict[str, Tensor]:
    """Return the first convolution and its norm for x / 127.5 - 1, which the network learned from.

    The file has them for torchvision's input instead. Inside an image both are the same; at its
    border the zeros that pad it mean grey in one and ImageNet's mean colour in the other.
    """
    weight = values["features.0.0.weight"]  # (32, 3, 3, 3)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    # (x / 255 - mean) / std = (x / 127.5 - 1) * 0.5 / std + (0.5 - mean) / std
    shift = (weight * ((0.5 - mean) / std)).sum((1, 2, 3))
    return {
        "features.0.0.weight": weight * (0.5 / std),
        "features.0.1.running_mean": values["features.0.1.running_mean"] - shift,
    }


def _deeplabv3(values: Values) -> Published:
    changed = dict(values) | reading_tensorflow(values)
    for name in HEAD:
        changed |= identity_norm(f"{name}.norm", changed.pop(f"{name}.bias"))
    # There the image's mean comes first among what is joined, here it comes last.
    joined = values["concat_projection.weight"]
    changed["concat_projection.weight"] = torch.cat([joined[:, BRANCH:], joined[:, :BRANCH]], 1)
    return Published(
        model="deeplabv3_mobilenet",
        arguments={"relu6": True, "output_stride": 16},
        input="tensorflow",
        values=changed,
        names=[
            *NAMES,
            *((rf"{name}\.norm\.", f"{ours}.1.") for name, ours in HEAD.items()),
            *((rf"{name}\.", f"{ours}.0.") for name, ours in HEAD.items()),
            (r"logits\.", "classifier."),
        ],
        num_classes=width(values, "logits.weight"),
        classes="voc",
        measured=("inference=whole", "inference.pad=[513,513]"),
    )


DEEPLABV3 = Family(
    name="DeepLabv3 on MobileNet-v2 of TensorFlow's 8-bit release",
    known_by=(
        r"features\.17\.conv\.2\.weight",
        *(rf"{name}\.(weight|bias)" for name in HEAD),
        r"logits\.weight",
    ),
    read=_deeplabv3,
)
