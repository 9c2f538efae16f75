"""How the runs of a sweep are started: which launcher, and the settings of our own. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from segtrain.config import settings
from segtrain.config.bounds import PROCESSES, check_range
from segtrain.config.settings import Setting
from segtrain.errors import UserError, did_you_mean

CHOICE = "hydra/launcher"
OURS = "gpus"
HYDRAS = ("basic", "joblib", "submitit_local", "submitit_slurm")
BELOW = "hydra.launcher."


@dataclass(frozen=True)
class PoolConf:
    """The settings of `hydra/launcher=gpus`: hydra.launcher.devices, .jobs_per_gpu, .jobs."""

    devices: tuple[str, ...] | None = None  # GPUs; None: all that this process may use
    jobs_per_gpu: int = 1
    jobs: int | None = None  # at a time; None: what GPUs, else cores and memory allow
    where: str = OURS  # what was typed, for messages


KEYS = ("devices", "jobs_per_gpu", "jobs")


def read(of_hydra: Sequence[Setting]) -> tuple[list[str], PoolConf | None]:
    """Return the settings of Hydra's launcher as it reads them, and those of ours if it is chosen.

    Errors: UserError for another launcher, and for a setting that ours does not have.
    """
    words: list[str] = []
    name = "basic"
    below: list[Setting] = []
    for setting in of_hydra:
        if setting.key == CHOICE:
            name = settings.unquoted(setting.text)
            if name not in (*HYDRAS, OURS):
                listed = ", ".join((*HYDRAS, OURS))
                raise UserError(f"{setting.word}: no such launcher; there are {listed}")
            words.append(setting.word)
        elif setting.key.startswith(f"{BELOW}_"):
            raise UserError(f"{setting.word}: a launcher is chosen by {CHOICE}=NAME")
        elif setting.key.startswith(BELOW):
            below.append(setting)
            words.append(setting.word)
    if name == OURS:
        return [], _ours(below)
    for setting in below:
        if name == "basic" and setting.key.removeprefix(BELOW) in KEYS:
            raise UserError(f"{setting.word}: is a setting of {CHOICE}={OURS}; add that")
    return words, None


def _ours(below: Sequence[Setting]) -> PoolConf:
    """Return the settings of our launcher. Errors: UserError naming the word at fault."""
    conf = PoolConf()
    for setting in below:
        key = setting.key.removeprefix(BELOW)
        if key not in KEYS:
            raise UserError(
                f"{setting.word}: no setting of {CHOICE}={OURS}; there are "
                f"{', '.join(BELOW + name for name in KEYS)}.{did_you_mean(key, KEYS)}"
            )
        if key == "devices":
            conf = replace(conf, devices=_devices(setting), where=setting.word)
        elif key == "jobs_per_gpu":
            conf = replace(conf, jobs_per_gpu=_count(setting))
        elif setting.text != "null":
            conf = replace(conf, jobs=_count(setting))
    return conf


def _devices(setting: Setting) -> tuple[str, ...] | None:
    value = settings.parsed(setting)
    if value is None:
        return None
    names = value if isinstance(value, list) else [value]
    if not names or not all(type(name) in (int, str) for name in names):
        raise UserError(f"{setting.word}: GPUs are named as in {setting.key}=[0,1]")
    return tuple(str(name) for name in names)


def _count(setting: Setting) -> int:
    value = settings.parsed(setting)
    if type(value) is not int:
        raise UserError(f"{setting.word}: a whole number is needed, such as {setting.key}=2")
    check_range(setting.key, value, PROCESSES)
    return value
