"""The five commands: compose, check, call. Torch is imported only after the configuration is known to be right.

`segtrain` runs here; the others are in `commands`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from segtrain import assemble
from segtrain.config import (
    CONF_DIR,
    RunConf,
    describe_schema,
    load_run,
    load_yaml,
    masked_container,
    one_line,
    to_yaml,
    typed,
)
from segtrain.errors import Interrupted, SegtrainError, UserError, did_you_mean
from segtrain.guard import RunLock

# What a resumed run may change: none of it changes a number on one machine except through float summation order.
RESUME_KEYS = ("train.processes", "train.threads", "train.workers", "train.keep", "log.progress", "log.tensorboard")


def run_command(name: str, command: Callable[[list[str]], None], arguments: list[str] | None = None) -> None:
    """Call `command`; turn every error into one line and its exit code. The only place where a process exits."""
    from segtrain.errors import DiskError

    try:
        command(sys.argv[1:] if arguments is None else arguments)
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


# ---------------------------------------------------------------------- composing


def groups() -> dict[str, list[str]]:
    """Config groups and the names in each."""
    return {d.name: sorted(f.stem for f in d.glob("*.yaml")) for d in sorted(CONF_DIR.iterdir()) if d.is_dir()}


def _register_schema() -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=RunConf)


def compose_config(overrides: Sequence[str], config_dir: str | None = None) -> tuple[DictConfig, Path]:
    """(the composed config, the run folder it names). Errors: UserError with a suggestion."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    if not CONF_DIR.is_dir():
        raise UserError(f"{CONF_DIR}: the configs are missing; install segtrain again")
    _register_schema()
    extra = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("train", [*overrides, *extra], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            folder = Path(str(cfg.hydra.run.dir))
    except HydraException as error:
        raise UserError(explain(error, overrides)) from error
    except Exception as error:
        if type(error).__module__.startswith(("omegaconf", "hydra", "antlr4")):
            raise UserError(one_line(error)) from error
        raise
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, folder


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's message as one line, with what was probably meant."""
    text = one_line(error)
    cause = one_line(error.__cause__) if error.__cause__ is not None else ""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = key.split("@")[0]
        if group in groups() and f"{group}/{value}'" in text.replace(f"{group}/ ", f"{group}/"):
            options = groups()[group]
            return f"{group}={value}: no such {group}; there are {', '.join(options)}.{did_you_mean(value, options)}"
        if f"'{key}'" in text and ("Could not override" in text or "not in struct" in text or "not in" in cause):
            if key.startswith("hydra.") or (override.startswith("+") and "Could not append" in text):
                break
            return f"{key}: no such key.{suggest_key(key)}"
    detail = f" ({cause})" if cause and cause not in text else ""
    return f"{text}{detail}"


def suggest_key(key: str) -> str:
    """The nearest key or group of the default config."""
    cfg, _ = compose_config([])
    known = list(groups()) + list(flat_keys(OmegaConf.to_container(cfg, resolve=False)))
    return did_you_mean(key, known) or (" " + _siblings(key, known)).rstrip()


def _siblings(key: str, known: list[str]) -> str:
    parent = key.rpartition(".")[0]
    here = [k for k in known if parent and k.startswith(parent + ".")]
    return f"{parent} has {', '.join(k.removeprefix(parent + '.') for k in here)}" if here else ""


def flat_keys(plain: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a nested mapping."""
    if not isinstance(plain, dict):
        return []
    keys = []
    for key, value in plain.items():
        keys += [f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}.")]
    return keys


def check(cfg: Any) -> RunConf:
    """A composed config as a checked run. Errors: UserError."""
    missing = OmegaConf.missing_keys(cfg) if isinstance(cfg, DictConfig) else set()
    if missing:
        raise UserError(f"{', '.join(sorted(missing))}: must be set, e.g. {sorted(missing)[0]}=...")
    run = typed(cfg)
    assemble.check(run)
    return run


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
        sweep(arguments)
    elif any(a in ("--cfg", "-c", "--info", "-i", "--version", "--hydra-help") for a in arguments):
        _hydra_main(_print_nothing, arguments)
    else:
        config_dir, overrides = _config_dir(arguments)
        cfg, folder = compose_config(overrides, config_dir)
        start(check(cfg), masked_container(cfg), folder, overrides)


def _config_dir(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(`--config-dir`, the overrides). Errors: UserError on any other flag."""
    config_dir, rest, left = None, [], list(arguments)
    while left:
        argument = left.pop(0)
        if argument in ("--config-dir", "-cd"):
            config_dir = left.pop(0) if left else None
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
    from segtrain import dist

    if dist.launched():
        _start_launched(run, plain, folder, overrides)
        return
    with RunLock(folder):
        if not claim(plain, folder, overrides, again):
            print(f"{folder}: complete already, left alone")
            return
        train(run, folder)


def claim(plain: dict[str, Any], folder: Path, overrides: Sequence[str], again: bool) -> bool:
    """Make `folder` the home of this run; False when it is there and complete. Errors: UserError."""
    if (folder / "config.yaml").exists():
        if not again:
            raise UserError(f"{folder}: holds a run already; go on with it by resume={folder}, or choose another hydra.run.dir")
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


def _start_launched(run: RunConf, plain: dict[str, Any], folder: Path, overrides: Sequence[str]) -> None:
    """Under torchrun or Slurm: rank 0 decides on the folder, locks it and writes the config; everyone trains in it."""
    from segtrain import dist

    with dist.join(run.train.device) as world:
        from segtrain.train import fit

        folder = Path(world.broadcast(str(folder)))
        if not world.main:
            if (refused := world.broadcast(None)) is not None:
                raise SystemExit(refused)
            fit(run, folder, world)
            return
        try:
            lock = RunLock(folder)
            lock.__enter__()
            claim(plain, folder, overrides, again="TORCHELASTIC_RESTART_COUNT" in os.environ)
        except SegtrainError as error:
            world.broadcast(error.exit_code)
            raise
        world.broadcast(None)
        try:
            fit(run, folder, world)
        finally:
            lock.__exit__(None, None, None)


def resume(folder: Path, changes: list[str]) -> None:
    """Go on with the run in `folder`. Errors: UserError when it holds none, or a change is not allowed."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={folder}: not a run folder (no config.yaml in it)")
    run = load_run(folder / "config.yaml")
    assemble.check(run)
    run = with_changes(run, changes)
    if (folder / "summary.json").exists():
        print(f"{folder}: complete already")
        return
    with RunLock(folder):
        train(run, folder)


def with_changes(run: RunConf, changes: Sequence[str]) -> RunConf:
    """A stored run with the few settings a resume may change. Errors: UserError naming them."""
    for change in changes:
        key = change.partition("=")[0]
        if key not in RESUME_KEYS:
            raise UserError(f"{change}: a resumed run keeps its settings; only {', '.join(RESUME_KEYS)} may change.")
    merged = OmegaConf.merge(OmegaConf.structured(run), OmegaConf.from_dotlist(list(changes)))
    return typed(merged)


# ---------------------------------------------------------------------- sweeps


def sweep(arguments: list[str]) -> None:
    """`-m`: one run folder per combination. Jobs go on when one fails; the command then fails at the end."""
    _hydra_main(_job, arguments)


def _hydra_main(task: Callable[[DictConfig], None], arguments: list[str]) -> None:
    import hydra
    from hydra.errors import HydraException

    _register_schema()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: run_command turns them into one line
    sys.argv = ["segtrain", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")(task)()
    except HydraException as error:
        raise UserError(explain(error, arguments)) from error


def _print_nothing(cfg: DictConfig) -> None:
    """Stands in for a job where Hydra itself answers (`--cfg`, `--info`)."""


def _job(cfg: DictConfig) -> None:
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


def segeval() -> None:
    """`segeval checkpoint=RUN_OR_FILE ...` or `segeval predictions=DIR dataset=...`."""
    from segtrain import commands

    run_command("segeval", commands.segeval)


def segpredict() -> None:
    """`segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR`."""
    from segtrain import commands

    run_command("segpredict", commands.segpredict)


def segdata() -> None:
    """`segdata verify|browse dataset=NAME ...`."""
    from segtrain import commands

    run_command("segdata", commands.segdata)


def segreport() -> None:
    """`segreport RUN_OR_SWEEP ... [out=DIR]`."""
    from segtrain import commands

    run_command("segreport", commands.segreport)


COMMANDS = {"segeval": segeval, "segpredict": segpredict, "segdata": segdata, "segreport": segreport}
