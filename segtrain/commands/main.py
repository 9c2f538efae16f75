"""What a user types: `segtrain`, and the entry points of the other commands."""

from __future__ import annotations

import sys
from pathlib import Path

from segtrain.commands import usage
from segtrain.commands.exit_codes import run_command
from segtrain.commands.help import help_text
from segtrain.commands.sweep import hydra_main, print_nothing, sweep
from segtrain.commands.train import resume, start
from segtrain.config.compose import check, compose_config
from segtrain.config.files import masked_container
from segtrain.errors import UserError


def segtrain() -> None:
    """`segtrain [group=name] [key=value] ...`, `segtrain -m ...`, `segtrain resume=RUN`."""
    run_command("segtrain", _segtrain)


def _segtrain(arguments: list[str]) -> None:
    if any(a in ("-h", "--help") for a in arguments):
        print(help_text())
        return
    resumed = [a.partition("=")[2] for a in arguments if a.startswith("resume=")]
    if resumed:
        resume(Path(resumed[0]), [a for a in arguments if not a.startswith("resume=")])
    elif any(a in ("-m", "--multirun") for a in arguments):
        if any(a in ("--cfg", "-c", "--info", "-i") for a in arguments):
            raise UserError("-m runs a sweep and prints no config: leave out either -m or --cfg")
        sweep(arguments)
    elif any(a in ("--cfg", "-c", "--info", "-i", "--version", "--hydra-help") for a in arguments):
        for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
            if flag in ("--cfg", "-c") and value not in ("job", "hydra", "all"):
                raise UserError(f"{flag} {value}: say which config to print: job, hydra or all")
        hydra_main(print_nothing, arguments)
    else:
        config_dir, overrides = _config_dir(arguments)
        if swept := [a for a in overrides if a.startswith("ablation=") and a != "ablation=null"]:
            raise UserError(
                f"{swept[0]}: an ablation is a sweep of several runs; start it with segtrain -m {swept[0]}"
            )
        cfg, folder = compose_config(overrides, config_dir)
        start(check(cfg), masked_container(cfg), folder, overrides)


def _config_dir(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(`--config-dir`, the overrides). Errors: UserError on any other flag."""
    config_dir, rest, left = None, [], list(arguments)
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
            rest.append(argument)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir={config_dir}: no such folder")
    return config_dir, rest


def _other(name: str, text: str) -> None:
    """Another command; its help needs no torch."""
    if len(sys.argv) < 2 or "--help" in sys.argv or "-h" in sys.argv:
        print(text)
        return
    from segtrain.commands import data, evaluate, predict, report

    command = {
        "segeval": evaluate.segeval,
        "segpredict": predict.segpredict,
        "segdata": data.segdata,
        "segreport": report.segreport,
    }[name]
    run_command(name, command)


def segeval() -> None:
    """`segeval checkpoint=RUN_OR_FILE ...` or `segeval predictions=DIR dataset=...`."""
    _other("segeval", usage.SEGEVAL)


def segpredict() -> None:
    """`segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR`."""
    _other("segpredict", usage.SEGPREDICT)


def segdata() -> None:
    """`segdata verify|stats|browse|prepare dataset=NAME ...`."""
    _other("segdata", usage.SEGDATA)


def segreport() -> None:
    """`segreport RUN_OR_SWEEP ... [out=DIR]`."""
    _other("segreport", usage.SEGREPORT)


COMMANDS = {
    "segeval": segeval,
    "segpredict": segpredict,
    "segdata": segdata,
    "segreport": segreport,
}
