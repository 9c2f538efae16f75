"""The five commands: compose, check, call. Torch is imported only after the configuration is known to be right.

`segtrain` runs here; the others are in `commands`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segtrain import assemble, usage
from segtrain.compose import check, compose_config, explain, groups, register_schema
from segtrain.config import (
    CONF_DIR,
    RunConf,
    changed,
    describe_schema,
    load_run,
    load_yaml,
    masked_container,
    to_yaml,
)
from segtrain.errors import DiskError, Interrupted, SegtrainError, UserError

# What a resumed run may change: none of it changes a number on one machine except through float summation order.
RESUME_KEYS = ("train.processes", "train.threads", "train.workers", "train.keep", "log.progress", "log.tensorboard")
LONGEST_NAME = 200  # characters of a folder's name; file systems end at 255 bytes


def run_command(name: str, command: Callable[[list[str]], None], arguments: list[str] | None = None) -> None:
    """Call `command`; turn every error into one line and its exit code. The only place where a process exits."""
    try:
        _guarded(name, command, sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        _leave(end.code)
        raise
    _leave(0)


def _leave(code: Any) -> None:
    """End one of several processes at once: threads of its process group may abort while the interpreter is torn down."""
    if "torch" in sys.modules:
        from segtrain.dist import launched

        if launched() and isinstance(code, int):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _guarded(name: str, command: Callable[[list[str]], None], arguments: list[str]) -> None:
    try:
        command(arguments)
    except SegtrainError as error:
        _fail(name, error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(name, DiskError(f"{error.filename}: {error.strerror}"))
    except Exception:
        traceback.print_exc()
        print(f"{name}: internal error (the lines above are for its developers)", file=sys.stderr)
        sys.exit(70)


def _fail(name: str, error: SegtrainError) -> None:
    if "torch" in sys.modules:
        from segtrain.dist import tell_parent

        if tell_parent(error):  # the parent prints it once
            sys.exit(error.exit_code)
    print(f"{name}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


# ---------------------------------------------------------------------- segtrain


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
        _hydra_main(_print_nothing, arguments)
    else:
        config_dir, overrides = _config_dir(arguments)
        if swept := [a for a in overrides if a.startswith("ablation=") and a != "ablation=null"]:
            raise UserError(f"{swept[0]}: an ablation is a sweep of several runs; start it with segtrain -m {swept[0]}")
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
            raise UserError(f"{argument}: no such flag; settings are written key=value. See segtrain --help")
        else:
            rest.append(argument)
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir={config_dir}: no such folder")
    return config_dir, rest


def start(run: RunConf, plain: dict[str, Any], folder: Path, overrides: Sequence[str], again: bool = False) -> None:
    """Train a run in `folder`. `again` (sweeps): a complete run is left alone, an unfinished one goes on.

    Errors: UserError when the folder holds another run, LockedError when it is in use.
    """
    occupy(run, folder, lambda place: claim(plain, place, overrides, again))


def occupy(run: RunConf, folder: Path, prepare: Callable[[Path], bool]) -> None:
    """Lock the folder, `prepare` it (False: nothing to do) and train in it, in one process or many.

    Under torchrun or Slurm rank 0 decides on the folder and prepares it; the other ranks follow or leave with it.
    """
    from segtrain import dist
    from segtrain.guard import RunLock

    if not dist.launched():
        with RunLock(folder):
            if prepare(folder):
                train(run, folder)
            else:
                print(f"{folder}: complete already, left alone")
        return
    with dist.join(run.train.device) as world:
        from segtrain.train import fit

        folder = Path(world.broadcast(str(folder)))
        with _main_prepares(world, folder, prepare) as go:
            if go:
                fit(run, folder, world)


@contextmanager
def _main_prepares(world: Any, folder: Path, prepare: Callable[[Path], bool]) -> Generator[bool]:
    """Rank 0 holds the lock and prepares; a refusal ends all ranks, told once."""
    from segtrain.guard import RunLock

    if not world.main:
        go, refused = world.broadcast(None)
        if refused is not None:
            sys.exit(refused)
        yield go
        return
    lock, told = RunLock(folder), False
    try:
        with lock:
            go = prepare(folder)
            world.broadcast((go, None))
            told = True
            yield go
    except SegtrainError as error:
        if not told:
            world.broadcast((False, error.exit_code))
        raise


def claim(plain: dict[str, Any], folder: Path, overrides: Sequence[str], again: bool) -> bool:
    """Make `folder` the home of this run; False when the run is there and complete. Errors: UserError."""
    if (folder / "config.yaml").exists() and begun(folder):
        if not again:
            raise UserError(
                f"{folder}: holds a run already; go on with it by resume={folder}, or choose another hydra.run.dir"
            )
        if load_yaml(folder / "config.yaml") != plain:
            raise UserError(f"{folder}: holds a run with another configuration; choose another hydra.sweep.dir")
        return not (folder / "summary.json").exists()
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))
    (folder / ".hydra" / "config.yaml").write_text(to_yaml(plain))
    temporary = folder / ".config.tmp"
    temporary.write_text(to_yaml(plain))
    temporary.replace(folder / "config.yaml")
    return True


def begun(folder: Path) -> bool:
    """Whether a run left something in its folder. One refused by its data before the first step did not: start anew."""
    results = (folder / "summary.json", folder / "metrics.jsonl", *(folder / "checkpoints").glob("*"))
    return any(path.exists() and (path.is_dir() or path.stat().st_size > 0) for path in results)


def train(run: RunConf, folder: Path) -> None:
    """Train in this process, or in several of this machine, as the run says."""
    from segtrain import dist

    processes = run.train.processes or dist.default_processes(run.train.device)
    if processes > 1:
        hint = f"stopped; go on with: segtrain resume={folder}"
        dist.launch(processes, ["--worker", str(folder), *_overridden(run)], hint)
        return
    with dist.join(run.train.device) as world:
        from segtrain.train import fit

        fit(run, folder, world)


def _overridden(run: RunConf) -> list[str]:
    """What a resume may change, handed on to workers that read the stored config."""
    shown = {"train": run.train, "log": run.log}
    pairs = [(key, getattr(shown[key.split(".")[0]], key.split(".")[1])) for key in RESUME_KEYS]
    return [f"{key}={'null' if value is None else str(value).lower()}" for key, value in pairs]


def worker(arguments: list[str]) -> None:
    """One process of a run whose parent composed, checked and locked: it only needs the run folder."""

    def command(arguments: list[str]) -> None:
        from segtrain import dist

        dist.die_with_parent()
        folder = Path(arguments[0])
        run = with_changes(load_run(folder / "config.yaml"), arguments[1:])
        with dist.join(run.train.device) as world:
            from segtrain.train import fit

            fit(run, folder, world)

    run_command("segtrain", command, arguments)


def resume(folder: Path, changes: list[str]) -> None:
    """Go on with the run in `folder`. Errors: UserError when it holds none, or a change is not allowed."""
    if str(folder) == ".":
        raise UserError("resume=: name the run folder, resume=RUN")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={folder}: not a run folder (no config.yaml in it)")
    run = load_run(folder / "config.yaml")
    assemble.check(run)
    run = with_changes(run, changes)
    occupy(run, folder, lambda place: not (place / "summary.json").exists())


def with_changes(run: RunConf, changes: Sequence[str]) -> RunConf:
    """A stored run with the few settings a resume may change. Errors: UserError naming them."""
    for change in changes:
        key = change.partition("=")[0]
        if key not in RESUME_KEYS:
            raise UserError(f"{change}: a resumed run keeps its settings; only {', '.join(RESUME_KEYS)} may change.")
    return changed(run, changes)


# ---------------------------------------------------------------------- sweeps


def sweep(arguments: list[str]) -> None:
    """`-m`: one run folder per combination. Jobs go on when one fails; the command then fails at the end."""
    _hydra_main(_job, [*arguments, *_short_names(arguments)])


def _short_names(arguments: Sequence[str]) -> list[str]:
    """Where all settings together make no file name, too long or with a path, run folders are named by the swept ones alone."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    settings = [a for a in arguments if not a.startswith(("-", "hydra."))]
    named = [a for a in settings if not a.startswith("dataset.root=")]
    fits = len(",".join(settings)) <= LONGEST_NAME and not any("/" in a.partition("=")[2] for a in named)
    if fits or any("override_dirname" in a for a in arguments):
        return []
    try:
        fixed = [
            o.key_or_group for o in OverridesParser.create().parse_overrides(settings) if not o.is_sweep_override()
        ]
    except HydraException:
        return []  # Hydra says itself what is wrong
    keys = ",".join(f"'{key}'" for key in ["dataset.root", *fixed])
    return [f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"]


def _hydra_main(task: Callable[[Any], None], arguments: list[str]) -> None:
    import hydra
    from hydra.errors import HydraException

    register_schema()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: run_command turns them into one line
    sys.argv = ["segtrain", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")(task)()
    except HydraException as error:
        raise UserError(explain(error, arguments)) from error


def _print_nothing(cfg: Any) -> None:
    """Stands in for a job where Hydra itself answers (`--cfg`, `--info`)."""


def _job(cfg: Any) -> None:
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    print(f"[{settings.job.num}] {settings.job.override_dirname or 'default'}", flush=True)
    try:
        start(check(cfg), masked_container(cfg), folder, list(settings.overrides.task), again=True)
    except Interrupted as error:
        print(f"segtrain: {error}; the same sweep command runs what is missing", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except SegtrainError as error:
        print(f"segtrain: job {settings.job.num}: {error}", file=sys.stderr)
        raise


# ---------------------------------------------------------------------- help and the other commands


def help_text() -> str:
    """What `segtrain --help` prints."""
    listing = "\n".join(f"  {group + '=':<12} {', '.join(names)}" for group, names in groups().items() if names)
    return f"""segtrain trains an image segmentation network.

  segtrain                                          small DeepLabv3+ on generated shapes
  segtrain model=deeplabv3plus dataset=camvid dataset.root=DIR
  segtrain -m model.backbone=resnet18,resnet34      one run per combination
  segtrain resume=RUN                               go on where RUN stopped
  segtrain --cfg job [overrides]                    print the composed config

Groups (choose one of each with group=name; change a value with group.key=value)
{listing}

Settings of every run
{describe_schema()}

The run folder (hydra.run.dir=...) holds config.yaml, train.log, metrics.jsonl, summary.json, checkpoints/, tensorboard/
and samples/. Exit codes: 0 done, 2 mistake in the command, 65 bad data, 70 internal or diverged, 73 folder in use,
74 disk, 75 interrupted and resumable."""


def _other(name: str, text: str) -> None:
    """A command of `commands`; its help needs no torch."""
    if len(sys.argv) < 2 or "--help" in sys.argv or "-h" in sys.argv:
        print(text)
        return
    from segtrain import commands
    from segtrain.segdata import segdata

    run_command(name, segdata if name == "segdata" else getattr(commands, name))


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


COMMANDS = {"segeval": segeval, "segpredict": segpredict, "segdata": segdata, "segreport": segreport}
