"""ResNet trunks: strides and dilations, parity with torchvision, norms, groups and weights."""

import urllib.error

import pytest
import torch
import torchvision
from torch import nn

from segtrain.backbones.resnet import ResNet
from segtrain.errors import UserError


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return ResNet(*args, **kwargs)


def rates(net, stage):
    """Rate of every 3x3 of a stage, in order."""
    convs = [
        c
        for c in net.stages[stage].modules()
        if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)
    ]
    assert all(c.padding == c.dilation for c in convs)
    return [c.dilation[0] for c in convs]


@pytest.mark.parametrize(
    ("name", "output_stride", "conv4", "conv5"),
    [
        ("resnet18", 32, [1] * 4, [1] * 4),
        ("resnet18", 16, [1] * 4, [2] * 4),  # a basic block has two 3x3, both dilated
        ("resnet18", 8, [2] * 4, [4] * 4),
        ("resnet50", 32, [1] * 6, [1] * 3),
        ("resnet50", 16, [1] * 6, [2] * 3),
        ("resnet50", 8, [2] * 6, [4] * 3),  # pattern P / T: the first block is dilated too
    ],
)
def test_every_3x3_of_a_stage_that_lost_its_stride_is_dilated(name, output_stride, conv4, conv5):
    net = on_meta(name, output_stride)
    assert rates(net, 0) == [1] * len(rates(net, 0))
    assert rates(net, 1) == [1] * len(rates(net, 1))
    assert rates(net, 2) == conv4
    assert rates(net, 3) == conv5


@pytest.mark.parametrize(
    ("name", "output_stride", "expected"),
    [
        ("resnet101", 16, [2, 4, 8]),
        ("resnet101", 8, [4, 8, 16]),
        ("resnet50", 32, [1, 2, 4]),
        ("resnet18", 16, [2, 2, 4, 4]),  # two blocks use the first two entries
    ],
)
def test_multi_grid_multiplies_the_last_stages_rates(name, output_stride, expected):
    assert rates(on_meta(name, output_stride, multi_grid=[1, 2, 4]), 3) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("multi_grid", [None, [1, 2, 4]])
def test_feature_maps_have_the_channels_and_strides_they_announce(name, output_stride, multi_grid):
    net = on_meta(name, output_stride, multi_grid)
    features = net(torch.empty(1, 3, 97, 65, device="meta"))
    wide = [256, 512, 1024, 2048] if name == "resnet50" else [64, 128, 256, 512]
    assert net.channels == wide
    assert net.strides == [4, 8, min(16, output_stride), output_stride]
    for feature, channels, stride in zip(features, net.channels, net.strides, strict=True):
        assert feature.shape == (1, channels, -(-97 // stride), -(-65 // stride))


def test_undilated_features_equal_torchvisions():
    torch.manual_seed(0)
    ours = ResNet("resnet18").eval()
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pooled = ours(x)[3].mean((2, 3))
        torch.testing.assert_close(theirs.fc(pooled), theirs(x))


def test_but_for_its_first_3x3_a_dilated_stage_computes_the_strided_stages_features_densely():
    """At every second position the two agree.

    The first 3x3 is dilated by the papers' choice: undo that here.
    """
    torch.manual_seed(0)
    strided = ResNet("resnet18", 32).eval()
    dense = ResNet("resnet18", 16).eval()
    dense.load_state_dict(strided.state_dict())
    dense.stages[3][0].conv1.dilation = dense.stages[3][0].conv1.padding = (1, 1)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        torch.testing.assert_close(dense(x)[3][:, :, ::2, ::2], strided(x)[3], rtol=1e-4, atol=1e-4)


def test_an_input_shifted_by_the_stride_shifts_the_features_by_one():
    torch.manual_seed(0)
    net = ResNet("resnet18", 16).eval()
    x = torch.zeros(1, 3, 512, 16)
    x[:, :, 208:272] = torch.randn(1, 3, 64, 16)
    with torch.no_grad():
        here = net(x)[2]
        there = net(torch.roll(x, 16, dims=2))[2]
    assert not torch.allclose(here[:, :, 10:20], there[:, :, 10:20])
    torch.testing.assert_close(here[:, :, 10:20], there[:, :, 11:21], rtol=1e-4, atol=1e-4)


def test_group_norm_has_32_groups_and_no_batch_norm_is_left():
    net = on_meta("resnet50", norm="group")
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 53
    assert {m.num_groups for m in norms} == {32}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_momentum_reaches_every_batch_norm():
    assert {
        m.momentum
        for m in on_meta("resnet18", momentum=0.05).modules()
        if isinstance(m, nn.BatchNorm2d)
    } == {0.05}


def test_imagenet_weights_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(1)
    donor = torchvision.models.resnet18().state_dict()
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(donor, tmp_path / "hub/checkpoints/resnet18-f37072fd.pth")
    net = ResNet("resnet18", 8, weights="imagenet")
    assert torch.equal(net.stages[3][1].conv2.weight, donor["layer4.1.conv2.weight"])
    assert net.preprocess.mean == [0.485, 0.456, 0.406]


def test_a_failed_download_names_url_file_and_way_out(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as caught:
        ResNet("resnet18", weights="imagenet")
    message = str(caught.value)
    assert "\n" not in message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(tmp_path / "hub/checkpoints/resnet18-f37072fd.pth") in message
    assert "model.weights=null" in message
    assert "Network is unreachable" in message


def test_a_damaged_cache_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/resnet18-f37072fd.pth").write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth.*delete a damaged one"):
        ResNet("resnet18", weights="imagenet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "Did you mean `resnet18`"),
        ({"name": "resnet18", "output_stride": 4}, "output_stride=4"),
        ({"name": "resnet18", "norm": "layer"}, "norm=layer"),
        ({"name": "resnet18", "weights": "coco"}, "weights=coco"),
        ({"name": "resnet18", "weights": "imagenet", "norm": "group"}, "needs norm=batch"),
        ({"name": "resnet18", "weights": "imagenet", "norm": "none"}, "needs norm=batch"),
        (
            {"name": "resnet50", "weights": "imagenet", "style": "deep"},
            "do not fit a deep ResNet: use style=torchvision",
        ),
        (
            {"name": "resnet50", "weights": "imagenet", "style": "caffe"},
            "do not fit a caffe ResNet.*train.init=FILE",
        ),
        ({"name": "resnet50", "style": "deap"}, "style=deap is unknown. Did you mean `deep`"),
        (
            {"name": "resnet50", "pattern": "delay"},
            "pattern=delay is unknown. Did you mean `delayed`",
        ),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        ResNet(**arguments)


@pytest.mark.parametrize(
    ("name", "style", "count"),
    [
        ("resnet50", "torchvision", 23_508_032),
        ("resnet101", "torchvision", 42_500_160),
        # torchvision's classifier, 60,192,808, without its last 2,049,000
        (
            "resnet152",
            "torchvision",
            58_143_808,
        ),
        ("resnet50", "caffe", 23_508_032),
        ("resnet50", "deep", 23_631_808),
        ("resnet101", "deep", 42_623_936),
        ("resnext101_32x8d", "torchvision", 86_742_336),
        ("resnext101_64x4d", "torchvision", 81_406_272),
    ],
)
def test_a_body_has_the_published_number_of_parameters(name, style, count):
    net = on_meta(name, style=style)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net.channels == [256, 512, 1024, 2048]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_deep_stem_is_three_3x3_of_64_64_and_128_channels(name):
    net = on_meta(name, style="deep")
    convs = [m for m in net.stem.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convs] == [
        (3, 64, 3, 2),
        (64, 64, 3, 1),
        (64, 128, 3, 1),
    ]
    assert [type(m) for m in net.stem.modules() if not isinstance(m, nn.Sequential)] == (
        [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3 + [nn.MaxPool2d]
    )
    block = net.stages[0][0]
    assert block.conv1.in_channels == block.downsample[0].in_channels == 128
    assert [f.shape[-2:] for f in net(torch.empty(1, 3, 97, 65, device="meta"))] == [
        (25, 17),
        (13, 9),
        (7, 5),
        (4, 3),
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_deep_stem_starts_as_he_proposed_like_the_layers_around_it(name):
    torch.manual_seed(0)
    net = ResNet(name, style="deep")
    block = net.stages[0][0]
    for conv in (
        *(m for m in net.stem.modules() if isinstance(m, nn.Conv2d)),
        block.conv1,
        block.downsample[0],
    ):
        expected = (
            2 / (conv.out_channels * conv.kernel_size[0] ** 2)
        ) ** 0.5  # by fan-out, as torchvision's
        # torch's default would be 0.3 to 2.7 times that
        assert abs(conv.weight.std().item() / expected - 1) < 0.1


def test_caffe_strides_in_the_first_1x1_and_its_pool_rounds_up():
    net = on_meta("resnet50", style="caffe")
    assert [(s[0].conv1.stride, s[0].conv2.stride) for s in net.stages[1:]] == [
        ((2, 2), (1, 1))
    ] * 3
    usual = on_meta("resnet50")
    assert [(s[0].conv1.stride, s[0].conv2.stride) for s in usual.stages[1:]] == [
        ((1, 1), (2, 2))
    ] * 3
    rows = [
        [n(torch.empty(1, 3, h, 33, device="meta"))[0].shape[2] for h in (320, 321, 322, 323)]
        for n in (net, usual)
    ]
    # by hand: 160, 161, 161, 162 after the stem's convolution
    assert rows == [
        [81, 81, 81, 82],
        [80, 81, 81, 81],
    ]
    dense = on_meta("resnet50", 8, style="caffe")(torch.empty(1, 3, 321, 321, device="meta"))
    assert [f.shape[-1] for f in dense] == [81, 41, 41, 41]


def test_msra_strides_in_the_first_1x1_and_its_pool_is_the_usual_one():
    net = on_meta("resnet50", style="msra")
    assert [(s[0].conv1.stride, s[0].conv2.stride) for s in net.stages[1:]] == [
        ((2, 2), (1, 1))
    ] * 3
    rows = [net.stem(torch.empty(1, 3, h, 9, device="meta")).shape[2] for h in (320, 321, 322, 323)]
    assert rows == [80, 81, 81, 81]  # caffe's has 81, 81, 81, 82


def test_a_caffe_stage_reads_every_second_position_only():
    torch.manual_seed(0)
    block = ResNet("resnet50", style="caffe").stages[1][0].eval()
    x = torch.randn(1, 256, 9, 8)
    with torch.no_grad():
        strided = block(x)
        block.conv1.stride = block.downsample[0].stride = (1, 1)
        torch.testing.assert_close(strided, block(x[:, :, ::2, ::2]))


def torchvisions(name, ours, delayed):
    """torchvision's trunk with our weights, and its c5."""
    net = getattr(torchvision.models, name)(replace_stride_with_dilation=delayed).eval()
    parts = [net.conv1, net.bn1]
    for mine, other in zip(
        [*ours.stem[:2], *ours.stages],
        [*parts, net.layer1, net.layer2, net.layer3, net.layer4],
        strict=True,
    ):
        other.load_state_dict(mine.state_dict())
    return nn.Sequential(*list(net.children())[:-2])


@pytest.mark.parametrize(
    ("output_stride", "delayed"),
    [(8, [False, True, True]), pytest.param(16, [False, False, True], marks=pytest.mark.slow)],
)
def test_the_delayed_pattern_is_torchvisions_and_the_uniform_one_another_network(
    output_stride, delayed
):
    torch.manual_seed(0)
    ours = ResNet("resnet50", output_stride, pattern="delayed").eval()
    theirs = torchvisions("resnet50", ours, delayed)
    x = torch.randn(1, 3, 65, 49)
    layer3, layer4 = list(theirs.children())[-2:]
    assert rates(ours, 2) == [b.conv2.dilation[0] for b in layer3]
    assert rates(ours, 3) == [b.conv2.dilation[0] for b in layer4]
    uniform = ResNet("resnet50", output_stride).eval()
    uniform.load_state_dict(ours.state_dict())  # loads without complaint
    with torch.no_grad():
        expected = theirs(x)
        assert torch.equal(ours(x)[3], expected)
        assert (uniform(x)[3] - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "output_stride", "multi_grid", "conv4", "conv5"),
    [
        ("resnet50", 32, None, [1] * 6, [1, 1, 1]),
        ("resnet50", 16, None, [1] * 6, [1, 2, 2]),
        ("resnet50", 8, None, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ("resnet18", 8, None, [1, 2, 2, 2], [2, 4, 4, 4]),
        ("resnet50", 16, [1, 2, 4], [1] * 6, [1, 4, 8]),
        ("resnet50", 8, [1, 2, 4], [1, 2, 2, 2, 2, 2], [2, 8, 16]),
        # the first: its factor, 2, at the rate before, 2
        (
            "resnet50",
            8,
            [2, 2, 2],
            [1, 2, 2, 2, 2, 2],
            [4, 8, 8],
        ),
    ],
)
def test_in_the_delayed_pattern_the_first_3x3_keeps_the_rate_before(
    name, output_stride, multi_grid, conv4, conv5
):
    net = on_meta(name, output_stride, multi_grid, pattern="delayed")
    assert (rates(net, 2), rates(net, 3)) == (conv4, conv5)


@pytest.mark.parametrize("style", ["torchvision", "deep", "caffe"])
def test_every_style_is_dilated_alike(style):
    net = on_meta("resnet50", 8, [1, 2, 4], style=style)
    assert (rates(net, 2), rates(net, 3)) == ([2] * 6, [4, 8, 16])
    strides = [c.stride for s in net.stages[2:] for c in s.modules() if isinstance(c, nn.Conv2d)]
    assert set(strides) == {(1, 1)}


def test_frozen_batch_norm_stands_in_for_every_batch_norm():
    torch.manual_seed(0)
    usual = ResNet("resnet18")
    frozen = ResNet("resnet18", norm="frozen")
    x = torch.randn(2, 3, 33, 33)
    usual.train()(x)  # moves the statistics away from 0 and 1
    frozen.load_state_dict(usual.state_dict())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    assert {n.split(".")[-1] for n, p in frozen.named_parameters() if p.requires_grad} == {"weight"}
    with torch.no_grad():
        torch.testing.assert_close(frozen.train()(x)[3], usual.eval()(x)[3], rtol=1e-4, atol=1e-5)
    assert all(
        torch.equal(b, usual.state_dict()[n]) for n, b in frozen.named_buffers() if "running" in n
    )
    trainable = sum(
        p.numel() for p in on_meta("resnet50", norm="frozen").parameters() if p.requires_grad
    )
    assert trainable == 23_508_032 - 53_120  # its affine values


def test_without_a_norm_no_layer_but_convolutions_has_weights():
    net = on_meta("resnet18", norm="none")
    assert {type(m) for m in net.modules() if list(m.parameters(recurse=False))} == {nn.Conv2d}
