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
    convs = [c for c in net.stages[stage].modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)]
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
    assert rates(net, 0) == [1] * len(rates(net, 0)) and rates(net, 1) == [1] * len(rates(net, 1))
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
    """At every second position the two agree; the first 3x3 is dilated by the papers' choice: undo that here."""
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
        here, there = net(x)[2], net(torch.roll(x, 16, dims=2))[2]
    assert not torch.allclose(here[:, :, 10:20], there[:, :, 10:20])
    torch.testing.assert_close(here[:, :, 10:20], there[:, :, 11:21], rtol=1e-4, atol=1e-4)


def test_group_norm_has_32_groups_and_no_batch_norm_is_left():
    net = on_meta("resnet50", norm="group")
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 53 and {m.num_groups for m in norms} == {32}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_momentum_reaches_every_batch_norm():
    assert {m.momentum for m in on_meta("resnet18", momentum=0.05).modules() if isinstance(m, nn.BatchNorm2d)} == {0.05}


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
    assert "model.weights=null" in message and "Network is unreachable" in message


def test_a_damaged_cache_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/resnet18-f37072fd.pth").write_bytes(b"half a download")
    with pytest.raises(UserError, match="resnet18-f37072fd.pth.*delete a damaged one"):
        ResNet("resnet18", weights="imagenet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "Did you mean `resnet18`"),
        ({"name": "resnet18", "output_stride": 4}, "output_stride=4"),
        ({"name": "resnet18", "norm": "layer"}, "norm=layer"),
        ({"name": "resnet18", "weights": "coco"}, "weights=coco"),
        ({"name": "resnet18", "weights": "imagenet", "norm": "group"}, "needs norm=batch"),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        ResNet(**arguments)
