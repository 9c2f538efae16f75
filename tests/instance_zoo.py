"""The instance systems of conf/model made small, with objects to learn."""

import importlib
import inspect
from functools import cache

import torch
from omegaconf import OmegaConf
from zoo import node

import segtrain
from segtrain.config import parts
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

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
def composed(name):
    return segtrain.compose([f"model={name}"])


def build(name, **changes):
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


def target(boxes, height, width, crowd=()):
    """Rectangles as objects, those with a number in `crowd` as crowd regions."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    flags = torch.tensor([number in crowd for number in range(len(boxes))], dtype=torch.bool)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(corners, torch.arange(len(boxes)) % CLASSES, masks, flags)


def batch_of(
    height=70, width=90, boxes=([(8, 10, 40, 42), (44, 20, 89, 60)], [])
):  # of both window sizes
    g = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (len(boxes), 3, height, width), dtype=torch.uint8, generator=g)
    targets = [target(some, height, width) for some in boxes]
    return Batch(
        pixels,
        torch.tensor([[height, width]] * len(boxes)),
        [str(i) for i in range(len(boxes))],
        instances=targets,
    )


def loss(name, model, batch):
    """The weighed mean of the terms of the loss that the model's yaml chooses."""
    criterion = parts.loss(composed(name).loss)
    terms = criterion.train(model.training)(model(batch), batch)
    counted = {term: value for term, value in terms.items() if term != "dropped"}
    assert counted.keys() == criterion.weights.keys() - {"dropped"}
    return sum(
        criterion.weights[term] * value.sum / value.count.clamp(min=1e-12)
        for term, value in counted.items()
    )
