import pytest
import torch
from torch import nn

from segtrain.errors import UserError
from segtrain.models.aspp import aspp_rates
from segtrain.models.deeplabv3plus import DeepLabV3Plus
from segtrain.models.layers import Depthwise, resize


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
    ],
)
def test_parameter_counts_are_the_published_systems(backbone, separable, count):
    assert sum(p.numel() for p in on_meta(21, backbone, separable=separable).parameters()) == count


def test_the_field_of_view_stays_the_same_when_the_output_stride_changes():
    assert (aspp_rates(16), aspp_rates(8), aspp_rates(32)) == ([6, 12, 18], [12, 24, 36], [3, 6, 9])


def test_the_heads_rates_follow_the_output_stride():
    def branch_rates(output_stride):
        model = on_meta(21, "resnet18", output_stride)
        return [m.dilation[0] for m in model.aspp.modules() if isinstance(m, Depthwise)]

    assert branch_rates(16) == [6, 12, 18] and branch_rates(8) == [12, 24, 36]


def test_one_checkpoint_serves_every_output_stride():
    shapes = [{k: v.shape for k, v in on_meta(21, output_stride=s).state_dict().items()} for s in (8, 16, 32)]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize(("height", "width"), [(15, 20), (33, 17), (40, 41)])
def test_the_depthwise_layers_two_layouts_agree(height, width):
    layer = Depthwise(6, rate=18).to(memory_format=torch.channels_last)
    x = torch.randn(2, 6, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
    result, expected = layer(x), nn.Conv2d.forward(layer, x)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(result)
    inputs = (x, layer.weight)
    torch.testing.assert_close(torch.autograd.grad(result, inputs, g), torch.autograd.grad(expected, inputs, g))


def test_the_head_sees_the_low_level_feature_at_stride_4_with_48_channels():
    model = on_meta(5, "resnet18")
    assert model.low_level[0].weight.shape == (48, 64, 1, 1)
    assert model.decoder[0][0].weight.shape == (304, 1, 3, 3)


def test_the_auxiliary_output_exists_in_training_only():
    model = on_meta(5, "resnet18", aux=True)
    x = torch.empty(2, 3, 33, 49, device="meta")
    assert {k: v.shape for k, v in model(x).items()} == {"logits": (2, 5, 33, 49), "aux": (2, 5, 33, 49)}
    assert list(model.eval()(x)) == ["logits"]


def test_training_on_one_image_with_batch_norm_says_what_to_do():
    model = on_meta(5, "resnet18")
    assert model.min_train_batch == 2
    with pytest.raises(UserError, match=r"batch_size to at least 2 per process, or model\.norm=group"):
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
        "aspp", "low_level", "decoder", "classifier", "aux",
    }  # fmt: skip


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
