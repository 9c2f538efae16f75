"""DeconvNet as its authors released it, for Caffe (github.com/HyeonwooNoh/DeconvNet).

Its files are of 2014's form. Their batch norm scales and shifts, and nothing else: in
DeconvNet_trainval_inference the statistics are in these two, in the results of stage 1 and 2 they
are not there at all. All deconvolutions but the first have stride 1: the convolutions that we have
in their place have the kernels turned by 180 degrees, inputs and outputs swapped.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from segtrain.weights import caffe_layers as caffe
from segtrain.weights.family import Family, Published, Values, width

DECONVOLUTION = r"deconv[1-5]_[1-4]\.weight"
NORM = r"(bn[1-5]_[1-4]|bnfc[67]|fc6-deconv-bn|debn[1-5]_[1-4])\.weight"
EPS = 1e-9  # of their batch norms, and of ours where `bn_eps` says so
# A batch norm of the first layer scales pixels from -123 to 151 down to a deviation of 1 where it
# holds the statistics; without them its scale starts at 1 and stays near.
SCALE_WITHOUT_STATISTICS = 0.5
WITHOUT_STATISTICS = (
    "its batch norms hold no statistics, as a stage of training leaves them: train from it, with "
    "train.bn_batches, before it is measured; DeconvNet_trainval_inference holds them"
)
CODE = (("fc6", "bnfc6"), ("fc7", "bnfc7"), ("fc6-deconv", "fc6-deconv-bn"))


def _deconvnet(values: Values) -> Published:
    state = caffe.torch_layers(values)
    backbone = caffe.vgg(state)
    trained_only = _trained_only(state)
    for key in list(state):
        if re.fullmatch(DECONVOLUTION, key):
            state[key] = state[key].transpose(0, 1).flip(2, 3).contiguous()
        elif re.fullmatch(NORM, key):
            _complete(state, key.removesuffix("weight"))
    last = next((key for key in state if re.fullmatch(r"seg-score[\w-]*\.weight", key)), "")
    classes = width(state, last)
    return Published(
        model="deconvnet",
        arguments={"backbone": backbone, "code": width(state, "fc6.weight"), "bn_eps": EPS},
        input="fcn",
        values=state,
        names=_names(),
        num_classes=classes,
        classes="voc" if classes == 21 else None,
        measured=() if trained_only else ("inference=proposals",),
        notes=(WITHOUT_STATISTICS,) if trained_only else (),
    )


def _trained_only(state: Values) -> bool:
    """Tell whether the batch norms are without the statistics of the images that they have seen."""
    scale = state.get("bn1_1.weight")
    if scale is None or "bn1_1.running_var" in state:
        return False
    return bool(scale.abs().median() > SCALE_WITHOUT_STATISTICS)


def _complete(state: dict[str, Tensor], norm: str) -> None:
    """Give a batch norm without statistics those that make it scale and shift only."""
    if f"{norm}running_var" not in state:
        scale = state[f"{norm}weight"]
        state[f"{norm}running_mean"] = torch.zeros_like(scale)
        state[f"{norm}running_var"] = torch.full_like(scale, 1 - EPS)


def _names() -> list[tuple[str, str]]:
    rules = caffe.vgg_names(step=3)
    for block in caffe.BLOCKS:
        for i in range(1, caffe.DEEPEST + 1):
            down = f"backbone.blocks.{block - 1}."
            up = f"decoder.{5 - block}."
            rules += [
                (rf"bn{block}_{i}\.", f"{down}{3 * i - 2}."),
                (rf"deconv{block}_{i}\.", f"{up}{3 * i - 3}."),
                (rf"debn{block}_{i}\.", f"{up}{3 * i - 2}."),
            ]
    for number, (layer, norm) in enumerate(CODE):
        rules += [(rf"{layer}\.", f"code.{3 * number}."), (rf"{norm}\.", f"code.{3 * number + 1}.")]
    return [*rules, (r"seg-score[\w-]*\.", "score.")]


DECONVNET = Family(
    name="the authors' DeconvNet (Caffe)",
    known_by=(r"fc6-deconv/0", r"deconv5_1/0", r"bn1_1/0"),
    read=_deconvnet,
)
