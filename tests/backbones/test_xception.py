"""The trunk against counts, against a second description of it in words of one's own, and against
its own algebra.
"""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segtrain.backbones.xception import Xception
from segtrain.errors import UserError
from segtrain.layers.depthwise import Depthwise


@cache
def on_meta(*args, **kwargs):
    """Nothing is computed here, and no test changes what it gets."""
    with torch.device("meta"):
        return Xception(*args, **kwargs)


@pytest.fixture(scope="module")
def trained():
    """An Xception-41 whose batch norms hold the statistics of one batch and whose affine values are
    not 1 and 0.
    """
    torch.manual_seed(0)
    model = Xception("xception41", momentum=1.0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.5, 0.5)
        model(torch.randn(2, 3, 49, 49))
    return model.eval()


def with_weights_of(model, **arguments):
    other = Xception("xception41", **arguments)
    other.load_state_dict(model.state_dict())
    return other.eval()


@pytest.mark.parametrize(("depth", "count"), [(41, 24_920_560), (65, 37_867_312), (71, 40_289_736)])
def test_parameter_counts_are_the_published_bodies(depth, count):
    assert sum(p.numel() for p in on_meta(f"xception{depth}").parameters()) == count


@pytest.mark.parametrize(("depth", "entry", "middle"), [(41, 3, 8), (65, 3, 16), (71, 5, 16)])
def test_the_numbers_of_blocks_and_what_goes_around_them(depth, entry, middle):
    model = on_meta(f"xception{depth}")
    skips = [[block.skip for block in flow] for flow in (model.entry, model.middle, model.exit)]
    assert skips == [["conv"] * entry, ["sum"] * middle, ["conv", "none"]]
    # the name counts them and the stem's two
    assert sum(isinstance(m, Depthwise) for m in model.modules()) + 2 == depth


@pytest.mark.parametrize(("depth", "output_stride"), [(41, 8), (41, 16), (41, 32), (71, 16)])
def test_features_have_the_channels_and_strides_they_claim_on_odd_sizes_too(depth, output_stride):
    model = on_meta(f"xception{depth}", output_stride)
    assert model.channels == [256, 728, 1024, 2048]
    assert model.strides == [min(s, output_stride) for s in (4, 8, 16, 32)]
    for height, width in ((33, 51), (47, 80)):
        features = model(torch.empty(1, 3, height, width, device="meta"))
        assert [f.shape for f in features] == [
            (1, c, -(-height // s), -(-width // s))
            for c, s in zip(model.channels, model.strides, strict=True)
        ]


def rates(model):
    flows = (model.entry, model.middle, model.exit[:1], model.exit[1:])
    return [[m.dilation[0] for m in flow.modules() if isinstance(m, Depthwise)] for flow in flows]


@pytest.mark.parametrize(("depth", "entry", "middle"), [(41, 9, 24), (71, 15, 48)])
@pytest.mark.parametrize(
    ("output_stride", "middle_rate", "exit1", "exit2"), [(32, 1, 1, 1), (16, 1, 1, 2), (8, 2, 2, 4)]
)
def test_every_depthwise_convolution_has_the_rate_of_the_authors(
    depth, entry, middle, output_stride, middle_rate, exit1, exit2
):
    model = on_meta(f"xception{depth}", output_stride)
    assert rates(model) == [[1] * entry, [middle_rate] * middle, [exit1] * 3, [exit2] * 3]


@pytest.mark.parametrize(
    ("output_stride", "exit2"), [(32, [1, 2, 4]), (16, [2, 4, 8]), (8, [4, 8, 16])]
)
def test_multi_grid_multiplies_the_rates_of_the_last_block_alone(output_stride, exit2):
    model = on_meta("xception41", output_stride, (1, 2, 4))
    plain = on_meta("xception41", output_stride)
    assert rates(model) == [*rates(plain)[:3], exit2]


def test_only_the_third_convolution_of_a_block_strides_and_the_way_around_with_it():
    def strides(model):
        return [
            ([conv.depthwise.stride[0] for conv in block.convs], block.shortcut[0].stride[0])
            for block in (*model.entry, model.exit[0])
        ]

    on = ([1, 1, 2], 2)
    off = ([1, 1, 1], 1)
    assert strides(on_meta("xception65", 32)) == [on, on, on, on]
    assert strides(on_meta("xception65", 16)) == [on, on, on, off]
    assert strides(on_meta("xception65", 8)) == [on, on, off, off]
    assert strides(on_meta("xception71", 32)) == [on, off, on, off, on, on]
    assert strides(on_meta("xception71", 8)) == [on, off, on, off, off, off]


@pytest.mark.parametrize(
    ("output_stride", "size"),
    [
        (16, (33, 33)),
        *(pytest.param(s, (40, 52), marks=pytest.mark.slow) for s in (8, 16)),
        pytest.param(8, (33, 33), marks=pytest.mark.slow),
    ],
)
def test_a_dilated_trunk_computes_the_strided_ones_values_and_those_between(
    trained, output_stride, size
):
    x = torch.randn(1, 3, *size)
    dense = with_weights_of(trained, output_stride=output_stride, multi_grid=[1, 2, 4])
    sparse = with_weights_of(trained, output_stride=32, multi_grid=[1, 2, 4])
    with torch.no_grad():
        for fine, coarse, s, t in zip(
            dense(x), sparse(x), dense.strides, sparse.strides, strict=True
        ):
            torch.testing.assert_close(
                fine[..., :: t // s, :: t // s], coarse, rtol=1e-3, atol=1e-3
            )


def reference(x, state, entry, middle, between=False):
    """The trunk at output stride 32 written down a second time, from the description of the
    released code, on named tensors.

    Strides are subsampling of what a convolution gives at stride 1, which is what alignment means.
    """

    def norm(x, key):
        parts = [
            state[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.batch_norm(x, *parts, training=False, eps=1e-3)

    def separable(x, key, stride, inside):
        x = x if inside else x.clamp(min=0)
        w = state[f"{key}.depthwise.weight"]
        x = norm(
            F.conv2d(F.pad(x, (1, 1, 1, 1)), w, groups=len(w))[..., ::stride, ::stride],
            f"{key}.depthwise_norm",
        )
        x = x.clamp(min=0) if inside or between else x
        x = norm(
            torch.einsum("oi,bihw->bohw", state[f"{key}.pointwise.weight"][:, :, 0, 0], x),
            f"{key}.pointwise_norm",
        )
        return x.clamp(min=0) if inside else x

    for conv, bn, stride in ((0, 1, 2), (3, 4, 1)):
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), state[f"stem.{conv}.weight"])[..., ::stride, ::stride]
        x = norm(x, f"stem.{bn}").clamp(min=0)
    plan = [(f"entry.{i}", stride, "conv") for i, stride in enumerate(entry)]
    plan += [(f"middle.{i}", 1, "sum") for i in range(middle)]
    seconds = {}
    for key, stride, skip in [*plan, ("exit.0", 2, "conv"), ("exit.1", 1, "none")]:
        seconds[key] = separable(
            separable(x, f"{key}.convs.0", 1, skip == "none"), f"{key}.convs.1", 1, skip == "none"
        )
        y = separable(seconds[key], f"{key}.convs.2", stride, skip == "none")
        if skip == "conv":
            w = state[f"{key}.shortcut.0.weight"][:, :, 0, 0]
            y = y + norm(
                torch.einsum("oi,bihw->bohw", w, x[..., ::stride, ::stride]), f"{key}.shortcut.1"
            )
        x = y + x if skip == "sum" else y
    return seconds, x


@pytest.mark.parametrize("activate_depthwise", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_trunk_is_the_described_one(trained, activate_depthwise):
    model = with_weights_of(trained, activate_depthwise=activate_depthwise)
    x = torch.randn(1, 3, 40, 33)
    with torch.no_grad():
        seconds, deep = reference(x, model.state_dict(), [2, 2, 2], 8, activate_depthwise)
        expected = [seconds["entry.1"], seconds["entry.2"], seconds["exit.0"], deep]
        for feature, other in zip(model(x), expected, strict=True):
            torch.testing.assert_close(feature, other, rtol=1e-3, atol=1e-3)


def test_in_xception71_the_low_level_feature_is_the_third_blocks():
    assert on_meta("xception65").taps == [1, 2, 19]  # entry blocks 2 and 3, first exit block
    assert on_meta("xception71").taps == [2, 4, 21]


def test_the_low_level_feature_is_before_any_relu_and_stays_so(trained):
    with torch.no_grad():
        low, eight, sixteen, deep = trained(torch.randn(1, 3, 33, 33))
    for feature in (low, eight, sixteen):  # an in-place ReLU of the next convolution would cut them
        assert 0.2 < (feature < 0).float().mean() < 0.8
    assert deep.min() == 0


def test_relu_stands_in_front_everywhere_but_in_the_last_block():
    model = on_meta("xception41")
    assert [c.front for c in model.exit[1].convs] == [False] * 3
    assert [c.between for c in model.exit[1].convs] == [True] * 3
    others = [c for b in (*model.entry, *model.middle, model.exit[0]) for c in b.convs]
    assert all(c.front and not c.between for c in others)
    loud = on_meta("xception41", activate_depthwise=True)
    assert all(c.between for b in (*loud.entry, *loud.middle, *loud.exit) for c in b.convs)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((64, 64), marks=pytest.mark.slow),
        (65, 65),
        pytest.param((66, 63), marks=pytest.mark.slow),
    ],
)
def test_an_input_moved_by_the_stride_moves_the_low_level_feature_by_one(trained, size):
    x = torch.randn(1, 3, size[0] + 4, size[1] + 4)
    with torch.no_grad():
        here = trained(x[..., :-4, :-4])[0]
        moved = trained(x[..., 4:, 4:])[0]
    # Away from the zeros of the border: the feature sees 1 + 2 + 3 x 2 + 2 x 4 = 17 pixels to each
    # side.
    torch.testing.assert_close(moved[..., 5:-6, 5:-6], here[..., 6:-5, 6:-5], rtol=1e-4, atol=1e-4)


def test_even_and_odd_sizes_stand_on_the_same_pixels(trained):
    """TensorFlow's SAME pads an even size at its end only, which moves every stride by a pixel
    against an odd size.
    """
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        odd = trained(x)[0]
        even = trained(x[..., :64, :64])[0]
    torch.testing.assert_close(even[..., :12, :12], odd[..., :12, :12], rtol=1e-4, atol=1e-4)


def test_with_mirrored_kernels_a_mirrored_image_gives_the_mirrored_features(trained):
    model = with_weights_of(trained, output_stride=8)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
        x = torch.randn(1, 3, 33, 33)  # 32 + 1: the corners of all strides up to 32 coincide
        for feature, mirrored in zip(model(x), model(x.flip(3)), strict=True):
            torch.testing.assert_close(mirrored.flip(3), feature, rtol=1e-3, atol=1e-3)


def test_momentum_and_eps_reach_every_batch_norm():
    def values(**arguments):
        layers = [
            m for m in on_meta("xception71", **arguments).modules() if isinstance(m, nn.BatchNorm2d)
        ]
        # 2 of the stem, 6 of each of 23 blocks, 1 of each of 6 ways around with a convolution
        assert len(layers) == 2 + 6 * 23 + 6
        return {(m.momentum, m.eps) for m in layers}

    assert values() == {(0.1, 1e-3)}
    assert values(momentum=0.0003, eps=1e-5) == {(0.0003, 1e-5)}


def test_other_norms_leave_no_batch_norm_behind():
    assert not [
        m for m in on_meta("xception41", norm="group").modules() if isinstance(m, nn.BatchNorm2d)
    ]
    groups = {
        m.num_channels: m.num_groups
        for m in on_meta("xception41", norm="group").modules()
        if hasattr(m, "num_groups")
    }
    assert (groups[728], groups[2048]) == (8, 32)
    assert not any(
        p.requires_grad
        for n, p in on_meta("xception41", norm="frozen").named_parameters()
        if "norm" in n
    )


def test_pixels_go_from_minus_one_to_one():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    with torch.device("cpu"):
        preprocess = Xception("xception41").preprocess
    x = preprocess(pixels, torch.tensor([[1, 3]]))
    torch.testing.assert_close(x[0, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))


def test_fresh_features_neither_vanish_nor_explode_in_training():
    torch.manual_seed(0)
    with torch.no_grad():
        features = Xception("xception41")(torch.randn(2, 3, 65, 65))
    assert all(0.3 < f.std() < 3 for f in features)


@pytest.mark.parametrize(("height", "width", "stride"), [(15, 20, 1), (33, 18, 2), (40, 41, 2)])
def test_the_depthwise_layers_two_layouts_agree_with_strides_too(height, width, stride):
    layer = Depthwise(6, 12, stride).to(memory_format=torch.channels_last)
    x = torch.randn(2, 6, height, width).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), nn.Conv2d.forward(layer, x))
    assert layer(x).shape == (2, 6, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "xception66"}, "xception66` is unknown.*xception65"),
        ({"output_stride": 4}, "output_stride=4.*8, 16 and 32"),
        ({"multi_grid": (1, 2, 4, 8)}, "up to three factors"),
        ({"multi_grid": (0,)}, "1 or more"),
        ({"norm": "layer"}, "norm=layer"),
        ({"weights": "imagenet"}, r"model\.weights=null.*train\.init=FILE"),
    ],
)
def test_values_that_are_not_offered_say_what_to_do(arguments, words):
    with pytest.raises(UserError, match=words):
        on_meta(**arguments)
