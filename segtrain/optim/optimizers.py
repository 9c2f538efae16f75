"""Optimisers with the parameter groups of the papers: a backbone factor, a head factor, biases and norms apart.

Groups are "<part>.<kind>". The part is `backbone` (what `model.backbone_parameters()` yields) or `head` (the rest). The
kind is `weight`, `bias` (biases outside normalisation layers: the ones Caffe recipes train at twice the rate) or `norm`
(everything in a normalisation layer, and other parameters with at most one dimension, such as learned scales).
Build the optimiser when the model is on its device and in its memory format: the state is laid out like the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from segtrain.errors import UserError
from segtrain.optim import eager

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
PARTS = ("backbone", "head")
KINDS = ("weight", "bias", "norm")


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
) -> eager.SGD:
    """Fused SGD whose momentum starts at zero, over the groups of `parameter_groups`. UserError for a bad number."""
    _require(0 <= momentum < 1, "momentum", momentum, "a number in [0, 1)")
    _require(not nesterov or momentum > 0, "nesterov", nesterov, "false, or a momentum above 0")
    groups = parameter_groups(
        model, lr, weight_decay, backbone_factor, head_factor, bias_factor, decay_norm_and_bias
    )
    optimizer = eager.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum > 0:
        # A fused first step that a found-inf flag skips would otherwise leave the buffers as uninitialised memory.
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
) -> eager.AdamW:
    """Fused AdamW (Loshchilov and Hutter, 2019) over the groups of `parameter_groups`. UserError for a bad number."""
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
) -> list[dict]:
    """Every trainable parameter of `model` in exactly one group, in the order of `model.parameters()`.

    A group holds params, name, lr, initial_lr and weight_decay; empty groups are left out. `bias_factor` multiplies the
    part's factor (Caffe: head weights 10x, head biases 20x, other biases 2x is `head_factor: 10, bias_factor: 2`).
    Raises UserError where nothing is trainable or a number is out of range.
    """
    _require(lr > 0, "lr", lr, "a number above 0")
    numbers = {
        "backbone_factor": backbone_factor,
        "head_factor": head_factor,
        "bias_factor": bias_factor,
    }
    for name, value in {"weight_decay": weight_decay, **numbers}.items():
        _require(value >= 0, name, value, "0 or more")
    factors = {"backbone": backbone_factor, "head": head_factor}
    found: dict[tuple[str, str], list[nn.Parameter]] = {
        (part, kind): [] for part in PARTS for kind in KINDS
    }
    for part, kind, parameter in _classified(model):
        found[part, kind].append(parameter)
    groups = []
    for (part, kind), parameters in found.items():
        rate = lr * factors[part] * (bias_factor if kind == "bias" else 1.0)
        decay = weight_decay if kind == "weight" or decay_norm_and_bias else 0.0
        group = {
            "params": parameters,
            "name": f"{part}.{kind}",
            "lr": rate,
            "initial_lr": rate,
            "weight_decay": decay,
        }
        if parameters:
            groups.append(group)
    if not groups:
        raise UserError(f"{type(model).__name__} has no trainable parameter: unfreeze a part of it")
    return groups


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times the rate it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def describe(optimizer: Optimizer) -> str:
    """A table of the groups: name, tensors, parameters, learning rate, weight decay."""
    lines = [f"{'group':<16}{'tensors':>8}{'parameters':>14}{'lr':>12}{'decay':>12}"]
    for group in optimizer.param_groups:
        tensors, size = len(group["params"]), sum(p.numel() for p in group["params"])
        lines.append(
            f"{group['name']:<16}{tensors:>8}{size:>14,}{group['lr']:>12.4g}{group['weight_decay']:>12.4g}"
        )
    return "\n".join(lines)


def _classified(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(part, kind, parameter) of each trainable parameter once; a shared one counts where it is met first."""
    list_backbone = getattr(model, "backbone_parameters", None)
    backbone = {id(p) for p in list_backbone()} if list_backbone else set()
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            yield (
                "backbone" if id(parameter) in backbone else "head",
                _kind(module, name, parameter),
                parameter,
            )


def _kind(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if isinstance(module, NORMS):
        return "norm"
    if name.endswith("bias"):
        return "bias"
    return "weight" if parameter.ndim > 1 else "norm"


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise UserError(f"optimizer.{name}={value} cannot work; it must be {wanted}")
