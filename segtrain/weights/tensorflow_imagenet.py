"""ImageNet classifiers of TensorFlow's DeepLab (tensorflow/models, research/deeplab): trunks alone.

xception_41_imagenet, xception_65_imagenet and xception_71_imagenet, mobilenet_v2_1.0_224, and the
beta variants of ResNet-50 and -101. Those have the stem of three 3x3, and the stride of a stage in
the last block of the stage before.
"""

from __future__ import annotations

from typing import Any

from segtrain.weights import resnets
from segtrain.weights import tensorflow_layers as tf
from segtrain.weights.family import Family, Published, Values, width

CLASSIFIER = "the classifier of ImageNet's 1000 classes"
STRIDES = (
    "the release strides in the last block of a stage, our ResNets in the first of the next: start "
    "from it to train, its own outputs are others"
)
RESNET = "resnet_v1_"


def _published(
    arguments: dict[str, Any],
    state: Values,
    names: list[tuple[str, str]],
    classifier: str,
    notes: tuple[str, ...] = (),
) -> Published:
    return Published(
        model="",
        arguments=arguments,
        input="tensorflow",
        values=state,
        names=names,
        left_out={**tf.NOT_WEIGHTS, classifier: CLASSIFIER},
        notes=notes,
    )


def _xception(values: Values) -> Published:
    state = tf.torch_layers(values)
    name = tf.xception(state)
    assert name is not None
    arguments = {"name": name.replace("_", "")}
    return _published(arguments, state, tf.xception_names(name), rf"{name}/logits\.")


def _mobilenet(values: Values) -> Published:
    state = tf.torch_layers(values)
    tf.mobilenet(state)
    rest = r"MobilenetV2/(Conv_1|Logits/Conv2d_1c_1x1)\."
    return _published({"name": "mobilenet_v2"}, state, tf.mobilenet_names(), rest)


def _resnet(values: Values) -> Published:
    state = tf.torch_layers(values)
    scope = next(key.partition("/")[0] for key in state if key.startswith(RESNET))
    names = []
    for number, layer in enumerate((1, 2, 3)):
        conv, norm = (f"backbone.stem.0.{3 * number + i}." for i in (0, 1))
        norm = "backbone.stem.1." if layer == 3 else norm
        names += tf.pair(f"{scope}/conv1_{layer}", conv, norm)
    width(state, f"{scope}/conv1_3.weight")  # the beta variant's stem
    units = [(stage, unit) for stage in range(4) for unit in range(64)]
    for stage, unit in units:
        theirs = f"{scope}/block{stage + 1}/unit_{unit + 1}/bottleneck_v1/"
        if f"{theirs}conv1.weight" not in state:
            continue
        ours = f"backbone.stages.{stage}.{unit}."
        for n in (1, 2, 3):
            names += tf.pair(f"{theirs}conv{n}", f"{ours}conv{n}.", f"{ours}bn{n}.")
        names += tf.pair(f"{theirs}shortcut", f"{ours}downsample.0.", f"{ours}downsample.1.")
    name = resnets.translated_depth(state, names)
    return _published(
        {"name": name, "style": "deep"}, state, names, rf"{scope}/logits\.", (STRIDES,)
    )


XCEPTION = Family(
    name="DeepLab's Xception (TensorFlow)",
    known_by=(r"xception_(41|65|71)/entry_flow/conv1_1/weights",),
    read=_xception,
)
MOBILENET = Family(
    name="MobileNet-v2 (TensorFlow)",
    known_by=(r"MobilenetV2/Conv/weights", r"MobilenetV2/expanded_conv_16/project/weights"),
    read=_mobilenet,
)
BETA = Family(
    name="DeepLab's ResNet, beta variant (TensorFlow)",
    known_by=(r"resnet_v1_\d+/conv1_1/weights", r"resnet_v1_\d+/block4/unit_1/.*"),
    read=_resnet,
)
