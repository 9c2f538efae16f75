"""ImageNet classifiers that papers started from, for Caffe: backbones alone.

    VGG_ILSVRC_16_layers    the VGG group's VGG16, whose fc6 and fc7 are fully connected, and its
                            fully convolutional copy, VGG_ILSVRC_16_layers_conv
    ResNet-50, -101, -152   He et al.'s (github.com/KaimingHe/deep-residual-networks)
    bvlc_reference_caffenet, bvlc_googlenet    BVLC's (github.com/BVLC/caffe)

fc6 and fc7 of VGG16 and AlexNet are named as torchvision's classifier has them, for models that
make convolutions of them. What follows them knows ImageNet's classes alone, and is left out.
The VGG group subtracts one mean per channel; the others a mean image, for which the nearest mean
per channel that is in use stands here.
"""

from __future__ import annotations

from torch import Tensor

from segtrain.weights import caffe_layers as caffe
from segtrain.weights.caffe_fcn import ALEXNET as ALEXNET_NAMES
from segtrain.weights.family import Family, Published, Values

CLASSIFIER = "the classifier of ImageNet's 1000 classes"
POOL_FIRST = (
    "BVLC's CaffeNet and AlexNet cannot be told apart by their files; ours pools before it "
    "normalises, as CaffeNet (bvlc_reference_caffenet) and FCN-AlexNet do, and AlexNet does not"
)
# Inception modules in our order, and the convolutions of each: branch, number in it.
MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
MODULE_LAYERS = (7, 8, 10, 11, 12, 13, 14, 16, 17)  # of ours; pools stand between the stages
BRANCHES = {
    "1x1": "0.0.",
    "3x3_reduce": "1.0.0.",
    "3x3": "1.1.0.",
    "5x5_reduce": "2.0.0.",
    "5x5": "2.1.0.",
    "pool_proj": "3.1.0.",
}
GOOGLENET_STEM = {"conv1/7x7_s2": 0, "conv2/3x3_reduce": 3, "conv2/3x3": 4}


def _vgg(values: Values) -> Published:
    state = caffe.torch_layers(values)
    name = caffe.vgg(state)
    _as_matrices(state)
    names = [*caffe.vgg_names(), (r"fc6\.", "classifier.0."), (r"fc7\.", "classifier.3.")]
    arguments = {"name": name, "norm": "none"}
    return _published(arguments, state, names, r"fc8[\w-]*\.", "caffe")


def _alexnet(values: Values) -> Published:
    state = caffe.torch_layers(values)
    _as_matrices(state)
    names = [*ALEXNET_NAMES, (r"fc6\.", "classifier.1."), (r"fc7\.", "classifier.4.")]
    arguments = {"layout": "caffe", "norm": "none"}
    return _published(arguments, state, names, r"fc8\.", "fcn", (POOL_FIRST,))


def _as_matrices(state: dict[str, Tensor]) -> None:
    """Make fc6 and fc7 the matrices that a classifier has: (outputs, C x H x W)."""
    for layer in ("fc6", "fc7"):
        if f"{layer}.weight" in state:
            weight = state[f"{layer}.weight"]
            legacy = weight.dim() == 4 and weight.shape[:2] == (1, 1)  # (1, 1, outputs, inputs)
            state[f"{layer}.weight"] = weight[0, 0] if legacy else weight.flatten(1)


def _googlenet(values: Values) -> Published:
    state = caffe.torch_layers(values)
    names = [(rf"{layer}\.", f"backbone.layers.{n}.0.") for layer, n in GOOGLENET_STEM.items()]
    for module, number in zip(MODULES, MODULE_LAYERS, strict=True):
        names += [
            (rf"inception_{module}/{layer}\.", f"backbone.layers.{number}.branches.{place}")
            for layer, place in BRANCHES.items()
        ]
    arguments = {"layout": "paper", "norm": "none"}
    return _published(arguments, state, names, r"loss[123]/", "fcn")


def _msra(values: Values) -> Published:
    state = caffe.torch_layers(values)
    caffe.without_bias(state, "conv1", "bn_conv1")  # ResNet-50 alone has one
    names = caffe.msra_names(state)
    name = caffe.msra(state, names)
    return _published({"name": name, "style": "caffe"}, state, names, r"fc1000\.", "detectron")


def _published(
    arguments: dict[str, object],
    state: Values,
    names: list[tuple[str, str]],
    last: str,
    input: str,
    notes: tuple[str, ...] = (),
) -> Published:
    return Published(
        model="",
        arguments=arguments,
        input=input,
        values=state,
        names=names,
        left_out={last: CLASSIFIER},
        notes=notes,
    )


VGG = Family(
    name="the VGG group's classifier (Caffe)",
    known_by=(r"conv1_1/0", r"conv5_1/0", r"fc6/0", r"fc7/0"),
    read=_vgg,
)
RESNET = Family(
    name="He et al.'s ResNet (Caffe)",
    known_by=(r"conv1/0", r"res2a_branch2a/0", r"res5a_branch2a/0", r"bn_conv1/0"),
    read=_msra,
)
ALEXNET = Family(
    name="BVLC's CaffeNet (Caffe)",
    known_by=(r"conv1/0", r"conv5/0", r"fc6/0", r"fc7/0", r"fc8/0"),
    read=_alexnet,
)
GOOGLENET = Family(
    name="BVLC's GoogLeNet (Caffe)",
    known_by=(r"conv1/7x7_s2/0", r"inception_5b/1x1/0"),
    read=_googlenet,
)
