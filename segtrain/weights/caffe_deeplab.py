"""DeepLab v2 as its authors released it, for Caffe.

On ResNet-101 train2_iter_20000 (VOC, from COCO) and train_iter_20000, whose layers stand three
times in the file, once per scale, with the same values; and init, pre-trained on COCO: 91 outputs,
by the ids of its classes, on one 1x1 classifier. On VGG16 the models with one branch (LargeFOV)
and with four (ASPP). Layers carry the name of an experiment: `fc1_voc12_c0`, `fc8_voc12`.
"""

from __future__ import annotations

import re

import torch

from segtrain.weights import caffe_layers as caffe
from segtrain.weights.family import Family, Published, Unfit, Values, width

OTHER_SCALE = r".*_res0\d+[_.]"
HEAD = r"fc\w*\.weight"
BRANCHES = 4
FC6 = (1024, 512, 3, 3)
TABLES = {21: "voc", 60: "context", 19: "cityscapes"}
INPUT = "deeplab_caffe"
MEASURED = ("inference=deeplab",)


def _residual(values: Values) -> Published:
    state = caffe.torch_layers(values)
    scales = [1.0, 0.75, 0.5] if _several_scales(state) else [1.0]
    names = caffe.msra_names(state)
    last = next(key for key in state if re.fullmatch(HEAD, key))
    if any(re.fullmatch(r"fc1_.+_c\d\.weight", key) for key in state):
        head = "aspp"
        heads = [(rf"fc1_\w+_c{n}\.", f"classifiers.{n}.") for n in range(BRANCHES)]
    else:
        head = "plain" if state[last][0, 0].numel() == 1 else "largefov"
        heads = [(r"fc\w*\.", "classifiers.0.")]
    return _published(
        state,
        {
            "backbone": caffe.msra(state, names),
            "head": head,
            "style": "caffe",
            "norm": "frozen",
            "scales": scales,
        },
        [*names, *heads],
        last,
    )


def _several_scales(state: Values) -> bool:
    """Tell whether the layers stand there for smaller scales too.

    Errors: Unfit where they differ from those at full scale, which share their weights in ours.
    """
    others = [key for key in state if re.match(OTHER_SCALE, key)]
    for key in others:
        full = re.sub(r"_res0\d+", "", key)
        if full not in state or not torch.equal(state[full], state[key]):
            raise Unfit(f"{key} differs from {full}, ours has one network for all scales")
    return bool(others)


def _vgg(values: Values) -> Published:
    state = caffe.torch_layers(values)
    aspp = "fc6_1.weight" in state
    branches = range(BRANCHES if aspp else 1)
    names = caffe.vgg_names()
    for n in branches:
        end = rf"_{n + 1}\." if aspp else r"\."
        names += [
            (rf"fc6{end}", f"fc.{n}.0."),
            (rf"fc7{end}", f"fc.{n}.3."),
            (rf"fc8\w*?{end}", f"classifiers.{n}."),
        ]
        fc6 = state.get(f"fc6_{n + 1}.weight" if aspp else "fc6.weight")
        if fc6 is None or tuple(fc6.shape) != FC6:
            shape = "missing" if fc6 is None else "x".join(map(str, fc6.shape))
            raise Unfit(f"its fc6 is {shape}, ours reads 512 channels by 1024 filters of 3x3")
    last = next(key for key in state if re.fullmatch(r"fc8\w*\.weight", key))
    arguments = {
        "backbone": caffe.vgg(state),
        "head": "aspp" if aspp else "largefov",
        "style": "caffe",
        "norm": "none",
        "scales": [1.0],
    }
    return _published(state, arguments, names, last)


def _published(
    state: Values, arguments: dict[str, object], names: list[tuple[str, str]], last: str
) -> Published:
    classes = width(state, last)
    return Published(
        model="deeplab",
        arguments=arguments,
        input=INPUT,
        values=state,
        names=names,
        num_classes=classes,
        left_out={OTHER_SCALE: "the same layer at a smaller scale"},
        classes=TABLES.get(classes),
        measured=MEASURED,
    )


RESNET = Family(
    name="the authors' DeepLab v2 (Caffe)",
    known_by=(r"res2a_branch2a/0", r"fc1(_\w+)?/0"),
    read=_residual,
)
VGG = Family(
    name="the authors' DeepLab on VGG (Caffe)",
    known_by=(r"conv1_1/0", r"fc6(_1)?/0", r"fc8_\w+/0"),
    read=_vgg,
)
