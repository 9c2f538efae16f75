"""DeepLabv3 and v3+ of VainF/DeepLabV3Plus-Pytorch: `best_deeplabv3plus_resnet101_voc_os16.pth`.

Its ResNet and ASPP are torchvision's, dilations beginning with the second block of a stage. v3+ has
one 3x3 in its decoder, which reads the low-level feature before the ASPP's. No resize aligns
corners.
"""

from __future__ import annotations

import torch

from segtrain.weights import resnets
from segtrain.weights.family import Family, Published, Unfit, Values, width

TRUNK = r"backbone\."
BLOCK = TRUNK + resnets.BLOCK
LOW_LEVEL = 48  # channels of the low-level feature in the decoder
DECODER = "classifier.classifier.0.weight"
MEASURED = ("inference=whole",)
STRIDE = (
    "the output stride is the project's default, 16, unless the file's name tells another; at 8 "
    "add model.output_stride=8"
)
CLASSES = {21: "voc", 19: "cityscapes"}


def _pyramid(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [
        (theirs + r"convs\.4\.1\.", f"{ours}.pooling.project.0."),
        (theirs + r"convs\.4\.2\.", f"{ours}.pooling.project.1."),
        (theirs + r"convs\.(\d)\.", rf"{ours}.branches.\1."),
        (theirs + r"project\.", f"{ours}.project.0."),
    ]


def _depth(values: Values) -> str:
    """Return which ResNet it is. Errors: Unfit for the project's other trunks."""
    if any(key.startswith("backbone.high_level_features.") for key in values):
        raise Unfit(
            "its MobileNet-v2 pads the input of a block, ours that of the block's 3x3; at borders "
            "the two differ"
        )
    return resnets.depth(values, BLOCK)


def _deeplabv3(values: Values) -> Published:
    num_classes = width(values, "classifier.classifier.4.weight")
    return Published(
        model="deeplabv3",
        arguments={"backbone": _depth(values), "head": "torchvision", "output_stride": 16},
        input="imagenet",
        values=values,
        names=[
            *resnets.names(TRUNK),
            *_pyramid(r"classifier\.classifier\.0\.", "context"),
            (r"classifier\.classifier\.1\.", "refine.0."),
            (r"classifier\.classifier\.2\.", "refine.1."),
            (r"classifier\.classifier\.4\.", "classifier."),
        ],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=MEASURED,
        notes=(STRIDE,),
    )


def _deeplabv3plus(values: Values) -> Published:
    num_classes = width(values, "classifier.classifier.3.weight")
    depth = _depth(values)
    joined = values[DECODER]  # (256, 48 + 256, 3, 3)
    turned = torch.cat([joined[:, LOW_LEVEL:], joined[:, :LOW_LEVEL]], dim=1)
    return Published(
        model="deeplabv3plus",
        arguments={
            "backbone": depth,
            "output_stride": 16,
            "separable": False,
            "multi_grid": [1],
            "decoder": [256],
            "align_corners": False,
            "pattern": "delayed",
        },
        input="imagenet",
        values={**values, DECODER: turned},
        names=[
            *resnets.names(TRUNK),
            (r"classifier\.project\.", "low_level."),
            *_pyramid(r"classifier\.aspp\.", "aspp"),
            (r"classifier\.classifier\.([01])\.", r"decoder.0.\1."),
            (r"classifier\.classifier\.3\.", "classifier."),
        ],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=MEASURED,
        notes=(STRIDE,),
    )


DEEPLABV3 = Family(
    name="VainF's DeepLabv3",
    known_by=(
        r"classifier\.classifier\.0\.convs\.4\.1\.weight",
        r"classifier\.classifier\.4\.weight",
    ),
    read=_deeplabv3,
)
DEEPLABV3PLUS = Family(
    name="VainF's DeepLabv3+",
    known_by=(r"classifier\.project\.0\.weight", r"classifier\.aspp\.convs\.4\.1\.weight"),
    read=_deeplabv3plus,
)
