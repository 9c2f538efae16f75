"""DeepLab v2, v3 and v3+ of kazuto1011/deeplab-pytorch: `deeplabv2_resnet101_msc-vocaug-20000.pth`.

Its trunk is Caffe's ResNet: the stride of a stage in the first 1x1, a stem pool that rounds up.
layer1 is the stem, layer2 to layer5 are the stages. No resize aligns corners. `base.` stands before
all names where the network looks at three scales and takes the maximum (libs/models/msc.py).

Of v3 and v3+ nothing was published; files that users trained come in.
"""

from __future__ import annotations

import re

from segtrain.weights import resnets
from segtrain.weights.family import Family, Published, Values, width

P = r"(?:base\.)?"
# Of the three convolutions of a block (reduce, conv3x3, increase) the one with a digit in its name,
# from which `resnets.depth` learns that there are three.
BLOCK = P + r"layer(?P<stage>[2-5])\.block(?P<block>\d+)\.conv(?P<conv>3)x3\.conv\.weight"
STAGES = (2, 3, 4, 5)
CONVOLUTIONS = {"reduce": 1, "conv3x3": 2, "increase": 3}
# COCO-Stuff's 182 rows are its raw numbers, 11 of which no label has: dataset.classes=182.
CLASSES = {21: "voc", 182: "coco_stuff"}
DILATIONS = (
    "the dilations are those of every published file; for a DeepLabV2S, add "
    "model.dilations=[3,6,9,12]"
)
STRIDE = (
    "the output stride is the project's default, 16; for a file trained at 8, add "
    "model.output_stride=8"
)
ONE_SCALE = "its maximum over three scales is left out: one scale is measured"


def _trunk(values: Values) -> list[tuple[str, str]]:
    rules = [
        (P + r"layer1\.conv1\.conv\.", "backbone.stem.0."),
        (P + r"layer1\.conv1\.bn\.", "backbone.stem.1."),
    ]
    for stage in STAGES:
        shortcut = P + rf"layer{stage}\.block1\.shortcut\."
        rules.append((shortcut + r"conv\.", f"backbone.stages.{stage - 2}.0.downsample.0."))
        rules.append((shortcut + r"bn\.", f"backbone.stages.{stage - 2}.0.downsample.1."))
    for match in filter(None, (re.fullmatch(BLOCK, key) for key in values)):
        block = P + rf"layer{match['stage']}\.block{match['block']}\."
        ours = f"backbone.stages.{int(match['stage']) - 2}.{int(match['block']) - 1}."
        for part, number in CONVOLUTIONS.items():
            rules.append((block + rf"{part}\.(conv|bn)\.", rf"{ours}\g<1>{number}."))
    return rules


def _deeplab(values: Values) -> Published:
    first = _key(values, "aspp.c0.weight")
    num_classes = width(values, first)
    return Published(
        model="deeplab",
        arguments={
            "backbone": resnets.depth(values, BLOCK, STAGES),
            "head": "aspp",
            "dilations": [6, 12, 18, 24],
            "scales": [1.0, 0.75, 0.5] if first.startswith("base.") else [1.0],
            "norm": "frozen",
            "style": "caffe",
            "align_corners": False,
        },
        input="deeplab_caffe",
        values=values,
        names=[*_trunk(values), (P + r"aspp\.c(\d)\.", r"classifiers.\1.")],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=("inference=kazuto",),
        notes=(DILATIONS,),
    )


DEEPLAB = Family(
    name="kazuto1011's DeepLab v2",
    known_by=(BLOCK, P + r"aspp\.c0\.weight"),
    read=_deeplab,
)


ASPP = P + r"aspp\.stages\."


def _deeplabv3(values: Values) -> Published:
    num_classes = width(values, _key(values, "fc2.weight"))
    return Published(
        model="deeplabv3",
        arguments={
            "backbone": resnets.depth(values, BLOCK, STAGES),
            "variant": "aspp",
            "head": "paper",
            "output_stride": 16,
            "style": "caffe",
            "align_corners": False,
        },
        input="deeplab_caffe",
        values=values,
        names=[*_trunk(values), *_pyramid("context"), (P + r"fc2\.", "classifier.")],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=("inference=whole",),
        notes=_notes(values),
    )


def _deeplabv3plus(values: Values) -> Published:
    num_classes = width(values, _key(values, "fc2.conv3.weight"))
    layers = (("conv", 0), ("bn", 1))
    decoder = [
        (P + rf"fc2\.conv{number}\.{kind}\.", f"decoder.{number - 1}.{index}.")
        for number in (1, 2)
        for kind, index in layers
    ]
    return Published(
        model="deeplabv3plus",
        arguments={
            "backbone": resnets.depth(values, BLOCK, STAGES),
            "output_stride": 16,
            "separable": False,
            "style": "caffe",
            "align_corners": False,
        },
        input="deeplab_caffe",
        values=values,
        names=[
            *_trunk(values),
            *_pyramid("aspp"),
            *((P + rf"reduce\.{kind}\.", f"low_level.{index}.") for kind, index in layers),
            *decoder,
            (P + r"fc2\.conv3\.", "classifier."),
        ],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=("inference=whole",),
        notes=_notes(values),
    )


def _pyramid(ours: str) -> list[tuple[str, str]]:
    """Return the rules of v3's ASPP, whose projection is called fc1."""
    return [
        (ASPP + r"c(\d)\.conv\.", rf"{ours}.branches.\1.0."),
        (ASPP + r"c(\d)\.bn\.", rf"{ours}.branches.\1.1."),
        (ASPP + r"imagepool\.conv\.conv\.", f"{ours}.pooling.project.0."),
        (ASPP + r"imagepool\.conv\.bn\.", f"{ours}.pooling.project.1."),
        (P + r"fc1\.conv\.", f"{ours}.project.0.0."),
        (P + r"fc1\.bn\.", f"{ours}.project.0.1."),
    ]


def _notes(values: Values) -> tuple[str, ...]:
    """Return what a file of v3 or v3+ does not tell, or has more than ours."""
    several = any(key.startswith("base.") for key in values)
    return (STRIDE, ONE_SCALE) if several else (STRIDE,)


def _key(values: Values, name: str) -> str:
    """Return a key with or without `base.`, as the file has it."""
    return f"base.{name}" if f"base.{name}" in values else name


DEEPLABV3 = Family(
    name="kazuto1011's DeepLab v3",
    known_by=(BLOCK, ASPP + r"c0\.conv\.weight", P + r"fc2\.weight"),
    read=_deeplabv3,
)
DEEPLABV3PLUS = Family(
    name="kazuto1011's DeepLab v3+",
    known_by=(BLOCK, ASPP + r"c0\.conv\.weight", P + r"fc2\.conv3\.weight"),
    read=_deeplabv3plus,
)


def _backbone(values: Values) -> Published:
    return Published(
        model="",
        arguments={"name": resnets.depth(values, BLOCK, STAGES), "style": "caffe"},
        input="deeplab_caffe",
        values=values,
        names=_trunk(values),
        left_out={r"fc\.": "the classifier; a trunk to start from is what the file is"},
    )


# The ResNets that v2 starts from: `deeplabv1_resnet101-coco.pth`, of the authors' init.caffemodel.
BACKBONE = Family(
    name="kazuto1011's ResNet",
    known_by=(BLOCK, r"fc\.weight"),
    read=_backbone,
)
