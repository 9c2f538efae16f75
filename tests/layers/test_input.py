"""What a network reads: every name by its numbers, mappings, and records that a stranger wrote."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import nn

from segtrain.backbones.googlenet import GoogLeNet
from segtrain.errors import UserError
from segtrain.layers.preprocess import (
    INPUTS,
    InputName,
    Preprocess,
    chosen,
    goes_with,
    preprocess,
    record_of,
    take_input,
)
from segtrain.models.fcn import FCN
from segtrain.models.unet import UNet

RED, GREEN, BLUE = 10, 20, 60

# What each name makes of that pixel, by the releases' own formulas.
EXPECTED = {
    "imagenet": [
        (RED / 255 - 0.485) / 0.229,
        (GREEN / 255 - 0.456) / 0.224,
        (BLUE / 255 - 0.406) / 0.225,
    ],
    "caffe": [BLUE - 103.939, GREEN - 116.779, RED - 123.68],
    "features": [RED - 123, GREEN - 117, BLUE - 104],
    "fcn": [BLUE - 104.00699, GREEN - 116.66877, RED - 122.67892],
    "deeplab_caffe": [BLUE - 104.008, GREEN - 116.669, RED - 122.675],
    "detectron": [BLUE - 102.9801, GREEN - 115.9465, RED - 122.7717],
    "detectron2": [BLUE - 103.53, GREEN - 116.28, RED - 123.675],
    "detectron2_x101": [
        (BLUE - 103.53) / 57.375,
        (GREEN - 116.28) / 57.12,
        (RED - 123.675) / 58.395,
    ],
    "tensorflow": [RED / 127.5 - 1, GREEN / 127.5 - 1, BLUE / 127.5 - 1],
    "unit": [RED / 255, GREEN / 255, BLUE / 255],
    "grey": [(RED + GREEN + BLUE) / 3 / 255],
}


def of_pixel(module: nn.Module) -> list[float]:
    """What a preprocessing makes of the pixel."""
    images = torch.tensor([RED, GREEN, BLUE], dtype=torch.uint8).view(1, 3, 1, 1)
    return module(images, torch.tensor([[1, 1]])).flatten().tolist()


def test_every_name_has_its_numbers_and_may_be_typed() -> None:
    assert list(INPUTS) == list(EXPECTED) == list(get_args(InputName))
    for name, expected in EXPECTED.items():
        assert of_pixel(preprocess(name)) == pytest.approx(expected, rel=1e-5, abs=2e-6), name


def test_torchvisions_googlenet_turns_imagenets_normalisation_into_tensorflows() -> None:
    """Its `transform_input` is an affine map of each channel, with these numbers."""
    turned = [
        value * std / 0.5 + (mean - 0.5) / 0.5
        for value, std, mean in zip(
            EXPECTED["imagenet"], (0.229, 0.224, 0.225), (0.485, 0.456, 0.406), strict=True
        )
    ]
    assert of_pixel(preprocess("tensorflow")) == pytest.approx(turned, abs=1e-6)
    assert goes_with("googlenet", "imagenet") == "tensorflow"
    with torch.device("meta"):
        assert GoogLeNet().preprocess.mean == INPUTS["imagenet"]["mean"]  # from scratch


def test_padding_is_zero_whatever_is_read() -> None:
    for name in INPUTS:
        result = preprocess(name)(
            torch.full((1, 3, 2, 3), 77, dtype=torch.uint8), torch.tensor([[2, 2]])
        )
        assert (result[..., 2] == 0).all(), name
        assert (result[..., :2] != 0).all(), name


def test_a_record_makes_the_same_preprocessing_again() -> None:
    for name in INPUTS:
        made = preprocess(name)
        again = preprocess(made.record())
        assert torch.equal(again.factor, made.factor)
        assert torch.equal(again.offset, made.offset)
        assert (again.order, again.same(made), again.told()) == (made.order, True, name)
    in_bytes = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "scale": 255}
    assert preprocess(in_bytes).same(preprocess("imagenet"))
    assert preprocess(in_bytes).told().startswith("{mean: [123.675,")
    assert not preprocess("caffe").same(preprocess("fcn"))


GOOD: dict[str, Any] = {"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("imagnet", "no such input. Did you mean `imagenet`?"),
        ("x" * 9999, "no such input"),
        (7, "expected a name"),
        ([1, 2], "expected a name"),
        ({}, "mean: expected 3 numbers"),
        ({**GOOD, "std": [1.0, 0.0, 1.0]}, "std: expected 3 numbers"),
        ({**GOOD, "std": [1.0, -1.0, 1.0]}, "std: expected 3 numbers"),
        ({**GOOD, "mean": [1.0, math.nan, 1.0]}, "mean: expected 3 numbers"),
        ({**GOOD, "mean": [1.0, math.inf, 1.0]}, "mean: expected 3 numbers"),
        ({**GOOD, "mean": [1.0, 10**400, 1.0]}, "mean: expected 3 numbers"),
        ({**GOOD, "mean": [1.0, 2.0]}, "mean: expected 3 numbers"),
        ({**GOOD, "mean": [1.0] * 99999}, "mean: expected 3 numbers"),
        ({**GOOD, "mean": ["1", 2.0, 3.0]}, "mean: expected 3 numbers"),
        ({**GOOD, "mean": [True, 2.0, 3.0]}, "mean: expected 3 numbers"),
        ({**GOOD, "mean": {"a": 1}}, "mean: expected 3 numbers"),
        ({**GOOD, "scale": 0}, "scale: expected 1 numbers"),
        ({**GOOD, "order": "gbr"}, "order: 'gbr' is none of rgb, bgr, grey"),
        ({**GOOD, "order": ["rgb"]}, "order: ['rgb'] is none of"),
        ({**GOOD, "order": "grey"}, "mean: expected 1 numbers"),
        ({**GOOD, "means": 1}, "has no `means`"),
        ({**GOOD, "\n" * 99: 1}, "has no `"),
        ("grey", "gives 1 channels, the network reads 3"),
    ],
)
def test_a_strange_record_is_one_line(record: object, words: str) -> None:
    network = nn.Module()
    network.preprocess = preprocess("imagenet")
    with pytest.raises(UserError) as error:
        take_input(network, record, "run/step_1: input")
    text = str(error.value)
    assert text.startswith("run/step_1: input")
    assert words in text
    assert "\n" not in text
    assert len(text) < 400
    assert record_of(network) == preprocess("imagenet").record()


def test_a_model_reads_what_it_is_told_and_else_what_goes_with_its_weights() -> None:
    own = {"mean": [127.5] * 3, "std": [1.0] * 3, "order": "bgr", "scale": 255.0}
    with torch.device("meta"):
        assert FCN(3, "vgg11").preprocess.told() == "imagenet"
        assert FCN(3, "vgg11", input="caffe").preprocess.told() == "caffe"
        assert FCN(3, "vgg11", input=own).preprocess.record() == own
        assert UNet(3, width=8, in_channels=1).preprocess.told() == "grey"
        with pytest.raises(UserError, match=r"model\.input: gives 3 channels, the network reads 1"):
            UNet(3, width=8, in_channels=1, input="imagenet")


class Own(nn.Module):
    """A model that normalises in a way of its own."""

    def preprocess(self, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return images / 255


class Doubled(Preprocess):
    """A preprocessing of which a record would tell half."""


def test_a_model_with_a_way_of_its_own_tells_no_record_and_takes_none() -> None:
    network = Own()
    take_input(network, "caffe", "run")
    assert record_of(network) is None
    assert network.preprocess.__func__ is Own.preprocess
    holder = nn.Module()
    holder.preprocess = Doubled([0.0] * 3, [1.0] * 3)
    take_input(holder, "caffe", "run")
    assert record_of(holder) is None
    assert type(holder.preprocess) is Doubled
    holder.preprocess = Preprocess([0.5], [0.5])  # one number for all channels
    assert record_of(holder) is None
    assert chosen(None, holder.preprocess) is holder.preprocess
