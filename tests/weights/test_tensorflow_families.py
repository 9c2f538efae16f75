"""Files in the layouts of TensorFlow's DeepLab import strictly and compute what it computes.

Names, numbers and padding are those of research/deeplab; the networks are in `tensorflow_networks`.
Images have sides of 16k + 1, on which SAME pads alike on both sides.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from published_networks import assert_equal, imported, loaded, refusal
from tensorflow_networks import Slim, beta, head, mobilenet, refined, resized, same, xception
from torch import Tensor
from torch.nn import functional as F

from segtrain.backbones.mobilenet import MobileNetV2
from segtrain.backbones.resnet import ResNet
from segtrain.backbones.xception import Xception
from segtrain.weights import tensorflow_layers
from segtrain.weights.families import FAMILIES, Recognised, read_published
from segtrain.weights.formats import read_weights

SIZE = (65, 81)


def image(height: int = SIZE[0], width: int = SIZE[1]) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_what_tensorflow_computes_follows_from_its_frozen_graph(data_root: Path) -> None:
    """A convolution of stride 2 with SAME padding, frozen by TensorFlow itself."""
    folder = data_root / "foreign_weights"
    if not folder.is_dir():
        pytest.skip("SEGTRAIN_DATA has no foreign_weights/, files written by Caffe and TensorFlow")
    known = np.load(folder / "tf_values.npz")
    state = tensorflow_layers.torch_layers(read_weights(folder / "tf_frozen_graph.pb").values)
    (weight,) = state.values()
    assert list(state) == ["xception_65/entry_flow/conv1_1.weight"]
    images, outputs = (
        torch.from_numpy(known[f"conv_{what}_NHWC"]).permute(0, 3, 1, 2)
        for what in ("input", "same_stride2")
    )
    y = F.conv2d(same(images, 3, 2, 1, False), weight, stride=2)
    assert (y - outputs).abs().max() < 1e-5


def v3plus(net: Slim, x: Tensor, depth: int, classes: int, stride: int = 16, **has: bool) -> Tensor:
    """xception_N with ASPP, and a decoder where it `has` one."""
    low, deep = xception(net, x, depth, stride)
    y = head(net, deep, has["separable"], has["pooling"], 6 * 16 // stride)
    y = refined(net, y, low, has["separable"]) if has["decoder"] else y
    return resized(net.conv(y, "logits/semantic", classes, eps=None), x.shape[-2:])


USUAL = {"separable": True, "pooling": True, "decoder": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "classes", "stride", "has"),
    [
        (65, 21, 16, USUAL),
        (65, 19, 8, USUAL),
        (41, 151, 16, {**USUAL, "separable": False, "pooling": False}),
        (71, 19, 16, {**USUAL, "pooling": False}),
        (65, 21, 16, {**USUAL, "decoder": False}),
    ],
)
@torch.no_grad()
def test_deeplab_on_xceptions(
    tmp_path: Path, depth: int, classes: int, stride: int, has: dict[str, bool]
) -> None:
    net = Slim()
    x = image()
    expected = v3plus(net, x, depth, classes, stride, **has)
    read, model = imported(net.checkpoint(tmp_path), output_stride=stride)
    assert read.published.classes == {21: "voc", 19: "cityscapes"}.get(classes)
    assert read.published.input == "tensorflow"
    assert read.file.dropped
    assert_equal(model(x)["logits"], expected)


@pytest.mark.slow
@torch.no_grad()
def test_a_frozen_graph_of_deeplab(tmp_path: Path) -> None:
    net = Slim()
    x = image(49, 33)
    expected = v3plus(net, x, 41, 21, **USUAL)
    _, model = imported(net.graph(tmp_path / "frozen_inference_graph.pb"))
    assert_equal(model(x)["logits"], expected)
    variables = net.variables
    net.variables = {k: v for k, v in variables.items() if "unit_8/" not in k}
    assert "has 7 units, xception_41 has 8" in refusal(net.graph(tmp_path / "short.pb"))
    net.variables = {k: v for k, v in variables.items() if "aspp3" not in k}
    assert "2 branches with dilation, ours 3" in refusal(net.graph(tmp_path / "two.pb"))
    net.variables = variables | {"dense_prediction_cell/branch_0/weights": np.zeros(1, np.float32)}
    assert "dense prediction cell" in refusal(net.graph(tmp_path / "dpc.pb"))


@pytest.mark.slow
@pytest.mark.parametrize("stride", [16, 8])
@torch.no_grad()
def test_deeplab_on_mobilenet_v2(tmp_path: Path, stride: int) -> None:
    net = Slim()
    x = image()
    y = head(net, mobilenet(net, x, stride), None, True)
    expected = resized(net.conv(y, "logits/semantic", 21, eps=None), x.shape[-2:])
    read, model = imported(net.checkpoint(tmp_path), output_stride=stride)
    assert read.published.model == "deeplabv3"
    assert_equal(model(x)["logits"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [16, 8])
@torch.no_grad()
def test_deeplabv3_on_a_resnets_beta_variant(tmp_path: Path, stride: int) -> None:
    net = Slim()
    x = image()
    y = head(net, beta(net, x, 50, stride, (1, 2, 4)), False, True, 6 * 16 // stride)
    expected = resized(net.conv(y, "logits/semantic", 21, eps=None), x.shape[-2:])
    read, model = imported(net.checkpoint(tmp_path), output_stride=stride)
    assert read.published.arguments["style"] == "tensorflow"
    assert_equal(model(x)["logits"], expected)
    net.conv(y, "decoder/feature_projection0", 48)
    assert "has a decoder on a ResNet" in refusal(net.checkpoint(tmp_path))


# ImageNet trunks


def backbone_of(
    path: Path, kind: type[torch.nn.Module], **changes: object
) -> tuple[Recognised, torch.nn.Module]:
    read = read_published(path)
    assert read.published.model == ""
    state = {key.removeprefix("backbone."): value for key, value in read.state.items()}
    return read, loaded(kind(**read.published.arguments, **changes), state, path)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [41, 65, 71])
@torch.no_grad()
def test_xceptions_from_imagenet(tmp_path: Path, depth: int) -> None:
    net = Slim()
    x = image()
    low, deep = xception(net, x, depth, 32)
    net.conv(deep, f"xception_{depth}/logits", 1001, eps=None)
    _, model = backbone_of(net.checkpoint(tmp_path), Xception)
    features = model(x)
    assert_equal(features[0], low)
    assert_equal(features[-1], deep)


@pytest.mark.slow
@torch.no_grad()
def test_mobilenet_v2_from_imagenet(tmp_path: Path) -> None:
    net = Slim()
    x = image(65, 97)  # at stride 32 only sides of 32k + 1 are padded alike
    deep = mobilenet(net, x, 32)
    net.conv(deep, "MobilenetV2/Conv_1", 1280, eps=1e-3)
    net.conv(deep, "MobilenetV2/Logits/Conv2d_1c_1x1", 1001, eps=None)
    _, model = backbone_of(net.checkpoint(tmp_path), MobileNetV2)
    assert_equal(model(x)[-1], deep)


@torch.no_grad()
def test_a_mobilenet_of_another_width_is_refused(tmp_path: Path) -> None:
    net = Slim()
    net.conv(image(9, 9), "MobilenetV2/Conv", 16, 3, 2)
    net.conv(image(9, 9), "MobilenetV2/expanded_conv_16/project", 160)
    assert "gives 16 channels, ours 32" in refusal(net.checkpoint(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [50, 101])
@torch.no_grad()
def test_the_beta_variants_of_resnets(tmp_path: Path, depth: int) -> None:
    net = Slim()
    x = image(65, 97)
    deep = beta(net, x, depth, 32)
    net.conv(deep, f"resnet_v1_{depth}/logits", 1001, eps=None)
    read, model = backbone_of(net.checkpoint(tmp_path), ResNet)
    assert read.published.arguments == {"name": f"resnet{depth}", "style": "tensorflow"}
    features = model(x)
    assert [f.shape[2] for f in features] == [9, 5, 3, 3]
    assert model.strides == [8, 16, 32, 32]
    assert_equal(features[-1], deep)


def test_no_release_is_taken_for_another() -> None:
    """The keys of each: the first family that knows them is its own."""
    trunk = ["xception_65/entry_flow/conv1_1/weights"]
    mobile = ["MobilenetV2/Conv/weights", "MobilenetV2/expanded_conv_16/project/weights"]
    top = ["concat_projection/weights", "logits/semantic/weights"]
    deeplab = "the authors' DeepLab v3 and v3+ (TensorFlow)"
    releases = {
        deeplab: [[*trunk, *top], [*mobile, *top]],
        "DeepLab's Xception (TensorFlow)": [[*trunk, "xception_65/logits/weights"]],
        "MobileNet-v2 (TensorFlow)": [mobile],
        "DeepLab's ResNet, beta variant (TensorFlow)": [
            ["resnet_v1_101/conv1_1/weights", "resnet_v1_101/block4/unit_1/x"]
        ],
    }
    for name, files in releases.items():
        for keys in files:
            assert [f.name for f in FAMILIES if f.knows(keys)][:1] == [name], keys
