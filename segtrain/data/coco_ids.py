"""The ids of a COCO file as numbers of 64 bits, which arrays hold and sort.

The format says integers. Tools also write text, numbers with a point, and no id at all.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from segtrain.errors import printable

# Integers from here on, and text, are told by their place in a list, so that arrays of 64 bits can
# hold every id; smaller ones are what they are.
FIRST_OTHER = 1 << 62
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def is_plain(value: Any) -> TypeGuard[int]:
    """Tell whether an id is its own number."""
    return type(value) is int and -FIRST_OTHER < value < FIRST_OTHER


@dataclass
class Ids:
    """Give every id of one file a number, the same to `7`, `7.0` and `"7"`, and show it again."""

    _number_of: dict[str, int] = field(default_factory=dict)  # of what is no integer in range
    _others: list[str] = field(default_factory=list)

    def number(self, value: Any) -> int | None:
        """Return the number of an id; None for what is none."""
        if is_plain(value):
            return value
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) not in (int, str):
            return None
        text = str(value)
        if not text or printable(text) != text:  # an id stands in messages and in names
            return None
        if INTEGER.fullmatch(text) and -FIRST_OTHER < int(text) < FIRST_OTHER:
            return int(text)
        if text not in self._number_of:
            self._number_of[text] = FIRST_OTHER + len(self._others)
            self._others.append(text)
        return self._number_of[text]

    def sort_texts(self, columns: Iterable[array[int]]) -> None:
        """Renumber what is no integer in range by its text, as other programs sort it."""
        order = sorted(range(len(self._others)), key=self._others.__getitem__)
        new = np.argsort(np.array(order, np.int64))
        for column in columns if order else ():
            values = np.asarray(column)  # the column itself
            far = values >= FIRST_OTHER
            values[far] = FIRST_OTHER + new[values[far] - FIRST_OTHER]
        self._others = [self._others[old] for old in order]
        self._number_of = {text: FIRST_OTHER + k for k, text in enumerate(self._others)}

    def missing(self, place: int) -> int:
        """Return the number of an entry without an id, the `place`-th of its list."""
        return -FIRST_OTHER - place

    def shown(self, number: int) -> str:
        """Return an id as text: "7", "a", or for one that is missing the place of its entry."""
        if number >= FIRST_OTHER:
            return self._others[number - FIRST_OTHER]
        if number <= -FIRST_OTHER:
            return f"number {-FIRST_OTHER - number} of the list"
        return str(number)

    def order(self, number: int) -> tuple[int, str]:
        """Return what sorts ids: integers by size, then the others as text."""
        return min(number, FIRST_OTHER), self.shown(number) if number >= FIRST_OTHER else ""
