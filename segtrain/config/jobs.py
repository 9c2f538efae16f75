"""Expand a sweep into its runs: each as if its settings had been typed alone. No torch."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from segtrain.config import compose, launchers, primary, settings
from segtrain.config.choice import OF_A_SEARCH, OF_EVERY_RUN, Choice, sort_out
from segtrain.config.settings import Setting
from segtrain.errors import UserError

MAX_NAME_BYTES = 200  # of a folder's name; file systems end at 255, and `.tmp-` may stand before it
NOT_IN_NAMES = ("dataset.root",)  # where the data lie says nothing about a run
# Groups whose configs stand for several runs themselves.
ONE_OF = {"ablation": "an ablation is a sweep", "search": "a search has a space"}


class Job(NamedTuple):
    """One run of a sweep."""

    name: str  # what it sets, and its folder's name unless `hydra.sweep.subdir` says otherwise
    words: list[str]  # its settings as they would be typed
    folder: Path
    cfg: DictConfig


class Sweep(NamedTuple):
    """Runs, and what the command line says about how they are started."""

    jobs: list[Job]
    folder: Path  # below which they lie
    launcher: list[str]  # settings of Hydra's launcher, in Hydra's grammar
    pool: launchers.PoolConf | None  # settings of ours, None where one of Hydra's is chosen
    batch: int  # runs that are handed to the launcher together


def expand(
    overrides: Sequence[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> Sweep:
    """Return the runs of `segtrain -m OVERRIDES`, all of them composed and checked.

    Values are those of the command line and of `hydra.sweeper.params` in the configs it chooses;
    typed ones win. Errors: UserError where a run of them cannot be trained as it is.
    """
    asked = given(overrides, config_dirs, config_name)
    choice = asked.choice
    if of_search := [s for s in choice.hydra if s.key in OF_A_SEARCH]:
        raise UserError(f"{of_search[0].word}: is for a search; add hydra/sweeper=optuna")
    swept = asked.swept
    texts = {key: _values(setting, choice) for key, setting in swept.items()}
    if (runs := math.prod(map(len, texts.values()))) > settings.MAX_RUNS:
        raise UserError(
            f"-m: {runs:,} runs; a sweep has no more than {settings.MAX_RUNS:,}. Sweep fewer values"
        )
    words = [
        [word(swept[key], text) for key, text in zip(texts, chosen, strict=True)]
        for chosen in itertools.product(*texts.values())
    ]
    names = folder_names(words, [key for key, values in texts.items() if len(values) > 1])
    jobs = [
        job(number, name, of_run, asked.of_hydra, asked.folder, choice)
        for number, (name, of_run) in enumerate(zip(names, words, strict=True))
    ]
    launcher, pool = launchers.read(choice.hydra)
    batch = _batch(choice, len(jobs), pool is not None)
    return Sweep(jobs, asked.folder, launcher, pool, batch)


class Given(NamedTuple):
    """What a command line with -m says, before its runs are known."""

    choice: Choice
    first: DictConfig  # of the groups that have one value alone
    folder: Path  # below which the runs lie
    swept: dict[str, Setting]  # all that is set, by key
    of_hydra: list[str]  # settings of Hydra's that every run is given


def given(
    overrides: Sequence[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> Given:
    """Read `segtrain -m OVERRIDES`. Errors: UserError."""
    choice = sort_out(overrides, config_dirs, True, config_name)
    fixed = [s for s in choice.groups.values() if len(_values(s, choice)) == 1]
    if several := [s for s in choice.groups.values() if s.key in ONE_OF and s not in fixed]:
        raise UserError(f"{several[0].word}: {ONE_OF[several[0].key]} already; take one at a time")
    first = compose.composed(
        choice._replace(groups={setting.key: setting for setting in fixed}, values=[])
    )
    folder = compose.folder_of(first, "hydra.sweep.dir", choice).absolute()
    swept = _settings(choice, compose.sweep_params(first))
    of_hydra = [setting.word for setting in choice.hydra if setting.key in OF_EVERY_RUN]
    return Given(choice, first, folder, swept, of_hydra)


def _settings(choice: Choice, params: Mapping[str, Any]) -> dict[str, Setting]:
    """Return what a sweep sets, by key: the params of its configs, those typed, what is typed."""
    swept = {
        key.lstrip("+"): settings.read(f"{key}={_as_typed(value)}") for key, value in params.items()
    }
    for setting in choice.hydra:
        if setting.key.startswith(_PARAMS):
            key = setting.key.removeprefix(_PARAMS)
            swept[key] = settings.read(f"{setting.sign}{key}={setting.text}")
    return swept | {s.key: s for s in (*choice.groups.values(), *choice.values)}


def word(setting: Setting, text: str) -> str:
    """Return a setting with one of its values, as it would be typed."""
    return setting.word if setting.sign == "~" else f"{setting.sign}{setting.key}={text}"


_PARAMS = "hydra.sweeper.params."


def _as_typed(value: Any) -> str:
    """Return a value of `hydra.sweeper.params` as it would be typed."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # YAML's own list: one value, as in Hydra
        return "[" + ",".join(_as_typed(item) for item in value) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(setting: Setting, choice: Choice) -> list[str]:
    """Return the texts that a setting takes in turn. Errors: UserError for one that is empty."""
    if setting.sign == "~":
        return [setting.text]
    names = choice.names.get(setting.key.partition("@")[0], [])
    texts = settings.several(setting, names)
    if not all(texts):
        raise UserError(f"{setting.word}: a value between its commas is missing")
    return texts


def job(
    number: int,
    name: str,
    words: list[str],
    of_hydra: list[str],
    sweep_folder: Path,
    of_sweep: Choice,
) -> Job:
    """Compose and check one run of a sweep. Errors: UserError."""
    choice = sort_out([*words, *of_hydra], of_sweep.config_dirs, True, of_sweep.primary.name)
    cfg = compose.composed(choice, {"job.override_dirname": name, "job.num": number})
    below = compose.folder_of(cfg, "hydra.sweep.subdir", choice)
    cfg = compose.without_hydra(cfg)
    compose.check(cfg)
    return Job(name, words, sweep_folder / below, cfg)


def _batch(choice: Choice, jobs: int, pooled: bool) -> int:
    """Return how many runs are handed to the launcher together. Errors: UserError."""
    for setting in choice.hydra:
        if setting.key == "hydra.sweeper.max_batch_size" and setting.text != "null":
            if pooled:
                raise UserError(
                    f"{setting.word}: {launchers.CHOICE}={launchers.OURS} starts a run whenever "
                    "there is room; hydra.launcher.jobs=N limits how many there are at a time"
                )
            if not setting.text.isdecimal() or int(setting.text) < 1:
                raise UserError(f"{setting.word}: a number of runs is at least 1")
            return int(setting.text)
    return max(1, jobs)


# Names of folders


def folder_names(words: Sequence[Sequence[str]], swept: Sequence[str]) -> list[str]:
    """Return a name for the folder of each run: what is swept, then what all of them set.

    `words` are the settings of every run, `swept` the keys that differ. A name that is too long
    for a file system says what is swept alone, and ends in a hash of all where that is too long
    too, or where two runs would have one name.
    """
    names = [_name(of_run, swept) for of_run in words]
    twice = {name for name, times in Counter(names).items() if times > 1}
    return [
        _cut(name, of_run) if name in twice and len({*map(tuple, words)}) > 1 else name
        for name, of_run in zip(names, words, strict=True)
    ]


def _name(words: Sequence[str], swept: Sequence[str]) -> str:
    shown = {settings.read(word).key: _safe(word) for word in words}
    first = [shown[key] for key in sorted(swept) if key in shown]
    rest = [
        word for key, word in sorted(shown.items()) if key not in swept and key not in NOT_IN_NAMES
    ]
    whole = ",".join([*first, *rest]) or "default"
    if first and len(whole.encode()) > MAX_NAME_BYTES:
        whole = ",".join(first)
    return whole if len(whole.encode()) <= MAX_NAME_BYTES else _cut(whole, words)


def _safe(word: str) -> str:
    """Return a setting as it may stand in a file's name."""
    return re.sub(r"/+", "_", word)


def _cut(name: str, words: Sequence[str]) -> str:
    """Return the beginning of a name, and a hash of all settings that it stands for."""
    mark = hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    return f"{name.encode()[: MAX_NAME_BYTES - 9].decode(errors='ignore')}-{mark}"
