"""The instance systems of conf/model made small, with objects to learn."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from zoo import node

import segtrain
from segtrain.config import parts
from segtrain.config.schema import RunConf
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

Box = tuple[int, int, int, int]  # x1, y1, x2, y2

CLASSES = 3
SMALL = {
    "weights": None,
    "backbone": "resnet18",
    "norm": "group",
    "head_norm": "group",
    "width": 32,
    "hidden": 32,
    "proposals": (40, 20),
    "regions": 16,
}


@cache
def composed(name: str) -> RunConf:
    """Compose the run of a model, once."""
    return segtrain.compose([f"model={name}"])


def build(name: str, **changes: Any) -> nn.Module:
    """Build a model by its yaml and `changes`, small, with weights that are the same every time."""
    config = OmegaConf.to_container(node(name))
    module, cls = config.pop("_target_").rsplit(".", 1)
    made = getattr(importlib.import_module(module), cls)
    assert set(config) <= set(inspect.signature(made).parameters), (
        "the yaml names an argument that the class lacks"
    )
    arguments = config | {key: value for key, value in (SMALL | changes).items() if key in config}
    arguments.pop("sampling", None)
    if isinstance(config.get("proposals"), int):
        arguments["proposals"] = 20
    torch.manual_seed(0)
    return made(CLASSES, **arguments)


def target(boxes: Sequence[Box], height: int, width: int, crowd: Collection[int] = ()) -> Instances:
    """Return rectangles as objects, those with a number in `crowd` as crowd regions."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    flags = torch.tensor([number in crowd for number in range(len(boxes))], dtype=torch.bool)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(corners, torch.arange(len(boxes)) % CLASSES, masks, flags)


# Two objects, one for each window size, in the first image and none in the second.
TWO_AND_NONE: Sequence[Sequence[Box]] = ([(8, 10, 40, 42), (44, 20, 89, 60)], [])


def batch_of(
    height: int = 70, width: int = 90, boxes: Sequence[Sequence[Box]] = TWO_AND_NONE
) -> Batch:
    """Return a batch of noise, an image for each list of boxes."""
    g = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (len(boxes), 3, height, width), dtype=torch.uint8, generator=g)
    targets = [target(some, height, width) for some in boxes]
    return Batch(
        pixels,
        torch.tensor([[height, width]] * len(boxes)),
        [str(i) for i in range(len(boxes))],
        instances=targets,
    )


def loss(name: str, model: nn.Module, batch: Batch) -> Any:
    """Return the weighed mean of the terms of the loss that the model's yaml chooses."""
    criterion = parts.loss(composed(name).loss)
    terms = criterion.train(model.training)(model(batch), batch)
    counted = {term: value for term, value in terms.items() if term != "dropped"}
    assert counted.keys() == criterion.weights.keys() - {"dropped"}
    return sum(
        criterion.weights[term] * value.sum / value.count.clamp(min=1e-12)
        for term, value in counted.items()
    )
