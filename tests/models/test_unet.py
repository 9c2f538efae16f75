"""U-Net: published sizes, figure 1, valid outputs of mirrored images, dropout."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import center_crop

from segtrain.errors import UserError
from segtrain.models.unet import UNet, valid_side
from segtrain.structures.samples import Batch

PAPER = {"in_channels": 1, "padding": "valid", "norm": "none"}


def small(classes=3, width=4, **changes):
    torch.manual_seed(0)
    return UNet(classes, width=width, **(PAPER | changes))


def on_meta(*args, **kwargs):
    with torch.device("meta"):
        return UNet(*args, **kwargs)


def noise(height, width, images=1, channels=1):
    return torch.rand(images, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"num_classes": 2, **PAPER}, 31_030_658),
        ({"num_classes": 2, **PAPER, "released": True}, 31_100_354),
        ({"num_classes": 21, "norm": "none"}, 31_033_045),
        # batch norm has two numbers for the bias of one: 5,888 channels come out of the eighteen
        # 3x3 convolutions
        ({"num_classes": 21}, 31_033_045 + 5_888),
    ],
)
def test_parameter_counts_are_the_published_ones(arguments, count):
    model = on_meta(**arguments)
    assert sum(p.numel() for p in model.parameters()) == count
    assert (
        sum(isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d) for m in model.modules())
        == 23
    )


def test_572_pixels_become_388_and_every_side_16k_plus_60_loses_184():
    model = on_meta(2, **PAPER)
    for height, width in [(572, 572), (188, 204), (316, 700)]:
        logits = model(torch.empty(1, 1, height, width, device="meta"))["logits"]
        assert logits.shape == (1, 2, height - 184, width - 184)
    assert model.margin == 92
    assert on_meta(2).margin == 0


def test_another_size_in_training_names_the_nearest_ones_in_one_line():
    model = on_meta(2, **PAPER)
    for size, message in [
        ((320, 316), r"16k \+ 60 pixels, not 320 x 316: set dataset.crop to \[316 or 332, 316\]"),
        # 172 would leave nothing
        (
            (172, 571),
            r"not 172 x 571: set dataset.crop to \[188, 556 or 572\]",
        ),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            model(torch.empty(1, 1, *size, device="meta"))
        assert "\n" not in str(caught.value)


def reference(weights, x, dropout=lambda x: x):
    """The paper's figure 1 from a state dict, with the crops of another library."""

    def twice(name, x):
        for layer in (0, 2):
            x = F.relu(
                F.conv2d(x, weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"])
            )
        return x

    skips = []
    for level in range(5):
        x = twice(f"backbone.{level}", F.max_pool2d(x, 2) if level else x)
        x = dropout(x) if level >= 3 else x
        skips.append(x)
    for step in range(4):
        x = F.conv_transpose2d(
            x, weights[f"up.{step}.weight"], weights[f"up.{step}.bias"], stride=2
        )
        x = twice(
            f"decoder.{step}", torch.cat([x, center_crop(skips[3 - step], list(x.shape[-2:]))], 1)
        )
    return F.conv2d(x, weights["classifier.weight"], weights["classifier.bias"])


def test_the_unpadded_network_is_figure_1():
    model = small()
    x = noise(188, 220)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    with torch.no_grad():
        expected = reference(model.state_dict(), x)
        torch.testing.assert_close(model.eval().tile(x), expected)
        assert not torch.allclose(model.train().tile(x), expected)  # dropout


def test_evaluation_is_the_valid_output_of_the_mirrored_image():
    """numpy does the mirroring; 512 pixels take 700, of which the last 4 outputs are cut away."""
    model = small().eval()
    with torch.no_grad():
        for height, width in [(1, 7), (33, 51), (100, 65)]:
            x = noise(height, width)
            high = valid_side(height)
            wide = valid_side(width)
            pads = ((92, high - height - 92), (92, wide - width - 92))
            around = torch.from_numpy(np.pad(x[0, 0].numpy(), pads, mode="reflect"))[None, None]
            expected = reference(model.state_dict(), around)[..., :height, :width]
            torch.testing.assert_close(model(x)["logits"], expected, rtol=0, atol=1e-5)
    assert [valid_side(side) for side in (1, 4, 5, 388, 389, 512)] == [188, 188, 204, 572, 588, 700]


def test_training_and_evaluation_agree_where_both_see_real_pixels():
    """The 20 x 20 outputs of a crop of 204 are those of the whole image, in which they begin at a
    multiple of 16.
    """
    model = small(dropout=0.0)
    x = noise(250, 270)
    with torch.no_grad():
        whole = model.eval()(x)["logits"]
        crop = model.train()(x[..., 4 : 4 + 204, 20 : 20 + 204])["logits"]
    torch.testing.assert_close(crop, whole[..., 96:116, 112:132], rtol=0, atol=1e-5)


def test_the_upsampled_channels_come_before_the_skips():
    model = small()
    x = noise(188, 188)
    with torch.no_grad():
        model.decoder[3][0].weight[:, :4] = 0
    model(x)["logits"].sum().backward()
    assert (
        model.backbone[4][0].weight.grad.abs().max()
        == 0
        < model.backbone[0][0].weight.grad.abs().max()
    )


def test_dropout_acts_on_level_4_and_on_level_3_with_its_skip():
    model = small(dropout=0.99)
    x = noise(188, 188)
    seen = []
    for layer in model.decoder:
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(x)
    skips = [maps[:, maps.shape[1] // 2 :] for maps in seen]
    silent = [(skip == 0).float().mean().item() for skip in skips]
    assert silent[0] > 0.97
    assert max(silent[1:]) < 0.9
    model.up[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(x)
    assert (seen[-5] == 0).float().mean() > 0.97


def test_the_released_network_has_a_relu_after_every_up_convolution_and_128_channels_in_the_last():
    model = small(width=64 // 16, released=True)
    assert model.up[3][0].weight.shape == (8, 8, 2, 2)
    assert model.decoder[3][0].weight.shape == (
        4,
        12,
        3,
        3,
    )
    seen = []
    for layer in model.up:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.min().item()))
    model(noise(188, 188))
    assert min(seen) == 0
    assert len(seen) == 4


def test_weights_start_with_deviation_sqrt_2_over_n_and_biases_at_zero():
    torch.manual_seed(0)
    model = UNet(2, **PAPER)
    for layer, connections in [
        (model.backbone[0][2], 9 * 64),  # the paper's example
        (model.decoder[0][0], 9 * 1024),
        (model.up[0], 1024),  # 2x2 with stride 2: every output has one tap
    ]:
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / connections), rel=0.02)
    assert all(not p.any() for n, p in model.named_parameters() if n.endswith("bias"))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("size", [(33, 51), (47, 80), (65, 65), (1, 1)])
def test_padded_logits_have_the_inputs_size(norm, size):
    model = on_meta(5, norm=norm, width=8)
    assert model(torch.empty(2, 3, *size, device="meta"))["logits"].shape == (2, 5, *size)


def test_an_odd_size_is_the_same_pixels_as_a_multiple_of_16():
    """The last row and column are their own pools; what is far from them does not notice."""
    model = small(2, padding="same").eval()
    x = noise(288, 288)
    with torch.no_grad():
        even = model(x)["logits"]
        odd = model(x[..., :-9, :-9])["logits"]
    torch.testing.assert_close(odd[..., :160, :160], even[..., :160, :160], rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_gradients_reach_every_parameter(padding):
    model = small(padding=padding, width=8, dropout=0.0)
    F.cross_entropy(
        model(noise(188, 204))["logits"],
        torch.zeros(1, *((188, 204) if padding == "same" else (4, 20)), dtype=torch.long),
    ).backward()
    assert [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ] == []


def test_one_checkpoint_serves_both_paddings():
    valid, same = (on_meta(2, 1, padding, "none", 8).state_dict() for padding in ("valid", "same"))
    assert {k: v.shape for k, v in valid.items()} == {k: v.shape for k, v in same.items()}


def test_a_batch_of_rgb_bytes_becomes_one_grey_channel():
    model = small().eval()
    bytes_ = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    batch = Batch(
        bytes_,
        torch.tensor([[20, 30]] * 2),
        ["a", "b"],
        masks=torch.zeros(2, 20, 30, dtype=torch.uint8),
    )
    with torch.no_grad():
        expected = model(bytes_.float().mean(1, keepdim=True) / 255)["logits"]
        torch.testing.assert_close(model(batch)["logits"], expected, rtol=0, atol=1e-5)


def test_the_encoder_is_the_backbone():
    model = on_meta(2, **PAPER)
    backbone = {id(p) for p in model.backbone_parameters()}
    assert {n.split(".")[0] for n, p in model.named_parameters() if id(p) not in backbone} == {
        "up",
        "decoder",
        "classifier",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 2}, r"model\.in_channels=2: use 1 \(grey\) or 3"),
        ({"padding": "reflect"}, r"model\.padding=reflect: use same or valid"),
        ({"norm": "layer"}, r"norm=layer is unknown"),
        ({"width": 0}, r"model\.width=0"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0"),
    ],
)
def test_values_that_make_no_network_are_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=message):
        on_meta(2, **arguments)
