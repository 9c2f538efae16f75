"""FCN: published sizes, crops of the authors' release, symmetry to the pixel, bilinear kernels."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from segtrain.backbones import alexnet
from segtrain.backbones.alexnet import AlexNet
from segtrain.backbones.googlenet import GoogLeNet
from segtrain.errors import UserError
from segtrain.models.fcn import (
    FCN,
    LEAST_PADDING,
    Bilinear,
    DeconvolutionHead,
    DilatedHead,
    alignment,
    bilinear_kernel,
)

ALEX = ("alexnet", "alexnet_torchvision")
GOOGLE = ("googlenet", "googlenet_torchvision")


def on_meta(*args, cls=FCN, **kwargs):
    with torch.device("meta"):
        return cls(*args, **kwargs)


def small(backbone="vgg11", stride=8, norm="batch", **arguments):
    """A model that decides: its scores have weights.

    Batch norm keeps what it computes far from 0.
    """
    torch.manual_seed(0)
    model = FCN(3, backbone, None, stride, norm, width=8, **arguments).eval()
    for conv in (model.head.score_fr, *model.head.score.values()):
        nn.init.normal_(conv.weight, std=0.1)
    return model


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("classes", "backbone", "stride", "expected"),
    [
        (21, "vgg16", 32, 134_346_581),
        (21, "vgg16", 16, 134_357_354),
        (21, "vgg16", 8, 134_362_751),
        (60, "vgg16", 32, 134_506_364),
        (60, "vgg16", 16, 134_537_144),
        (60, "vgg16", 8, 134_552_564),
        (21, "alexnet", 32, 56_954_261),
        # "6 M"; Caffe's GoogLeNet has 6,998,552, of them 1,025,000 in its classifier
        (
            21,
            "googlenet",
            32,
            5_995_077,
        ),
        (21, "googlenet_torchvision", 32, 6_624_904 - 1_025_000 + 21 * 1025),
    ],
)
def test_parameter_counts_are_the_papers(classes, backbone, stride, expected):
    assert (
        count(
            on_meta(classes, backbone, None, stride, "batch" if backbone == GOOGLE[1] else "none")
        )
        == expected
    )


@pytest.mark.parametrize(
    ("backbone", "aux", "expected"),
    [
        ("resnet50", False, 32_957_013),
        ("resnet50", True, 35_322_218),
        ("resnet101", False, 51_949_141),
        ("resnet101", True, 54_314_346),
    ],
)
def test_parameter_counts_are_torchvisions(backbone, aux, expected):
    assert count(on_meta(21, backbone, aux=aux)) == expected


# Alignment


@pytest.mark.parametrize(
    ("backbone", "stride", "crops", "crop", "kernel"),
    [
        ("vgg16", 32, [], 19, 64),
        ("vgg16", 16, [5], 27, 32),
        ("vgg16", 8, [5, 9], 31, 16),
        ("vgg11", 8, [5, 9], 31, 16),
        ("alexnet", 32, [], 18, 63),
        ("alexnet_torchvision", 32, [], 18, 63),
    ],
)
def test_derived_crops_are_those_of_the_authors_release(backbone, stride, crops, crop, kernel):
    model = on_meta(21, backbone, stride=stride)
    head = model.head
    assert (head.skip_crops, head.output_crop, head.upscore.weight.shape[-1]) == (
        crops,
        crop,
        kernel,
    )
    assert alignment(model.backbone, head.fc, stride) == (crops, crop, kernel)


@pytest.mark.parametrize(
    ("backbone", "stride", "pad", "width"),
    [
        # The middles of the first and the last score are as far from the border where (W - 1 - 2
        # first) is 32 n; first is 12.5 on a VGG, 13 on an AlexNet, at padding 3 30 and 22 on the
        # two GoogLeNets, and falls with the padding.
        ("vgg11", 32, 100, 90),
        ("vgg11", 16, 100, 90),
        ("vgg11", 8, 100, 90),
        ("vgg11", 8, 81, 64),  # first is 12.5 + 19
        ("alexnet", 32, 100, 91),
        ("alexnet_torchvision", 32, 100, 91),
        ("googlenet", 32, 100, 91),
        ("googlenet", 32, 3, 93),
        ("googlenet_torchvision", 32, 3, 77),
    ],
)
def test_a_mirrored_image_has_mirrored_scores_to_the_pixel(backbone, stride, pad, width):
    """Of a network with mirrored kernels: then only a crop that is off by one can tell left from
    right.
    """
    model = small(backbone, stride, pad=pad)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = (layer.weight.data + layer.weight.data.flip(-1)) / 2
    x = torch.randn(1, 3, 61, width)
    with torch.no_grad():
        here = model(x)["logits"]
        there = model(x.flip(-1))["logits"].flip(-1)
    scale = here.abs().max()
    assert scale > 1e-3
    assert (here[..., 1:] - here[..., :-1]).abs().max() > 1e-3 * scale
    torch.testing.assert_close(here / scale, there / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("backbone", "stride"), [("vgg11", 8), ("alexnet", 32)])
def test_an_image_moved_by_32_pixels_has_its_scores_moved_by_32_pixels(backbone, stride):
    model = small(backbone, stride)
    x = torch.zeros(1, 3, 40, 160)
    x[..., 30:60] = torch.randn(1, 3, 40, 30)
    with torch.no_grad():
        here = model(x)["logits"]
        there = model(x.roll(32, -1))["logits"]
    # Left of the first score's middle, logits fade to 0.
    here = here[..., 32:-32]
    there = there[..., 64:]
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4 * here.abs().max().item())
    assert here.abs().max() > 1e-3


# One trunk of each family in the quick tests: the authors' own.
@pytest.mark.parametrize(
    "backbone",
    ["vgg11", ALEX[0], GOOGLE[0]]
    + [pytest.param(name, marks=pytest.mark.slow) for name in (*ALEX[1:], *GOOGLE[1:])],
)
@pytest.mark.parametrize("pad", [100, "least"])
def test_scores_cover_images_of_every_size(backbone, pad):
    pad = (
        next(v for k, v in LEAST_PADDING.items() if backbone.startswith(k))
        if pad == "least"
        else pad
    )
    for stride in (32, 16, 8) if backbone == "vgg11" else (32,):
        model = on_meta(2, backbone, None, stride, "batch", pad=pad, width=4).eval()
        # with the widths, every remainder by 32
        for height in [*range(33, 49), *([1] if pad == 100 else [])]:
            x = torch.empty(1, 3, height, height + 16, device="meta")
            assert model(x)["logits"].shape == (1, 2, height, height + 16), stride


def test_scores_of_odd_images_are_numbers_of_the_images_size():
    for height, width in ((33, 51), (1, 1)):
        logits = small()(torch.randn(2, 3, height, width))["logits"]
        assert logits.shape == (2, 3, height, width)
        assert logits.isfinite().all()
        assert logits.abs().max() > 0


# Upsampling


def test_the_bilinear_kernel_of_factor_2_by_hand():
    assert (16 * bilinear_kernel(4)).tolist() == [
        [1, 3, 3, 1],
        [3, 9, 9, 3],
        [3, 9, 9, 3],
        [1, 3, 3, 1],
    ]
    assert (4 * bilinear_kernel(3)).tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


@pytest.mark.parametrize(("size", "total"), [(64, 1024), (63, 1024), (32, 256), (16, 64), (4, 4)])
def test_bilinear_kernels_sum_to_the_square_of_their_factor_and_follow_the_authors_formula(
    size, total
):
    kernel = bilinear_kernel(size)
    assert kernel.sum().item() == pytest.approx(total)
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    for y, x in ((0, 0), (size // 2, 1), (size - 1, size // 3)):
        assert kernel[y, x].item() == pytest.approx(
            (1 - abs(y - centre) / factor) * (1 - abs(x - centre) / factor)
        )


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (16, 8), (32, 16), (64, 32), (63, 32)])
def test_a_constant_map_stays_constant_and_a_slope_a_slope_away_from_the_border(kernel, stride):
    up = Bilinear(2, kernel, stride, learned=False)
    constant = up(torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5))
    assert constant.shape == (1, 2, 3 * stride + kernel, 4 * stride + kernel)
    inner = constant[..., stride:-stride, stride:-stride]
    torch.testing.assert_close(inner, torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand_as(inner))
    slope = up(torch.arange(5.0).expand(1, 2, 5, 5))[0, 0, 2 * stride, stride:-stride]
    torch.testing.assert_close(
        slope.diff(), torch.full_like(slope[1:], 1 / stride), rtol=0, atol=1e-5
    )


def test_upsampling_is_fixed_unless_it_learns_and_starts_bilinear():
    names = {}
    outputs = []
    for learned in ("none", "intermediate", "all"):
        model = small(learned_upsampling=learned)
        names[learned] = [n for n, _ in model.named_parameters() if n.startswith("head.up")]
        assert [k for k in model.state_dict() if k.startswith("head.up")] == names[learned]
        with torch.no_grad():
            outputs.append(model(torch.ones(1, 3, 9, 9))["logits"])
    inner = ["head.up.pool4.weight", "head.up.pool3.weight"]
    assert names == {"none": [], "intermediate": inner, "all": [*inner, "head.upscore.weight"]}
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


# Starting points


@pytest.mark.parametrize(("backbone", "stride"), [("vgg11", 8), ("googlenet", 32)])
def test_the_first_loss_is_exactly_ln_21(backbone, stride):
    model = FCN(21, backbone, None, stride, "batch", width=8)
    logits = model(torch.randn(2, 3, 20, 30))["logits"]
    assert not logits.any()
    assert F.cross_entropy(logits, torch.randint(0, 21, (2, 20, 30))).item() == pytest.approx(
        math.log(21), abs=1e-6
    )


def test_each_stage_takes_every_weight_of_the_stage_before():
    stages = [on_meta(21, stride=stride) for stride in (32, 16, 8)]
    for before, after, new in zip(stages, stages[1:], ("pool4", "pool3"), strict=False):
        match = after.load_state_dict(before.state_dict(), strict=False, assign=True)
        assert match.unexpected_keys == []
        assert match.missing_keys == [f"head.score.{new}.weight", f"head.score.{new}.bias"]


def test_a_16s_model_begins_as_its_32s_model_upsampled_in_two_steps():
    coarse = small(stride=32)
    fine = FCN(3, "vgg11", None, 16, "batch", width=8).eval()
    fine.load_state_dict(coarse.state_dict(), strict=False)
    x = torch.randn(1, 3, 40, 60)
    with torch.no_grad():
        score = coarse.head.score_fr(coarse.head.fc(coarse.backbone(x)[-1]))
        twice = F.conv_transpose2d(score, bilinear_kernel(4).repeat(3, 1, 1, 1), stride=2, groups=3)
        full = F.conv_transpose2d(
            twice, bilinear_kernel(32).repeat(3, 1, 1, 1), stride=16, groups=3
        )
        torch.testing.assert_close(fine(x)["logits"], full[..., 27:67, 27:87])


def test_at_once_scales_pool4_by_a_hundredth_and_pool3_by_a_ten_thousandth():
    once = small(at_once=True)
    plain = small()
    x = torch.randn(1, 3, 20, 30)
    with torch.no_grad():
        assert not torch.allclose(once(x)["logits"], plain(x)["logits"], rtol=1e-3)
        for name, factor in (("pool4", 0.01), ("pool3", 0.0001)):
            plain.head.score[name].weight.mul_(factor)
        torch.testing.assert_close(once(x)["logits"], plain(x)["logits"], rtol=1e-4, atol=1e-5)


def test_batch_norm_stands_behind_every_convolution_up_to_fc7():
    def norms(backbone):
        layers = list(on_meta(2, backbone, None, 32, "batch").modules())
        assert not any(isinstance(layer, nn.LocalResponseNorm) for layer in layers)
        return sum(isinstance(layer, nn.BatchNorm2d) for layer in layers)

    assert [norms(name) for name in ("vgg11", "vgg16", "alexnet", "googlenet")] == [
        8 + 2,
        13 + 2,
        5 + 2,
        3 + 9 * 6,
    ]


def test_backbone_parameters_are_what_imagenet_trained():
    model = on_meta(5, learned_upsampling="all")
    backbone = {id(p) for p in model.backbone_parameters()}
    head = {n.split(".")[1] for n, p in model.named_parameters() if id(p) not in backbone}
    assert len(backbone) == 2 * (13 + 2)
    assert head == {"score_fr", "score", "up", "upscore"}


def test_dropout_of_a_half_follows_both_wide_layers():
    layers = [(type(layer).__name__, getattr(layer, "p", None)) for layer in on_meta(5).head.fc]
    assert layers == [("Conv2d", None), ("ReLU", None), ("Dropout", 0.5)] * 2


# Trunks


def test_the_papers_alexnet_has_groups_and_normalises_responses_behind_its_first_two_pools():
    layers = on_meta(cls=AlexNet).layers
    shapes = [tuple(c.weight.shape) for c in layers if isinstance(c, nn.Conv2d)]
    assert shapes == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
    ]
    kinds = [type(layer).__name__ for layer in layers if not isinstance(layer, nn.ReLU)]
    block = ["Conv2d", "MaxPool2d", "LocalResponseNorm"]
    assert kinds == [*block, *block, "Conv2d", "Conv2d", "Conv2d", "MaxPool2d"]
    # Caffe's formula: x / (1 + alpha / 5 * sum of five squares) ** beta; five times 100^2 makes
    # that 2 ** 0.75.
    middle = layers[3](torch.full((1, 5, 1, 1), 100.0))[0, 2]
    assert middle.item() == pytest.approx(100 / 2**0.75)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A function that puts a state dict where torch.hub looks for `file`."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return lambda file, state: torch.save(state, tmp_path / "hub/checkpoints" / file)


def test_alexnets_weights_are_torchvisions(cache):
    torch.manual_seed(0)
    features = on_meta(cls=torchvision.models.AlexNet).features.to_empty(device="cpu")
    for p in features.parameters():
        nn.init.normal_(p, std=0.05)
    vector = torch.randn(4096 + 9216)
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    state |= {
        "classifier.1.weight": vector.as_strided((4096, 9216), (1, 1)),
        "classifier.1.bias": vector[:4096],
    }
    state |= {
        "classifier.4.weight": vector.as_strided((4096, 4096), (1, 1)),
        "classifier.4.bias": vector[4096:8192],
    }
    cache("alexnet-owt-7be5be79.pth", state)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = features(x)
        (found,) = AlexNet("torchvision", weights="imagenet")(x)
        assert expected.shape == (1, 256, 6, 6)
        torch.testing.assert_close(found, expected)
        # filters 0, 1365, 2730 and 4095
        fc6, fc7 = alexnet.fully_convolutional("imagenet", width=4)
        rows = torch.tensor([0, 1365, 2730, 4095])
        wide = F.linear(
            expected.flatten(1),
            state["classifier.1.weight"][rows],
            state["classifier.1.bias"][rows],
        )
        torch.testing.assert_close(fc6(expected).flatten(1), wide, rtol=1e-4, atol=1e-3)
        assert torch.equal(fc7.weight[:, :, 0, 0], state["classifier.4.weight"][rows][:, rows])
        assert torch.equal(fc7.bias, state["classifier.4.bias"][rows])


def test_googlenets_weights_and_range_are_torchvisions(cache):
    torch.manual_seed(0)
    theirs = torchvision.models.GoogLeNet(init_weights=False, transform_input=True).eval()
    for layer in theirs.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.1)
    cache("googlenet-1378be20.pth", theirs.state_dict())
    ours = GoogLeNet("torchvision", "batch", "imagenet").eval()
    pixels = torch.randint(0, 256, (1, 3, 65, 95), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = theirs((pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        found = theirs.fc(ours(ours.preprocess(pixels, torch.tensor([[65, 95]])))[0].mean((2, 3)))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_the_papers_googlenet_has_5x5_kernels_where_torchvisions_has_3x3():
    def kernels(layout):
        net = on_meta(layout, "batch", cls=GoogLeNet)
        return sorted({c.kernel_size[0] for c in net.modules() if isinstance(c, nn.Conv2d)})

    assert kernels("paper") == [1, 3, 5, 7]
    assert kernels("torchvision") == [1, 3, 7]


# torchvision's network


def from_torchvision(state):
    """torchvision's names -> ours."""
    places = {"0": "0.0", "1": "0.1", "4": "2"}  # convolution, norm, scores of a head
    renamed = {}
    for key, value in state.items():
        part, layer, rest = key.split(".", 2)
        if part == "backbone":
            first = {"conv1": "stem.0", "bn1": "stem.1"}
            layer = first[layer] if layer in first else f"stages.{int(layer[5:]) - 1}"
        else:
            part = {"classifier": "classifier", "aux_classifier": "aux"}[part]
            layer = places[layer]
        part = part if part == "backbone" else f"head.{part}"
        renamed[f"{part}.{layer}.{rest}"] = value
    return renamed


@pytest.fixture(scope="module", params=["resnet50", "resnet101"])
def pair(request):
    torch.manual_seed(0)
    build = getattr(torchvision.models.segmentation, f"fcn_{request.param}")
    theirs = build(weights_backbone=None, num_classes=5, aux_loss=True)
    ours = FCN(5, request.param, aux=True)
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    for layer in (*theirs.modules(), *ours.modules()):
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return theirs, ours


def test_the_resnet_fcn_computes_torchvisions_logits(pair):
    theirs, ours = pair
    x = torch.randn(2, 3, 65, 47)
    with torch.no_grad():
        expected = theirs.eval()(x)
        found = ours.eval()(x)
        assert list(found) == ["logits"]
        assert expected["out"].abs().max() > 0.01
        torch.testing.assert_close(found["logits"], expected["out"], rtol=0, atol=1e-4)
        expected = theirs.train()(x)
        found = ours.train()(x)
    torch.testing.assert_close(found["logits"], expected["out"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["aux"], expected["aux"], rtol=0, atol=1e-4)


def test_a_head_on_resnet_is_a_quarter_as_wide_as_what_it_reads():
    model = on_meta(5, "resnet18", aux=True)
    assert model.head.classifier[0][0].weight.shape == (128, 512, 3, 3)
    assert model.head.aux[0][0].weight.shape == (64, 256, 3, 3)
    x = torch.empty(1, 3, 33, 51, device="meta")
    assert {k: v.shape for k, v in model(x).items()} == {
        "logits": (1, 5, 33, 51),
        "aux": (1, 5, 33, 51),
    }


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "vgg61"}, "Did you mean `vgg16`"),
        ({"stride": 4}, "stride=4"),
        ({"backbone": "alexnet"}, "stride=8: alexnet has no skips, use stride=32"),
        ({"pad": 1}, "pad=1.*from pad=81 on"),
        ({"backbone": "alexnet", "stride": 32, "pad": 84}, "from pad=85 on"),
        ({"learned_upsampling": "some"}, "learned_upsampling=some"),
        ({"stride": 32, "at_once": True}, "at_once=true"),
        ({"norm": "group"}, "norm=group"),
        ({"backbone": "vgg11", "weights": "features"}, "vgg16"),
        (
            {"backbone": "alexnet", "stride": 32, "weights": "imagenet"},
            "backbone=alexnet_torchvision",
        ),
        ({"backbone": "alexnet", "stride": 32, "weights": "features"}, "vgg16 only"),
        (
            {
                "backbone": "alexnet_torchvision",
                "stride": 32,
                "weights": "imagenet",
                "norm": "batch",
            },
            "norm=none",
        ),
        (
            {"backbone": "googlenet", "stride": 32, "weights": "imagenet"},
            "backbone=googlenet_torchvision",
        ),
        (
            {"backbone": "googlenet_torchvision", "stride": 32, "weights": "imagenet"},
            "use norm=batch",
        ),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        on_meta(21, **arguments)
    assert "\n" not in str(caught.value)


def test_the_head_and_norm_follow_the_backbone():
    assert isinstance(on_meta(5, "resnet18").head, DilatedHead)
    assert isinstance(on_meta(5, "vgg11").head, DeconvolutionHead)
    assert any(isinstance(m, nn.BatchNorm2d) for m in on_meta(5, "resnet18").modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in on_meta(5, "vgg11").modules())
    assert count(on_meta(21, "resnet50", "torchvision")) == 32_957_013


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        ({"backbone": "vgg16", "head": "torchvision"}, "head=fcn, or backbone=resnet50"),
        ({"backbone": "resnet50", "head": "fcn"}, "use head=torchvision"),
        ({"backbone": "resnet50", "norm": "none"}, "norm batch and group"),
        ({"backbone": "resnet50", "weights": "features"}, "weights imagenet and null"),
        ({"backbone": "vgg16", "aux": True}, "no auxiliary head"),
        ({"backbone": "resnet50", "stride": 16}, "head=torchvision has stride 8"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_in_one_line(arguments, way_out):
    with pytest.raises(UserError, match=way_out):
        FCN(5, **arguments)
