"""ParseNet as its author released it, for Caffe (github.com/weiliu89/caffe, branch fcn).

Its trunk and its normalisation (one scale per channel, in one blob) are those of the release's
code; its prototxt is not public, so what tells the two normalisations and the two classifiers
apart here is that those of the pooled features say so in their names. That was not confirmed; nor
was the mean, for which that of DeepLab's release, on the same trunk, stands here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from segtrain.weights import caffe_layers as caffe
from segtrain.weights.family import Family, Published, Unfit, Values, width

OF_THE_IMAGE = re.compile(r"pool|global|context|unpool|6")
TABLES = {21: "voc", 60: "context"}


def _parsenet(values: Values) -> Published:
    state = caffe.torch_layers(values)
    scales = [k for k, v in state.items() if "norm" in k and v.numel() == 1024]
    heads = [k for k in state if re.match(r"fc8\w*\.weight", k)]
    names = [
        *caffe.vgg_names(),
        (r"fc6\.", "fc.0."),
        (r"fc7\.", "fc.3."),
        *_rules(scales, "local_norm.scale", "context_norm.scale", "weight"),
    ]
    if len(heads) == 2:
        names += _rules(heads, "classifier.", "context_classifier.", "")
    elif len(heads) == 1:
        names.append((re.escape(heads[0].removesuffix("weight")), "classifier."))
    else:
        raise Unfit(f"it has {len(heads)} classifiers named fc8, ours one or two")
    classes = width(state, heads[0])
    return Published(
        model="parsenet",
        arguments={
            "backbone": caffe.vgg(state),
            "norm": "none",
            "fusion": "late" if len(heads) == 2 else "early",
            "l2": "learned",
        },
        input="deeplab_caffe",
        values=state,
        names=names,
        num_classes=classes,
        classes=TABLES.get(classes),
        measured=("inference=whole",),
    )


def _rules(layers: Sequence[str], local: str, image: str, end: str) -> list[tuple[str, str]]:
    """Return the rules for two layers, of which the name of one says that it is the image's."""
    images = [layer for layer in layers if OF_THE_IMAGE.search(layer.removeprefix("fc8"))]
    if len(layers) != 2 or len(images) != 1:
        raise Unfit(f"which of {', '.join(layers) or 'no layers'} is of the whole image?")
    return [
        (re.escape(layer.removesuffix("weight") + end), image if layer in images else local)
        for layer in layers
    ]


PARSENET = Family(
    name="ParseNet (Caffe)",
    known_by=(r"conv1_1/0", r"fc8\w*/0", r"[^/]*norm[^/]*/0"),
    read=_parsenet,
    confirmed=False,
)
