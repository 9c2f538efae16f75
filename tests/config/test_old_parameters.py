"""Tensors stored under names of yesterday: every row of the table, and what reads through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segtrain.checkpoints import reading, writing
from segtrain.checkpoints.match import modern_state
from segtrain.config import instantiate
from segtrain.config.old_names import PARAMETERS, modern_parameters

# One small model for each row that a stored run may have, and where its tensors lay when the first
# row of the model was written: (first words of the names, in the order of the parameters).
OLD = [
    ("box_rpn.BoxRPN", {"backbone": "resnet18"}, ["trunk", "pyramid", "rpn"]),
    ("fcn.FCN", {"backbone": "vgg11", "width": 8}, ["net.backbone", "net.fc", "net.score_fr"]),
    ("fcn.FCN", {"backbone": "resnet18"}, ["net.backbone", "net.classifier"]),
    ("mask_rcnn.MaskRCNN", {"backbone": "resnet18"}, ["trunk", "pyramid", "stages"]),
    ("panet.PANet", {"backbone": "resnet18"}, ["trunk", "pyramid", "path", "stages"]),
    ("unet.UNet", {"width": 8}, ["encoder", "up", "decoder", "classifier"]),
]


def old_name(target: str, name: str) -> str:
    """Return what a parameter was called before the rows of `target` were written."""
    for old, new in PARAMETERS[target].items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def model(target: str, arguments: dict[str, Any]) -> nn.Module:
    """Return a network without memory."""
    with torch.device("meta"):
        node = {"_target_": target, **arguments}
        return instantiate.build(node, "model", num_classes=3)


def test_every_model_of_the_table_is_tried() -> None:
    assert {f"segtrain.models.{name}" for name, *_ in OLD} == set(PARAMETERS)


@pytest.mark.parametrize(("name", "arguments", "order"), OLD)
def test_a_stored_model_keeps_every_tensor_and_their_order(
    name: str, arguments: dict[str, Any], order: list[str]
) -> None:
    """torch's optimizers number parameters, so a renamed model must list them as it did."""
    target = f"segtrain.models.{name}"
    names = list(model(target, arguments).state_dict())
    old = [old_name(target, name) for name in names]
    assert not set(old) & {n for n in names if n.startswith("backbone.")}
    assert list(modern_parameters(target, old).values()) == names
    firsts = list(dict.fromkeys(".".join(n.split(".")[: order[0].count(".") + 1]) for n in old))
    assert firsts[: len(order)] == order


def test_names_of_today_and_of_models_without_rows_stay() -> None:
    names = ["backbone.stem.0.weight", "head.fc.0.weight", "n_averaged"]
    for target in ("segtrain.models.fcn.FCN", "segtrain.models.pspnet.PSPNet", "mylab.net.Net", ""):
        assert modern_parameters(target, names) == {name: name for name in names}
    assert modern_parameters("segtrain.models.pspnet.PSPNet", ["net.x"]) == {"net.x": "net.x"}


def test_a_moving_average_keeps_its_prefix_and_counter() -> None:
    config = {"model": {"_target_": "segtrain.models.unet.UNet"}}
    state = {"n_averaged": torch.tensor(3), "module.encoder.0.0.weight": torch.ones(2)}
    assert list(modern_state(state, config)) == ["n_averaged", "module.backbone.0.0.weight"]
    assert list(modern_state(state, None)) == list(state)


def test_weights_of_an_old_run_come_under_the_names_of_today(tmp_path: Path) -> None:
    meta = {"config": {"model": {"_target_": "segtrain.models.mask_rcnn.MaskRCNN"}}, "score": 1.0}
    state = {"trunk.stem.0.weight": torch.ones(2), "pyramid.lateral.0.0.bias": torch.ones(1)}
    writing.save(tmp_path / "checkpoints", 1, {"model": state}, meta)
    stored = reading.weights_of(tmp_path).weights
    assert list(stored) == ["backbone.stem.0.weight", "pyramid.lateral.0.0.bias"]
