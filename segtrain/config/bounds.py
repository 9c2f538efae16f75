"""Bounds on configs from elsewhere, looked at before anything is expanded.

A few hundred bytes of YAML can stand for gigabytes: aliases of aliases, interpolations of
interpolations, nesting without end. What is larger than any config of a person is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segtrain.errors import UserError

# A config that a person wrote stays far below all of them; one made to exhaust memory does not.
MAX_BYTES = 256 << 10  # of a file
MAX_DEPTH = 64  # nested mappings and lists
MAX_VALUES = 100_000  # mappings, lists and values together, aliases counted as often as they stand
MAX_REFERENCES = 100  # interpolations in one text
MAX_CHARACTERS = 1_000_000  # of all texts together, once their interpolations are filled in

_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_FILLED = "\0"  # stands for an interpolation that was looked at
_TAKE_VALUES = ("oc.env", "oc.decode")  # resolvers that take a value, not a key
_INNERMOST = re.compile(r"\$\{([^${}]*)\}")


def bounded_text(path: Path) -> str:
    """Return the text of a YAML file that stands for no more than a person's config.

    Errors: OSError; UserError naming the file. What is no YAML at all is left to who parses it.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: is larger than {MAX_BYTES >> 10} KiB, so it is no config")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8 (byte {error.start})") from None
    refuse_endless_text(text, str(path))
    return text


def refuse_endless_text(text: str, where: str) -> None:
    """Refuse YAML whose aliases stand for too much. Errors: UserError naming `where`."""
    anchors: dict[str, tuple[int, int]] = {}  # name -> (values, depth) of what it stands for
    opened: list[tuple[str | None, int, int]] = [(None, 0, 0)]  # (anchor, values, depth inside)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, 1, 0))
                _check(where, 0, len(opened))
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, values, depth = opened.pop()
            elif isinstance(event, yaml.ScalarEvent):
                refuse_many_references(where, event.value)
                anchor = event.anchor
                values = 1
                depth = 0
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in anchors:  # unknown, or a collection inside itself
                    raise UserError(f"{where}: the alias *{event.anchor} stands for nothing whole")
                anchor = None
                values, depth = anchors[event.anchor]
            else:
                continue
            if anchor is not None:
                anchors[anchor] = (values, depth)
            outer, total, deepest = opened[-1]
            opened[-1] = (outer, total + values, max(deepest, depth + 1))
            _check(where, total + values, len(opened) + depth)
    except yaml.YAMLError:
        return  # whoever parses the file says what is wrong, and where


def refuse_endless(plain: Mapping[str, Any], where: str) -> None:
    """Refuse plain types that have no end, or hold more than any config. Errors: UserError."""
    left: list[tuple[object, int]] = [(plain, 1)]
    count = 0
    while left:
        node, depth = left.pop()
        count += 1
        _check(where, count, depth)
        if isinstance(node, Mapping):
            if strange := [key for key in node if not isinstance(key, str | int | float | None)]:
                raise UserError(f"{where}: a key of type {type(strange[0]).__name__}")
            left += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, list | tuple):
            left += [(value, depth + 1) for value in node]


def _check(where: str, values: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UserError(f"{where}: nested too deeply")
    if values > MAX_VALUES:
        raise UserError(f"{where}: holds more than {MAX_VALUES:,} values")


def refuse_many_references(where: str, text: str) -> None:
    """Refuse a text whose interpolations take long to read, before anybody reads them."""
    if text.count("${") > MAX_REFERENCES:
        raise UserError(f"{where}: a text of more than {MAX_REFERENCES} interpolations")


def refuse_endless_references(plain: Mapping[str, Any], where: str) -> None:
    """Refuse texts whose interpolations, filled in, make more than any config.

    `plain` are the plain types of a config with its interpolations as text. Errors: UserError.
    """
    sizes: dict[tuple[str, ...], int] = {}  # by path; 0 while it is being counted: a cycle

    def size(path: tuple[str, ...], node: Any) -> int:
        if path in sizes:
            return sizes[path]
        sizes[path] = 0
        if len(path) > MAX_DEPTH or len(sizes) > MAX_VALUES:
            raise UserError(f"{where}: nested too deeply")
        if isinstance(node, Mapping):
            total = sum(size((*path, str(key)), value) for key, value in node.items())
        elif isinstance(node, list | tuple):
            total = sum(size((*path, str(index)), value) for index, value in enumerate(node))
        elif isinstance(node, str):
            named = _references(path, node, where)
            total = len(node) + sum(size(to, _at(plain, to)) for to in named)
        else:
            total = 1
        if total > MAX_CHARACTERS:
            raise UserError(
                f"{where}: {'.'.join(path) or 'it'} would hold more than {MAX_CHARACTERS:,} "
                "characters once its interpolations are filled in"
            )
        sizes[path] = total
        return total

    try:
        size((), plain)
    except RecursionError:
        raise UserError(f"{where}: its interpolations refer to each other too deeply") from None


def _references(path: tuple[str, ...], text: str, where: str) -> list[tuple[str, ...]]:
    """Return the paths that the interpolations of `text`, which stands at `path`, name.

    Those inside resolvers are among them, as `${oc.select:a.b}` reads a value too.
    """
    named: list[tuple[str, ...]] = []
    refuse_many_references(f"{where}: {'.'.join(path)}", text)
    while match := _INNERMOST.search(text):
        resolver, _, body = match[1].rpartition(":")
        if _FILLED in match[1] and resolver.strip() not in _TAKE_VALUES:
            raise UserError(
                f"{where}: {'.'.join(path)} makes a key out of an interpolation; name the key"
            )
        for key in body.split(","):
            words = key.strip().replace("[", ".").replace("]", "")
            up = len(words) - len(words.lstrip("."))
            base = path[: len(path) - up] if up else ()
            named.append((*base, *filter(None, words.lstrip(".").split("."))))
        text = text.replace(match[0], _FILLED, 1)
    return named


def _at(plain: Any, path: tuple[str, ...]) -> Any:
    """Return the value at a path, None where there is none."""
    for word in path:
        if isinstance(plain, Mapping):
            plain = plain.get(word)
        elif isinstance(plain, list | tuple) and word.isdecimal() and int(word) < len(plain):
            plain = plain[int(word)]
        else:
            return None
    return plain
