"""Frozen parts keep their bits, batch norm statistics included; what is no part is named.

Members: the backbone of a semantic network and of a detector, the head, a stage, a model without a
backbone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import trained
from torch import nn

import segtrain
from segtrain.errors import UserError
from segtrain.optim.optimizers import adamw, sgd

SMALL = [
    "dataset.train=4",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_every=2",
    "train.bn_batches=1",
    "train.precision=fp32",
    "train.device=cpu",
    "train.threads=1",
    "writer=[]",
    "log.images=0",
]


def stepped(model: nn.Module, freeze: tuple[str, ...]) -> dict[str, bool]:
    """Which tensors three steps change, by name; statistics too."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = sgd(model, 0.1, weight_decay=0.1, freeze=freeze)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        model.train()
        model(torch.rand(2, 3, 33, 33, generator=generator))["logits"].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {
        name: not torch.equal(value, before[name]) for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("freeze", "held"),
    [
        (("backbone",), ("backbone.",)),
        (("backbone.stages.0", "backbone.stem"), ("backbone.stages.0.", "backbone.stem.")),
    ],
)
def test_frozen_parts_keep_their_bits_and_the_others_move(
    freeze: tuple[str, ...], held: tuple[str, ...]
) -> None:
    model = segtrain.create_model("deeplabv3plus_r18", 3, weights=None)
    changed = stepped(model, freeze)
    for name, moved in changed.items():
        assert moved != name.startswith(held), name


def test_the_head_is_all_but_the_backbone() -> None:
    model = segtrain.create_model("deeplabv3plus_r18", 3, weights=None)
    changed = stepped(model, ("head",))
    assert all(moved == name.startswith("backbone.") for name, moved in changed.items())


@pytest.mark.parametrize("build", [sgd, adamw])
def test_what_is_no_part_is_named(build: object) -> None:
    model = segtrain.create_model("unet", 3, width=4)
    with pytest.raises(UserError, match=r"optimizer.freeze=bakbone: UNet has no such part; it has"):
        build(model, 0.1, freeze=("bakbone",))  # type: ignore[operator]
    whole = segtrain.create_model("deeplabv3plus_r18", 3, weights=None)
    with pytest.raises(UserError, match=r"DeepLabV3Plus has no trainable parameter"):
        build(whole, 0.1, freeze=("backbone", "head"))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["mask_rcnn_r18", "panet_r18", "fpn_r18", "unet_32"])
def test_every_kind_of_system_has_a_backbone_to_freeze(name: str) -> None:
    with torch.device("meta"):
        model = (
            segtrain.create_model(name, 3, weights=None)
            if "r18" in name
            else (segtrain.create_model(name, 3))
        )
    sgd(model, 0.1, momentum=0.0, freeze=("backbone",))
    frozen = {n for n, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("backbone.")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [["model=deeplabv3plus_r18"], ["model=pspnet_r18", "train.ema=0.5"]],
    ids=["plain", "moving average"],
)
def test_a_run_keeps_a_frozen_backbone_through_training_and_validation(
    tmp_path: Path, settings: list[str]
) -> None:
    """Of two runs from the same numbers, one with two steps and one whose rate is nothing."""
    words = [*SMALL, *settings, "optimizer.freeze=[backbone]"]
    run = trained(tmp_path / "run", *words)
    begun = trained(tmp_path / "begun", *words, "optimizer.lr=1e-30")
    after = segtrain.load(run, prefer="latest").network.state_dict()
    before = segtrain.load(begun, prefer="latest").network.state_dict()
    held = [name for name in after if name.startswith("backbone.")]
    assert held
    assert all(torch.equal(after[name], before[name]) for name in held)
    assert not all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_part_without_brackets_is_answered_with_the_list_to_write(optimizer: str) -> None:
    said = r"optimizer.freeze: .*, got 'backbone'. A list of one is written \[backbone\]."
    with pytest.raises(UserError, match=said):
        segtrain.compose([f"optimizer={optimizer}", "optimizer.freeze=backbone"])
