"""Semantic FPN: sizes from the layers, the pyramid against torchvision's, odd sizes."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from segtrain.errors import UserError
from segtrain.layers.pyramid import FeaturePyramid
from segtrain.models.semantic_fpn import SemanticFPN


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return SemanticFPN(*args, **kwargs)


def size(module):
    return sum(p.numel() for p in module.parameters())


def maps(channels, height, width):
    """Maps of strides 1, 2, 4 ..., each half of the one before, rounded up."""
    generator = torch.Generator().manual_seed(0)
    sides = [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(channels))]
    return [
        torch.randn(2, c, *side, generator=generator)
        for c, side in zip(channels, sides, strict=True)
    ]


def test_the_number_of_parameters_follows_from_the_layers():
    model = on_meta(21, "resnet50")
    body = 23_508_032
    pyramid = (256 + 512 + 1024 + 2048 + 4) * 256 + 4 * (9 * 256 + 1) * 256
    # seven 3x3: four read the pyramid, and their norms
    heads = 4 * 9 * 256 * 128 + 3 * 9 * 128 * 128 + 7 * 2 * 128
    assert (size(model.backbone), size(model.pyramid), size(model.heads)) == (body, pyramid, heads)
    assert size(model) == body + pyramid + heads + 21 * (128 + 1) == 28_478_933


def test_the_pyramid_of_mask_proposals_has_the_published_size():
    assert size(FeaturePyramid([256, 512, 1024, 2048], width=128)) == 1_082_368


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 51), (9, 8), (19, 7)])
def test_the_pyramid_is_torchvisions_at_equal_weights(height, width):
    torch.manual_seed(0)
    channels = [3, 5, 7, 9]
    ours = FeaturePyramid(channels, 16)
    theirs = FeaturePyramidNetwork(channels, 16)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    for i in range(4):
        theirs.inner_blocks[i][0].load_state_dict(ours.lateral[i][0].state_dict())
        theirs.layer_blocks[i][0].load_state_dict(ours.output[i][0].state_dict())
    features = maps(channels, height, width)
    expected = theirs(OrderedDict((str(i), f) for i, f in enumerate(features)))
    torch.testing.assert_close(ours(features), list(expected.values()))


@pytest.mark.parametrize("side", [16, 17, 33, 65, 2, 3])
def test_the_coarser_map_is_repeated_and_cut_where_the_finer_side_is_odd(side):
    fine, coarse = maps([1, 1], side, side)
    pyramid = FeaturePyramid([1, 1], 1)
    with torch.no_grad():
        for layer in (*pyramid.lateral, *pyramid.output):  # each the identity
            layer[0].weight.zero_()
            layer[0].weight[0, 0, layer[0].kernel_size[0] // 2, layer[0].kernel_size[0] // 2] = 1
        result = pyramid([fine, coarse])
    repeated = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :side, :side]
    torch.testing.assert_close(result, [fine + repeated, coarse])


def test_the_pyramid_has_biases_and_no_norm_unless_asked():
    plain = FeaturePyramid([4, 8], 32)
    group = FeaturePyramid([4, 8], 32, norm="group")
    assert [n for n, _ in plain.lateral[0].named_parameters()] == ["0.weight", "0.bias"]
    assert not plain.output[1][0].bias.any()
    assert len(plain.output[1]) == 1
    assert group.lateral[0][0].bias is None
    assert isinstance(group.lateral[0][1], nn.GroupNorm)
    assert [p.shape for p in group(maps([4, 8], 8, 8))] == [(2, 32, 8, 8), (2, 32, 4, 4)]
    with pytest.raises(UserError, match="norm=layer"):
        FeaturePyramid([4], 8, norm="layer")


def test_a_level_has_one_3x3_per_doubling_and_the_finest_has_one():
    model = on_meta(21)
    assert [[layer[0].in_channels for layer in head] for head in model.heads] == [
        [256],
        [256],
        [256, 128],
        [256, 128, 128],
    ]
    assert {m.num_groups for m in model.heads.modules() if isinstance(m, nn.GroupNorm)} == {32}
    assert {m.dilation for m in model.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}


def test_where_sides_are_multiples_of_32_every_step_doubles():
    torch.manual_seed(0)
    model = SemanticFPN(5, "resnet18", width=32, channels=32).eval()
    x = torch.randn(2, 3, 64, 96)
    levels = model.pyramid(model.backbone(x))
    assert [level.shape[-2:] for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    total = 0
    for doublings, (level, head) in enumerate(zip(levels, model.heads, strict=True)):
        y = level
        for layer in head:
            y = layer(y)
            if doublings:
                y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        assert y.shape == (2, 32, 16, 24)
        total = total + y
    expected = F.interpolate(
        model.classifier(total), scale_factor=4, mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(model(x)["logits"], expected)


@pytest.mark.parametrize(("height", "width"), [(33, 51), (47, 80), (65, 65), (97, 31)])
def test_odd_sizes_pass_through_the_sizes_of_the_levels(height, width):
    model = on_meta(5, "resnet18")
    seen = []
    model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert model(torch.empty(1, 3, height, width, device="meta"))["logits"].shape == (
        1,
        5,
        height,
        width,
    )
    assert seen == [(1, 5, -(-height // 4), -(-width // 4))]


def test_gradients_reach_every_parameter_and_the_head_is_not_backbone():
    torch.manual_seed(0)
    model = SemanticFPN(5, "resnet18", width=32, channels=32)
    model(torch.randn(2, 3, 65, 49))["logits"].square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    backbone = {id(p) for p in model.backbone_parameters()}
    assert {n.split(".")[0] for n, p in model.named_parameters() if id(p) not in backbone} == {
        "pyramid",
        "heads",
        "classifier",
    }


def test_a_fresh_model_is_undecided():
    torch.manual_seed(0)
    logits = SemanticFPN(11, "resnet18")(torch.randn(2, 3, 32, 32))["logits"]
    # ln 11
    assert abs(F.cross_entropy(logits, torch.randint(0, 11, (2, 32, 32))).item() - 2.398) < 0.2
