"""Parameter groups, the two optimisers, and the momentum trap of torch's fused SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import nn

from segtrain.config import instantiate
from segtrain.errors import UserError
from segtrain.optim.optimizers import Kind, adamw, describe, parameter_groups, set_lr, sgd

CONF = Path(__file__).resolve().parents[2] / "conf" / "optimizer"


class Net(nn.Module):
    """A backbone (convolution, norm), a head (the same and a scale) and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.head = nn.Conv2d(2, 5, 1)
        self.head_norm = nn.GroupNorm(1, 5)
        self.backbone = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
        self.frozen = nn.Conv2d(1, 1, 1).requires_grad_(False)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone.parameters()


def one_weight(value: float = 1.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_every_trainable_parameter_is_in_exactly_one_group_and_frozen_ones_in_none() -> None:
    model = Net()
    grouped = [id(p) for group in parameter_groups(model, 0.1, 0.01) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_groups_split_backbone_from_head_and_weights_from_biases_and_norms() -> None:
    model = Net()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        g["name"]: [names[id(p)] for p in g["params"]] for g in parameter_groups(model, 0.1, 0.01)
    }
    assert groups == {
        "backbone.weight": ["backbone.0.weight"],
        "backbone.bias": ["backbone.0.bias"],
        "backbone.norm": ["backbone.1.weight", "backbone.1.bias"],
        "head.weight": ["head.weight"],
        "head.bias": ["head.bias"],
        "head.norm": ["scale", "head_norm.weight", "head_norm.bias"],
    }


def test_caffe_rates_are_1_2_for_the_backbone_and_10_20_for_the_head() -> None:
    groups = parameter_groups(Net(), 1.0, 0.01, head_factor=10, bias_factor=2)
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "backbone.weight": (1, 0.01),
        "backbone.bias": (2, 0),
        "backbone.norm": (1, 0),
        "head.weight": (10, 0.01),
        "head.bias": (20, 0),
        "head.norm": (10, 0),
    }


class Kinds(nn.Module):
    """A parameter of each kind; a grouped convolution, whose filters see several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, bias=False)
        self.single = nn.Conv2d(1, 2, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [
        (("weight", "depthwise"), {"depthwise.weight", "grouped.weight", "single.weight"}),
        (("weight",), {"grouped.weight", "single.weight"}),
        (("depthwise",), {"depthwise.weight"}),
        (("bias",), {"depthwise.bias"}),
        (("norm_scale",), {"norm.weight", "scale"}),
        (("norm_shift",), {"norm.bias"}),
        ((), set()),
    ],
)
def test_each_kind_is_decayed_where_it_is_listed(
    decay: tuple[Kind, ...], decayed: set[str]
) -> None:
    model = Kinds()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 1.0, 0.01, decay=decay)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(names)
    assert {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]} == decayed


def test_kinds_share_a_group_until_they_differ() -> None:
    def names(**options: Any) -> list[str]:
        return [g["name"] for g in parameter_groups(Kinds(), 1.0, 0.01, **options)]

    assert names() == ["head.weight", "head.bias", "head.norm"]
    assert names(decay=get_args(Kind)) == ["head.weight", "head.bias", "head.norm"]
    assert names(decay=("weight", "norm_shift")) == [
        "head.weight",
        "head.depthwise",
        "head.bias",
        "head.norm_scale",
        "head.norm_shift",
    ]


def test_shifts_of_norms_have_a_rate_of_their_own() -> None:
    groups = parameter_groups(Net(), 1.0, 0.01, head_factor=10, norm_shift_factor=2)
    assert {g["name"]: g["lr"] for g in groups} == {
        "backbone.weight": 1,
        "backbone.bias": 1,
        "backbone.norm_scale": 1,
        "backbone.norm_shift": 2,
        "head.weight": 10,
        "head.bias": 10,
        "head.norm_scale": 10,
        "head.norm_shift": 20,
    }


def test_without_backbone_parameters_everything_is_head() -> None:
    groups = parameter_groups(nn.Conv2d(3, 2, 3), 1.0, 0.01, backbone_factor=0.1)
    assert [(g["name"], g["lr"]) for g in groups] == [("head.weight", 1), ("head.bias", 1)]


def test_a_shared_parameter_is_grouped_once() -> None:
    first = nn.Linear(2, 2, bias=False)
    second = nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    (group,) = parameter_groups(nn.Sequential(first, second), 1.0, 0.0)
    assert len(group["params"]) == 1


def test_two_sgd_steps_give_the_numbers_worked_out_by_hand() -> None:
    model = one_weight(1.0)
    optimizer = sgd(model, lr=0.1, momentum=0.9, weight_decay=0.5)
    model.weight.grad = torch.ones(1, 1)
    optimizer.step()  # gradient 1 + 0.5 * 1 = 1.5, velocity 1.5, weight 1 - 0.15
    assert model.weight.item() == pytest.approx(0.85, abs=1e-7)
    optimizer.step()  # gradient 1 + 0.425, velocity 1.35 + 1.425 = 2.775, weight 0.85 - 0.2775
    assert model.weight.item() == pytest.approx(0.5725, abs=1e-7)


def test_the_first_adamw_step_is_the_decay_and_one_lr_against_the_gradients_sign() -> None:
    model = one_weight(1.0)
    optimizer = adamw(model, lr=0.1, weight_decay=0.5)
    model.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()  # 1 * (1 - 0.1 * 0.5) - 0.1 * 3 / sqrt(9)
    assert model.weight.item() == pytest.approx(0.85, abs=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_sgd_with_zeroed_momentum_follows_plain_torch_sgd(nesterov: bool) -> None:
    torch.manual_seed(0)
    ours = nn.Linear(7, 5)
    plain = nn.Linear(7, 5)
    plain.load_state_dict(ours.state_dict())
    a = sgd(ours, lr=0.1, weight_decay=0.01, nesterov=nesterov, decay=get_args(Kind))
    b = torch.optim.SGD(
        plain.parameters(),
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
        nesterov=nesterov,
        foreach=False,
    )
    for _ in range(4):
        data = torch.randn(3, 7)
        for model, optimizer in ((ours, a), (plain, b)):
            optimizer.zero_grad()
            model(data).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.bias, plain.bias, rtol=1e-6, atol=1e-6)


def skip_first_step_then_take_one(model: nn.Linear, optimizer: torch.optim.Optimizer) -> float:
    model.weight.grad = torch.ones(1, 1)
    optimizer.found_inf = torch.ones(())  # ty: ignore[unresolved-attribute]
    optimizer.step()
    del optimizer.found_inf
    optimizer.step()
    return model.weight.item()


def test_fused_sgd_would_train_on_uninitialised_memory_after_a_skipped_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # what may lie in fresh memory
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, 1e6))
    model = one_weight(1.0)
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    assert skip_first_step_then_take_one(model, plain) == pytest.approx(1 - 0.1 * (0.9e6 + 1))

    model = one_weight(1.0)
    assert skip_first_step_then_take_one(
        model, sgd(model, lr=0.1, weight_decay=0)
    ) == pytest.approx(0.9)


def test_set_lr_multiplies_the_lr_each_group_began_with() -> None:
    optimizer = sgd(Net(), lr=0.5, head_factor=10)
    for factor in (0.1, 0.5):  # the second call must not build on the first
        set_lr(optimizer, factor)
    assert {g["lr"] for g in optimizer.param_groups} == {0.25, 2.5}


def test_a_reloaded_optimizer_keeps_its_groups_rates_and_momentum() -> None:
    model = Net()
    optimizer = sgd(model, lr=0.5, head_factor=10)
    again = sgd(model, lr=0.5, head_factor=10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    set_lr(optimizer, 0.5)
    again.load_state_dict(optimizer.state_dict())
    assert [(g["name"], g["lr"], g["initial_lr"]) for g in again.param_groups] == [
        (g["name"], g["lr"], g["initial_lr"]) for g in optimizer.param_groups
    ]
    assert torch.equal(again.state[model.scale]["momentum_buffer"], torch.ones(2))


def test_describe_counts_tensors_and_parameters() -> None:
    rows = [line.split() for line in describe(sgd(Net(), lr=0.01, head_factor=10)).splitlines()]
    assert rows[0] == ["group", "tensors", "parameters", "lr", "decay"]
    assert rows[1] == ["backbone.weight", "1", "54", "0.01", "0.0001"]
    assert rows[-1] == ["head.norm", "3", "12", "0.1", "0"]


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (sgd, {"lr": 0.0}, "optimizer.lr=0.0"),
        (sgd, {"lr": -0.1}, "optimizer.lr=-0.1 cannot work; it must be a number above 0"),
        (sgd, {"lr": float("nan")}, "optimizer.lr=nan"),
        (adamw, {"lr": float("inf")}, "optimizer.lr=inf"),
        (sgd, {"lr": 0.1, "momentum": 1.0}, "optimizer.momentum=1.0"),
        (sgd, {"lr": 0.1, "momentum": 0.0, "nesterov": True}, "optimizer.nesterov=True"),
        (sgd, {"lr": 0.1, "weight_decay": -1.0}, "optimizer.weight_decay=-1.0"),
        (adamw, {"lr": 0.1, "betas": (0.9, 1.0)}, "optimizer.betas=[0.9, 1.0]"),
        (adamw, {"lr": 0.1, "eps": 0.0}, "optimizer.eps=0.0"),
        (adamw, {"lr": 0.1, "decay": ("weights",)}, "optimizer.decay=['weights'] cannot work"),
        (adamw, {"lr": 0.1, "norm_shift_factor": -1.0}, "optimizer.norm_shift_factor=-1.0"),
        (adamw, {"lr": 0.1, "head_factor": -1.0}, "optimizer.head_factor=-1.0"),
    ],
)
def test_a_number_that_cannot_work_is_named(make: Callable, options: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        make(nn.Linear(1, 1), **options)
    assert said in str(error.value)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        sgd(nn.Linear(1, 1).requires_grad_(False), lr=0.1)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_yaml_files_build_fused_optimisers(name: str, kind: type) -> None:
    optimizer = instantiate.build(
        yaml.safe_load((CONF / f"{name}.yaml").read_text()), "optimizer", model=Net()
    )
    assert isinstance(optimizer, kind)
    assert all(group["fused"] for group in optimizer.param_groups)
