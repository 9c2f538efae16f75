"""open-mmlab/mmsegmentation: PSPNet on ResNet-50, -101 and their v1c: `pspnet_r50-d8_*.pth`.

Dilations begin with the second block of a stage (contract_dilation), no resize aligns corners, and
v1c has a stem of three 3x3 to 32, 32 and 64 channels (mmseg/models/backbones/resnet.py). Its other
systems have layers that ours lack; they are refused with the reason.
"""

from __future__ import annotations

from segtrain.weights import resnets
from segtrain.weights.family import Family, Published, Unfit, Values, width
from segtrain.weights.pytorch_encoding import CONTEXT_NOTE, CONTEXT_ROWS

TRUNK = r"backbone\."
BLOCK = TRUNK + resnets.BLOCK
# The first of its keys that a file has -> why its head is none of ours.
OTHERS = {
    "decode_head.sep_bottleneck.0.depthwise_conv.conv.weight": (
        "its DeepLabv3+ has 512 channels in every branch and joins them by a 3x3; ours has 256 and "
        "a 1x1"
    ),
    "decode_head.image_pool.1.conv.weight": (
        "its DeepLabv3 has 512 channels in every branch and joins them by a 3x3; ours has 256 and "
        "a 1x1"
    ),
    "decode_head.conv_cat.conv.weight": (
        "its FCN has two 3x3 and a third that reads the backbone's map again; ours has one 3x3"
    ),
}
PYRAMID = "decode_head.psp_modules.0.1.conv.weight"
BINS = [1, 2, 3, 6]
WIDTH = 512  # of the features behind the pyramid; 128 on a ResNet-18
NOTES = (
    "files of 769x769 crops align corners and were measured in windows: for them, add "
    "model.align_corners=true inference=slide inference.window=[769,769]",
    "a file of the name d32 has the same tensors but output stride 32, which is no network of ours",
)
CONTEXT = {59: 0, 60: 1}  # classes -> rows before those that the labels number
CLASSES = {21: "voc", 19: "cityscapes", 59: "context", 60: "context"}
SCORES = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")


def _pspnet(values: Values) -> Published:
    for key, reason in OTHERS.items():
        if key in values:
            raise Unfit(reason)
    if PYRAMID not in values:
        raise Unfit("its decode_head is no PSPNet's, the one system of this project that ours fits")
    branches = len({k.split(".")[2] for k in values if k.startswith("decode_head.psp_modules.")})
    if branches != len(BINS):
        raise Unfit(f"its pyramid has {branches} branches, and the file does not tell their bins")
    if (features := width(values, "decode_head.bottleneck.conv.weight")) != WIDTH:
        raise Unfit(f"it has {features} features behind its pyramid, ours {WIDTH}")
    num_classes = width(values, "decode_head.conv_seg.weight")
    layers = (("conv", 0), ("bn", 1))
    return Published(
        model="pspnet",
        arguments={
            "backbone": resnets.depth(values, BLOCK),
            "stem": _stem(values),
            "bins": BINS,
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
            *(
                (rf"decode_head\.psp_modules\.(\d)\.1\.{kind}\.", rf"pyramid.reduce.\1.{index}.")
                for kind, index in layers
            ),
            *((rf"decode_head\.bottleneck\.{k}\.", f"fuse.0.{index}.") for k, index in layers),
            (r"decode_head\.conv_seg\.", "classifier."),
            *((rf"auxiliary_head\.convs\.0\.{k}\.", f"aux.0.{index}.") for k, index in layers),
            (r"auxiliary_head\.conv_seg\.", "aux.2."),
        ],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=("inference=whole",),
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


PSPNET = Family(
    name="mmsegmentation",
    known_by=(r"backbone\..+", r"decode_head\.conv_seg\.weight"),
    read=_pspnet,
)
