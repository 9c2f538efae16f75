"""Read the lists of a JSON object entry by entry, so that a file never stands in memory whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

# Characters of the file in memory at a time. Chosen by hand: many entries, and little memory.
CHUNK = 1 << 22
AFTER_NUMBER = tuple(" \t\r\n,]}")
SPACES = " \t\r\n"
SPACE = re.compile(r"[ \t\r\n]*")
ENDS = "]}"
CUT = "the file ends before its closing"


class Entries:
    """Iterate (table, entry) over the lists of a JSON object, one entry at a time.

    Other values are passed over. Errors: ValueError or RecursionError where the text is no JSON
    object.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.decode = json.JSONDecoder().raw_decode
        self.text = ""  # a piece of the file
        self.at = 0  # offset in the piece
        self.before = 0  # characters before the piece
        self.lines = 1  # the line in which the piece begins
        self.tables: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        if self.peek() == "[":
            raise ValueError("is a list, but must be an object {...} that holds lists")
        self.need("{")
        for _ in self.items("}"):
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"`{key}` stands where a name must stand")
            self.need(":")
            if not self.take("["):
                self.value()
                continue
            self.tables.append(key)
            for _ in self.items("]"):
                yield key, self.value()
        if self.peek():
            raise ValueError(f"`{self.peek()}` after the end")

    def items(self, end: str) -> Iterator[None]:
        """Yield before each item of a list or object whose opening bracket has been passed."""
        if self.take(end):
            return
        yield
        while not self.take(end):
            self.need(",", end)
            yield

    def peek(self) -> str:
        """Skip spaces, and return the next character without passing it.

        It reads on where the piece ends, and returns '' at the end of the file.
        """
        while True:
            if self.text[self.at : self.at + 1] in SPACES:  # or at the end
                space = SPACE.match(self.text, self.at)
                self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, character: str) -> bool:
        """Pass the next character if it is this one, and tell whether it is."""
        is_next = self.peek() == character
        self.at += is_next
        return is_next

    def need(self, character: str, closing: str = "}") -> None:
        """Pass this character, in a list or object that ends in `closing`.

        Errors: ValueError where another is next.
        """
        if not self.take(character):
            if not self.peek():
                raise ValueError(f"{CUT} `{closing}`" if self.before + self.at else "is empty")
            raise ValueError(f"expected `{character}`, found `{self.peek()}`")

    def value(self) -> Any:
        """Return the next value, decoded, and pass it; read on where the piece ends within it."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError:
                if not self.more():
                    raise
                continue
            # A number may go on in the next piece: 1, 1. and 1.5 all are numbers.
            number = isinstance(value, int | float) and self.text[end : end + 1] not in AFTER_NUMBER
            if number and self.more():
                continue
            self.at = end
            return value

    def more(self) -> bool:
        """Read the next piece, and tell whether there was one; at the end nothing changes."""
        piece = self.file.read(CHUNK)
        if piece:
            self.lines += self.text.count("\n", 0, self.at)
            self.text = self.text[self.at :] + piece
            self.before += self.at
            self.at = 0
        return bool(piece)

    def fault(self, error: Exception) -> str:
        """Say in words what stopped the reading, with the line and the characters before it."""
        at = self.at
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            at = error.pos
            reason = error.msg
            here = _next(self.text, at)
            if not here or reason.startswith("Unterminated"):
                reason = "the file ends within an entry"
            elif here in ENDS and reason.startswith("Expecting"):
                reason = f"a comma too many, or a value too few, before `{here}`"
        line = self.lines + self.text.count("\n", 0, at)
        return f"{reason} (line {line:,}, after {self.before + at:,} characters)"


def _next(text: str, at: int) -> str:
    """Return the first character from `at` on that is no space, '' at the end."""
    space = SPACE.match(text, at)
    at = space.end() if space else at
    return text[at : at + 1]
