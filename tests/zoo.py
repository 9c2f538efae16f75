"""The semantic systems of conf/model, found by themselves and made small to stay quick."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from segtrain.structures.samples import Batch

CONF = Path(__file__).parents[1] / "conf" / "model"
CLASSES = 4
# The smallest trunk of a family, by the first letters of the yaml's backbone.
SMALLEST = {
    "vgg": "vgg11",
    "res": "resnet18",
    "xce": "xception41",
    "ale": "alexnet",
    "mob": "mobilenet_v2",
}
# `width` is that of a whole network, where it has no trunk.
SMALL = {"weights": None, "code": 64, "width": 8}


def node(name: str) -> Any:
    """Compose the yaml of a model: its own keys over those of the models in its defaults list."""
    raw = OmegaConf.load(CONF / f"{name}.yaml")
    parents = [
        entry for entry in raw.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"
    ]
    return OmegaConf.merge(*(node(parent) for parent in parents), raw)


def target(config: dict[str, Any]) -> type[nn.Module]:
    """Import the class that a model's yaml names."""
    module, name = config["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def bare(name: str, **changes: Any) -> nn.Module:
    """Build a model by its yaml and `changes`, small, with the weights that it begins with."""
    config = OmegaConf.to_container(node(name))
    cls = target(config)
    accepted = inspect.signature(cls).parameters
    assert set(config) - {"_target_"} <= set(accepted), (
        "the yaml names an argument that the class does not have"
    )
    arguments = {k: v for k, v in config.items() if k != "_target_"}
    if "backbone" in config:
        changes = {"backbone": SMALLEST[config["backbone"][:3]], **changes}
    arguments |= {k: v for k, v in (SMALL | changes).items() if k in config}
    torch.manual_seed(0)
    return cls(CLASSES, **arguments)


def build(name: str, **changes: Any) -> nn.Module:
    """Build a model as `bare` does, without weights that are all zero; the same every time."""
    model = bare(name, **changes)
    # Scores that start at zero (FCN's) would pass on no gradient and hide what lies before them.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.01)
    return model


def loss_of(name: str) -> str:
    """Read the loss that a model's yaml, or that of a model it stands on, chooses."""
    found = ""
    for entry in OmegaConf.load(CONF / f"{name}.yaml").get("defaults", []):
        if isinstance(entry, str):
            found = loss_of(entry) if entry != "_self_" else found
        else:
            found = entry.get("override /loss@_global_.loss", found)
    return found


EVERY = sorted(path.stem for path in CONF.glob("*.yaml"))
# Their tests are in tests/models/test_instance_models.py.
INSTANCES = [name for name in EVERY if loss_of(name) in ("multitask", "mask_proposals", "rpn")]
ZOO = [name for name in EVERY if name not in INSTANCES]


def batch_of(height: int, width: int, images: int = 2) -> Batch:
    """Return a batch of noise with labels of every class and ignored pixels in the first row."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=g)
    target = torch.randint(0, CLASSES, (images, height, width), dtype=torch.uint8, generator=g)
    target[:, 0] = 255
    return Batch(
        pixels,
        torch.tensor([[height, width]] * images),
        [str(i) for i in range(images)],
        masks=target,
    )
