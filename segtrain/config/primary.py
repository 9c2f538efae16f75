"""The config that a run begins with: segtrain's own, or a file of one's own by `--config-name`.

A file of one's own stands on ours (`defaults: [train, override /model: unet, _self_]`), or lists
every part itself, as conf/train.yaml does. Then it is whole: no published recipe is added. It may
come from a stranger, so it is read like every file from outside, see `outside.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segtrain.config import outside
from segtrain.config.files import load_yaml
from segtrain.config.suggest import own_groups
from segtrain.errors import UserError, did_you_mean

OURS = "train"
FLAG = "--config-name"


class Primary(NamedTuple):
    """A primary config, with the files of its folder that its defaults list names."""

    name: str
    # Its own plain types, then those of the files that count less; none where it is ours.
    bodies: tuple[Mapping[str, Any], ...]
    on_ours: bool  # whether segtrain's own config is among them

    @property
    def chosen(self) -> dict[str, str]:
        """The groups that it chooses, by group."""
        groups: dict[str, str] = {}
        for body in reversed(self.bodies):
            groups |= {g: "null" if name is None else str(name) for g, name in _groups(body)}
        return groups

    def for_hydra(self) -> dict[str, Any]:
        """Return it as Hydra takes it: without `_self_` it counts more than what it stands on."""
        entries = _defaults(self.bodies[0])
        own = [] if "_self_" in entries else ["_self_"]
        return {**self.bodies[0], "defaults": [*entries, *own]}

    def lists(self, group: str) -> bool:
        """Tell whether a group stands in its defaults list, so that another name replaces it."""
        return group in self.chosen or (self.on_ours and group in own_groups())


SEGTRAINS = Primary(OURS, (), True)


def find(name: str, folders: Sequence[Path]) -> Primary:
    """Return the config `name.yaml` of the first of the `folders` that has it.

    Errors: UserError naming those there are.
    """
    stem = name.removesuffix(".yaml")
    word = f"{FLAG}={name}"
    if "/" in stem or not stem:
        group, _, rest = stem.rpartition("/")
        way = f"; choose it as {group}={rest}" if group in own_groups() else ""
        raise UserError(f"{word}: a config that lies in the folder itself is named{way}")
    if stem == OURS:
        for folder in folders:
            if (folder / f"{OURS}.yaml").is_file():
                raise UserError(
                    f"{word}: segtrain's own config has this name; rename "
                    f"{folder / OURS}.yaml and let its defaults list begin with {OURS}"
                )
        return SEGTRAINS
    if not any((folder / f"{stem}.yaml").is_file() for folder in folders):
        there = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        known = f"there are {', '.join([OURS, *there])}." if folders else "name its folder too, "
        hint = did_you_mean(stem, there) if folders else f"--config-dir FOLDER {FLAG} {stem}"
        raise UserError(f"{word}: no such config; {known}{hint}")
    if stem == outside.SCHEMA:
        raise UserError(f"{word}: segtrain's own schema has this name; rename the file")
    folder = next(folder for folder in folders if (folder / f"{stem}.yaml").is_file())
    file = folder / f"{stem}.yaml"
    body = load_yaml(file)
    package = re.match(r"(?:#.*\n|\n)*?# *@package +(\S+)", file.read_text(encoding="utf-8"))
    outside.check_file(folder, stem, package[1] if package else "_global_", body)
    if not _defaults(body) or (package and package[1] != "_global_"):
        wrong = f"is of the package {package[1]}" if package else "has no defaults list"
        raise UserError(
            f"{file}: {wrong}; a config that stands for the whole begins with defaults: [{OURS}]"
        )
    named = list(_named(stem, folders, ()))
    bodies = tuple(body for body in named if body is not None)
    return Primary(stem, bodies, None in named)


def _named(
    name: str, folders: Sequence[Path], above: tuple[str, ...]
) -> Iterator[Mapping[str, Any] | None]:
    """Yield a config and those that its defaults list names as a whole, None for segtrain's own.

    `above` are those that name it. Errors: UserError naming the file.
    """
    if name == OURS:
        yield None
        return
    file = next((f / f"{name}.yaml" for f in folders if (f / f"{name}.yaml").is_file()), None)
    if file is None or name in above:
        return  # Hydra says what is wrong
    body = load_yaml(file)
    yield body
    for entry in reversed(_defaults(body)):
        if isinstance(entry, str) and entry != "_self_":
            below = entry.removeprefix("/").partition("@")[0].removesuffix(".yaml")
            yield from _named(below, folders, (*above, name))


def _groups(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the groups that a defaults list chooses, with the names: also `override /model: x`."""
    for entry in _defaults(body):
        if isinstance(entry, Mapping):
            for key, value in entry.items():
                words = str(key).split()
                yield (words[-1] if words else "").removeprefix("/").partition("@")[0], value


def _defaults(body: Mapping[str, Any]) -> list[Any]:
    entries = body.get("defaults")
    return entries if isinstance(entries, list) else []
