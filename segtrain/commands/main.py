"""What a user types: the entry points of the five commands, and what `segtrain` makes of words.

Nothing here imports torch: help and mistakes come at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from segtrain.commands import (
    extend,
    find_lr,
    import_weights,
    list_recipes,
    replay,
    resume,
    shells,
    show,
    sweep,
    train,
    trials,
)
from segtrain.commands.arguments import take
from segtrain.commands.exit_codes import run_command
from segtrain.commands.flags import SHOWING, split_flags
from segtrain.commands.help import help_text
from segtrain.config import primary, search
from segtrain.config.compose import check, compose_config
from segtrain.config.files import masked_container
from segtrain.errors import UserError
from segtrain.runtime import console


def segtrain() -> None:
    """Run `segtrain [group=name] [key=value] ...`, `segtrain -m ...` or `segtrain resume=RUN`."""
    run_command("segtrain", run)


def segeval() -> None:
    """Run `segeval checkpoint=RUN_OR_FILE ...` or `segeval predictions=DIR dataset=...`."""
    from segtrain.commands import evaluate

    _run_or_answer("segeval", evaluate.run, evaluate.HELP)


def segpredict() -> None:
    """Run `segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR`."""
    from segtrain.commands import predict

    _run_or_answer("segpredict", predict.run, predict.HELP)


def segdata() -> None:
    """Run `segdata verify|stats|browse|prepare dataset=NAME ...`."""
    from segtrain.commands import data

    _run_or_answer("segdata", data.run, data.HELP)


def segreport() -> None:
    """Run `segreport RUN_OR_SWEEP ... [output=DIR]`."""
    from segtrain.commands import report

    _run_or_answer("segreport", report.run, report.HELP)


# What begins with a run or a file that is there, and the flags that have a meaning beside it.
ALONE = {"import": ("--config-dir",), "extend": (), "replay": (), "resume": ()}
# What `python -m segtrain COMMAND ...` knows beside the `segtrain` command itself.
COMMANDS = {
    "segeval": segeval,
    "segpredict": segpredict,
    "segdata": segdata,
    "segreport": segreport,
}


def _run_or_answer(name: str, command: Callable[[list[str]], None], text: str) -> None:
    """Run a command, or print its help or version: the help also where nothing is asked."""

    def run_it(arguments: list[str]) -> None:
        if _completes(name, arguments):
            return
        if not arguments or "--help" in arguments or "-h" in arguments:
            answer(text)
        elif "--version" in arguments:
            answer(version())
        else:
            command(arguments)

    run_command(name, run_it)


def _completes(name: str, arguments: Sequence[str]) -> bool:
    """Answer a shell that asks how a line may go on, or for the script that asks."""
    if arguments[:1] not in ([flag] for flag in shells.FLAGS):
        return False
    shells.run(name, arguments[1:])
    return True


def version() -> str:
    """Return what `--version` prints, in every command."""
    try:
        return f"segtrain {metadata.version('segtrain')}"
    except metadata.PackageNotFoundError:
        return "segtrain, which is not installed here: it runs from its own folder"


def answer(text: str) -> None:
    """Print what was asked for. Errors: DiskError where it cannot be printed."""
    print(text)
    console.require_output()


def run(arguments: list[str]) -> None:
    """Do what `segtrain ARGUMENTS` asks for: help, recipes, resume, sweep, search, print, train."""
    if _completes("segtrain", arguments):
        return
    if "-h" in arguments or "--help" in arguments:
        answer(help_text(arguments))
        return
    if "--version" in arguments:
        answer(version())
        return
    if arguments[:1] == ["recipes"]:
        list_recipes.run(arguments[1:])
        console.require_output()
        return
    flags, words = split_flags(arguments)
    config_dirs = flags.get("--config-dir", [])
    config_name = flags.get(primary.FLAG, [primary.OURS])[-1]
    shown = [flag for flag in SHOWING if flag in flags]
    if words[:1] == ["find_lr"]:
        if "-m" in flags or shown:
            raise UserError(f"find_lr: leave out either it or {(shown or ['-m'])[0]}")
        find_lr.run(words[1:], config_dirs, config_name)
        return
    for name, beside in ALONE.items():
        others = [flag for flag in flags if flag not in beside]
        if others and any(word.startswith(f"{name}=") for word in words):
            raise UserError(f"{name}=: stands alone; leave out {others[0]}")
    if any(word.startswith("import=") for word in words):
        import_weights.run(words, config_dirs)
        return
    if any(word.startswith("extend=") for word in words):
        extended, changes = take(words, "extend")
        extend.extend(Path(extended["extend"]), changes)
        return
    if any(word.startswith("replay=") for word in words):
        replayed, changes = take(words, "replay")
        replay.replay(Path(replayed["replay"]), changes)
        console.require_output()
        return
    taken, overrides = take(words, "resume")
    if "-m" in flags and shown:
        raise UserError(f"-m starts a sweep: leave out either -m or {shown[0]}")
    if shown:
        show.run(shown[0], flags, overrides)
        console.require_output()
    elif "resume" in taken:
        resume.resume(Path(taken["resume"]), overrides)
    elif "-m" in flags:
        several = trials if search.asked(overrides) else sweep
        several.run(overrides, config_dirs, config_name)
    else:
        start(overrides, config_dirs, config_name)


def start(
    overrides: list[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> None:
    """Compose and check one run, then train it."""
    for group, what in (("ablation", "an ablation is a sweep"), ("search", "a search is one")):
        swept = [a for a in overrides if a.startswith(f"{group}=") and a != f"{group}=null"]
        if swept:
            raise UserError(
                f"{swept[0]}: {what} of several runs; start it with segtrain -m {swept[0]}"
            )
    cfg, folder = compose_config(overrides, config_dirs, config_name)
    train.start(check(cfg), masked_container(cfg), folder, overrides)
