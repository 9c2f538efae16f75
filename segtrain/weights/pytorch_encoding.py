"""EncNet of zhanghang1989/PyTorch-Encoding, its author's: `encnet_resnet101s_pcontext-*.pth`.

The same names since version 0.4.3 (June 2018), whose files say resnet50 for what is resnet50s now.
Older files hold ImageNet's classifier too, and no counts of batches. The ResNet's three 3x3 stand
in conv1; its first blocks keep the dilation of the stage before.

PASCAL-Context: the release sorts the 59 classes by their numbers among the 459 labels
(encoding/datasets/pcontext.py). Our table follows the list of the 59, so rows of 59 classes are
brought into that order.
"""

from __future__ import annotations

from segtrain.weights import resnets
from segtrain.weights.family import Family, Published, Unfit, Values, width

TRUNK = r"pretrained\."
BLOCK = TRUNK + resnets.BLOCK
CONTEXT = 59
# Rows of the classifier -> the table that they follow. ADE20K has none here.
CLASSES = {21: "voc", CONTEXT: "context", 19: "cityscapes"}
# The numbers of Context's classes among its 459 labels, in the order of our table.
CONTEXT_LABELS = (
    *(2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427),
    *(9, 18, 22, 33, 44, 46, 68, 80, 85, 104, 115, 144, 158, 159, 162, 187, 189, 220, 232, 259),
    *(260, 105, 296, 355, 295, 324, 326, 349, 354, 360, 366, 19, 415, 420, 424, 440, 445, 454, 458),
)
# The rows of the release in that order.
CONTEXT_ROWS = [sorted(CONTEXT_LABELS).index(label) for label in CONTEXT_LABELS]
CONTEXT_NOTE = (
    "59 classes are taken for PASCAL-Context's, whose rows are brought from the release's order "
    "into that of our table; classes of your own would be mixed up"
)
# Layers with a row for each class.
SCORES = ("head.conv6.1.", "head.encmodule.selayer.", "auxlayer.conv5.4.")


def _encnet(values: Values) -> Published:
    if "head.encmodule.encoding.0.codewords" in values:
        raise Unfit("it is of version 0.4.2, whose head is another function than that of the paper")
    num_classes = width(values, "head.conv6.1.weight")
    deep = resnets.has_deep_stem(values, "pretrained.conv1.0.weight", "pretrained.conv1.weight")
    trunk = [
        (TRUNK + r"conv1\.", "backbone.stem.0."),
        (TRUNK + r"bn1\.", "backbone.stem.1."),
        *resnets.names(TRUNK)[2:],
    ]
    encoding = r"head\.encmodule\.encoding\."
    return Published(
        model="encnet",
        arguments={
            "backbone": resnets.depth(values, BLOCK),
            "stem": "deep" if deep else "torchvision",
            "codewords": width(values, "head.encmodule.encoding.3.codewords"),
            "se": "head.encmodule.selayer.weight" in values,
            "lateral": "head.connect.0.0.weight" in values,
            "aux": "auxlayer.conv5.4.weight" in values,
        },
        input="imagenet",
        values=_in_our_order(values) if num_classes == CONTEXT else values,
        names=[
            *trunk,
            (r"head\.conv5\.", "reduce."),
            (r"head\.connect\.", "lateral."),
            (r"head\.fusion\.", "fuse."),
            (encoding + r"([01])\.", r"context.project.\1."),
            (encoding + r"3\.codewords", "context.encoding.codewords"),
            (encoding + r"3\.scale", "context.encoding.smoothing"),
            (encoding + r"4\.", "context.norm."),
            (r"head\.encmodule\.fc\.0\.", "gate."),
            (r"head\.encmodule\.selayer\.", "se."),
            (r"head\.conv6\.1\.", "classifier.1."),
            (r"auxlayer\.conv5\.([01])\.", r"aux.0.\1."),
            (r"auxlayer\.conv5\.4\.", "aux.2."),
        ],
        left_out={TRUNK + r"fc\.": "ImageNet's classifier, which nothing reads"},
        num_classes=num_classes,
        classes=CLASSES.get(num_classes),
        measured=("inference=encoding",),
        notes=(CONTEXT_NOTE,) if num_classes == CONTEXT else (),
    )


def _in_our_order(values: Values) -> Values:
    """Return the tensors with the rows of Context's classes as our table has them."""
    return {
        key: value[CONTEXT_ROWS] if key.startswith(SCORES) else value
        for key, value in values.items()
    }


ENCNET = Family(
    name="PyTorch-Encoding",
    known_by=(
        TRUNK + r"layer4\.2\.conv3\.weight",
        r"head\.encmodule\.encoding\.\d\.codewords",
        r"head\.conv6\.(1\.)?weight",
    ),
    read=_encnet,
)
