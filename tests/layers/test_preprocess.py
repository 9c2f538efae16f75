"""Normalising a batch of bytes by formula, and padding that the model sees as zero."""

import numpy as np
import pytest
import torch

from segtrain.layers.preprocess import Preprocess, mirrored, preprocess


def sizes(*pairs):
    return torch.tensor(pairs)


def test_imagenet_equals_torchvisions_formula():
    images = torch.randint(
        0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    result = preprocess("imagenet")(images, sizes((4, 5), (4, 5)))
    torch.testing.assert_close(result, (images / 255 - mean) / std, rtol=0, atol=2e-6)


def test_caffe_weights_get_bgr_minus_the_mean():
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)  # R, G, B
    result = preprocess("caffe")(images, sizes((1, 1))).flatten()
    torch.testing.assert_close(
        result, torch.tensor([30 - 103.939, 20 - 116.779, 10 - 123.68]), rtol=0, atol=1e-4
    )


def test_a_mean_in_bytes_and_a_mean_in_fractions_agree():
    images = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    fractions = Preprocess([0.5, 0.4, 0.2], [0.5, 0.25, 0.2])
    in_bytes = Preprocess([127.5, 102.0, 51.0], [127.5, 63.75, 51.0], scale=255.0)
    torch.testing.assert_close(
        fractions(images, sizes((2, 2))), in_bytes(images, sizes((2, 2))), rtol=0, atol=1e-6
    )


def test_padding_is_exactly_zero_and_nothing_else_is():
    images = torch.full((2, 3, 4, 6), 200, dtype=torch.uint8)
    result = preprocess("imagenet")(images, sizes((3, 6), (4, 2)))
    assert (result[0, :, 3:] == 0).all()
    assert (result[0, :, :3] != 0).all()
    assert (result[1, :, :, 2:] == 0).all()
    assert (result[1, :, :, :2] != 0).all()


def test_the_result_is_channels_last_float32_and_the_bytes_are_untouched():
    images = torch.full((2, 3, 4, 6), 200, dtype=torch.uint8)
    result = preprocess("imagenet")(images, sizes((4, 6), (4, 6)))
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (images == 200).all()


def test_normalisation_is_not_part_of_a_checkpoint():
    assert preprocess("imagenet").state_dict() == {}


def test_grey_is_the_mean_of_the_channels_in_zero_to_one():
    images = torch.tensor([[10, 51], [20, 51], [60, 51]], dtype=torch.uint8).view(1, 3, 1, 2)
    result = preprocess("grey")(images, sizes((1, 2)))
    assert result.shape == (1, 1, 1, 2)
    torch.testing.assert_close(result.flatten(), torch.tensor([30 / 255, 0.2]), rtol=0, atol=1e-7)
    assert preprocess("grey")(images, sizes((1, 1))).flatten()[1] == 0  # padding


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 3), (30, 40)])
def test_mirroring_is_numpys_reflection_as_often_as_it_takes(shape):
    pixels = torch.randint(
        0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    whole = np.pad(pixels.numpy(), ((0, 0), (50, 70), (40, 90)), mode="reflect")
    for top, left in [(-50, -40), (-3, 5), (0, 0), (40, 60)]:
        window = mirrored(pixels, top, left, 20, 25)
        assert np.array_equal(window.numpy(), whole[:, 50 + top : 70 + top, 40 + left : 65 + left])
