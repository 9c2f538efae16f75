"""Split what is typed into arguments of a command, settings of the run, and slips."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from segtrain.config import settings
from segtrain.config.suggest import ELSEWHERE, own_groups
from segtrain.errors import UserError, did_you_mean

# What each argument is given.
PATHS = {
    "checkpoint": "RUN_OR_FILE",
    "highest": "RATE",
    "import": "FILE",
    "input": "FILE_OR_DIR",
    "lowest": "RATE",
    "output": "DIR",
    "predictions": "FILE_OR_DIR",
    "replay": "RUN/bad_step_N",
    "resume": "RUN",
    "table": "modules|whole",
    "updates": "N",
}


def take(arguments: Sequence[str], *names: str) -> tuple[dict[str, str], list[str]]:
    """Return {name: text} of the arguments `name=text`, and the others as settings of the run.

    The texts are paths: as they were typed, but for one pair of outer quotes and a leading `~`.
    Errors: UserError on a flag, a word without `=`, or an empty value.
    """
    taken: dict[str, str] = {}
    overrides: list[str] = []
    for index, argument in enumerate(arguments):
        before = arguments[index - 1] if index else ""
        if slip := _slip(before, argument, list(arguments[index + 1 :]), names):
            raise UserError(slip)
        key, _, text = argument.partition("=")
        if key in names and not text:
            raise UserError(f"{key}=: a path is missing; write {key}={PATHS[key]}")
        if key in names:
            taken[key] = settings.as_text(settings.read(argument).text)
        else:
            overrides.append(argument)
    return taken, overrides


def _slip(before: str, word: str, following: Sequence[str], names: Sequence[str]) -> str:
    """Return what is wrong with a word that is no `key=value`, and the right form; "" if nothing.

    `before` and `following` are the words around it, `names` the arguments of the command.
    """
    if word.startswith("-"):
        name, equals, text = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not equals and following and not following[0].startswith("-"):
            text = following[0] if "=" not in following[0] else ""
        if name in names:
            return f"{word}: arguments are written without dashes, {name}={text or PATHS[name]}"
        form = ""
        if name in own_groups():
            form = f", {name}={text or 'NAME'}"
        elif name in ELSEWHERE:
            form = f", {ELSEWHERE[name][0]}={text or 'VALUE'}"
        return f"{word}: no such flag; settings are written key=value{form} (see --help)"
    if "=" in word or word.startswith("~"):
        return ""
    if names and (Path(word).exists() or "/" in word):
        return f"{word}: arguments are written key=value, {names[0]}={word}"
    if "=" in before and not did_you_mean(word, names):
        whole = shlex.quote(f"{before} {word}")
        return f"{word}: not understood; if it belongs to the word before it, write {whole}"
    return f"{word}: not understood; arguments are written key=value.{did_you_mean(word, names)}"
