"""torchvision's `deeplabv3_resnet50`, `deeplabv3_resnet101`, `fcn_resnet50` and `fcn_resnet101`.

Their files `..._coco` hold the 21 classes of VOC, learned from the images of COCO that show them.
torchvision measures whole images whose shorter side is 520, and label maps of that size too
(references/segmentation); we measure whole images and label maps of their own sizes.
"""

from __future__ import annotations

from segtrain.weights import resnets
from segtrain.weights.family import Family, Published, Values, width

TRUNK = r"backbone\."
BLOCK = TRUNK + r"layer(?P<stage>[1-4])\.(?P<block>\d+)\.conv(?P<conv>\d)\.weight"
AUX = [
    (r"aux_classifier\.([01])\.", r"aux.0.\1."),
    (r"aux_classifier\.4\.", "aux.2."),
]
MEASURED = ("inference=torchvision",)


def _deeplabv3(values: Values) -> Published:
    aux = "aux_classifier.4.weight" in values
    return Published(
        model="deeplabv3",
        arguments={
            "backbone": resnets.depth(values, BLOCK),
            "head": "torchvision",
            "output_stride": 8,
            "aux": aux,
        },
        input="imagenet",
        values=values,
        names=[
            *resnets.names(TRUNK),
            (r"classifier\.0\.convs\.4\.1\.", "context.pooling.project.0."),
            (r"classifier\.0\.convs\.4\.2\.", "context.pooling.project.1."),
            (r"classifier\.0\.convs\.(\d)\.", r"context.branches.\1."),
            (r"classifier\.0\.project\.", "context.project.0."),
            (r"classifier\.1\.", "refine.0."),
            (r"classifier\.2\.", "refine.1."),
            (r"classifier\.4\.", "classifier."),
            *AUX,
        ],
        num_classes=width(values, "classifier.4.weight"),
        classes="voc",
        measured=MEASURED,
    )


DEEPLABV3 = Family(
    name="torchvision DeepLabv3",
    known_by=(TRUNK + r"conv1\.weight", r"classifier\.0\.convs\.4\.1\.weight"),
    read=_deeplabv3,
)


def _fcn(values: Values) -> Published:
    return Published(
        model="fcn_resnet50",
        arguments={
            "backbone": resnets.depth(values, BLOCK),
            "aux": "aux_classifier.4.weight" in values,
        },
        input="imagenet",
        values=values,
        names=[
            *resnets.names(TRUNK),
            (r"classifier\.([01])\.", r"head.classifier.0.\1."),
            (r"classifier\.4\.", "head.classifier.2."),
            *((pattern, f"head.{name}") for pattern, name in AUX),
        ],
        num_classes=width(values, "classifier.4.weight"),
        classes="voc",
        measured=MEASURED,
    )


FCN = Family(
    name="torchvision FCN",
    known_by=(TRUNK + r"conv1\.weight", r"classifier\.0\.weight", r"classifier\.4\.weight"),
    read=_fcn,
)
