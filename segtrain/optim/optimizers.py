"""Build optimizers with the parameter groups of the papers.

A parameter is of a part and of a kind. The part is `backbone` (what `model.backbone_parameters()`
yields) or `head` (the rest). The kind is

- `depthwise`: the weights of convolutions with a filter for each channel,
- `weight`: all others,
- `bias`: biases outside normalisation layers, which Caffe's recipes train at twice the rate,
- `norm_scale`: what a normalisation layer multiplies by, and other parameters with at most one
  dimension, such as learned scales,
- `norm_shift`: what a normalisation layer adds.

Groups are "<part>.weight" (of both kinds of weights), "<part>.bias" and "<part>.norm" (scales and
shifts). A group whose two kinds differ in rate or decay becomes two, named by the kinds.

Build the optimizer when the model is on its device and in its memory format: the state is laid out
like the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from segtrain.errors import UserError
from segtrain.optim import eager
from segtrain.optim.frozen import HasBackbone, freeze_parts

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
PARTS = ("backbone", "head")
Kind = Literal["weight", "depthwise", "bias", "norm_scale", "norm_shift"]
# Kinds that share a group unless they differ. Checkpoints store an optimizer's state by group and
# place, so a run resumes only where its settings give the groups that it began with.
GROUPS: dict[str, tuple[Kind, ...]] = {
    "weight": ("weight", "depthwise"),
    "bias": ("bias",),
    "norm": ("norm_scale", "norm_shift"),
}


def sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    backbone_factor: float = 1.0,
    head_factor: float = 1.0,
    bias_factor: float = 1.0,
    norm_shift_factor: float = 1.0,
    decay: tuple[Kind, ...] = ("weight", "depthwise"),
    freeze: tuple[str, ...] = (),
) -> torch.optim.SGD:
    """Build fused SGD over the groups of `parameter_groups`; its momentum starts at zero.

    The parts to `freeze` stay as they are (`freeze_parts`). Errors: UserError for a number that
    cannot work.
    """
    freeze_parts(model, freeze)
    _require(0 <= momentum < 1, "momentum", momentum, "a number in [0, 1)")
    _require(not nesterov or momentum > 0, "nesterov", nesterov, "false, or a momentum above 0")
    groups = parameter_groups(
        model,
        lr,
        weight_decay,
        backbone_factor,
        head_factor,
        bias_factor,
        norm_shift_factor,
        decay,
    )
    optimizer = eager.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum > 0:
        # A fused first step that a found-inf flag skips would otherwise leave the buffers as
        # uninitialised memory.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(
                    parameter, requires_grad=False
                )
    return optimizer


def adamw(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    backbone_factor: float = 1.0,
    head_factor: float = 1.0,
    bias_factor: float = 1.0,
    norm_shift_factor: float = 1.0,
    decay: tuple[Kind, ...] = ("weight", "depthwise"),
    freeze: tuple[str, ...] = (),
) -> torch.optim.AdamW:
    """Build fused AdamW (Loshchilov and Hutter, 2019) over the groups of `parameter_groups`.

    The parts to `freeze` stay as they are (`freeze_parts`). Errors: UserError for a number that
    cannot work.
    """
    freeze_parts(model, freeze)
    first, second = betas
    _require(0 <= first < 1 and 0 <= second < 1, "betas", [first, second], "two numbers in [0, 1)")
    _require(eps > 0, "eps", eps, "a number above 0")
    groups = parameter_groups(
        model,
        lr,
        weight_decay,
        backbone_factor,
        head_factor,
        bias_factor,
        norm_shift_factor,
        decay,
    )
    return eager.AdamW(groups, lr=lr, betas=(first, second), eps=eps, fused=True)


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    backbone_factor: float = 1.0,
    head_factor: float = 1.0,
    bias_factor: float = 1.0,
    norm_shift_factor: float = 1.0,
    decay: tuple[Kind, ...] = ("weight", "depthwise"),
) -> list[dict[str, Any]]:
    """Put every trainable parameter of `model` in exactly one group, in the model's order.

    A group holds params, name, lr, initial_lr and weight_decay; empty groups are left out.
    `bias_factor` and `norm_shift_factor` multiply the part's factor (Caffe: head weights 10x, head
    biases 20x, other biases 2x is `head_factor: 10, bias_factor: 2`). `decay` are the kinds that
    `weight_decay` acts on.

    Errors: UserError where nothing is trainable or a number is out of range.
    """
    _require(0 < lr < math.inf, "lr", lr, "a number above 0")
    numbers = {
        "weight_decay": weight_decay,
        "backbone_factor": backbone_factor,
        "head_factor": head_factor,
        "bias_factor": bias_factor,
        "norm_shift_factor": norm_shift_factor,
    }
    for name, value in numbers.items():
        _require(0 <= value < math.inf, name, value, "0 or more")
    unknown = set(decay) - set(get_args(Kind))
    _require(not unknown, "decay", list(decay), f"a list of {', '.join(get_args(Kind))}")
    part_factors = {"backbone": backbone_factor, "head": head_factor}
    kind_factors = {"bias": bias_factor, "norm_shift": norm_shift_factor}

    classified = list(_classified(model))
    groups: list[dict[str, Any]] = []
    for part in PARTS:
        settings: dict[Kind, dict[str, float]] = {}
        for kind in get_args(Kind):
            kind_lr = lr * part_factors[part] * kind_factors.get(kind, 1.0)
            settings[kind] = {
                "lr": kind_lr,
                "initial_lr": kind_lr,  # what a schedule multiplies
                "weight_decay": weight_decay if kind in decay else 0.0,
            }
        for name, kinds in _named_kinds(settings).items():
            parameters = [p for of, kind, p in classified if of == part and kind in kinds]
            if parameters:
                group = {"params": parameters, "name": f"{part}.{name}"}
                groups.append(group | settings[kinds[0]])
    if not groups:
        raise UserError(f"{type(model).__name__} has no trainable parameter: unfreeze a part of it")
    return groups


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times the one it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def describe(optimizer: Optimizer) -> str:
    """Return a table of the groups: name, tensors, parameters, learning rate, weight decay."""
    lines = [f"{'group':<16}{'tensors':>8}{'parameters':>14}{'lr':>12}{'decay':>12}"]
    for group in optimizer.param_groups:
        tensors = len(group["params"])
        parameters = sum(parameter.numel() for parameter in group["params"])
        lines.append(
            f"{group['name']:<16}{tensors:>8}{parameters:>14,}"
            f"{group['lr']:>12.4g}{group['weight_decay']:>12.4g}"
        )
    return "\n".join(lines)


def _named_kinds(settings: dict[Kind, dict[str, float]]) -> dict[str, tuple[Kind, ...]]:
    """Return the kinds of each group by its name: those of `GROUPS`, apart where they differ."""
    named: dict[str, tuple[Kind, ...]] = {}
    for name, kinds in GROUPS.items():
        if all(settings[kind] == settings[kinds[0]] for kind in kinds):
            named[name] = kinds
        else:
            named |= {kind: (kind,) for kind in kinds}
    return named


def _classified(model: nn.Module) -> Iterator[tuple[str, Kind, nn.Parameter]]:
    """Yield (part, kind, parameter) of each trainable parameter once.

    A parameter that modules share counts where it is met first.
    """
    backbone: set[int] = set()
    if isinstance(model, HasBackbone):
        backbone = {id(parameter) for parameter in model.backbone_parameters()}
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            part = "backbone" if id(parameter) in backbone else "head"
            yield part, _kind(module, name, parameter), parameter


def _kind(module: nn.Module, name: str, parameter: nn.Parameter) -> Kind:
    """Return the kind of a module's own parameter, see the head of this file."""
    if isinstance(module, NORMS):
        return "norm_shift" if name == "bias" else "norm_scale"
    if name.endswith("bias"):
        return "bias"
    if isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels:
        return "depthwise"
    return "weight" if parameter.ndim > 1 else "norm_scale"


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    """Refuse an argument by the name of its setting. Errors: UserError."""
    if not good:
        raise UserError(f"optimizer.{name}={value} cannot work; it must be {wanted}")
