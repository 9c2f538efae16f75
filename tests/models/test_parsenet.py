"""ParseNet: published sizes, the L2 normalisation by hand, early and late fusion, padding."""

import math

import pytest
import torch
from torch import nn

from segtrain.errors import UserError
from segtrain.models.parsenet import L2Norm, ParseNet, image_mean
from segtrain.optim.optimizers import parameter_groups
from segtrain.structures.samples import Batch


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return ParseNet(*args, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"fusion": "none"}, 20_505_429),
        ({"l2": "none"}, 20_526_954),  # + 1024 x 21 + 21
        ({"l2": "fixed"}, 20_526_954),
        ({}, 20_529_002),  # + 2 x 1024
        ({"fusion": "early"}, 20_528_981),  # one bias of 21 less
    ],
)
def test_parameter_counts_are_the_papers(arguments, count):
    assert sum(p.numel() for p in on_meta(21, **arguments).parameters()) == count


def test_fc6_sees_25_cells_of_8_pixels():
    model = on_meta(21)
    fc6 = model.fc[0]
    assert fc6.weight.shape == (1024, 512, 3, 3)
    assert fc6.dilation == fc6.padding == (12, 12)
    assert model.fc(model.backbone(torch.empty(1, 3, 321, 500, device="meta"))[-1]).shape == (
        1,
        1024,
        41,
        63,
    )


def test_l2_normalisation_is_per_location_over_channels():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 2)
    layer = L2Norm(4)
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([1.0, 2, 3, 4]))
    y = layer(x)
    for b in range(2):
        for i in range(3):
            for j in range(2):
                length = math.sqrt(sum(x[b, c, i, j].item() ** 2 for c in range(4)) + 1e-10)
                for c in range(4):
                    assert y[b, c, i, j].item() == pytest.approx(
                        (c + 1) * x[b, c, i, j].item() / length, rel=1e-5
                    )


def test_a_vector_3_4_at_scale_10_becomes_6_8():
    assert L2Norm(2, 10.0)(
        torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    ).flatten().tolist() == pytest.approx([6, 8])


def test_where_all_channels_are_zero_nothing_is_infinite():
    x = torch.zeros(1, 5, 2, 2, requires_grad=True)
    y = L2Norm(5)(x)
    y.sum().backward()
    assert y.abs().max() == 0
    assert x.grad.isfinite().all()


def test_l2_normalisation_survives_half_precision():
    x = torch.full((1, 1024, 1, 1), 300.0, dtype=torch.float16)  # 300^2 overflows fp16
    torch.testing.assert_close(L2Norm(1024, 32.0)(x).flatten(), torch.ones(1024), rtol=1e-3, atol=0)


def test_early_and_late_fusion_are_one_function_at_equal_weights():
    torch.manual_seed(0)
    late = ParseNet(5, "vgg11", norm="batch").eval()
    early = ParseNet(5, "vgg11", norm="batch", fusion="early").eval()
    state = late.state_dict()
    weights = [state["classifier.weight"], state.pop("context_classifier.weight")]
    state["classifier.weight"] = torch.cat(weights, dim=1)
    state["classifier.bias"] = state["classifier.bias"] + 0.5 + state.pop("context_classifier.bias")
    early.load_state_dict(state)
    x = torch.randn(2, 3, 41, 57)
    with torch.no_grad():
        late.context_classifier.bias.add_(0.5)
        torch.testing.assert_close(early(x)["logits"], late(x)["logits"], rtol=1e-4, atol=1e-5)


def test_the_mean_leaves_padding_out():
    x = torch.arange(12.0).view(1, 1, 3, 4).repeat(2, 1, 1, 1)
    # 2 x 3 cells of the first image are real, all of the second
    sizes = torch.tensor([[9, 17], [24, 32]])
    assert image_mean(x, sizes).flatten().tolist() == [3.0, 5.5]  # (0 + 1 + 2 + 4 + 5 + 6) / 6
    assert image_mean(x, None).flatten().tolist() == [5.5, 5.5]


def padded(model, height, width, canvas):
    """The context that `model` sees of a (height, width) image on a larger canvas, and its fc7."""
    seen = {}
    model.context_norm.register_forward_hook(lambda _, inputs, __: seen.update(context=inputs[0]))
    model.fc.register_forward_hook(lambda _, __, fc7: seen.update(fc7=fc7.clone()))
    images = torch.randint(0, 256, (1, 3, *canvas), dtype=torch.uint8)
    model(
        Batch(
            images,
            torch.tensor([[height, width]]),
            ["a"],
            masks=torch.zeros(1, *canvas, dtype=torch.uint8),
        )
    )
    return seen


def test_the_context_of_a_batch_is_the_mean_of_the_real_cells():
    torch.manual_seed(0)
    with torch.no_grad():
        seen = padded(ParseNet(3, "vgg11", norm="batch").eval(), 33, 40, (65, 80))
    real = seen["fc7"][:, :, :5, :5].mean((2, 3), keepdim=True)
    torch.testing.assert_close(seen["context"], real)
    assert not torch.allclose(seen["context"], seen["fc7"].mean((2, 3), keepdim=True), rtol=1e-2)


@pytest.mark.parametrize("size", [8, 9, 31, 33, 41, 321])
def test_a_feature_map_has_as_many_cells_as_the_mean_believes(size):
    model = on_meta(3, "vgg11")
    assert model.backbone(torch.empty(1, 3, size, size, device="meta"))[-1].shape[-1] == math.ceil(
        size / 8
    )


def test_the_context_changes_what_is_said_of_a_far_corner():
    torch.manual_seed(0)
    with_context = ParseNet(3, "vgg11", norm="batch").eval()
    baseline = ParseNet(3, "vgg11", norm="batch", fusion="none").eval()
    x = torch.randn(1, 3, 24, 353)
    y = x.clone()
    y[..., -17:] += 3
    with torch.no_grad():
        moved = [
            (model(x)["logits"] - model(y)["logits"])[..., 0].abs().max()
            for model in (with_context, baseline)
        ]
    assert moved[0] > 1e-4
    assert moved[1] < 1e-6


def test_without_weights_of_its_own_the_norm_is_only_the_scale():
    fixed = on_meta(3, "vgg11", l2="fixed", initial_scale=4.0)
    assert not list(fixed.local_norm.parameters())
    assert "local_norm.scale" not in fixed.state_dict()
    assert isinstance(on_meta(3, "vgg11", l2="none").local_norm, nn.Identity)
    assert L2Norm(2, 5.0, learned=False)(
        torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    ).flatten().tolist() == [3, 4]


def test_scales_are_head_parameters_without_decay_and_fc6_belongs_to_the_backbone():
    model = on_meta(3, "vgg11")
    groups = {
        group["name"]: group
        for group in parameter_groups(model, 1.0, 5e-4, head_factor=10, bias_factor=2)
    }
    assert sorted(groups) == [
        "backbone.bias",
        "backbone.weight",
        "head.bias",
        "head.norm",
        "head.weight",
    ]
    assert [p.shape for p in groups["head.norm"]["params"]] == [(1024,), (1024,)]
    assert (groups["head.norm"]["weight_decay"], groups["head.bias"]["lr"]) == (0, 20)
    assert len(groups["backbone.weight"]["params"]) == 8 + 2
    assert len(groups["head.weight"]["params"]) == 2


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("fusion", ["late", "early", "none"])
def test_gradients_reach_every_parameter(norm, fusion):
    torch.manual_seed(0)
    model = ParseNet(4, "vgg11", norm=norm, fusion=fusion)
    nn.functional.cross_entropy(
        model(torch.randn(2, 3, 33, 41))["logits"], torch.ones(2, 33, 41).long()
    ).backward()
    assert [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ] == []


def test_batch_norm_follows_fc6_and_fc7():
    norms = [m for m in on_meta(3, "vgg11", norm="batch").fc if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2


def test_bad_words_are_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"fusion=lat is unknown. Did you mean `late`"):
        on_meta(3, fusion="lat")
    with pytest.raises(UserError, match=r"l2=true is unknown. Known: learned, fixed, none"):
        on_meta(3, l2="true")
