"""DeepLab v3 and v3+ as their authors released them (tensorflow/models, research/deeplab).

Checkpoints and frozen graphs of the archives deeplabv3_pascal_* (xception_65), _cityscapes_* and
deeplabv3_mnv2_* (mobilenet_v2, without decoder and without 3x3 branches). A network without decoder
on an Xception is our DeepLabv3+ without one; on a ResNet (resnet_v1_50_beta, resnet_v1_101_beta) it
is our DeepLabv3 of style "tensorflow". The output stride is not in a checkpoint: 16 is what the
release exports. An archive with dense prediction cells (xception71_dpc) is none of ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segtrain.weights import resnets
from segtrain.weights import tensorflow_layers as tf
from segtrain.weights.family import Family, Published, Unfit, Values, width

BRANCHES = (1, 2, 3)  # of dilations 6, 12, 18 at output stride 16
TABLES = {21: "voc", 19: "cityscapes"}
PADS = {21: "[513,513]", 19: "[1025,2049]"}  # eval_crop_size of g3doc's commands


def _deeplab(values: Values) -> Published:
    state = tf.torch_layers(values)
    if any(key.startswith("dense_prediction_cell/") for key in state):
        raise Unfit("its encoder is a dense prediction cell (DPC), which ours are not")
    xception = tf.xception(state)
    if xception is not None:
        own = _xception(state, xception)
        names = [*tf.xception_names(xception), *_names("aspp.")]
    elif (beta := tf.beta(state)) is not None:
        trunk = tf.beta_names(state, beta)
        style = {"backbone": resnets.translated_depth(state, trunk), "style": "tensorflow"}
        own = _without_decoder(state) | style
        names = [*trunk, *_names("context.")]
    elif tf.mobilenet(state):
        own = _without_decoder(state) | {"backbone": "mobilenet_v2"}
        names = [*tf.mobilenet_names(), *_names("context.")]
    else:
        scopes = sorted({key.partition("/")[0] for key in state})
        raise Unfit(f"its trunk is none of ours for it (scopes {', '.join(scopes[:4])})")
    _pooling_last(state)
    classes = width(state, "logits/semantic.weight")
    return Published(
        model="deeplabv3" if xception is None else "deeplabv3plus",
        arguments={"output_stride": 16, **own},
        input="tensorflow",
        values=state,
        names=names,
        left_out=tf.NOT_WEIGHTS,
        num_classes=classes,
        classes=TABLES.get(classes),
        measured=_measured(classes, any(key.startswith("decoder/") for key in state)),
    )


def _measured(classes: int, decoder: bool) -> tuple[str, ...]:
    if classes not in PADS:
        return ("inference=whole",)
    words = ("inference=deeplab_tf", f"inference.pad={PADS[classes]}")
    # Scores lie 4 pixels apart behind the decoder, and at the output stride without one.
    return words if decoder else (*words, "inference.score_stride=16")


def _xception(state: Values, name: str) -> dict[str, Any]:
    """Return the settings of our DeepLabv3+ on this Xception."""
    if _branches(state) != BRANCHES:
        raise Unfit(f"its ASPP has {len(_branches(state))} branches with dilation, ours 3")
    decoder = [
        n
        for n in (0, 1)
        if f"decoder/decoder_conv{n}_pointwise.weight" in state
        or f"decoder/decoder_conv0/decoder_conv0_{n + 1}.weight" in state
    ]
    low = "decoder/feature_projection0.weight"
    if (low in state) != bool(decoder):
        raise Unfit("its decoder has either no low-level feature or no convolution")
    separable = "aspp1_depthwise.weight" in state
    if decoder and separable != ("decoder/decoder_conv0_depthwise.weight" in state):
        raise Unfit("of its ASPP and its decoder one is separable, of ours both or neither")
    return {
        "backbone": name.replace("_", ""),
        "separable": separable,
        "image_pooling": "image_pooling.weight" in state,
        "low_level_width": width(state, low) if decoder else 0,
        "decoder": [256] * len(decoder) or None,
    }


def _without_decoder(state: Values) -> dict[str, Any]:
    """Return the settings of our DeepLabv3."""
    branches = _branches(state)
    if any(key.startswith("decoder/") for key in state):
        raise Unfit("it has a decoder on a ResNet or MobileNet-v2, which reads what ours does not")
    if branches not in ((), BRANCHES) or "aspp1_depthwise.weight" in state:
        raise Unfit(f"its ASPP has {len(branches)} branches that ours has not")
    return {
        "dilations": [6, 12, 18] if branches else [],
        "image_pooling": "image_pooling.weight" in state,
    }


def _branches(state: Values) -> tuple[int, ...]:
    """Return the numbers of ASPP's branches with dilation."""
    found = (
        n
        for n in range(1, 10)
        if f"aspp{n}.weight" in state or f"aspp{n}_depthwise.weight" in state
    )
    return tuple(found)


def _pooling_last(state: dict[str, Tensor]) -> None:
    """Bring the projection's input into our order: the release puts image pooling first."""
    key = "concat_projection.weight"
    if "image_pooling.weight" in state:
        own = width(state, "image_pooling.weight")
        state[key] = torch.cat([state[key][:, own:], state[key][:, :own]], dim=1)


def _names(head: str) -> list[tuple[str, str]]:
    rules = [
        *tf.pair("image_pooling", f"{head}pooling.project.0.", f"{head}pooling.project.1."),
        *tf.pair("aspp0", f"{head}branches.0.0.", f"{head}branches.0.1."),
        *tf.pair("concat_projection", f"{head}project.0.0.", f"{head}project.0.1."),
        *tf.pair("decoder/feature_projection0", "low_level.0.", "low_level.1."),
    ]
    for n in BRANCHES:
        rules += tf.separable(f"aspp{n}", f"{head}branches.{n}.")
        rules += tf.pair(f"aspp{n}", f"{head}branches.{n}.0.", f"{head}branches.{n}.1.")
    for n in (0, 1):
        rules += tf.separable(f"decoder/decoder_conv{n}", f"decoder.{n}.")
        dense = f"decoder/decoder_conv0/decoder_conv0_{n + 1}"
        rules += tf.pair(dense, f"decoder.{n}.0.", f"decoder.{n}.1.")
    return [*rules, (r"logits/semantic\.", "classifier.")]


DEEPLAB = Family(
    name="the authors' DeepLab v3 and v3+ (TensorFlow)",
    known_by=(r"logits/semantic/weights", r"(concat_projection|dense_prediction_cell)/.*"),
    read=_deeplab,
)
