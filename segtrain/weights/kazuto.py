"""DeepLab v2, v3 and v3+ of kazuto1011/deeplab-pytorch: `deeplabv2_resnet101_msc-vocaug-20000.pth`.

Its trunk is Caffe's ResNet: the stride of a stage in the first 1x1, a stem pool that rounds up.
layer1 is the stem, layer2 to layer5 are the stages. No resize aligns corners. `base.` stands before
all names where the network looks at three scales and takes the maximum (libs/models/msc.py).

The dilations of v2 leave no trace: they are 6, 12, 18, 24, as in every published file
(configs/*.yaml); of a `DeepLabV2S`, model.dilations=[3,6,9,12]. COCO-Stuff has 182 rows, 11 of
which no label has: dataset.classes=182.
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
CLASSES = {21: "voc", 182: "coco_stuff"}


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
    msc = "base.aspp.c0.weight" in values
    num_classes = width(values, "base.aspp.c0.weight" if msc else "aspp.c0.weight")
    return Published(
        model="deeplab",
        arguments={
            "backbone": resnets.depth(values, BLOCK, STAGES),
            "head": "aspp",
            "dilations": [6, 12, 18, 24],
            "scales": [1.0, 0.75, 0.5] if msc else [1.0],
            "norm": "frozen",
            "style": "caffe",
            "align_corners": False,
        },
        input="deeplab_caffe",
        values=values,
        names=[*_trunk(values), (P + r"aspp\.c(\d)\.", r"classifiers.\1.")],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=("inference=whole",),
    )


DEEPLAB = Family(
    name="kazuto1011's DeepLab v2",
    known_by=(P + r"layer5\.block3\.conv3x3\.conv\.weight", P + r"aspp\.c0\.weight"),
    read=_deeplab,
)


def _backbone(values: Values) -> Published:
    return Published(
        model="",
        arguments={"name": resnets.depth(values, BLOCK, STAGES), "style": "caffe"},
        input="deeplab_caffe",
        values=values,
        names=_trunk(values),
        left_out={r"fc\.": "a plain 1x1 classifier, with which no system of ours ends"},
    )


# The ResNets that v2 starts from: `deeplabv1_resnet101-coco.pth`, of the authors' init.caffemodel.
BACKBONE = Family(
    name="kazuto1011's ResNet",
    known_by=(r"layer5\.block3\.conv3x3\.conv\.weight", r"fc\.weight"),
    read=_backbone,
)
