"""What a user types: the entry points of the five commands, and what `segtrain` makes of words.

Nothing here imports torch: help and mistakes come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from segtrain.commands import data, evaluate, predict, report, sweep, train
from segtrain.commands.exit_codes import run_command
from segtrain.commands.help import help_text
from segtrain.config.compose import check, compose_config
from segtrain.config.files import masked_container
from segtrain.errors import UserError

CONFIG_FLAGS = ("--cfg", "-c", "--info", "-i")  # Hydra prints a config, nothing is trained
HYDRA_FLAGS = (*CONFIG_FLAGS, "--version", "--hydra-help")


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
    if len(sys.argv) < 2 or "--help" in sys.argv or "-h" in sys.argv:
        print(text)
    else:
        run_command(name, command)


def run(arguments: list[str]) -> None:
    """Do what `segtrain ARGUMENTS` asks for: help, resume, sweep, print a config, or train."""
    if "-h" in arguments or "--help" in arguments:
        print(help_text())
        return
    resumed = [a.partition("=")[2] for a in arguments if a.startswith("resume=")]
    if resumed:
        train.resume(Path(resumed[0]), [a for a in arguments if not a.startswith("resume=")])
    elif "-m" in arguments or "--multirun" in arguments:
        if any(a in CONFIG_FLAGS for a in arguments):
            raise UserError("-m runs a sweep and prints no config: leave out either -m or --cfg")
        sweep.run(arguments)
    elif any(a in HYDRA_FLAGS for a in arguments):
        for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
            if flag in ("--cfg", "-c") and value not in ("job", "hydra", "all"):
                raise UserError(f"{flag} {value}: say which config to print: job, hydra or all")
        sweep.hydra_main(sweep.print_nothing, arguments)
    else:
        start(arguments)


def start(arguments: list[str]) -> None:
    """Compose and check one run, then train it."""
    config_dir, overrides = split_config_dir(arguments)
    swept = [a for a in overrides if a.startswith("ablation=") and a != "ablation=null"]
    if swept:
        raise UserError(
            f"{swept[0]}: an ablation is a sweep of several runs; "
            f"start it with segtrain -m {swept[0]}"
        )
    cfg, folder = compose_config(overrides, [config_dir] if config_dir else [])
    train.start(check(cfg), masked_container(cfg), folder, overrides)


def split_config_dir(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the folder of `--config-dir` and the overrides. Errors: UserError on other flags."""
    config_dir = None
    overrides = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument in ("--config-dir", "-cd"):
            if not left:
                raise UserError(f"{argument}: name a folder, {argument} FOLDER")
            config_dir = left.pop(0)
        elif argument.startswith("--config-dir="):
            config_dir = argument.partition("=")[2]
        elif argument.startswith("-"):
            raise UserError(
                f"{argument}: no such flag; settings are written key=value. See segtrain --help"
            )
        else:
            overrides.append(argument)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir={config_dir}: no such folder")
    return config_dir, overrides
