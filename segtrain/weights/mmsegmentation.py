"""open-mmlab/mmsegmentation: PSPNet, DeepLabv3 and v3+ on ResNet-50, -101 and their v1c.

`pspnet_r50-d8_*.pth` and others. Dilations begin with the second block of a stage
(contract_dilation), no resize aligns corners, and v1c has a stem of three 3x3 to 32, 32 and 64
channels (mmseg/models/backbones/resnet.py). ASPP has 512 channels a branch, the image's mean first,
and is joined by a 3x3 (decode_heads/aspp_head.py, sep_aspp_head.py).
"""

from __future__ import annotations

from typing import Any

from segtrain.weights import resnets
from segtrain.weights.family import Family, Published, Unfit, Values, width
from segtrain.weights.pytorch_encoding import CONTEXT_NOTE, CONTEXT_ROWS

TRUNK = r"backbone\."
BLOCK = TRUNK + resnets.BLOCK
PYRAMID = "decode_head.psp_modules.0.1.conv.weight"
POOLING = "decode_head.image_pool.1.conv.weight"
LAYERS = (("conv", 0), ("bn", 1))
SEPARABLE = (
    (r"depthwise_conv\.conv", 0),
    (r"depthwise_conv\.bn", 1),
    (r"pointwise_conv\.conv", 3),
    (r"pointwise_conv\.bn", 4),
)
BINS = [1, 2, 3, 6]
WIDTH = 512  # of the features behind the pyramid; 128 on a ResNet-18
NOTES = (
    "files of 769x769 crops align corners and were measured in windows: for them, add "
    "model.align_corners=true inference=slide inference.window=[769,769]",
    "the output stride is 8, as of files with d8 in their name; d16 and d32 have the same tensors: "
    "model.output_stride=16 in DeepLabs, and no PSPNet of ours",
)
CONTEXT = {59: 0, 60: 1}  # classes -> rows before those that the labels number
CLASSES = {21: "voc", 19: "cityscapes", 59: "context", 60: "context"}
SCORES = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")
# VOC's photos are shown with the shorter side 512 (configs/_base_/datasets/pascal_voc12.py),
# Cityscapes' as they are.
MEASURED = {21: ("inference=whole", "inference.base=512", "inference.base_side=short")}


def _read(values: Values) -> Published:
    if PYRAMID in values:
        return _pspnet(values)
    if POOLING in values:
        return _deeplab(values)
    raise Unfit(
        "its decode_head is none of PSPNet, DeepLabv3 and v3+, which are those that fit ours"
    )


def _pspnet(values: Values) -> Published:
    branches = len({k.split(".")[2] for k in values if k.startswith("decode_head.psp_modules.")})
    if branches != len(BINS):
        raise Unfit(f"its pyramid has {branches} branches, and the file does not tell their bins")
    if (features := width(values, "decode_head.bottleneck.conv.weight")) != WIDTH:
        raise Unfit(f"it has {features} features behind its pyramid, ours {WIDTH}")
    arguments = {"stem": _stem(values), "bins": BINS}
    names = [
        *_rules(r"decode_head\.psp_modules\.(\d)\.1\.", r"pyramid.reduce.\1."),
        *_rules(r"decode_head\.bottleneck\.", "fuse.0."),
    ]
    return _published("pspnet", arguments, values, names)


def _deeplab(values: Values) -> Published:
    plus = "decode_head.c1_bottleneck.conv.weight" in values
    separable = "decode_head.bottleneck.depthwise_conv.conv.weight" in values
    if separable != plus:
        raise Unfit("its ASPP is joined as those of its DeepLabv3 and v3+ are not")
    ours = "aspp" if plus else "context"
    features = width(values, POOLING)
    arguments: dict[str, Any] = {
        "style": _stem(values),
        "output_stride": 8,
        "multi_grid": [1],
        "aspp_width": features,
        "project_kernel": 3,
    }
    names = [
        *_rules(r"decode_head\.image_pool\.1\.", f"{ours}.pooling.project."),
        *_rules(r"decode_head\.aspp_modules\.(\d)\.", rf"{ours}.branches.\1."),
        *_rules(r"decode_head\.bottleneck\.", f"{ours}.project.0."),
    ]
    if plus:
        first, second = (
            f"decode_head.sep_bottleneck.{n}.pointwise_conv.conv.weight" for n in (0, 1)
        )
        arguments |= {
            "separable": True,
            "decoder": [width(values, first), width(values, second)],
            "low_level_width": width(values, "decode_head.c1_bottleneck.conv.weight"),
        }
        names += [
            *_rules(r"decode_head\.c1_bottleneck\.", "low_level."),
            *_rules(r"decode_head\.sep_bottleneck\.(\d)\.", r"decoder.\1."),
        ]
    else:
        arguments |= {"variant": "aspp", "head": "paper"}
    model = "deeplabv3plus" if plus else "deeplabv3"
    return _published(model, arguments, _pooling_last(values, features), names)


def _rules(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Return the rules of a convolution with its norm, plain or separable."""
    return [(rf"{theirs}{kind}\.", f"{ours}{index}.") for kind, index in (*LAYERS, *SEPARABLE)]


def _pooling_last(values: Values, features: int) -> Values:
    """Return the tensors with the image's mean behind ASPP's branches, as ours joins them."""
    turned = dict(values)
    for key, value in values.items():
        if not key.startswith("decode_head.bottleneck.") or value.dim() == 0:
            continue
        # What is joined are the rows of a depthwise convolution and its norm, and the columns of
        # what reads it.
        axis = 0 if ".depthwise_conv." in key else 1
        if value.dim() > axis and value.shape[axis] > features:
            turned[key] = value.roll(-features, axis)
    return turned


def _published(
    model: str, arguments: dict[str, Any], values: Values, names: list[tuple[str, str]]
) -> Published:
    num_classes = width(values, "decode_head.conv_seg.weight")
    return Published(
        model=model,
        arguments={
            "backbone": resnets.depth(values, BLOCK),
            **arguments,
            "aux": "auxiliary_head.conv_seg.weight" in values,
            "pattern": "delayed",
            "align_corners": False,
        },
        input="imagenet",
        values=_in_our_order(values, num_classes) if num_classes in CONTEXT else values,
        names=[
            (TRUNK + r"stem\.7\.", "backbone.stem.1."),
            (TRUNK + r"stem\.", "backbone.stem.0."),
            *resnets.names(TRUNK),
            *names,
            (r"decode_head\.conv_seg\.", "classifier."),
            *_rules(r"auxiliary_head\.convs\.0\.", "aux.0."),
            (r"auxiliary_head\.conv_seg\.", "aux.2."),
        ],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=MEASURED.get(num_classes, ("inference=whole",)),
        notes=(*NOTES, CONTEXT_NOTE) if num_classes in CONTEXT else NOTES,
    )


def _stem(values: Values) -> str:
    """Return our name of its stem. Errors: Unfit."""
    first = next(
        (k for k in ("backbone.stem.0.weight", "backbone.conv1.weight") if k in values), ""
    )
    shape = width(values, first), width(values, first, 2)
    stems = {(32, 3): "deep32", (64, 3): "deep", (64, 7): "torchvision"}
    if shape not in stems:
        raise Unfit(f"its stem starts with {shape[1]}x{shape[1]} to {shape[0]} channels")
    return stems[shape]


def _in_our_order(values: Values, num_classes: int) -> Values:
    """Return the tensors with the rows of Context's classes as our table has them."""
    before = CONTEXT[num_classes]
    rows = [*range(before), *(row + before for row in CONTEXT_ROWS)]
    return {key: value[rows] if key.startswith(SCORES) else value for key, value in values.items()}


MMSEGMENTATION = Family(
    name="mmsegmentation",
    known_by=(r"backbone\..+", r"decode_head\.conv_seg\.weight"),
    read=_read,
)
