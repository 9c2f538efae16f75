"""How a command line may go on: flags, arguments, groups, their names, keys and values. No torch.

Groups and files are listed without Hydra; only the keys of a chosen part need a composition. What
is wrong with the line so far is no matter of this file: then there are fewer ways to go on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from segtrain.commands import find_lr
from segtrain.commands.flags import FLAGS, INFOS, split_flags
from segtrain.config import launchers, places, primary, search, settings, trust
from segtrain.config.choice import (
    MAY_BE_NONE,
    OF_A_SWEEP,
    OF_EVERY_RUN,
    SWEEPERS,
    own_folders,
)
from segtrain.config.compose import compose_config, known_keys, plain_run, with_overrides
from segtrain.config.files import load_run
from segtrain.config.schema import CHOICES, PARTS, EvalConf, LogConf, TrainConf
from segtrain.config.suggest import groups
from segtrain.errors import SegtrainError, UserError

# The arguments of each command, and the words that may stand first.
COMMANDS: dict[str, tuple[str, ...]] = {
    "segtrain": ("resume", "extend", "replay", "import", "table"),
    "segeval": ("checkpoint", "predictions"),
    "segpredict": ("checkpoint", "input", "output", "annotations", "probabilities"),
    "segdata": ("output",),
    "segreport": ("output",),
}
FIRST = {
    "segtrain": ("recipes", "find_lr"),
    "segdata": ("verify", "stats", "browse", "manifest", "prepare"),
}
SECTIONS = {"train": TrainConf, "eval": EvalConf, "log": LogConf}
BOOLEANS = ("true", "false")
OF_ARGUMENTS = {"probabilities": BOOLEANS, "table": ("modules", "whole")}  # others are paths
CONFIGS = ("job", "hydra", "all")
EVERYWHERE = ("--help", "--version", "--trust")


class Way(NamedTuple):
    """A word that the one being typed may become."""

    text: str
    open: bool  # whether it goes on after that


def candidates(command: str, before: Sequence[str], word: str) -> list[Way]:
    """Return what `word` may become after the words `before`, sorted."""
    try:
        packages, rest = trust.split_flags(before)
        with trust.trusting(packages):
            ways = set(_ways(_line(command, rest), word))
    except UserError:  # of a package that is not there; what is wrong elsewhere is left aside
        return []
    return sorted(way for way in ways if way.text.startswith(word))


class _Line(NamedTuple):
    """What stands on the line already."""

    command: str
    words: list[str]
    flags: Mapping[str, list[str]]
    folders: list[Path]  # of configs of the user's own
    last: str

    @property
    def names(self) -> dict[str, list[str]]:
        """The names in every group."""
        return groups(self.folders)


def _line(command: str, before: Sequence[str]) -> _Line:
    last = before[-1] if before else ""
    try:
        flags, words = split_flags(before[:-1] if _takes_value(last) else before)
        folders = own_folders(words, flags.get("--config-dir", ()))
    except UserError:
        words = [word for word in before if not word.startswith("-")]
        return _Line(command, words, {}, [], last)
    return _Line(command, words, flags, folders, last)


def _takes_value(word: str) -> bool:
    return word in FLAGS and FLAGS[word][1]


def _ways(line: _Line, word: str) -> Iterator[Way]:
    """Yield what may stand in place of `word`, and more: not all of it begins like `word`."""
    key, equals, text = word.partition("=")
    if _takes_value(line.last):
        yield from _of_flag(line, line.last, word)
    elif equals and key.startswith("-"):
        for way in _of_flag(line, key, text):
            yield Way(f"{key}={way.text}", way.open)
    elif word.startswith("-"):
        flags = [flag for flag, _ in FLAGS.values() if flag != "--config-path"]
        own = flags if line.command == "segtrain" else ["--config-dir"]
        yield from (Way(flag, False) for flag in [*own, *EVERYWHERE])
    elif equals:
        for way in _values(line, key.lstrip("+~"), text):
            yield Way(f"{key}={way.text}", way.open)
    elif line.command == "segreport":
        yield from [Way("output=", True), *_files(word)]
    elif line.command in FIRST and not line.words:
        yield from (Way(first, False) for first in FIRST[line.command])
        if line.command == "segtrain":
            yield from _keys(line, word)
    elif line.words[:1] == ["recipes"]:
        yield from (Way(f"{group}=", True) for group in ("model", "dataset"))
    else:
        if line.words[:1] == ["find_lr"]:
            yield from (Way(f"{name}=", True) for name in find_lr.DEFAULTS)
        yield from _keys(line, word)


def _of_flag(line: _Line, typed: str, text: str) -> Iterable[Way]:
    """Return the values of a flag."""
    flag = FLAGS[typed][0] if typed in FLAGS else typed
    if flag == "--config-dir":
        return [way for way in _files(text) if way.open]
    there = [file.stem for folder in line.folders for file in folder.glob("*.yaml")]
    words = {"--cfg": CONFIGS, "--info": INFOS, "--config-name": (primary.OURS, *there)}
    return [Way(name, False) for name in words.get(flag, ())]


# Keys


def _keys(line: _Line, word: str) -> Iterator[Way]:
    """Yield arguments, groups and keys, these down to the next dot."""
    bare = word.lstrip("+~")
    sign = word.removesuffix(bare)
    yield from (Way(f"{name}=", True) for name in COMMANDS[line.command])
    names = line.names
    yield from (Way(f"{sign}{group}=", True) for group in names)
    for key in _known(line, names, bare):
        if not key.startswith(bare) or key.endswith("._target_"):
            continue
        dot = key.find(".", len(bare))
        below = f"{sign}{key[: dot + 1]}"
        whole = Way(f"{sign}{key}", False) if sign == "~" else Way(f"{sign}{key}=", True)
        yield Way(below, True) if dot >= 0 else whole


def _known(line: _Line, names: Mapping[str, Any], bare: str) -> Iterable[str]:
    """Return keys that may begin with `bare`; those of a part where it names one already."""
    section, dot, _ = bare.partition(".")
    if bare.startswith("hydra"):
        of_a_sweep = [key.removesuffix("KEY") for key in OF_A_SWEEP]
        pool = [f"{launchers.BELOW}{name}" for name in launchers.KEYS]
        return [*OF_EVERY_RUN, *(("-m" in line.flags) * [*of_a_sweep, *pool])]
    if section in SECTIONS and dot:
        return [f"{section}.{option.name}" for option in fields(SECTIONS[section])]
    if section in names and dot:
        return known_keys({section: _plain(line).get(section)})
    return [f"{name}." for name in (*SECTIONS, *PARTS, "writer", "hydra")]


def _plain(line: _Line) -> dict[str, Any]:
    """Return the run that the groups on the line choose, as plain types, or the default one."""
    words = [word for word in line.words if _chooses(word, line.names)]
    dirs = line.flags.get("--config-dir", [])
    name = line.flags.get(primary.FLAG, [primary.OURS])[-1]
    attempts = [([*words, "recipe=null"], dirs, name), ([], dirs, name), ([], [], primary.OURS)]
    stored = _stored(line)
    for words, dirs, name in attempts:
        try:
            if stored is not None:
                return asdict(with_overrides(load_run(stored), words, dirs))
            return plain_run(compose_config(words, dirs, name)[0])
        except SegtrainError:
            stored = stored if words else None
    return {}


def _chooses(word: str, names: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether a word chooses a part that there is, or says where to look for parts."""
    group, _, name = word.lstrip("+").partition("=")
    return name in names.get(group, ()) or group == "hydra.searchpath"


def _stored(line: _Line) -> Path | None:
    """Return the config of the run that a command is about, None where it names none."""
    named = [word.partition("=")[2] for word in line.words if word.startswith("checkpoint=")]
    for path in (Path(text) for text in named):
        for folder in (path, *list(path.parents)[:2]):  # RUN, RUN/checkpoints/STEP, a file in it
            if (folder / "config.yaml").is_file():
                return folder / "config.yaml"
    return None


# Values


def _values(line: _Line, key: str, text: str) -> Iterator[Way]:
    """Yield the values that `key` takes, the last one of several where `text` is a list."""
    names = line.names
    group = key.partition("@")[0]
    if key in COMMANDS[line.command] and key not in OF_ARGUMENTS:
        yield from _files(text)
        return
    if places.is_place(key) or key in (*OF_EVERY_RUN[:2], "hydra.searchpath"):
        start = text.rfind("[") + 1
        yield from (Way(text[:start] + way.text, way.open) for way in _files(text[start:]))
    words = OF_ARGUMENTS.get(key) or names.get(group)
    if group in MAY_BE_NONE:
        words = [*(words or ()), "null"]
    if key == launchers.CHOICE:
        words = (*launchers.HYDRAS, launchers.OURS)
    if key == search.SWEEPER:
        words = SWEEPERS
    if words is None:
        in_section = key.partition(".")[0] in SECTIONS
        plain = {} if in_section else _plain(line)
        words = CHOICES.get(key) or _words_of(settings.hint_at(plain, key))
    start = max(text.rfind(","), text.rfind("[")) + 1
    listed = text.startswith("[")
    yield from (Way(f"{text[:start]}{name}", listed) for name in words)


def _words_of(hint: Any) -> list[str]:
    """Return the words that an annotation allows."""
    words: list[str] = []
    for option in settings.options(hint):
        if option is bool:
            words += BOOLEANS
        elif option is NoneType:
            words.append("null")
        elif get_origin(option) is Literal:
            words += map(str, get_args(option))
    return words


def _files(text: str) -> Iterator[Way]:
    """Yield the files and folders that a path may become."""
    shown, _, begun = text.rpartition("/")
    shown += "/" if "/" in text else ""
    folder = settings.at_home(shown or ".")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not begun.startswith("."):
            continue
        is_folder = entry.is_dir()
        yield Way(f"{shown}{entry.name}{'/' if is_folder else ''}", is_folder)
