"""VGG trunks: layers against torchvision's, sizes by hand, and weights that become convolutions."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers

from segtrain.backbones.vgg import VGG, fully_convolutional
from segtrain.errors import UserError

FILES = {
    ("vgg11", "none", "imagenet"): "vgg11-8a719046.pth",
    ("vgg11", "batch", "imagenet"): "vgg11_bn-6002323d.pth",
    ("vgg16", "none", "features"): "vgg16_features-amdegroot-88682ab5.pth",
}


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return VGG(*args, **kwargs)


def convs(net):
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize(
    ("name", "depth", "count"),
    [("vgg11", 8, 9_220_480), ("vgg13", 10, 9_404_992), ("vgg16", 13, 14_714_688)],
)
def test_trunks_have_the_depth_and_size_of_torchvisions(name, depth, count):
    net = on_meta(name)
    assert len(convs(net)) == depth
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("layout", ["plain", "largefov"])
def test_pools_have_the_channels_and_strides_they_announce_and_round_up(layout):
    net = on_meta("vgg11", layout=layout)
    assert net.channels == [64, 128, 256, 512, 512]
    assert net.strides == ([2, 4, 8, 16, 32] if layout == "plain" else [2, 4, 8, 8, 8])
    for pooled, channels, stride in zip(
        net(torch.empty(1, 3, 97, 65, device="meta")), net.channels, net.strides, strict=True
    ):
        assert pooled.shape == (1, channels, -(-97 // stride), -(-65 // stride))


def test_largefov_dilates_the_fifth_block_and_has_3x3_pools_the_last_two_of_stride_1():
    net = on_meta("vgg16", layout="largefov")
    assert [c.dilation[0] for c in convs(net)] == [1] * 10 + [2] * 3
    assert all(c.padding == c.dilation for c in convs(net))
    assert [(p.kernel_size, p.stride, p.padding) for p in net.pools] == [(3, 2, 1)] * 3 + [
        (3, 1, 1)
    ] * 2
    assert [(p.kernel_size, p.stride, p.padding) for p in on_meta("vgg16").pools] == [(2, 2, 0)] * 5


def test_pad_is_that_of_the_very_first_convolution():
    net = on_meta("vgg16", pad=100)
    assert [c.padding[0] for c in convs(net)] == [100] + [1] * 12
    # (58 + 198) / 32, (90 + 198) / 32
    assert net(torch.empty(1, 3, 58, 90, device="meta"))[4].shape[-2:] == (
        8,
        9,
    )


def test_batch_norm_follows_every_convolution():
    net = on_meta("vgg11", "batch")
    kinds = [type(layer).__name__ for block in net.blocks for layer in block]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 8


def donor(name, norm):
    """torchvision's `features` with random numbers everywhere, statistics of batch norm too."""
    torch.manual_seed(0)
    features = make_layers(cfgs["A" if name == "vgg11" else "D"], norm == "batch").eval()
    for layer in features:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.1)
    return features


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A function that puts a state dict where torch.hub looks for `file`."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return lambda file, state: torch.save(state, tmp_path / "hub/checkpoints" / file)


@pytest.mark.parametrize(
    ("name", "norm", "weights", "counted"),
    [*((*key, True) for key in FILES), ("vgg11", "batch", "imagenet", False)],
)
def test_weights_from_the_cache_compute_torchvisions_features(cache, name, norm, weights, counted):
    features = donor(name, norm)
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    state["classifier.0.weight"] = torch.full((1, 1), float("nan"))  # as in the file of features
    if not counted:  # files older than PyTorch 0.4.1
        state = {key: value for key, value in state.items() if "num_batches" not in key}
    cache(FILES[name, norm, weights], state)
    net = VGG(name, norm, weights).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = features(x)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(net(x)[4], expected)


def test_the_authors_convolutions_bring_their_own_preprocess(cache):
    cache(
        FILES["vgg16", "none", "features"],
        {f"features.{key}": value for key, value in donor("vgg16", "none").state_dict().items()},
    )
    ours = VGG("vgg16", weights="features").preprocess
    theirs = torchvision.models.VGG16_Weights.IMAGENET1K_FEATURES.transforms()
    pixels = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(list(v)).view(3, 1, 1) for v in (theirs.mean, theirs.std))
    torch.testing.assert_close(
        ours(pixels, torch.tensor([[4, 5]])), (pixels / 255 - mean) / std, rtol=0, atol=2e-3
    )
    assert on_meta("vgg16").preprocess.mean == [0.485, 0.456, 0.406]


@pytest.fixture
def classifier(cache):
    """A stored classifier of which every row differs, 200 kB on disk: row i is `vector[i : i +
    inputs]`.
    """
    torch.manual_seed(0)
    vector = torch.randn(4096 + 25088)
    state = {
        "classifier.0.weight": vector.as_strided((4096, 25088), (1, 1)),
        "classifier.0.bias": vector[:4096],
    }
    state |= {
        "classifier.3.weight": vector.as_strided((4096, 4096), (1, 1)),
        "classifier.3.bias": vector[4096:8192],
    }
    cache(FILES["vgg11", "none", "imagenet"], state)
    return state


def test_on_a_7x7_map_the_convolutional_fc6_is_the_classifiers_layer(classifier):
    fc6, _ = fully_convolutional("vgg11", "none", "imagenet", width=4)
    rows = torch.tensor([0, 1365, 2730, 4095])
    x = torch.randn(2, 512, 7, 7)  # pool5 of a 224 x 224 image
    with torch.no_grad():
        expected = F.linear(
            x.flatten(1),
            classifier["classifier.0.weight"][rows],
            classifier["classifier.0.bias"][rows],
        )
        torch.testing.assert_close(fc6(x).flatten(1), expected, rtol=1e-4, atol=1e-3)


def test_at_full_width_every_filter_of_the_classifier_is_taken_in_order(classifier):
    fc6, fc7 = fully_convolutional("vgg11", "none", "imagenet", kernel=1)
    assert torch.equal(
        fc6.weight[:, :, 0, 0], classifier["classifier.0.weight"].view(4096, 512, 7, 7)[:, :, 0, 0]
    )
    assert torch.equal(fc6.bias, classifier["classifier.0.bias"])
    assert torch.equal(fc7.weight[:, :, 0, 0], classifier["classifier.3.weight"])
    assert torch.equal(fc7.bias, classifier["classifier.3.bias"])


def test_a_3x3_kernel_takes_rows_and_columns_0_3_and_6(classifier):
    fc6, _ = fully_convolutional("vgg11", "none", "imagenet", width=2, kernel=3)
    whole = classifier["classifier.0.weight"].view(4096, 512, 7, 7)
    assert torch.equal(fc6.weight[1], whole[4095][:, ::3, ::3])


def test_new_layers_have_the_classifiers_shapes():
    with torch.device("meta"):
        fc6, fc7 = fully_convolutional()
    assert fc6.weight.shape == (4096, 512, 7, 7)
    assert fc7.weight.shape == (4096, 4096, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg61"}, "Did you mean `vgg16`"),
        ({"norm": "group"}, "norm=group"),
        ({"weights": "coco"}, "weights=coco"),
        ({"name": "vgg11", "weights": "features"}, "vgg16"),
        ({"norm": "batch", "weights": "features"}, "norm=none"),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        VGG(**arguments)
    assert "\n" not in str(caught.value)
