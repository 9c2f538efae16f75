"""PSPNet: the sizes of the authors' networks, the bins of its pyramid, the ablation's rows."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segtrain.errors import UserError
from segtrain.models.pspnet import PSPNet, PyramidPooling, pool_into
from segtrain.optim.optimizers import parameter_groups


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return PSPNet(*args, **kwargs)


def size(model):
    return sum(p.numel() for p in model.parameters())


def pooled(x, bins, pool="average"):
    return pool_into(pool_into(x, 2, bins, pool), 3, bins, pool)


@pytest.mark.parametrize(
    ("classes", "backbone", "training", "test"),
    [
        (21, "resnet50", 49_081_578, 46_716_373),
        (21, "resnet101", 68_073_706, 65_708_501),
        (19, "resnet50", 49_080_038, 46_715_347),
        (19, "resnet101", 68_072_166, 65_707_475),
        (150, "resnet50", 49_180_908, 46_782_550),
    ],
)
def test_parameter_counts_are_the_authors_networks(classes, backbone, training, test):
    assert size(on_meta(classes, backbone)) == training
    assert size(on_meta(classes, backbone, aux=False)) == test


def test_every_3x3_of_the_last_two_stages_is_dilated_and_no_other_convolution_is():
    model = on_meta(21, "resnet50")
    dilated = {
        n: m.dilation[0]
        for n, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.dilation[0] > 1
    }
    conv4 = {f"backbone.stages.2.{block}.conv2": 2 for block in range(6)}
    assert dilated == conv4 | {f"backbone.stages.3.{block}.conv2": 4 for block in range(3)}


@pytest.mark.parametrize(("crop", "side"), [(473, 60), (713, 90), (97, 13)])
def test_a_crop_of_8k_plus_1_makes_a_map_of_k_plus_1(crop, side):
    model = on_meta(21, "resnet18").eval()
    *_, middle, deep = model.backbone(torch.empty(1, 3, crop, crop, device="meta"))
    assert middle.shape[-2:] == deep.shape[-2:] == (side, side)


@pytest.mark.parametrize(("bins", "kernel"), [(1, 60), (2, 30), (3, 20), (6, 10)])
def test_on_the_map_of_473_pixels_the_bins_are_the_authors_kernels(bins, kernel):
    x = torch.arange(2 * 60 * 60, dtype=torch.float64).view(1, 2, 60, 60)
    means = pooled(x, bins)
    maxima = pooled(x, bins, "max")
    assert means.shape == (1, 2, bins, bins)
    for row in range(bins):
        for column in range(bins):
            window = x[
                :, :, row * kernel : (row + 1) * kernel, column * kernel : (column + 1) * kernel
            ]
            torch.testing.assert_close(means[:, :, row, column], window.mean((2, 3)))
            assert torch.equal(maxima[:, :, row, column], window.amax((2, 3)))


def test_bins_that_do_not_divide_the_map_overlap():
    x = torch.tensor([0.0, 10, 20, 30, 40]).view(1, 1, 1, 5)
    assert pool_into(x, 3, 2, "average").flatten().tolist() == [10, 30]  # 0 10 20 and 20 30 40
    assert pool_into(x, 3, 3, "max").flatten().tolist() == [10, 30, 40]  # 0 10, 10 20 30, 30 40
    assert pool_into(x, 3, 6, "average").flatten().tolist() == [0, 5, 15, 25, 35, 40]


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("height", "width"), [(5, 7), (12, 13), (3, 2), (1, 1), (65, 17)])
@pytest.mark.parametrize("pool", ["average", "max"])
def test_any_map_is_pooled_as_torch_does_with_the_same_gradient(bins, height, width, pool):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(
        2, 3, height, width, generator=generator, dtype=torch.float64, requires_grad=True
    )
    reference = F.adaptive_avg_pool2d if pool == "average" else F.adaptive_max_pool2d
    mine = pooled(x, bins, pool)
    theirs = reference(x, bins)
    torch.testing.assert_close(mine, theirs)
    g = torch.randn(theirs.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(mine, x, g), torch.autograd.grad(theirs, x, g))


@pytest.mark.parametrize(("height", "width"), [(12, 12), (7, 10)])
def test_the_pyramid_is_pool_reduce_spread_and_join(height, width):
    torch.manual_seed(0)
    pyramid = PyramidPooling(8, [1, 2, 3, 6], "average", reduce=True)
    for _ in range(3):
        pyramid(torch.randn(4, 8, height, width))  # statistics of its batch norms
    pyramid.eval()
    x = torch.randn(2, 8, height, width)
    expected = [x]
    for bins, (conv, norm, _) in zip([1, 2, 3, 6], pyramid.reduce, strict=True):
        assert conv.weight.shape == (2, 8, 1, 1)
        assert conv.bias is None
        branch = norm(conv(F.adaptive_avg_pool2d(x, bins))).relu()
        expected.append(F.interpolate(branch, (height, width), mode="bilinear", align_corners=True))
    torch.testing.assert_close(pyramid(x), torch.cat(expected, 1))
    assert pyramid.channels == 16


def test_the_branch_of_the_1x1_bin_is_the_same_everywhere():
    pyramid = PyramidPooling(4, [1], "average", reduce=True).eval()
    branch = pyramid(torch.randn(1, 4, 5, 7))[:, 4:]
    torch.testing.assert_close(branch, branch[:, :, :1, :1].expand_as(branch))
    assert branch.std((2, 3)).max() < 1e-6
    assert branch.abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "width", "tensors"),
    [
        ({}, 2048 + 4 * 512, 4 * 3),
        ({"bins": [1]}, 2048 + 2048, 3),
        ({"reduce": False}, 2048 + 4 * 2048, 0),
        ({"bins": [1], "reduce": False}, 2048 + 2048, 0),
        ({"bins": []}, 2048, 0),
        ({"bins": None}, 2048, 0),
    ],
)
def test_the_rows_of_the_ablation(arguments, width, tensors):
    model = on_meta(150, "resnet50", **arguments)
    assert model.fuse[0][0].weight.shape == (512, width, 3, 3)
    assert len(list(model.pyramid.parameters())) == tensors
    assert model.eval()(torch.empty(1, 3, 65, 97, device="meta"))["logits"].shape == (
        1,
        150,
        65,
        97,
    )


def test_average_and_maximum_have_the_same_weights_and_another_result():
    torch.manual_seed(0)
    average = PSPNet(5, "resnet18").eval()
    maximum = PSPNet(5, "resnet18", pool="max").eval()
    maximum.load_state_dict(average.state_dict())
    x = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        assert not torch.allclose(average(x)["logits"], maximum(x)["logits"])


def test_both_outputs_align_corners():
    torch.manual_seed(0)
    model = PSPNet(5, "resnet18", norm="group")
    x = torch.randn(1, 3, 33, 49)
    small = []
    for layer in (model.classifier, model.aux):
        layer.register_forward_hook(lambda module, inputs, output: small.append(output))
    with torch.no_grad():
        output = model(x)
    for scores, logits in zip(small, (output["logits"], output["aux"]), strict=True):
        assert scores.shape == (1, 5, 5, 7)  # 8k + 1 pixels: every feature lies on a pixel
        torch.testing.assert_close(logits[..., ::8, ::8], scores, rtol=1e-4, atol=1e-5)


def test_the_auxiliary_output_exists_in_training_only():
    model = on_meta(5, "resnet18")
    x = torch.empty(2, 3, 33, 49, device="meta")
    assert {k: v.shape for k, v in model(x).items()} == {
        "logits": (2, 5, 33, 49),
        "aux": (2, 5, 33, 49),
    }
    assert list(model.eval()(x)) == ["logits"]
    assert list(on_meta(5, "resnet18", aux=False)(x)) == ["logits"]
    assert on_meta(5, "resnet50").aux[0][0].weight.shape == (256, 1024, 3, 3)  # it reads conv4


@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        ({}, 2),
        ({"norm": "group"}, 1),
        ({"norm": "frozen"}, 1),
        ({"bins": [2, 3, 6]}, 1),
        ({"bins": []}, 1),
        ({"reduce": False}, 1),
    ],
)
def test_the_1x1_bin_needs_two_images_to_train_with_batch_norm(arguments, least):
    model = on_meta(5, "resnet18", **arguments)
    assert model.min_train_batch == least
    x = torch.empty(1, 3, 33, 33, device="meta")
    if least == 2:
        with pytest.raises(
            UserError,
            match=r"the 1x1 bin .* batch_size to at least 2 per process, or model\.norm=group",
        ):
            model(x)
        assert nn.SyncBatchNorm.convert_sync_batchnorm(model).min_train_batch == 1
    else:
        assert model(x)["logits"].shape == (1, 5, 33, 33)
    assert model.eval()(x)["logits"].shape == (1, 5, 33, 33)


def test_ten_times_the_rate_is_for_pyramid_fusion_classifier_and_auxiliary_head():
    model = on_meta(5, "resnet18")
    fast = {
        id(p)
        for g in parameter_groups(model, 0.01, 1e-4, head_factor=10)
        if g["lr"] > 0.09
        for p in g["params"]
    }
    slow = {id(p) for p in model.backbone_parameters()}
    assert not fast & slow
    assert len(fast | slow) == len(list(model.parameters()))
    names = {n.split(".")[0] for n, p in model.named_parameters() if id(p) in fast}
    assert names == {"pyramid", "fuse", "classifier", "aux"}


def test_momentum_reaches_every_batch_norm():
    norms = [
        m for m in on_meta(5, "resnet18", momentum=0.05).modules() if isinstance(m, nn.BatchNorm2d)
    ]
    # trunk (20, a deep stem's 2 and its shortcut), pyramid, fuse, aux
    assert len(norms) == 23 + 4 + 1 + 1
    assert {m.momentum for m in norms} == {0.05}


def test_new_layers_start_as_he_proposed_and_a_fresh_model_is_undecided():
    torch.manual_seed(0)
    model = PSPNet(11, "resnet18", "torchvision")
    assert abs(model.fuse[0][0].weight.std().item() - (2 / (1024 * 9)) ** 0.5) < 1e-4
    assert abs(model.pyramid.reduce[0][0].weight.std().item() - (2 / 512) ** 0.5) < 1e-3
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]
    output = model(torch.randn(2, 3, 33, 33))
    for logits in output.values():
        loss = F.cross_entropy(logits, torch.randint(0, 11, (2, 33, 33)))
        assert abs(loss.item() - 2.398) < 0.2  # ln 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"weights": "imagenet"},
            r"do not fit stem=deep: set model\.stem=torchvision, or model\.weights=null",
        ),
        ({"bins": [0, 2]}, r"bins=\[0, 2\]"),
        ({"pool": "mean"}, "pool=mean is unknown. Known: average, max"),
        ({"norm": "layer"}, "norm=layer"),
    ],
)
def test_what_is_not_offered_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        on_meta(5, "resnet18", **arguments)


def test_dropout_drops_channels_and_new_layers_begin_as_torch_makes_them_where_asked():
    """A whole channel is 0 or 1 / 0.9; torch's weights are uniform up to 1 / sqrt(fan-in)."""
    torch.manual_seed(0)
    net = PSPNet(3, "resnet18", "torchvision", dropout="channel", head_init="torch")
    for dropout in (net.fuse[1], net.aux[1]):
        dropped = dropout(torch.ones(2, 400, 4, 4))
        assert (dropped == dropped[:, :, :1, :1]).all()
        assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.9])
        assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=0.04)
    for conv in (net.fuse[0][0], net.classifier, net.aux[0][0], net.aux[2]):
        bound = conv.weight[0].numel() ** -0.5
        assert conv.weight.abs().max().item() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_he_init_takes_in_the_classifiers():
    net = PSPNet(21, "resnet18", "torchvision", head_init="he")
    for conv in (net.classifier, net.aux[2]):
        assert conv.weight.std().item() == pytest.approx((2 / conv.in_channels) ** 0.5, rel=0.1)
        assert (conv.bias == 0).all()
