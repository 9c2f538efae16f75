"""PSPNet of hszhao/semseg, the PyTorch release of its author: `train_epoch_N.pth`.

Its ResNet stands as layer0 (three 3x3, with their norms and ReLUs counted) to layer4, every 3x3 of
the last two dilated. The pyramid's bins leave no trace in the tensors: a pyramid of four branches
has the release's 1, 2, 3, 6 (model/pspnet.py).
"""

from __future__ import annotations

from segtrain.weights import resnets
from segtrain.weights.family import Family, Published, Unfit, Values, width

BINS = [1, 2, 3, 6]
# Rows of the classifier -> the table that they follow. Its third data set, ADE20K, has none here.
CLASSES = {21: "voc", 19: "cityscapes"}
PROTOCOL = ("inference=pspnet_semseg",)
CITYSCAPES = ("inference.window=[713,713]", "inference.base=2048")


def _pspnet(values: Values) -> Published:
    if any(key.startswith("psa.") for key in values):
        raise Unfit("it is a PSANet, which is none of our systems")
    branches = len({key.split(".")[2] for key in values if key.startswith("ppm.features.")})
    if branches not in (0, len(BINS)):
        raise Unfit(f"its pyramid has {branches} branches, and the file does not tell their bins")
    deep = resnets.has_deep_stem(values, "layer0.0.weight")
    num_classes = width(values, "cls.4.weight")
    return Published(
        model="pspnet",
        arguments={
            "backbone": resnets.depth(values),
            "stem": "deep" if deep else "torchvision",
            "bins": BINS if branches else [],
            "aux": "aux.4.weight" in values,
        },
        input="imagenet",
        values=values,
        names=[
            (r"layer0\.7\.", "backbone.stem.1."),
            (r"layer0\.", "backbone.stem.0."),
            *resnets.names()[2:],
            (r"ppm\.features\.(\d)\.1\.", r"pyramid.reduce.\1.0."),
            (r"ppm\.features\.(\d)\.2\.", r"pyramid.reduce.\1.1."),
            (r"cls\.([01])\.", r"fuse.0.\1."),
            (r"cls\.4\.", "classifier."),
            (r"aux\.([01])\.", r"aux.0.\1."),
            (r"aux\.4\.", "aux.2."),
        ],
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=(*PROTOCOL, *(CITYSCAPES if num_classes == 19 else ())),
    )


PSPNET = Family(
    name="semseg",
    known_by=(r"layer0\.0\.weight", r"layer4\.2\.conv3\.weight", r"cls\.4\.weight"),
    read=_pspnet,
)
