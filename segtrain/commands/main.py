"""What a user types: the entry points of the five commands, and what `segtrain` makes of words.

Nothing here imports torch: help and mistakes come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from segtrain.commands import (
    data,
    evaluate,
    extend,
    find_lr,
    import_weights,
    list_recipes,
    predict,
    replay,
    report,
    resume,
    show,
    sweep,
    train,
    trials,
)
from segtrain.commands.arguments import take
from segtrain.commands.exit_codes import run_command
from segtrain.commands.help import help_text
from segtrain.config import search
from segtrain.config.compose import check, compose_config
from segtrain.config.files import masked_container
from segtrain.config.settings import as_text
from segtrain.errors import UserError
from segtrain.runtime import console


def segtrain() -> None:
    """Run `segtrain [group=name] [key=value] ...`, `segtrain -m ...` or `segtrain resume=RUN`."""
    run_command("segtrain", run)


def segeval() -> None:
    """Run `segeval checkpoint=RUN_OR_FILE ...` or `segeval predictions=DIR dataset=...`."""
    _run_or_help("segeval", evaluate.run, evaluate.HELP)


def segpredict() -> None:
    """Run `segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR`."""
    _run_or_help("segpredict", predict.run, predict.HELP)


def segdata() -> None:
    """Run `segdata verify|stats|browse|prepare dataset=NAME ...`."""
    _run_or_help("segdata", data.run, data.HELP)


def segreport() -> None:
    """Run `segreport RUN_OR_SWEEP ... [output=DIR]`."""
    _run_or_help("segreport", report.run, report.HELP)


# What `python -m segtrain COMMAND ...` knows beside the `segtrain` command itself.
COMMANDS = {
    "segeval": segeval,
    "segpredict": segpredict,
    "segdata": segdata,
    "segreport": segreport,
}


def _run_or_help(name: str, command: Callable[[list[str]], None], text: str) -> None:
    """Run a command, or print its help where it is asked for or nothing is asked."""
    asked = len(sys.argv) < 2 or "--help" in sys.argv or "-h" in sys.argv
    run_command(name, (lambda arguments: answer(text)) if asked else command)


def answer(text: str) -> None:
    """Print what was asked for. Errors: DiskError where it cannot be printed."""
    print(text)
    console.require_output()


def run(arguments: list[str]) -> None:
    """Do what `segtrain ARGUMENTS` asks for: help, recipes, resume, sweep, search, print, train."""
    if "-h" in arguments or "--help" in arguments:
        answer(help_text())
        return
    if arguments[:1] == ["recipes"]:
        list_recipes.run(arguments[1:])
        console.require_output()
        return
    flags, words = split_flags(arguments)
    config_dirs = flags.get("--config-dir", [])
    shown = [flag for flag in ("--cfg", "--info", "--version", "--hydra-help") if flag in flags]
    if words[:1] == ["find_lr"]:
        if "-m" in flags or shown:
            raise UserError(f"find_lr: leave out either it or {(shown or ['-m'])[0]}")
        find_lr.run(words[1:], config_dirs)
        return
    if any(word.startswith("import=") for word in words):
        if "-m" in flags or shown:
            raise UserError(f"import=: leave out either it or {(shown or ['-m'])[0]}")
        import_weights.run(words, config_dirs)
        return
    if any(word.startswith("extend=") for word in words):
        if "-m" in flags or shown or config_dirs:
            raise UserError("extend=: stands alone; leave out -m, --config-dir and what prints")
        extended, changes = take(words, "extend")
        extend.extend(Path(extended["extend"]), changes)
        return
    if any(word.startswith("replay=") for word in words):
        if "-m" in flags or shown or config_dirs:
            raise UserError("replay=: stands alone; leave out -m, --config-dir and what prints")
        replayed, changes = take(words, "replay")
        replay.replay(Path(replayed["replay"]), changes)
        console.require_output()
        return
    taken, overrides = take(words, "resume")
    if "-m" in flags and ("resume" in taken or shown):
        other = "resume=" if "resume" in taken else shown[0]
        raise UserError(f"-m starts a sweep: leave out either -m or {other}")
    if shown:
        show.run(shown[0], flags, overrides)
        console.require_output()
    elif "resume" in taken:
        if config_dirs:
            raise UserError("--config-dir: a resumed run has its config; leave the folder out")
        resume.resume(Path(taken["resume"]), overrides)
    elif "-m" in flags:
        (trials if search.asked(overrides) else sweep).run(overrides, config_dirs)
    else:
        start(overrides, config_dirs)


def start(overrides: list[str], config_dirs: Sequence[str | Path] = ()) -> None:
    """Compose and check one run, then train it."""
    for group, what in (("ablation", "an ablation is a sweep"), ("search", "a search is one")):
        swept = [a for a in overrides if a.startswith(f"{group}=") and a != f"{group}=null"]
        if swept:
            raise UserError(
                f"{swept[0]}: {what} of several runs; start it with segtrain -m {swept[0]}"
            )
    cfg, folder = compose_config(overrides, config_dirs)
    train.start(check(cfg), masked_container(cfg), folder, overrides)


# Flags, the short ones as Hydra has them -> (the long one, whether a value follows).
FLAGS = {
    "--config-dir": ("--config-dir", True),
    "-cd": ("--config-dir", True),
    "--multirun": ("-m", False),
    "-m": ("-m", False),
    "--cfg": ("--cfg", True),
    "-c": ("--cfg", True),
    "--package": ("--package", True),
    "-p": ("--package", True),
    "--resolve": ("--resolve", False),
    "--info": ("--info", False),
    "-i": ("--info", False),
    "--version": ("--version", False),
    "--hydra-help": ("--hydra-help", False),
}


def split_flags(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return {flag: its values} and the other words.

    Errors: UserError for a flag without its value and a folder that is not there; other flags are
    left among the words.
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
        if flag == "--info" and left and left[0] in show.INFOS:
            value = left.pop(0)
        if takes_value and not equals:
            value = left.pop(0) if left else ""
        if takes_value and not value:
            what = {"--config-dir": "a folder, --config-dir FOLDER"}
            raise UserError(f"{argument}: name {what.get(flag, f'what, {flag} NAME')}")
        if flag == "--config-dir":
            value = as_text(value)
            if not Path(value).is_dir():
                raise UserError(f"{typed}={value}: no such folder")
        flags.setdefault(flag, []).append(value)
    return flags, words
