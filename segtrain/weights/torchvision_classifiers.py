"""torchvision's ImageNet classifiers, and ResNets with a stem of three 3x3: backbones alone.

The deep-stem ResNets are those of hszhao/semseg (`resnet50_v2.pth`: conv1 to conv3) and of
PyTorch-Encoding (`resnet50s-*.pth`: conv1.0, conv1.3, conv1.6), with the same names else.

fc6 and fc7 of a VGG and an AlexNet keep their names, for models that make convolutions of them.
What follows them knows ImageNet's classes alone, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segtrain.weights import mobilenets, resnets
from segtrain.weights.family import Family, Published, Unfit, Values, width

LAST = "the classifier of ImageNet's 1000 classes"


def _published(
    arguments: dict[str, Any],
    values: Values,
    names: Sequence[tuple[str, str]],
    left_out: dict[str, str],
    input: str = "imagenet",
) -> Published:
    return Published(
        model="", arguments=arguments, input=input, values=values, names=names, left_out=left_out
    )


# Width of the first 3x3, and inputs of each of its groups -> what it makes of the depth's name.
GROUPS = {(64, 64): "{}", (256, 8): "{}_32x8d", (256, 4): "{}_64x4d"}
RESNEXTS = {"resnet101_32x8d": "resnext101_32x8d", "resnet101_64x4d": "resnext101_64x4d"}


def _resnet(values: Values) -> Published:
    name = _grouped(values, resnets.depth(values))
    in_conv1 = "conv1.0.weight" in values
    deep = resnets.has_deep_stem(values, "conv1.0.weight", "conv1.weight")
    if in_conv1:
        rules = [(r"conv1\.", "backbone.stem.0."), (r"bn1\.", "backbone.stem.1.")]
        rules += resnets.names()[2:]
    else:
        rules = resnets.deep_names() if deep else resnets.names()
    arguments = {"name": name, "style": "deep" if deep else "torchvision"}
    return _published(arguments, values, rules, {r"fc\.": LAST})


def _grouped(values: Values, depth: str) -> str:
    """Return the name of a ResNet or ResNeXt by the first 3x3 of its blocks. Errors: Unfit."""
    if depth in resnets.BASIC.values():
        return depth
    shape = (width(values, "layer1.0.conv2.weight"), width(values, "layer1.0.conv2.weight", 1))
    name = GROUPS.get(shape, "").format(depth)
    if shape != (64, 64):
        name = RESNEXTS.get(name, "")
    if not name:
        raise Unfit(f"its blocks have {shape[0]} channels, {shape[1]} in a group: none of ours")
    return name


RESNET = Family(
    name="torchvision's layout of ResNets",
    known_by=(r"conv1\.(0\.)?weight", r"layer1\.0\.conv1\.weight", r"layer4\.1\.conv2\.weight"),
    read=_resnet,
)

# Convolutions of a VGG's blocks -> the network.
VGGS = {(1, 1, 2, 2, 2): "vgg11", (2, 2, 2, 2, 2): "vgg13", (2, 2, 3, 3, 3): "vgg16"}


def _vgg(values: Values) -> Published:
    norm = "batch" if "features.1.running_mean" in values else "none"
    numbers = {int(key.split(".")[1]) for key in values if key.startswith("features.")}
    places = {name: _vgg_names(depths, norm) for depths, name in VGGS.items()}
    name = next((name for name, own in places.items() if own.keys() == numbers), None)
    if name is None:
        raise Unfit(f"its convolutions are none of {', '.join(places)}")
    rules = [(rf"features\.{number}\.", place) for number, place in places[name].items()]
    left_out = {r"classifier\.6\.": LAST}
    # The VGG group's convolutions as torchvision offers them: its classifier is no number.
    features = "classifier.0.weight" in values and bool(values["classifier.0.weight"].isnan().any())
    if features:
        left_out = {r"classifier\.": "it holds no numbers"}
    rules += [(rf"classifier\.{number}\.", f"classifier.{number}.") for number in (0, 3)]
    arguments = {"name": name, "norm": norm}
    return _published(arguments, values, rules, left_out, "features" if features else "imagenet")


def _vgg_names(depths: Sequence[int], norm: str) -> dict[int, str]:
    """Return the numbers in `features` of convolutions and norms -> their places with us.

    torchvision numbers all layers in a row, ReLUs and pools included.
    """
    layers = ("conv", "norm", "relu") if norm == "batch" else ("conv", "relu")
    names = {}
    number = 0
    for block, depth in enumerate(depths):
        for index, layer in enumerate(layers * depth):
            if layer != "relu":
                names[number] = f"backbone.blocks.{block}.{index}."
            number += 1
        number += 1  # the pool
    return names


VGG = Family(
    name="torchvision's VGG",
    known_by=(r"features\.0\.weight", r"classifier\.0\.weight", r"classifier\.3\.weight"),
    read=_vgg,
)

# Convolutions of torchvision's AlexNet -> their numbers in ours, whose ReLUs and pools are alike.
ALEXNET_NUMBERS = (0, 3, 6, 8, 10)


def _alexnet(values: Values) -> Published:
    rules = [(rf"features\.{n}\.", f"backbone.layers.{n}.") for n in ALEXNET_NUMBERS]
    rules += [(rf"classifier\.{number}\.", f"classifier.{number}.") for number in (1, 4)]
    arguments = {"layout": "torchvision", "norm": "none"}
    return _published(arguments, values, rules, {r"classifier\.6\.": LAST})


ALEXNET = Family(
    name="torchvision's AlexNet",
    known_by=(r"features\.10\.weight", r"classifier\.1\.weight", r"classifier\.4\.weight"),
    read=_alexnet,
)

# Modules of a GoogLeNet -> their numbers among our layers, and its branches.
INCEPTIONS = dict(
    zip(
        ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"),
        (5, 6, 8, 9, 10, 11, 12, 14, 15),
        strict=True,
    )
)
BRANCHES = {
    r"branch1": "0",
    r"branch2\.0": "1.0",
    r"branch2\.1": "1.1",
    r"branch3\.0": "2.0",
    r"branch3\.1": "2.1",
    r"branch4\.1": "3.1",
}
LAYERS = (("conv", 0), ("bn", 1))


def _googlenet(values: Values) -> Published:
    stem = {"conv1": 0, "conv2": 2, "conv3": 3}
    places = {rf"{name}\.": f"backbone.layers.{number}." for name, number in stem.items()}
    for module, number in INCEPTIONS.items():
        for branch, place in BRANCHES.items():
            pattern = rf"inception{module}\.{branch}\."
            places[pattern] = f"backbone.layers.{number}.branches.{place}."
    rules = [
        (pattern + rf"{kind}\.", f"{place}{index}.")
        for pattern, place in places.items()
        for kind, index in LAYERS
    ]
    left_out = {r"fc\.": LAST, r"aux[12]\.": "a side classifier of its training"}
    arguments = {"layout": "torchvision", "norm": "batch"}
    return _published(arguments, values, rules, left_out, "tensorflow")


GOOGLENET = Family(
    name="torchvision's GoogLeNet",
    known_by=(r"conv1\.conv\.weight", r"inception5b\.branch4\.1\.conv\.weight"),
    read=_googlenet,
)


def _mobilenet(values: Values) -> Published:
    if width(values, "features.0.0.weight") != 32:
        raise Unfit("it is not of the full width, with 32 channels first")
    left_out = {r"features\.18\.": "the last convolution, of the classifier", r"classifier\.": LAST}
    return _published({"name": "mobilenet_v2"}, values, mobilenets.NAMES, left_out)


MOBILENET = Family(
    name="torchvision's MobileNet-v2",
    known_by=(r"features\.17\.conv\.2\.weight", r"features\.18\.0\.weight"),
    read=_mobilenet,
)
