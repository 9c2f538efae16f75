"""What a family of published weights is: facts by which its files become networks of ours.

A family is one file of this folder with a `FAMILY` and nothing but facts: which keys it is known
by, what its names become, what is left out and why, which dimensions are turned, which settings
follow from the shapes, what the network reads, and how its release measures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segtrain.errors import UserError, first_of

Values = Mapping[str, Tensor]
NAMES_SHOWN = 3  # of keys that are not understood


class Unfit(Exception):
    """A file of this family with a network that we do not have; the text says which."""


@dataclass(frozen=True)
class Published:
    """What a file holds, in our words."""

    # Name of the system in conf/model. "" is a backbone alone, such as an ImageNet classifier.
    model: str
    # Its settings `model.KEY`, read off the file. Of a backbone alone: arguments of its class.
    arguments: Mapping[str, Any]
    # What it reads: a name of `layers.preprocess.INPUTS`.
    input: str
    # Tensors in torch's order of dimensions, by the file's names.
    values: Values
    # (pattern, name): a key that begins with the regular expression `pattern` begins with `name`
    # here. The first pattern that fits counts.
    names: Sequence[tuple[str, str]]
    # Pattern -> why what begins with it is left out.
    left_out: Mapping[str, str] = field(default_factory=dict)
    # Classes of the last layer, as our models count them: objects without their background.
    num_classes: int | None = None
    # The table of classes (structures/classes) that these rows follow in the release, where their
    # number is its number.
    classes: str | None = None
    # Settings by which the release is measured, such as inference=whole.
    measured: Sequence[str] = ()
    # What whoever imports it has to know, a sentence each.
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Family:
    """Files of one project, or of one of its releases."""

    name: str  # whose files they are, for people
    # Regular expressions: each fits the whole of some key of the file.
    known_by: Sequence[str]
    # Errors: Unfit.
    read: Callable[[Values], Published]
    # Whether the layout was seen in a file or in the release's code, not only remembered.
    confirmed: bool = True

    def knows(self, keys: Sequence[str]) -> bool:
        """Return whether a file with these keys is of this family."""
        return all(any(re.fullmatch(pattern, key) for key in keys) for pattern in self.known_by)


def translate(published: Published) -> dict[str, Tensor]:
    """Return the tensors of a file by our names.

    Errors: UserError for keys that no rule knows, and for two that would be one.
    """
    state: dict[str, Tensor] = {}
    strange: list[str] = []
    left_out = left_out_of(published)
    for key, value in published.values.items():
        if key in left_out:
            continue
        name = renamed(key, published.names)
        if name is None:
            strange.append(key)
        elif name in state:
            raise UserError(f"{key}: another key of the file is {name} too")
        else:
            state[name] = value
    if strange:
        raise UserError(f"keys that are not understood: {first_of(strange, NAMES_SHOWN)}")
    # torch before 0.4.1 did not count the batches that a norm has seen; nothing of ours reads it.
    for name in [name for name in state if name.endswith(".running_mean")]:
        count = f"{name.removesuffix('running_mean')}num_batches_tracked"
        state.setdefault(count, torch.zeros((), dtype=torch.long))
    return state


def left_out_of(published: Published) -> dict[str, str]:
    """Return the keys of a file that are left out -> why."""
    reasons = published.left_out
    return {
        key: why
        for key in published.values
        for pattern, why in reasons.items()
        if re.match(pattern, key)
    }


def renamed(key: str, names: Sequence[tuple[str, str]]) -> str | None:
    """Return our name of a key, None where no rule fits."""
    for pattern, name in names:
        if match := re.match(pattern, key):
            return match.expand(name) + key[match.end() :]
    return None


def require_finite(state: Values, source: str) -> None:
    """Refuse values that are not finite. Errors: UserError naming `source` and the tensor."""
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{source}: {key} holds values that are not finite; get the file again")


def width(values: Values, key: str, axis: int = 0) -> int:
    """Return the size of a tensor along an axis. Errors: Unfit where it is not there."""
    if key not in values or values[key].dim() <= axis:
        raise Unfit(f"{key} is missing, or of another shape")
    return values[key].shape[axis]
