"""Flags: words with dashes, in the forms that users of Hydra know, anywhere among the words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.config.settings import as_text
from segtrain.errors import UserError

# Flags, the short ones as Hydra has them -> (the long one, whether a value follows).
FLAGS = {
    "--config-dir": ("--config-dir", True),
    "-cd": ("--config-dir", True),
    "--config-name": ("--config-name", True),
    "-cn": ("--config-name", True),
    "--config-path": ("--config-path", True),
    "-cp": ("--config-path", True),
    "--multirun": ("-m", False),
    "-m": ("-m", False),
    "--cfg": ("--cfg", True),
    "-c": ("--cfg", True),
    "--package": ("--package", True),
    "-p": ("--package", True),
    "--resolve": ("--resolve", False),
    "--info": ("--info", False),
    "-i": ("--info", False),
    "--hydra-help": ("--hydra-help", False),
}
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
SHOWING = ("--cfg", "--info", "--hydra-help")  # print, and train nothing
_GIVEN = {
    "--config-dir": "a folder, --config-dir FOLDER",
    "--config-name": "a config of it, --config-dir FOLDER --config-name NAME",
}


def split_flags(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return {flag: its values} and the other words.

    Errors: UserError for a flag without its value, a folder that is not there, and
    `--config-path`; other flags are left among the words.
    """
    flags: dict[str, list[str]] = {}
    words: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        typed, equals, value = argument.partition("=")
        if typed not in FLAGS or (equals and not FLAGS[typed][1]):
            words.append(argument)
            continue
        flag, takes_value = FLAGS[typed]
        if flag == "--info" and left and left[0] in INFOS:
            value = left.pop(0)
        if takes_value and not equals:
            value = left.pop(0) if left else ""
        if flag == "--config-path":
            raise UserError(
                f"{typed}: segtrain's own configs come first, whatever stands beside them; a "
                f"folder of your own is --config-dir {value or 'FOLDER'}, one of its files as the "
                "whole config --config-name NAME"
            )
        if takes_value and not value:
            raise UserError(f"{argument}: name {_GIVEN.get(flag, f'what, {flag} NAME')}")
        if flag == "--config-dir":
            value = as_text(value)
            if not Path(value).is_dir():
                raise UserError(f"{typed}={value}: no such folder")
        flags.setdefault(flag, []).append(value)
    return flags, words


def take_config_dirs(command: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the folders of `--config-dir` of a command that trains nothing, and the other words.

    Errors: UserError for a flag that is segtrain's alone.
    """
    flags, words = split_flags(arguments)
    for flag in flags:
        if flag != "--config-dir":
            what = "a sweep is of trainings" if flag == "-m" else "it is about a training"
            raise UserError(f"{flag}: {what}, so segtrain takes it; leave it out of {command}")
    return flags.get("--config-dir", []), words
