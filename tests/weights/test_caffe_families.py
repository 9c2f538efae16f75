"""Files in the layouts of Caffe's releases import strictly and compute what Caffe computes.

The layers' names, numbers and order are those of the releases' prototxt files (fc6 and fc7 narrower
where the network allows it); the networks are in `caffe_networks`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import published_networks
import pytest
import torch
from caffe_networks import Caffe, lrn, msra, pool, vgg
from published_networks import INCEPTIONS, imported, loaded, refusal
from torch import Tensor
from torch.nn import functional as F

from segtrain.backbones.alexnet import AlexNet
from segtrain.backbones.googlenet import GoogLeNet
from segtrain.backbones.resnet import ResNet
from segtrain.backbones.vgg import VGG
from segtrain.weights import caffe_layers
from segtrain.weights.families import FAMILIES, Recognised, read_published
from segtrain.weights.formats import read_weights

BACKBONES = {"vgg16": VGG, "resnet50": ResNet, "resnet101": ResNet, "resnet152": ResNet}


def image(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_equal(model: torch.nn.Module, x: Tensor, expected: Tensor) -> None:
    """The network's logits, or its last map, are the expected ones."""
    output = model(x)
    mine = output["logits"] if isinstance(output, dict) else output[-1]
    published_networks.assert_equal(mine, expected)


def crop(x: Tensor, start: int, like: Tensor) -> Tensor:
    return x[..., start : start + like.shape[-2], start : start + like.shape[-1]]


def test_what_caffe_computes_from_its_layers_follows_from_their_blobs(data_root: Path) -> None:
    """Both outputs of a net that Caffe saved itself: BatchNorm, Scale, groups, inner product."""
    folder = data_root / "foreign_weights"
    if not folder.is_dir():
        pytest.skip("SEGTRAIN_DATA has no foreign_weights/, files written by Caffe and TensorFlow")
    known = np.load(folder / "caffe_layer_values.npz")
    net = caffe_layers.torch_layers(read_weights(folder / "caffe_layer.caffemodel").values)
    y = F.conv2d(torch.from_numpy(known["input"]), net["conv1_1.weight"], net["conv1_1.bias"], 1, 1)
    statistics = (net["bn1.running_mean"], net["bn1.running_var"])
    y = F.batch_norm(y, *statistics, net["scale1.weight"], net["scale1.bias"], eps=1e-5)
    y = F.max_pool2d(y.relu(), 2, 2)
    dense = F.linear(y.flatten(1), net["fc.weight"], net["fc.bias"])
    assert np.abs(dense.numpy() - known["fc"]).max() < 1e-5
    y = F.conv2d(y, net["conv2_1.weight"], net["conv2_1.bias"], 1, 2, 2, 2)
    y = F.conv2d(y, net["score_fr.weight"], net["score_fr.bias"])
    y = F.conv_transpose2d(y, net["upscore2.weight"], stride=2)[..., 1:25, 1:21]
    assert np.abs(y.numpy() - known["score"]).max() < 1e-5


# FCN


def fcn(net: Caffe, x: Tensor, classes: int, stride: int, at_once: bool = False) -> Tensor:
    """voc-fcn32s, -16s, -8s and -8s-atonce, with fc6 and fc7 of 32."""
    *_, pool3, pool4, deep = vgg(net, x, pad=100)
    y = net.conv(deep, "fc6", 32, 7).relu()
    y = net.conv(y, "fc7", 32, 1).relu()
    y = net.conv(y, "score_fr", classes, 1)
    if stride == 32:
        return crop(net.bilinear(y, "upscore", 64, 32), 19, x)
    skips = [("pool4", pool4, "upscore2", 5), ("pool3", pool3, "upscore_pool4", 9)]
    for name, skip, up, start in skips[: {16: 1, 8: 2}[stride]]:
        y = net.bilinear(y, up, 4, 2)
        if at_once:
            factor = np.float32({"pool4": 0.01, "pool3": 0.0001}[name])
            net.blobs[f"scale_{name}"] = [np.full(skip.shape[1], factor)]
            skip = skip * float(factor)
        y = y + crop(net.conv(skip, f"score_{name}", classes, 1), start, y)
    if stride == 16:
        return crop(net.bilinear(y, "upscore16", 32, 16), 27, x)
    return crop(net.bilinear(y, "upscore8", 16, 8), 31, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stride", "classes", "at_once"),
    [(32, 21, False), (16, 21, False), (8, 21, False), (8, 21, True), (8, 60, False)],
)
@torch.no_grad()
def test_fcn(tmp_path: Path, stride: int, classes: int, at_once: bool) -> None:
    net = Caffe()
    x = image(70, 101)
    expected = fcn(net, x, classes, stride, at_once)
    read, model = imported(net.file(tmp_path / "fcn.caffemodel"))
    assert read.family.name == "the authors' FCN (Caffe)"
    assert read.published.classes == {21: "voc", 60: "context"}[classes]
    assert read.published.input == "fcn"
    assert read.published.arguments["learned_upsampling"] == "none"
    assert_equal(model, x, expected)


@pytest.mark.slow
@torch.no_grad()
def test_deconvolutions_of_fcn_that_learned_are_not_lost(tmp_path: Path) -> None:
    net = Caffe()
    x = image(40, 40)
    fcn(net, x, 3, 8)
    diagonal = range(3)
    net.blobs["upscore_pool4"][0][diagonal, diagonal] += 0.1
    expected = fcn(net, x, 3, 8)
    read, model = imported(net.file(tmp_path / "fcn.caffemodel"))
    assert read.published.arguments["learned_upsampling"] == "intermediate"
    assert_equal(model, x, expected)
    net.blobs["upscore8"][0][diagonal, diagonal] *= 1.5
    expected = fcn(net, x, 3, 8)
    read, model = imported(net.file(tmp_path / "fcn.caffemodel"))
    assert read.published.arguments["learned_upsampling"] == "all"
    assert_equal(model, x, expected)
    net.blobs["upscore8"][0][0, 1] += 0.1
    assert "upscore8 mixes the classes" in refusal(net.file(tmp_path / "fcn.caffemodel"))


@pytest.mark.slow
@torch.no_grad()
def test_fcn_alexnet(tmp_path: Path) -> None:
    net = Caffe()
    x = image(90, 120)
    y = pool(net.conv(x, "conv1", 96, 11, 100, 4).relu(), 3, 2)
    y = pool(net.conv(lrn(y), "conv2", 256, 5, 2, group=2).relu(), 3, 2)
    y = net.conv(lrn(y), "conv3", 384, 3, 1).relu()
    y = net.conv(y, "conv4", 384, 3, 1, group=2).relu()
    y = pool(net.conv(y, "conv5", 256, 3, 1, group=2).relu(), 3, 2)
    y = net.conv(net.conv(y, "fc6", 32, 6).relu(), "fc7", 32, 1).relu()
    y = net.bilinear(net.conv(y, "score_fr", 21, 1), "upscore", 63, 32)
    read, model = imported(net.file(tmp_path / "fcn.caffemodel"))
    assert read.published.arguments["backbone"] == "alexnet"
    assert_equal(model, x, crop(y, 18, x))


@torch.no_grad()
def test_other_nets_of_the_fcn_repository_are_refused(tmp_path: Path) -> None:
    net = Caffe()
    for name in ("conv1_1", "fc6", "score_fr_sem", "score_fr_geo"):
        net.layer(name, (2, 2, 1, 1), (2,))
    assert "two heads" in refusal(net.file(tmp_path / "siftflow"))
    net = Caffe()
    for name, inputs in (("conv1_1", 4), ("fc6", 2), ("score_fr", 2)):
        net.layer(name, (2, inputs, 1, 1), (2,))
    assert "reads 4 channels" in refusal(net.file(tmp_path / "nyud"))
    for name in ("conv1_1", "conv1_2", "conv2_1"):
        net.blobs[name] = [np.zeros((2, 3, 1, 1), np.float32)]
    assert "2, 1, 0, 0, 0 convolutions, no VGG of ours" in refusal(net.file(tmp_path / "narrow"))


# PSPNet


def pspnet(net: Caffe, x: Tensor, classes: int, depths: tuple[int, ...], first: bool) -> Tensor:
    """pspnetN_NAME_473.prototxt; `first` where the stride sits in the first 1x1 (ADE20K)."""

    def layer(x: Tensor, name: str, outputs: int, kernel: int = 1, **more: int) -> Tensor:
        return net.bn(net.conv(x, name, outputs, kernel, bias=False, **more), f"{name}/bn")

    x0 = x
    x = layer(x, "conv1_1_3x3_s2", 64, 3, pad=1, stride=2).relu()
    x = layer(x, "conv1_2_3x3", 64, 3, pad=1).relu()
    x = pool(layer(x, "conv1_3_3x3", 128, 3, pad=1).relu(), 3, 2, 1)
    for stage, depth in enumerate(depths, 2):
        width = 64 << (stage - 2)
        dilation = {4: 2, 5: 4}.get(stage, 1)
        for block in range(1, depth + 1):
            name = f"conv{stage}_{block}"
            stride = 2 if stage == 3 and block == 1 else 1
            strides = (stride, 1) if first else (1, stride)
            y = layer(x, f"{name}_1x1_reduce", width, stride=strides[0]).relu()
            y = layer(
                y, f"{name}_3x3", width, 3, pad=dilation, dilation=dilation, stride=strides[1]
            ).relu()
            y = layer(y, f"{name}_1x1_increase", 4 * width)
            way = layer(x, f"{name}_1x1_proj", 4 * width, stride=stride) if block == 1 else x
            x = (way + y).relu()
    parts = [x]
    for bins in (6, 3, 2, 1):
        y = F.avg_pool2d(x, x.shape[-1] // bins)
        y = layer(y, f"conv5_3_pool{bins}_conv", 512).relu()
        parts.append(F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=True))
    x = layer(torch.cat(parts, 1), "conv5_4", 512, 3, pad=1).relu()
    x = net.conv(x, "conv6", classes, 1)
    return F.interpolate(x, x0.shape[-2:], mode="bilinear", align_corners=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depths", "classes", "stem"),
    [((3, 4, 23, 3), 21, "deep"), ((3, 4, 6, 3), 150, "deep_msra")],
)
@torch.no_grad()
def test_pspnet(tmp_path: Path, depths: tuple[int, ...], classes: int, stem: str) -> None:
    net = Caffe()
    x = image(89, 89)
    expected = pspnet(net, x, classes, depths, first=stem == "deep_msra")
    read, model = imported(net.file(tmp_path / "pspnet.caffemodel"))
    assert read.published.arguments["stem"] == stem
    assert read.published.classes == {21: "voc"}.get(classes)
    assert_equal(model, x, expected)


@torch.no_grad()
def test_a_pspnet_of_another_depth_is_refused(tmp_path: Path) -> None:
    net = Caffe()
    for name in ("conv1_1_3x3_s2", "conv5_3_pool1_conv", "conv6", "conv2_1_1x1_reduce"):
        net.layer(name, (2, 2, 1, 1))
    assert "1, 0, 0, 0 blocks" in refusal(net.file(tmp_path / "pspnet"))


# DeepLab


def deeplab(net: Caffe, x: Tensor, classes: int, end: str, depths: tuple[int, ...]) -> Tensor:
    deep = msra(net, x, depths, True, end)
    scores = [
        net.conv(deep, f"fc1_voc12{end}_c{n}", classes, 3, 6 * n + 6, dilation=6 * n + 6)
        for n in range(4)
    ]
    return torch.stack(scores).sum(0)


@pytest.mark.slow
@torch.no_grad()
def test_deeplab_on_resnet101_at_three_scales(tmp_path: Path) -> None:
    """Layers of the smaller scales share their values with those of the full one."""
    net = Caffe()
    x = image(65, 65)
    depths = (3, 4, 23, 3)
    scores = [deeplab(net, x, 21, "", depths)]
    full = dict(net.blobs)
    for end, size in (("_res075", 49), ("_res05", 33)):
        net.blobs |= {renamed(name, end): blobs for name, blobs in full.items()}
        small = F.interpolate(x, (size, size), mode="bilinear", align_corners=True)
        score = deeplab(net, small, 21, end, depths)
        scores.append(
            F.interpolate(score, scores[0].shape[-2:], mode="bilinear", align_corners=True)
        )
    expected = F.interpolate(
        torch.stack(scores).amax(0), (65, 65), mode="bilinear", align_corners=True
    )
    path = net.file(tmp_path / "train2_iter_20000.caffemodel")
    read, model = imported(path)
    assert read.published.arguments["scales"] == [1.0, 0.75, 0.5]
    assert read.published.arguments["head"] == "aspp"
    assert_equal(model, x, expected)
    net.blobs["res2a_branch1_res05"] = [net.blobs["res2a_branch1_res05"][0] + 1]
    assert "differs from res2a_branch1.weight" in refusal(net.file(path))


def renamed(layer: str, end: str) -> str:
    """The layer's name at another scale: fc1_voc12_res05_c0, res2a_branch1_res05."""
    if layer.startswith("fc1_voc12"):
        return layer.replace("fc1_voc12", f"fc1_voc12{end}")
    return layer + end


@pytest.mark.slow
@torch.no_grad()
def test_deeplabs_start_from_coco(tmp_path: Path) -> None:
    """91 outputs of a plain 1x1 classifier."""
    net = Caffe()
    x = image(57, 65)
    deep = msra(net, x, (3, 4, 23, 3), True)
    score = net.conv(deep, "fc1_coco", 91, 1)
    expected = F.interpolate(score, (57, 65), mode="bilinear", align_corners=True)
    read, model = imported(net.file(tmp_path / "init.caffemodel"))
    assert (read.published.num_classes, read.published.classes) == (91, None)
    assert_equal(model, x, expected)


@pytest.mark.slow
@pytest.mark.parametrize("branches", [1, 4])
@torch.no_grad()
def test_deeplab_on_vgg16(tmp_path: Path, branches: int) -> None:
    net = Caffe()
    x = image(57, 65)
    deep = vgg(net, x, large=True)[-1]
    scores = []
    for n in range(branches):
        end = f"_{n + 1}" if branches > 1 else ""
        rate = 6 * n + 6 if branches > 1 else 12
        y = net.conv(deep, f"fc6{end}", 1024, 3, rate, dilation=rate).relu()
        y = net.conv(y, f"fc7{end}", 1024, 1).relu()
        scores.append(net.conv(y, f"fc8_voc12{end}", 21, 1))
    expected = F.interpolate(
        torch.stack(scores).sum(0), (57, 65), mode="bilinear", align_corners=True
    )
    read, model = imported(net.file(tmp_path / "deeplab.caffemodel"))
    assert read.published.arguments["head"] == ("aspp" if branches > 1 else "largefov")
    assert_equal(model, x, expected)


@torch.no_grad()
def test_the_first_deeplabs_other_field_of_view_is_refused(tmp_path: Path) -> None:
    net = Caffe()
    for name in ("conv1_1", "fc7", "fc8_voc12"):
        net.layer(name, (2, 2, 1, 1), (2,))
    net.layer("fc6", (8, 2, 4, 4), (8,))
    assert "its fc6 is 8x2x4x4" in refusal(net.file(tmp_path / "vgg128"))


# DeconvNet


def deconvnet(net: Caffe, x: Tensor, statistics: bool) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return net.bn(x, name, statistics, eps=1e-9).relu()

    switches = []
    depths = (2, 2, 3, 3, 3)
    for block, depth in enumerate(depths, 1):
        for i in range(1, depth + 1):
            x = net.conv(x, f"conv{block}_{i}", min(32 << block, 512), 3, 1)
            x = norm(x, f"bn{block}_{i}")
        x, switch = F.max_pool2d(x, 2, 2, return_indices=True)
        switches.append(switch)
    x = norm(net.conv(x, "fc6", 16, 7), "bnfc6")
    x = norm(net.conv(x, "fc7", 16, 1), "bnfc7")
    x = norm(net.deconv(x, "fc6-deconv", 512, 7), "fc6-deconv-bn")
    for block, depth in reversed(list(enumerate(depths, 1))):
        x = F.max_unpool2d(x, switches[block - 1], 2)
        for i in range(1, depth + 1):
            last = i == depth and block > 1
            width = min(32 << (block - last), 512)
            x = norm(net.deconv(x, f"deconv{block}_{i}", width, 3), f"debn{block}_{i}")
    return net.conv(x, "seg-score-voc", 21, 1)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", [False, True])
@torch.no_grad()
def test_deconvnet(tmp_path: Path, statistics: bool) -> None:
    net = Caffe(v1=True)
    x = image(224, 224)
    expected = deconvnet(net, x, statistics)
    read, model = imported(net.file(tmp_path / "deconvnet.caffemodel"))
    assert read.published.measured == ("inference=proposals",)
    assert read.published.notes == ()
    assert_equal(model, x, expected)


@pytest.mark.slow
@torch.no_grad()
def test_a_stage_of_deconvnets_training_says_that_it_has_no_statistics(tmp_path: Path) -> None:
    net = Caffe(v1=True)
    deconvnet(net, image(224, 224), False)
    net.blobs["bn1_1"][0][:] = 1.02
    read, _ = imported(net.file(tmp_path / "stage_1_train_result.caffemodel"))
    assert read.published.measured == ()
    assert "no statistics" in read.published.notes[0]


# ParseNet


@pytest.mark.slow
@torch.no_grad()
def test_parsenet(tmp_path: Path) -> None:
    net = Caffe()
    x = image(57, 65)
    y = net.conv(vgg(net, x, large=True)[-1], "fc6", 1024, 3, 12, dilation=12).relu()
    y = net.conv(y, "fc7", 1024, 1).relu()

    def normed(x: Tensor, name: str) -> Tensor:
        (scale,) = net.layer(name, (1024,), scale=10.0)
        return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt() * scale[:, None, None]

    image_mean = normed(y.mean((2, 3), keepdim=True), "pool6_norm")
    score = net.conv(normed(y, "fc7_norm"), "fc8_voc12", 21, 1)
    score = score + net.conv(image_mean, "fc8_voc12_pool6", 21, 1)
    expected = F.interpolate(score, (57, 65), mode="bilinear", align_corners=True)
    read, model = imported(net.file(tmp_path / "parsenet.caffemodel"))
    assert not read.family.confirmed
    assert_equal(model, x, expected)


# U-Net


@pytest.mark.slow
@torch.no_grad()
def test_unet(tmp_path: Path) -> None:
    net = Caffe()
    x = y = image(188, 204, 1)
    skips = []
    for level in range(5):
        y = pool(y, 2, 2) if level else y
        y = net.conv(y, f"conv_d{level}a-b", 64 << level, 3).relu()
        y = net.conv(y, f"conv_d{level}b-c", 64 << level, 3).relu()
        skips.append(y)
    for level in (3, 2, 1, 0):
        width = 64 << level
        below = "d4c" if level == 3 else f"u{level + 1}d"
        kept = width if level else 128
        y = net.deconv(y, f"upconv_{below}_u{level}a", kept, 2, 2).relu()
        skip = skips[level]
        top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], y.shape[2:], strict=True))
        skip = skip[..., top : top + y.shape[2], left : left + y.shape[3]]
        y = net.conv(torch.cat([y, skip], 1), f"conv_u{level}b-c", width, 3).relu()
        y = net.conv(y, f"conv_u{level}c-d", width, 3).relu()
    expected = net.conv(y, "conv_u0d-score", 2, 1)
    read, model = imported(net.file(tmp_path / "phseg_v5.caffemodel"))
    assert not read.family.confirmed
    mine = model.tile(x)
    assert mine.shape == (1, 2, 4, 20)
    assert (mine - expected).abs().max() < 1e-4 * expected.abs().max()


# ImageNet trunks


def backbone_of(path: Path, kind: type[torch.nn.Module]) -> tuple[Recognised, torch.nn.Module]:
    read = read_published(path)
    assert read.published.model == ""
    state = {
        key.removeprefix("backbone."): value
        for key, value in read.state.items()
        if key.startswith("backbone.")
    }
    return read, loaded(kind(**read.published.arguments), state, path)


@pytest.mark.slow
@pytest.mark.parametrize("convolutional", [False, True])
@torch.no_grad()
def test_the_vgg_groups_classifier(tmp_path: Path, convolutional: bool) -> None:
    net = Caffe(v1=not convolutional)
    x = image(40, 56)
    expected = vgg(net, x)[-1]
    shapes = {"fc6": (8, 512, 7, 7), "fc7": (8, 8, 1, 1), "fc8": (10, 8, 1, 1)}
    for name, (outputs, inputs, high, wide) in shapes.items():
        flat = (outputs, inputs * high * wide)
        net.layer(name, shapes[name] if convolutional else flat, (outputs,))
    read, model = backbone_of(net.file(tmp_path / "vgg"), VGG)
    assert_equal(model, x, expected)
    first = torch.from_numpy(net.blobs["fc6"][0]).flatten(1)
    assert torch.equal(read.state["classifier.0.weight"], first)
    assert read.state["classifier.3.weight"].shape == (8, 8)
    assert not any(key.startswith("fc8") for key in read.state)
    assert read.published.input == "caffe"


@pytest.mark.slow
@pytest.mark.parametrize("depths", [(3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)])
@torch.no_grad()
def test_he_et_al_s_resnets(tmp_path: Path, depths: tuple[int, ...]) -> None:
    net = Caffe()
    x = image(40, 56)
    expected = msra(net, x, depths, False)
    net.layer("fc1000", (1000, 2048), (1000,))
    assert len(net.blobs["conv1"]) == (2 if depths[2] == 6 else 1)
    read, model = backbone_of(net.file(tmp_path / "resnet"), ResNet)
    names = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
    assert read.published.arguments == {"name": names[depths], "style": "caffe"}
    assert_equal(model, x, expected)


@pytest.mark.slow
@torch.no_grad()
def test_caffenet(tmp_path: Path) -> None:
    net = Caffe()
    x = image(227, 227)
    y = pool(net.conv(x, "conv1", 96, 11, 0, 4).relu(), 3, 2)
    y = pool(net.conv(lrn(y), "conv2", 256, 5, 2, group=2).relu(), 3, 2)
    y = net.conv(lrn(y), "conv3", 384, 3, 1).relu()
    y = net.conv(y, "conv4", 384, 3, 1, group=2).relu()
    expected = pool(net.conv(y, "conv5", 256, 3, 1, group=2).relu(), 3, 2)
    for name, inputs in (("fc6", 256 * 36), ("fc7", 8), ("fc8", 8)):
        net.layer(name, (8, inputs), (8,))
    read = read_published(net.file(tmp_path / "caffenet"))
    assert read.state["classifier.1.weight"].shape == (8, 256 * 36)
    assert "cannot be told apart" in read.published.notes[0]
    state = {k.removeprefix("backbone."): v for k, v in read.state.items() if "backbone" in k}
    model = loaded(AlexNet(**read.published.arguments, pad=0), state, tmp_path)
    assert_equal(model, x, expected)


@pytest.mark.slow
@torch.no_grad()
def test_googlenet(tmp_path: Path) -> None:
    net = Caffe()
    x = image(96, 80)
    y = lrn(pool(net.conv(x, "conv1/7x7_s2", 64, 7, 3, 2).relu(), 3, 2))
    y = net.conv(y, "conv2/3x3_reduce", 64, 1).relu()
    y = pool(lrn(net.conv(y, "conv2/3x3", 192, 3, 1).relu()), 3, 2)
    for module, widths in INCEPTIONS.items():
        name = f"inception_{module}/"
        y = pool(y, 3, 2) if module in ("4a", "5a") else y
        three = net.conv(y, f"{name}3x3_reduce", widths[1], 1).relu()
        five = net.conv(y, f"{name}5x5_reduce", widths[3], 1).relu()
        parts = [
            net.conv(y, f"{name}1x1", widths[0], 1),
            net.conv(three, f"{name}3x3", widths[2], 3, 1),
            net.conv(five, f"{name}5x5", widths[4], 5, 2),
            net.conv(pool(y, 3, 1, 1), f"{name}pool_proj", widths[5], 1),
        ]
        y = torch.cat(parts, 1).relu()
    for name in ("loss1/conv", "loss1/fc", "loss2/classifier", "loss3/classifier"):
        net.layer(name, (4, 4), (4,))
    _, model = backbone_of(net.file(tmp_path / "googlenet"), GoogLeNet)
    assert_equal(model, x, y)


def test_no_release_is_taken_for_another() -> None:
    """The keys of each: the first family that knows them is its own."""
    vgg16 = [f"conv{b}_{i}/0" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    residual = ["conv1/0", "bn_conv1/0", "res2a_branch2a/0", "res5a_branch2a/0"]
    releases = {
        "the authors' FCN (Caffe)": [
            [*vgg16, "fc6/0", "fc7/0", "score_fr/0", "upscore/0"],
            ["conv1/0", "conv5/0", "fc6/0", "fc7/0", "score_fr/0"],
        ],
        "the authors' DeepLab v2 (Caffe)": [
            [*residual, "fc1_voc12_c0/0"],
            [*residual, "fc1_coco/0"],
        ],
        "the authors' DeepLab on VGG (Caffe)": [
            [*vgg16, "fc6/0", "fc7/0", "fc8_voc12/0"],
            [*vgg16, "fc6_1/0", "fc7_1/0", "fc8_voc12_1/0"],
        ],
        "the authors' DeconvNet (Caffe)": [
            [*vgg16, "bn1_1/0", "fc6/0", "fc7/0", "fc6-deconv/0", "deconv5_1/0"]
        ],
        "ParseNet (Caffe)": [[*vgg16, "fc6/0", "fc7/0", "fc7_norm/0", "fc8_voc/0"]],
        "the VGG group's classifier (Caffe)": [
            [*vgg16, "fc6/0", "fc7/0", "fc8/0"],
            [*vgg16, "fc6/0", "fc7/0"],
        ],
        "He et al.'s ResNet (Caffe)": [[*residual, "fc1000/0"]],
        "BVLC's CaffeNet (Caffe)": [["conv1/0", "conv5/0", "fc6/0", "fc7/0", "fc8/0"]],
    }
    for name, files in releases.items():
        for keys in files:
            assert [f.name for f in FAMILIES if f.knows(keys)][:1] == [name], keys
