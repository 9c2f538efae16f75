"""DeepLab v3+: published sizes and multiply-adds, fields of view, the depthwise layouts."""

import pytest
import torch
from torch import nn

from segtrain.errors import UserError
from segtrain.layers.aspp import aspp_dilations
from segtrain.layers.blocks import Depthwise, resize
from segtrain.models.deeplabv3plus import DeepLabV3Plus


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return DeepLabV3Plus(*args, **kwargs)


@pytest.mark.parametrize(
    ("backbone", "separable", "count"),
    [
        ("resnet50", False, 40_352_181),
        ("resnet101", False, 59_344_309),
        ("resnet50", True, 26_696_133),
        ("resnet101", True, 45_688_261),
        ("xception41", True, 28_108_661),
        ("xception65", True, 41_055_413),
        ("xception65", False, 54_711_461),
        ("xception71", True, 43_477_837),
    ],
)
def test_parameter_counts_are_the_published_systems(backbone, separable, count):
    assert sum(p.numel() for p in on_meta(21, backbone, separable=separable).parameters()) == count


def test_cityscapes_19_classes_cost_257_parameters_less_each():
    assert sum(p.numel() for p in on_meta(19, "xception65").parameters()) == 41_055_413 - 2 * 257


def test_a_checkpoint_of_before_the_xceptions_still_fits():
    keys = set(on_meta(5, "resnet18", aux=True).state_dict())
    head = {
        "aspp.branches.0.0.weight",
        "aspp.branches.3.4.running_var",
        "aspp.pooling.project.1.bias",
        "aspp.project.0.0.weight",
        "low_level.0.weight",
        "low_level.1.running_mean",
        "decoder.1.0.weight",
        "decoder.1.3.weight",
        "classifier.weight",
        "classifier.bias",
        "aux.0.0.weight",
        "aux.2.bias",
    }
    assert head <= keys
    assert len(keys) == 214


def multiply_adds(size, **arguments):
    """Of all convolutions, in units of 10^9, as TensorFlow counted them when the paper was written.

    Its dilated convolutions cut the map into rate x rate maps, for which sides grow to multiples of
    the rate.
    """
    model = on_meta(21, **arguments).eval()
    total = 0

    def count(layer, _, output):
        nonlocal total
        height, width = (
            -(-side // rate) * rate
            for side, rate in zip(output.shape[-2:], layer.dilation, strict=True)
        )
        total += height * width * layer.weight.numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    model(torch.empty(1, 3, size, size, device="meta"))
    return total / 1e9


@pytest.mark.parametrize(
    ("output_stride", "separable", "low_level_width", "published"),
    [
        (16, False, 0, 68.00),
        (16, False, 48, 89.76),
        (16, True, 48, 54.17),
        (8, False, 0, 240.85),
        (8, False, 48, 262.59),
        (8, True, 48, 177.10),
    ],
)
def test_an_xceptions_multiply_adds_are_the_papers(
    output_stride, separable, low_level_width, published
):
    """Table 5; 0.08 to 0.23 % remain, between 0.12 and 0.18: what is no convolution."""
    found = multiply_adds(
        513,
        backbone="xception65",
        output_stride=output_stride,
        separable=separable,
        low_level_width=low_level_width,
    )
    assert 0.997 * published < found < published


def test_the_field_of_view_stays_the_same_when_the_output_stride_changes():
    assert (aspp_dilations(16), aspp_dilations(8), aspp_dilations(32)) == (
        [6, 12, 18],
        [12, 24, 36],
        [3, 6, 9],
    )


def test_the_heads_rates_follow_the_output_stride():
    def branch_rates(output_stride):
        model = on_meta(21, "resnet18", output_stride)
        return [m.dilation[0] for m in model.aspp.modules() if isinstance(m, Depthwise)]

    assert branch_rates(16) == [6, 12, 18]
    assert branch_rates(8) == [12, 24, 36]


@pytest.mark.parametrize("backbone", ["resnet18", "xception71"])
def test_one_checkpoint_serves_every_output_stride(backbone):
    shapes = [
        {k: v.shape for k, v in on_meta(21, backbone, s).state_dict().items()} for s in (8, 16, 32)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize(("height", "width"), [(15, 20), (33, 17), (40, 41)])
def test_the_depthwise_layers_two_layouts_agree(height, width):
    layer = Depthwise(6, dilation=18).to(memory_format=torch.channels_last)
    x = (
        torch.randn(2, 6, height, width)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    result = layer(x)
    expected = nn.Conv2d.forward(layer, x)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(result)
    inputs = (x, layer.weight)
    torch.testing.assert_close(
        torch.autograd.grad(result, inputs, g), torch.autograd.grad(expected, inputs, g)
    )


def test_the_head_sees_the_low_level_feature_at_stride_4_with_48_channels():
    model = on_meta(5, "resnet18")
    assert model.low_level[0].weight.shape == (48, 64, 1, 1)
    assert model.decoder[0][0].weight.shape == (304, 1, 3, 3)


@pytest.mark.parametrize("width", [8, 16, 32, 48, 64])
def test_the_low_level_width_is_what_the_decoder_sees_beside_the_256(width):
    model = on_meta(5, "xception41", low_level_width=width)
    assert model.low_level[0].weight.shape == (width, 256, 1, 1)
    assert model.decoder[0][0].in_channels == 256 + width


def test_without_decoder_the_encoders_256_channels_are_classified():
    model = on_meta(5, "resnet18", low_level_width=0)
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {
        "backbone",
        "aspp",
        "classifier",
    }
    assert model.classifier.weight.shape == (5, 256, 1, 1)
    assert model(torch.empty(2, 3, 33, 49, device="meta"))["logits"].shape == (2, 5, 33, 49)


def test_without_decoder_logits_are_interpolated_between_the_deepest_positions():
    torch.manual_seed(0)
    model = DeepLabV3Plus(5, "resnet18", low_level_width=0).eval()
    x = torch.randn(1, 3, 33, 49)
    with torch.no_grad():
        deep = model.classifier(model.aspp(model.backbone(x)[3]))
        # corners aligned on 16k + 1 pixels
        torch.testing.assert_close(model(x)["logits"][..., ::16, ::16], deep)


def test_the_decoders_convolutions_have_the_asked_widths_and_kernel():
    def shapes(**arguments):
        return [
            tuple(m.weight.shape)
            for m in on_meta(5, "resnet18", **arguments).decoder.modules()
            if isinstance(m, nn.Conv2d)
        ]

    assert shapes(separable=False, decoder=[128]) == [(128, 304, 3, 3)]
    assert shapes(decoder=[256], decoder_kernel=1) == [(256, 304, 1, 1)]
    assert shapes(decoder=[256]) == [(304, 1, 3, 3), (256, 304, 1, 1)]


def test_without_image_pooling_aspp_has_four_branches_and_one_image_trains():
    model = on_meta(5, "resnet18", image_pooling=False)
    assert model.aspp.project[0][0].in_channels == 4 * 256
    assert model.min_train_batch == 1
    assert model(torch.empty(1, 3, 33, 33, device="meta"))["logits"].shape == (1, 5, 33, 33)


@pytest.mark.parametrize("backbone", ["resnet18", "xception41"])
def test_momentum_reaches_every_batch_norm_and_eps_is_larger_in_an_xception(backbone):
    def values(part):
        return {(m.momentum, m.eps) for m in part.modules() if isinstance(m, nn.BatchNorm2d)}

    model = on_meta(5, backbone, momentum=0.0003, aux=True)
    assert values(model.backbone) == {(0.0003, 1e-3 if backbone == "xception41" else 1e-5)}
    for head in (model.aspp, model.low_level, model.decoder, model.aux):
        assert values(head) == {(0.0003, 1e-5)}
    other = on_meta(5, backbone, momentum=0.0003, backbone_momentum=0.05)
    assert {momentum for momentum, _ in values(other.backbone)} == {0.05}
    assert values(other.aspp) == {(0.0003, 1e-5)}


def test_multi_grid_is_the_papers_for_each_trunk_unless_told():
    def last(backbone, multi_grid=None):
        trunk = on_meta(5, backbone, multi_grid=multi_grid).backbone
        stage = trunk.stages[3] if backbone == "resnet50" else trunk.exit[1]
        return [
            m.dilation[0]
            for m in stage.modules()
            if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
        ]

    assert (last("resnet50"), last("xception41")) == ([2, 4, 8], [2, 2, 2])
    assert (last("resnet50", [1, 1, 1]), last("xception41", [1, 2, 4])) == ([2, 2, 2], [2, 4, 8])


def test_an_xception_brings_its_own_preprocessing():
    assert (on_meta(5, "xception41").preprocess.mean, on_meta(5, "resnet18").preprocess.std[2]) == (
        [0.5] * 3,
        0.225,
    )


def test_activation_of_the_depthwise_convolutions_is_off_unless_told():
    def between(**arguments):
        return on_meta(5, "xception41", **arguments).backbone.middle[0].convs[0].between

    assert (between(), between(activate_depthwise=True)) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"decoder": []}, r"decoder=\[\].*model\.low_level_width=0"),
        ({"low_level_width": -1}, "low_level_width=-1.*0 for no decoder"),
        ({"decoder_kernel": 5}, "decoder_kernel=5.*3 or 1"),
        ({"activate_depthwise": True}, "belongs to an Xception.*resnet18"),
        ({"pattern": "late"}, "pattern=late is unknown"),
        ({"backbone": "xception65", "pattern": "delayed"}, "belongs to a ResNet.*xception65"),
        ({"backbone": "xception65", "style": "caffe"}, "belongs to a ResNet.*xception65"),
        ({"aspp_width": 0}, "aspp_width=0 project_kernel=1.*256"),
        ({"project_kernel": 5}, "project_kernel=5.*1 or 3"),
        ({"backbone": "xception41", "weights": "imagenet"}, r"model\.weights=null"),
        ({"backbone": "xception14"}, "xception14.*Known: xception41"),
        ({"backbone": "vgg16"}, "vgg16.*Known: resnet18"),
    ],
)
def test_values_that_are_not_offered_say_what_to_do(arguments, words):
    with pytest.raises(UserError, match=words):
        on_meta(5, **{"backbone": "resnet18", **arguments})


@pytest.mark.parametrize("backbone", ["resnet18", "xception41"])
def test_the_auxiliary_output_exists_in_training_only(backbone):
    model = on_meta(5, backbone, aux=True)
    x = torch.empty(2, 3, 33, 49, device="meta")
    assert {k: v.shape for k, v in model(x).items()} == {
        "logits": (2, 5, 33, 49),
        "aux": (2, 5, 33, 49),
    }
    assert list(model.eval()(x)) == ["logits"]


def test_training_on_one_image_with_batch_norm_says_what_to_do():
    model = on_meta(5, "resnet18")
    assert model.min_train_batch == 2
    with pytest.raises(
        UserError, match=r"batch_size to at least 2 per process, or model\.norm=group"
    ):
        model(torch.empty(1, 3, 33, 33, device="meta"))
    assert model.eval()(torch.empty(1, 3, 33, 33, device="meta"))["logits"].shape == (1, 5, 33, 33)


def test_group_norm_trains_on_one_image():
    model = on_meta(5, "resnet18", norm="group")
    assert model.min_train_batch == 1
    assert model(torch.empty(1, 3, 33, 33, device="meta"))["logits"].shape == (1, 5, 33, 33)


def test_synchronised_batch_norm_may_see_one_image_per_process():
    assert nn.SyncBatchNorm.convert_sync_batchnorm(on_meta(5, "resnet18")).min_train_batch == 1


def test_backbone_and_head_share_no_parameter_and_leave_none_out():
    model = on_meta(5, "resnet18", aux=True)
    backbone = {id(p) for p in model.backbone_parameters()}
    assert len(backbone) == 60
    assert {n.split(".")[0] for n, p in model.named_parameters() if id(p) not in backbone} == {
        "aspp",
        "low_level",
        "decoder",
        "classifier",
        "aux",
    }


def test_a_fresh_model_is_undecided():
    torch.manual_seed(0)
    logits = DeepLabV3Plus(11, "resnet18")(torch.randn(2, 3, 32, 32))["logits"]
    loss = nn.functional.cross_entropy(logits, torch.randint(0, 11, (2, 32, 32)))
    assert abs(loss.item() - 2.398) < 0.1  # ln 11


def test_aligned_corners_keep_the_corner_values():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert resize(x, torch.empty(1, 8, 3, 3), align_corners=True)[0, 0].tolist() == [
        [0, 0.5, 1],
        [1, 1.5, 2],
        [2, 2.5, 3],
    ]
    assert resize(x, torch.empty(1, 8, 2, 2), align_corners=True) is x


@pytest.mark.parametrize(
    ("stride", "pattern", "conv4", "conv5"),
    [
        (16, "uniform", [1, 1], [2, 4]),
        (16, "delayed", [1, 1], [1, 4]),
        (8, "uniform", [2, 2], [4, 8]),
        (8, "delayed", [1, 2], [2, 8]),
    ],
)
def test_in_the_delayed_pattern_a_stage_begins_with_the_dilation_before(
    stride, pattern, conv4, conv5
):
    stages = on_meta(2, "resnet18", stride, pattern=pattern).backbone.stages
    assert [block.conv1.dilation[0] for block in stages[2]] == conv4
    assert [block.conv1.dilation[0] for block in stages[3]] == conv5
