"""Optimizers that start without torch._dynamo, torch's compiler.

torch wraps some methods of its optimizers so that a compiler which traces them is stopped there,
and these wrappers import torch._dynamo at the first parameter group and at the first step. The
import takes about 3 s, more than the rest of torch together, and every run would pay it. We compile
the network, never the update, so nothing is lost.
"""

from __future__ import annotations

import inspect
from typing import TypeVar

import torch
from torch.optim import Optimizer

# What torch wraps beside `step` (torch 2.11 to 2.15). A method that is not wrapped stays as it is.
WRAPPED_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
OptimizerClass = TypeVar("OptimizerClass", bound=type[Optimizer])


def eager(optimizer: OptimizerClass) -> OptimizerClass:
    """Return the class `optimizer` with the methods that stand inside torch's wrappers.

    The numbers are the same. A step never records gradients here, which is torch's default
    (`differentiable=False`).
    """
    for name in WRAPPED_METHODS:
        setattr(optimizer, name, inspect.unwrap(getattr(optimizer, name)))
    optimizer.step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return optimizer


@eager
class SGD(torch.optim.SGD):
    """torch's SGD."""


@eager
class AdamW(torch.optim.AdamW):
    """torch's AdamW."""
