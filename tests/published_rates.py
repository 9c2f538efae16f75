"""Compare what a recipe's optimizer does to every parameter with what its authors' files say.

A parameter is named "layer:Class.parameter", with the layer of our network and its class, e.g.
"backbone.layer1.0.bn1:BatchNorm2d.weight". A table has a row for each kind of layer that the
authors' files treat alike: a regular expression that matches whole names, and (rate factor, decay)
as they stand there. The factor is of the base rate, so Caffe's `lr_mult`; the decay is that of the
solver times Caffe's `decay_mult`. What is frozen has (0, 0). Where a recipe does otherwise with a
reason, the row is `Argued`, with the reason beside it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from recipes import composed, model_of
from torch import nn

from segtrain.optim.optimizers import parameter_groups

Rate = tuple[float, float]
Rates = dict[str, Rate]


class Argued(NamedTuple):
    """A row in which a recipe does otherwise than the authors' files; a comment there says why."""

    theirs: Rate
    ours: Rate


Table = Mapping[str, Rate | Argued]


def rates(experiment: str) -> Rates:
    """Return the (rate factor, decay) that a recipe gives to each parameter of its network."""
    run = composed(f"experiment={experiment}")
    taken = inspect.signature(parameter_groups).parameters
    options = {key: value for key, value in run.optimizer.items() if key in taken}
    return rates_of(model_of(run), **options)


def rates_of(model: nn.Module, lr: float, **options: Any) -> Rates:
    """Return the (rate factor, decay) of each parameter under the `options` of an optimizer."""
    of = {
        id(parameter): (group["initial_lr"] / lr, group["weight_decay"])
        for group in parameter_groups(model, lr, **options)
        for parameter in group["params"]
    }
    return {
        f"{layer}:{type(module).__name__}.{name}": of.get(id(parameter), (0.0, 0.0))
        for layer, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }


def differences(given: Rates, table: Table) -> list[str]:
    """Say in a line each what a table and the rates of a network differ in.

    That is every parameter with another factor or decay, every parameter that no row or several
    rows match, and every row that matches none. In an argued row, ours is compared.
    """
    told: list[str] = []
    used: set[str] = set()
    for name, (factor, decay) in given.items():
        rows = [row for row in table if re.fullmatch(row, name)]
        used.update(rows)
        if len(rows) != 1:
            told.append(f"{name}: {' and '.join(rows) or 'no row'}")
            continue
        row = table[rows[0]]
        wanted, whose = (row.ours, "argued") if isinstance(row, Argued) else (row, "theirs")
        if not (math.isclose(factor, wanted[0], rel_tol=1e-9) and decay == wanted[1]):
            told.append(
                f"{name}: {factor:g}x, decay {decay:g}; {whose} {wanted[0]:g}x, {wanted[1]:g}"
            )
    return told + [f"{row}: matches no parameter" for row in table if row not in used]
