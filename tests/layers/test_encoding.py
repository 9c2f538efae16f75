"""The encoding layer against a loop over positions and codewords in float64, and by hand."""

import math

import pytest
import torch
from torch import nn

from segtrain.errors import UserError
from segtrain.layers.encoding import ContextEncoding, Encoding


def by_loops(layer, x):
    """The formula as it is written, in float64."""
    x = x.double().flatten(2)
    d = layer.codewords.double()
    s = layer.smoothing.double()
    result = torch.zeros(len(x), *d.shape, dtype=torch.float64)
    for b in range(len(x)):
        for i in range(x.shape[2]):
            residuals = x[b, :, i] - d  # (K, D)
            scores = torch.stack([s[k] * (residuals[k] ** 2).sum() for k in range(len(d))])
            for k in range(len(d)):
                result[b, k] += scores[k].exp() / scores.exp().sum() * residuals[k]
    return result


def layer_and_input(channels=6, codewords=4, size=(3, 5), seed=0):
    torch.manual_seed(seed)
    layer = Encoding(channels, codewords)
    nn.init.normal_(layer.codewords)
    return layer, torch.randn(2, channels, *size)


def test_two_positions_and_two_codewords_by_hand():
    # Positions 0 and 2, codewords 0 and 1, smoothing -ln 2 and 0: weights of codeword 0 are 1/2 and
    # 1/17.
    layer = Encoding(1, 2)
    layer.codewords.data = torch.tensor([[0.0], [1.0]])
    layer.smoothing.data = torch.tensor([-math.log(2), 0.0])
    code = layer(torch.tensor([0.0, 2.0]).view(1, 1, 1, 2))
    assert code.shape == (1, 2, 1)
    assert code.flatten().tolist() == pytest.approx([0 / 2 + 2 / 17, -1 / 2 + 16 / 17], rel=1e-6)


def test_the_matrix_products_are_the_loops_in_float64():
    layer, x = layer_and_input()
    torch.testing.assert_close(layer.double()(x.double()), by_loops(layer, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_float32_keeps_five_digits_at_the_size_the_model_has(scale):
    torch.manual_seed(0)
    layer = Encoding(512, 32)
    x = scale * torch.randn(1, 512, 4, 4).relu()
    exact = by_loops(layer, x)
    assert (layer(x) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_gradients_are_right_for_input_codewords_and_smoothing():
    layer, x = layer_and_input(3, 2, (2, 2))
    layer.double()

    def encode(x, codewords, smoothing):
        return torch.func.functional_call(
            layer, {"codewords": codewords, "smoothing": smoothing}, (x,)
        )

    inputs = (x.double(), layer.codewords.detach(), layer.smoothing.detach())
    assert torch.autograd.gradcheck(encode, tuple(value.requires_grad_() for value in inputs))


def test_autocast_changes_nothing():
    layer, x = layer_and_input()
    exact = layer(x.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(x.bfloat16())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)


def test_the_order_of_positions_does_not_matter():
    layer, x = layer_and_input()
    torch.testing.assert_close(layer(x.flip(2, 3)), layer(x))


def test_codewords_begin_small_and_smoothing_negative():
    torch.manual_seed(0)
    layer = Encoding(512, 32)
    bound = 1 / math.sqrt(512 * 32)  # 1/128
    assert layer.codewords.shape == (32, 512)
    assert layer.smoothing.shape == (32,)
    assert 0.99 * bound < layer.codewords.max() <= bound
    assert -bound <= layer.codewords.min() < -0.99 * bound
    assert -1 <= layer.smoothing.min() < -0.8
    assert -0.2 < layer.smoothing.max() <= 0


def test_nothing_as_large_as_positions_times_codewords_times_channels_is_built():
    layer, x = layer_and_input(64, 16, (8, 8))
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        layer(x)
    assert largest == x.numel()  # B x N x D, sixteen times smaller than with K


def test_each_codeword_is_normalised_over_images_and_channels():
    torch.manual_seed(0)
    context = ContextEncoding(5, 8, 4)
    assert isinstance(context.norm, nn.BatchNorm1d)
    assert context.norm.num_features == 4
    x = torch.randn(3, 5, 4, 6)
    code = context.encoding(context.project(x))
    mean = code.mean((0, 2), keepdim=True)
    variance = code.var((0, 2), unbiased=False, keepdim=True)
    wanted = ((code - mean) / (variance + 1e-5).sqrt()).relu().mean(1)
    result = context(x)
    assert result.shape == (3, 8)
    torch.testing.assert_close(result, wanted)


def test_group_norm_normalises_each_codeword_of_each_image_with_as_many_parameters():
    torch.manual_seed(0)
    context = ContextEncoding(5, 8, 4, "group")
    batch = ContextEncoding(5, 8, 4)
    assert sum(p.numel() for p in context.parameters()) == sum(
        p.numel() for p in batch.parameters()
    )
    x = torch.randn(3, 5, 4, 6)
    code = context.encoding(context.project(x))
    wanted = (
        (code - code.mean(2, keepdim=True))
        / (code.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    ).relu()
    torch.testing.assert_close(context(x), wanted.mean(1))
    torch.testing.assert_close(context(x)[:1], context(x[:1]))


def test_no_codewords_are_global_average_pooling():
    torch.manual_seed(0)
    context = ContextEncoding(5, 8, 0)
    x = torch.randn(3, 5, 4, 6)
    torch.testing.assert_close(context(x), context.project(x).mean((2, 3)))
    assert sum(p.numel() for p in context.parameters()) == 5 * 8 + 2 * 8


def test_a_negative_number_of_codewords_is_refused():
    with pytest.raises(UserError, match="codewords=-1"):
        ContextEncoding(5, 8, -1)
