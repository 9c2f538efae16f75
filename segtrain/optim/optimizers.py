"""Build optimizers with the parameter groups of the papers.

Groups are "<part>.<kind>". The part is `backbone` (what `model.backbone_parameters()` yields) or
`head` (the rest). The kind is `weight`, `bias` (biases outside normalisation layers: the ones Caffe
recipes train at twice the learning rate) or `norm` (everything in a normalisation layer, and other
parameters with at most one dimension, such as learned scales).

Build the optimizer when the model is on its device and in its memory format: the state is laid out
like the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from segtrain.errors import UserError
from segtrain.optim import eager

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
PARTS = ("backbone", "head")
KINDS = ("weight", "bias", "norm")


@runtime_checkable
class HasBackbone(Protocol):
    """A model that tells its backbone's parameters from the rest; without, all are the head's."""

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that get the backbone's learning-rate factor."""
        ...


def sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    backbone_factor: float = 1.0,
    head_factor: float = 1.0,
    bias_factor: float = 1.0,
    decay_norm_and_bias: bool = False,
) -> torch.optim.SGD:
    """Build fused SGD over the groups of `parameter_groups`; its momentum starts at zero.

    Errors: UserError for a number that cannot work.
    """
    _require(0 <= momentum < 1, "momentum", momentum, "a number in [0, 1)")
    _require(not nesterov or momentum > 0, "nesterov", nesterov, "false, or a momentum above 0")
    groups = parameter_groups(
        model, lr, weight_decay, backbone_factor, head_factor, bias_factor, decay_norm_and_bias
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
    decay_norm_and_bias: bool = False,
) -> torch.optim.AdamW:
    """Build fused AdamW (Loshchilov and Hutter, 2019) over the groups of `parameter_groups`.

    Errors: UserError for a number that cannot work.
    """
    first, second = betas
    _require(0 <= first < 1 and 0 <= second < 1, "betas", [first, second], "two numbers in [0, 1)")
    _require(eps > 0, "eps", eps, "a number above 0")
    groups = parameter_groups(
        model, lr, weight_decay, backbone_factor, head_factor, bias_factor, decay_norm_and_bias
    )
    return eager.AdamW(groups, lr=lr, betas=(first, second), eps=eps, fused=True)


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    backbone_factor: float = 1.0,
    head_factor: float = 1.0,
    bias_factor: float = 1.0,
    decay_norm_and_bias: bool = False,
) -> list[dict[str, Any]]:
    """Put every trainable parameter of `model` in exactly one group, in the model's order.

    A group holds params, name, lr, initial_lr and weight_decay; empty groups are left out.
    `bias_factor` multiplies the part's factor (Caffe: head weights 10x, head biases 20x, other
    biases 2x is `head_factor: 10, bias_factor: 2`).

    Errors: UserError where nothing is trainable or a number is out of range.
    """
    _require(0 < lr < math.inf, "lr", lr, "a number above 0")
    numbers = {
        "weight_decay": weight_decay,
        "backbone_factor": backbone_factor,
        "head_factor": head_factor,
        "bias_factor": bias_factor,
    }
    for name, value in numbers.items():
        _require(0 <= value < math.inf, name, value, "0 or more")
    factors = {"backbone": backbone_factor, "head": head_factor}
    members: dict[tuple[str, str], list[nn.Parameter]] = {
        (part, kind): [] for part in PARTS for kind in KINDS
    }
    for part, kind, parameter in _classified(model):
        members[part, kind].append(parameter)
    groups: list[dict[str, Any]] = []
    for (part, kind), parameters in members.items():
        if not parameters:
            continue
        group_lr = lr * factors[part] * (bias_factor if kind == "bias" else 1.0)
        decays = kind == "weight" or decay_norm_and_bias
        groups.append(
            {
                "params": parameters,
                "name": f"{part}.{kind}",
                "lr": group_lr,
                "initial_lr": group_lr,  # what a schedule multiplies
                "weight_decay": weight_decay if decays else 0.0,
            }
        )
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


def _classified(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
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


def _kind(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    """Return the kind of a module's own parameter, see `KINDS`."""
    if isinstance(module, NORMS):
        return "norm"
    if name.endswith("bias"):
        return "bias"
    return "weight" if parameter.ndim > 1 else "norm"


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    """Refuse an argument by the name of its setting. Errors: UserError."""
    if not good:
        raise UserError(f"optimizer.{name}={value} cannot work; it must be {wanted}")
