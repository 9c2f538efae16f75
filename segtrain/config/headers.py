"""Read the comments at the top of recipes: what was published, on what, and how it is run.

A header is a package line, a title and then `# Key: text` in a fixed order, with lines that go on
further right. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtrain.config.files import load_yaml
from segtrain.errors import UserError

ABLATION_KEYS = ("Run", "Paper", "Split", "Weights", "Source", "Ours")
EXPERIMENT_KEYS = ("Run", "Test", "Paper", "Split", "Weights", "GPUs", "Source", "Ours")
OPTIONAL = ("GPUs",)  # where it is no key, as in ablations, which stand on recipes that have it
PACKAGE = "# @package _global_"
KEY = re.compile(r"# ([A-Z][A-Za-z]+): +(.*)")
MORE = re.compile(r"#  +(.*)")
TITLE_MORE = re.compile(r"# (\S.*)")
TITLE = re.compile(r"(?P<system>[^(]+) \((?P<source>[^)]+)\)[,:] (?P<variant>.*)\.")


@dataclass(frozen=True)
class Header:
    """The comment at the top of a recipe.

    `fields` holds the lines under each key, `body` the yaml itself.
    """

    name: str
    title: str
    fields: Mapping[str, list[str]]
    body: Mapping[str, Any]

    def __getitem__(self, key: str) -> str:
        return " ".join(self.fields[key])

    @property
    def parts(self) -> tuple[str, str, str]:
        """Split a title `FCN (Long et al., CVPR 2015), FCN-8s.` into system, source and variant."""
        match = TITLE.fullmatch(self.title)
        if match is None:
            raise UserError(
                f"{self.name}: the title reads `System (authors, venue), variant.`, "
                f"not `{self.title}`"
            )
        return match["system"], match["source"], match["variant"]

    @property
    def chosen(self) -> dict[str, str]:
        """Return the groups that the recipe chooses: {"dataset": "voc", ...}."""
        return chosen_by(self.body)

    @property
    def number(self) -> str:
        """Return the published number without other protocols: `33.9 mask AP, 37.7 box AP`."""
        return self["Paper"].partition(" (")[0]

    def commands(self, key: str) -> list[tuple[str, str]]:
        """Return (command, what follows it after a colon) of the lines under Run or Test.

        Notes in brackets are left out.
        """
        joined: list[str] = []
        open_ended = note = False  # whether the next line goes on with the command, or with a note
        for line in self.fields[key]:
            note = note or line.startswith("(")
            if line.startswith(("segtrain ", "segeval ")):
                joined.append(line)
                open_ended = ": " not in line
            elif open_ended and not note:
                joined[-1] += f" {line}"
            note = note and not line.endswith(")")
        pairs = [line.partition(": ") for line in joined]
        return [(command, rest) for command, _, rest in pairs]


def chosen_by(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the groups that a config's defaults list overrides: {"dataset": "voc", ...}."""
    entries = body.get("defaults")
    pairs = [
        pair
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping)
        for pair in entry.items()
        if str(pair[0]).startswith("override /")
    ]
    return {str(key).removeprefix("override /"): str(value) for key, value in pairs}


def read_header(path: Path, keys: tuple[str, ...]) -> Header:
    """Read the header of a recipe with exactly `keys`, in this order.

    Errors: UserError naming the file.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(
        (number for number, line in enumerate(lines) if not line.startswith("#")), len(lines)
    )
    if lines[:1] != [PACKAGE] or end < 2:
        raise UserError(f"{path.name}: begins with `{PACKAGE}` and a title")
    title = lines[1].removeprefix("# ")
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines[2:end]:
        if match := KEY.fullmatch(line):
            if match[1] in fields:
                raise UserError(f"{path.name}: has {match[1]} twice")
            current = fields[match[1]] = [match[2]]
        elif (match := MORE.fullmatch(line)) and current is not None:
            current.append(match[1])
        elif current is None and (match := TITLE_MORE.fullmatch(line)):
            title += f" {match[1]}"
        else:
            raise UserError(f"{path.name}: neither a key nor more of one: `{line}`")
    if tuple(key for key in fields if key in keys or key not in OPTIONAL) != keys:
        missing = [key for key in keys if key not in fields]
        what = f"lacks {', '.join(missing)}" if missing else f"has the keys {', '.join(fields)}"
        raise UserError(f"{path.name}: {what}; the keys are {', '.join(keys)}, in this order")
    return Header(path.stem, title, fields, load_yaml(path))
