"""Import a file of a release and compare what its network computes, as tests of families do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import segtrain
from segtrain.checkpoints import match
from segtrain.errors import UserError
from segtrain.weights.families import Recognised, read_published

# 1x1; reduction and 3x3; reduction and 3x3; projection behind the pool (GoogLeNet, table 1).
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def loaded(model: torch.nn.Module, state: dict[str, Tensor], path: Path) -> torch.nn.Module:
    """The model with exactly this state; a file does not count batches."""
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    match.load_exactly(model, {**counters, **state}, path)
    return model.eval()


def imported(path: Path, **changes: object) -> tuple[Recognised, torch.nn.Module]:
    """What a file is recognised as, and the network of it; how it is measured is understood."""
    read = read_published(path)
    published = read.published
    segtrain.compose([f"model={published.model}", "dataset=voc", *published.measured])
    scratch = {} if published.model == "unet" else {"weights": None}
    own = {**published.arguments, **scratch, **changes}
    model = segtrain.create_model(published.model, published.num_classes, **own)
    return read, loaded(model, read.state, path)


def assert_equal(mine: Tensor, expected: Tensor) -> None:
    """Equal to 1e-4 of the largest value, which is not 0."""
    assert mine.shape == expected.shape
    largest = expected.abs().max().item()
    assert largest > 1e-3
    assert (mine - expected).abs().max().item() <= 1e-4 * largest


def refusal(path: Path) -> str:
    """The line with which a file is refused."""
    with pytest.raises(UserError) as error:
        read_published(path)
    return str(error.value)
