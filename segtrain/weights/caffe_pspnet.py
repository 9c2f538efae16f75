"""PSPNet as its authors released it, for Caffe (github.com/hszhao/PSPNet).

pspnet50_ADE20K, pspnet101_VOC2012 and pspnet101_cityscapes. Their batch norm is a layer of its own
with four blobs. The stride of a stage sits in the 3x3 of the two ResNet-101, and in the first 1x1
of the ResNet-50: no file tells so, only the prototxt beside it.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from segtrain.weights import caffe_layers as caffe
from segtrain.weights import resnets
from segtrain.weights.family import Family, Published, Unfit, Values, width

BLOCK = r"conv(?P<stage>[2-5])_(?P<block>\d+)_1x1_reduce\.weight"
# Layers of a block -> ours.
PARTS = {
    "1x1_reduce": ("conv1", "bn1"),
    "3x3": ("conv2", "bn2"),
    "1x1_increase": ("conv3", "bn3"),
    "1x1_proj": ("downsample.0", "downsample.1"),
}
STEM = {
    "conv1_1_3x3_s2": ("0.0", "0.1"),
    "conv1_2_3x3": ("0.3", "0.4"),
    "conv1_3_3x3": ("0.6", "1"),
}
BINS = (1, 2, 3, 6)
# Measured at a long side of 512 with windows of 473 pixels, Cityscapes at 2048 with 713.
TABLES = {21: "voc", 19: "cityscapes"}
MEASURED = {19: ("inference=pspnet_caffe", "inference.base=2048", "inference.window=[713,713]")}
MEASURED_OTHERS = ("inference=pspnet_caffe", "inference.window=[473,473]")


def _pspnet(values: Values) -> Published:
    state = caffe.torch_layers(values)
    names = _names(state)
    backbone = resnets.translated_depth(state, names)
    _reorder(state)
    classes = width(state, "conv6.weight")
    return Published(
        model="pspnet",
        arguments={
            "backbone": backbone,
            "stem": "deep_msra" if backbone == "resnet50" else "deep",
            "bins": list(BINS),
            "pool": "average",
            "reduce": True,
            "aux": False,
        },
        input="caffe",
        values=state,
        names=names,
        left_out={r".*aux": "the head of training, which the release does not describe"},
        num_classes=classes,
        classes=TABLES.get(classes),
        measured=MEASURED.get(classes, MEASURED_OTHERS),
    )


def _names(state: Values) -> list[tuple[str, str]]:
    rules: list[tuple[str, str]] = []
    for layer, (conv, norm) in STEM.items():
        rules += _pair(layer, f"backbone.stem.{conv}.", f"backbone.stem.{norm}.")
    for key in state:
        if match := re.fullmatch(BLOCK, key):
            stage = int(match["stage"])
            block = int(match["block"])
            ours = f"backbone.stages.{stage - 2}.{block - 1}."
            for part, (conv, norm) in PARTS.items():
                rules += _pair(f"conv{stage}_{block}_{part}", f"{ours}{conv}.", f"{ours}{norm}.")
    for number, bins in enumerate(BINS):
        ours = f"pyramid.reduce.{number}."
        rules += _pair(f"conv5_3_pool{bins}_conv", f"{ours}0.", f"{ours}1.")
    return [*rules, *_pair("conv5_4", "fuse.0.0.", "fuse.0.1."), (r"conv6\.", "classifier.")]


def _pair(layer: str, conv: str, norm: str) -> list[tuple[str, str]]:
    """Return the rules for a convolution and its batch norm."""
    return [(rf"{layer}\.", conv), (rf"{layer}/bn\.", norm)]


def _reorder(state: dict[str, Tensor]) -> None:
    """Bring the input of conv5_4 into our order: features, then the bins 1, 2, 3, 6, not 6 to 1."""
    key = "conv5_4.weight"
    branch = width(state, "conv5_3_pool1_conv.weight")
    features = width(state, "conv5_3_pool1_conv.weight", 1)
    if width(state, key, 1) != features + len(BINS) * branch:
        raise Unfit(f"{key} does not read the features and {len(BINS)} pooled branches")
    first, *pooled = state[key].split([features, *[branch] * len(BINS)], dim=1)
    state[key] = torch.cat([first, *reversed(pooled)], dim=1)


PSPNET = Family(
    name="the authors' PSPNet (Caffe)",
    known_by=(r"conv1_1_3x3_s2/0", r"conv5_3_pool1_conv/0", r"conv6/0"),
    read=_pspnet,
)
