"""What a user types: the entry points of the five commands, and what all of them answer.

Nothing here imports torch, or the commands themselves: help and the Tab key are answered at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata

from segtrain.commands import shells
from segtrain.commands.exit_codes import run_command
from segtrain.commands.help import help_text
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
    if not arguments or arguments[0] not in shells.FLAGS:
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
    """Answer a Tab, `--help` or `--version`, or do what else `segtrain ARGUMENTS` asks for."""
    if _completes("segtrain", arguments):
        return
    if "-h" in arguments or "--help" in arguments:
        answer(help_text(arguments))
        return
    if "--version" in arguments:
        answer(version())
        return
    from segtrain.commands import start  # only now: the Tab key waits for none of it

    start.run(arguments)
