"""A search: its space, its settings, and each of its trials as if the values had been typed.

No torch, and no Optuna: what is wrong with a search is said before either is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from segtrain.config import compose, jobs, launchers, places, primary, settings
from segtrain.config.bounds import PROCESSES, SEED, Range, check_range
from segtrain.config.choice import OF_A_SEARCH, Choice
from segtrain.config.jobs import Job
from segtrain.config.settings import Setting
from segtrain.config.space import Parameter, parameter
from segtrain.errors import UserError, did_you_mean

GROUP = "search"  # configs that hold a space
SWEEPER = "hydra/sweeper"
OPTUNA = "optuna"
SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "halving")


# Folders are numbered with three digits, so that they stand in order.
RANGES = {"n_trials": Range(1, settings.MAX_RUNS), "n_jobs": PROCESSES, "seed": SEED}


class SearchSettings(NamedTuple):
    """What is typed as `hydra.sweeper.NAME=VALUE`; twenty trials are the default of Hydra's own."""

    n_trials: int = 20  # of the whole study
    n_jobs: int | None = None  # at a time; None: as many as there are devices
    sampler: str = "tpe"
    pruner: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Search:
    """A space that was checked at its ends, and what every trial of it shares."""

    space: dict[str, Parameter]
    swept: dict[str, Setting]  # of each key of the space what was typed
    fixed: list[str]  # settings as they would be typed
    of_hydra: list[str]  # what says where runs lie
    choice: Choice  # of the command line, with where its configs are
    folder: Path
    settings: SearchSettings
    pool: launchers.PoolConf | None  # None: hydra/launcher=gpus was not typed
    monitor: str = ""  # what trials are compared by
    minimised: bool = False
    device: str = "auto"

    def job(self, number: int, texts: Mapping[str, str]) -> Job:
        """Return the run of a trial, composed and checked.

        `texts` are a value for each key of the space. Errors: UserError, as of a run alone.
        """
        words = [*self.fixed, *(jobs.word(self.swept[key], texts[key]) for key in self.space)]
        (name,) = jobs.folder_names([words], list(self.space))
        return jobs.job(
            number, f"{number:03},{name}", words, self.of_hydra, self.folder, self.choice
        )

    @property
    def identity(self) -> dict[str, str]:
        """What two searches share that may be one study: every setting, but where files lie."""
        read = [settings.read(word) for word in self.fixed]
        kept = {setting.key: setting.text for setting in read if not places.is_place(setting.key)}
        named = {primary.FLAG: self.choice.primary.name} if self.choice.primary.bodies else {}
        return {**named, **kept, **{key: setting.text for key, setting in self.swept.items()}}


def asked(overrides: Sequence[str]) -> bool:
    """Tell whether a command line with -m asks for a search: by the sweeper, or by a space."""
    read = map(settings.read, overrides)
    chosen = {setting.key: settings.unquoted(setting.text) for setting in read}
    sweeper = chosen.get(SWEEPER)
    return sweeper == OPTUNA or (sweeper is None and chosen.get(GROUP, "null") != "null")


def read(
    overrides: Sequence[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> Search:
    """Return the search of `segtrain -m OVERRIDES`.

    A run with the first value of every setting is composed and checked, and one with each other end
    or choice of each of them: what cannot be trained is named before a trial begins. Errors:
    UserError.
    """
    given = jobs.given(overrides, config_dirs, config_name)
    choice = given.choice
    plain = compose.plain_run(given.first)
    space: dict[str, Parameter] = {}
    for key, setting in given.swept.items():
        hint = settings.hint_at(plain, key)
        names = choice.names.get(key.partition("@")[0], [])
        found = None if setting.sign == "~" else parameter(setting, names, hint)
        if found is not None:
            space[key] = found
    if not space:
        raise UserError(
            f"{SWEEPER}={OPTUNA}: nothing to search for; write e.g. "
            "'optimizer.lr=tag(log,interval(1e-4,1e-1))', or search=NAME"
        )
    if key := next((key for key in space if key.startswith("train.monitor")), None):
        raise UserError(f"{given.swept[key].word}: is what trials are compared by; name one")
    if GROUP in choice.groups:
        _require_space_alone(choice, plain)
    search = Search(
        space,
        {key: given.swept[key] for key in space},
        [s.word for key, s in given.swept.items() if key not in space and key != GROUP],
        given.of_hydra,
        choice,
        given.folder,
        _settings(choice.hydra),
        _pool(choice),
    )
    return _checked(search)


def _checked(search: Search) -> Search:
    """Return a search that can be begun, with what trials are compared by. Errors: UserError."""
    start = {key: found.ends[0] for key, found in search.space.items()}
    others = [{key: text} for key, found in search.space.items() for text in found.ends[1:]]
    first, *rest = [search.job(0, {**start, **other}) for other in ({}, *others)]
    numbered = first.name in str(first.folder)
    if not numbered and search.job(1, start).folder == first.folder:
        raise UserError(
            f"hydra.sweep.subdir: every trial would have the folder {first.folder}; name it by "
            "${hydra.job.num} or ${hydra.job.override_dirname}"
        )
    compared = {_compared(each) for each in (first, *rest)}
    if len(compared) > 1:
        names = ", ".join(sorted({name for name, _ in compared}))
        raise UserError(f"train.monitor: trials are compared by one number, not by {names}")
    ((monitor, mode),) = compared
    device = compose.check(first.cfg).train.device
    return replace(search, monitor=monitor, minimised=mode == "min", device=device)


def _compared(job: Job) -> tuple[str, str]:
    """Return the name of the number that a run is judged by, and whether more of it is better."""
    train = compose.check(job.cfg).train
    return train.monitor, train.monitor_mode


def _pool(choice: Choice) -> launchers.PoolConf | None:
    """Return the settings of our launcher where it was typed. Errors: UserError for another one."""
    words, pool = launchers.read(choice.hydra)
    if other := [word for word in words if word != f"{launchers.CHOICE}=basic"]:
        raise UserError(
            f"{other[0]}: a search starts its runs itself; leave it out, or take "
            f"{launchers.CHOICE}={launchers.OURS}"
        )
    return pool


def _require_space_alone(choice: Choice, plain: Mapping[str, object]) -> None:
    """Refuse a search file that sets what a run takes: a trial alone would be another run.

    Errors: UserError.
    """
    word = choice.groups[GROUP].word
    groups = {key: setting for key, setting in choice.groups.items() if key != GROUP}
    without = compose.plain_run(compose.composed(choice._replace(groups=groups, values=[])))
    if without != plain:
        raise UserError(
            f"{word}: sets more than hydra.sweeper.params; put settings of the runs into an "
            "experiment, and choose both"
        )


def _settings(of_hydra: Sequence[Setting]) -> SearchSettings:
    """Return what was typed of `hydra.sweeper`. Errors: UserError."""
    found: dict[str, object] = {}
    for setting in of_hydra:
        name = setting.key.removeprefix("hydra.sweeper.")
        if setting.key in OF_A_SEARCH:
            if name in ("sampler", "pruner"):
                found[name] = _named(setting, SAMPLERS if name == "sampler" else PRUNERS)
            else:
                found[name] = _number(setting, RANGES[name])
    return SearchSettings(**found)  # ty: ignore[invalid-argument-type]


def _named(setting: Setting, known: Sequence[str]) -> str | None:
    text = settings.unquoted(setting.text)
    if text == "null" and known is PRUNERS:
        return None
    if text not in known:
        raise UserError(
            f"{setting.word}: not one of {', '.join(known)}.{did_you_mean(text, known)}"
        )
    return text


def _number(setting: Setting, allowed: Range) -> int:
    if not setting.text.isdecimal():
        raise UserError(f"{setting.word}: a whole number is expected")
    check_range(setting.key, int(setting.text), allowed)
    return int(setting.text)
