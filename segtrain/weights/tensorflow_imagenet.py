"""ImageNet classifiers of TensorFlow's DeepLab (tensorflow/models, research/deeplab): trunks alone.

xception_41_imagenet, xception_65_imagenet and xception_71_imagenet, mobilenet_v2_1.0_224, and the
beta variants of ResNet-50 and -101, with a stem of three 3x3 and the stride of a stage in the last
block of the stage before (style "tensorflow").
"""

from __future__ import annotations

from typing import Any

from segtrain.weights import resnets
from segtrain.weights import tensorflow_layers as tf
from segtrain.weights.family import Family, Published, Values

CLASSIFIER = "the classifier of ImageNet's 1000 classes"


def _published(
    arguments: dict[str, Any],
    state: Values,
    names: list[tuple[str, str]],
    classifier: str,
) -> Published:
    return Published(
        model="",
        arguments=arguments,
        input="tensorflow",
        values=state,
        names=names,
        left_out={**tf.NOT_WEIGHTS, classifier: CLASSIFIER},
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
    scope = tf.beta(state)
    assert scope is not None
    names = tf.beta_names(state, scope)
    arguments = {"name": resnets.translated_depth(state, names), "style": "tensorflow"}
    return _published(arguments, state, names, rf"{scope}/logits\.")


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
