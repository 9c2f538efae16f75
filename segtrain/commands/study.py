"""A study of Optuna's, kept in the folder of its runs. The only module that knows Optuna.

The file is Optuna's journal, a line per thing that happened, so that its dashboard opens it. What
is drawn for a trial is a function of the seed, of the trial's number and of what is known by then:
a study that was stopped goes on with the trials that it would have made.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from segtrain.config.search import Search
from segtrain.config.space import Numbers, Parameter
from segtrain.errors import DiskError, UserError, words_of
from segtrain.rng import seed_for
from segtrain.runtime.run_folder import RunLock

if TYPE_CHECKING:
    import optuna

FILE = "study.journal"
NAME = "segtrain"  # of the study in its file, which holds one
SEARCH = "search"  # attribute of the study: what was typed, by which it is known again
WHY = "why"  # attribute of a trial that failed


class Trial(NamedTuple):
    """Values that are to be tried."""

    number: int
    texts: dict[str, str]  # as they would be typed
    known: dict[int, float]  # by step, what earlier starts of it have reported


class Told(NamedTuple):
    """A trial that came to a value, or failed."""

    number: int
    texts: dict[str, str]
    value: float
    why: str = ""  # it failed


@contextmanager
def opened(search: Search) -> Generator[Study]:
    """Yield the study in the folder of a search, which no other process uses meanwhile.

    Errors: UserError where Optuna is missing, the file is damaged or holds another search;
    LockedError; DiskError.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "hydra/sweeper=optuna: optuna is not installed; pip install 'segtrain[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with RunLock(search.folder), warnings.catch_warnings():
        # What Optuna calls experimental; a value it does not like is an exception.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        yield Study(search, _stored(search))


def _stored(search: Search) -> optuna.Study:
    """Return the study of a folder, a new one where there is none. Errors: UserError."""
    import optuna
    from optuna.storages import journal

    class Held(journal.JournalFileOpenLock):
        """Stands for the lock that we hold ourselves: Optuna's outlives a kill for 30 s."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    file = search.folder / FILE

    class Whole(journal.JournalFileBackend):
        """Keeps its lines whole where the disk is full: more may follow them."""

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            before = file.stat().st_size
            try:
                super().append_logs(logs)
            except OSError as error:
                with suppress(OSError):
                    os.truncate(file, before)
                raise DiskError(
                    f"{file}: cannot be written ({error.strerror}); the same command goes on with "
                    "the study once there is room"
                ) from error

    now = {"monitor": search.monitor, "minimised": search.minimised, "settings": search.identity}
    with _read(file):
        _mend(file)
        backend = Whole(str(file), lock_obj=Held(str(file)))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=NAME,
            direction="minimize" if search.minimised else "maximize",
            load_if_exists=True,
            pruner=_pruner(search.settings.pruner),
        )
        before = study.user_attrs.get(SEARCH)
        trials = study.get_trials(deepcopy=False)
    if before is None and not trials:
        study.set_user_attr(SEARCH, now)
    elif before != now:
        raise UserError(
            f"{file}: holds another search{_difference(before, now)}; choose another "
            "hydra.sweep.dir"
        )
    with _read(file):
        for trial in trials:
            _check_drawn(trial, search)
    return study


@contextmanager
def _read(file: Path) -> Generator[None]:
    """Name the file of a study where reading it fails. Errors: UserError."""
    try:
        yield
    except (UserError, DiskError):
        raise
    except Exception as error:  # of a damaged file Optuna says by any of Python's own
        raise UserError(
            f"{file}: no study that can be read ({words_of(error)}); move it away, or choose "
            "another hydra.sweep.dir"
        ) from error


def _check_drawn(trial: optuna.trial.FrozenTrial, search: Search) -> None:
    """Refuse values that no trial of this search can have. Errors: ValueError, LookupError."""
    missing = search.space.keys() - trial.params.keys()
    if missing and trial.state.is_finished():
        raise LookupError(f"trial {trial.number} has no {min(missing)}")
    for key, value in trial.params.items():
        found = search.space[key]
        numbers = isinstance(found, Numbers)
        if not (found.low <= value <= found.high if numbers else value in found.ends):
            raise ValueError(f"trial {trial.number} has {key}={value}")


def _mend(file: Path) -> None:
    """Take off the line that a kill left unfinished at the end of a journal. Errors: UserError."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise UserError(f"{file}: is no file of ours; choose another hydra.sweep.dir")
    if not file.exists():
        return
    with file.open("r+b") as journal:
        content = journal.read()
        journal.truncate(content.rfind(b"\n") + 1)


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    """Say one thing that two searches do not share."""
    if not isinstance(before, Mapping) or not isinstance(before.get("settings"), Mapping):
        return ""
    old = {**before, **before["settings"]}
    new = {**now, **now["settings"]}
    for key in (*new, *old):
        if key != "settings" and old.get(key) != new.get(key):
            return f" ({key}={old.get(key, 'not set')} there)"
    return ""


def _pruner(name: str | None) -> optuna.pruners.BasePruner:
    from optuna import pruners

    made: dict[str | None, Callable[[], pruners.BasePruner]] = {
        None: pruners.NopPruner,
        "median": pruners.MedianPruner,
        "halving": pruners.SuccessiveHalvingPruner,
    }
    return made[name]()


class Study:
    """Ask for trials and tell what came of them."""

    def __init__(self, search: Search, study: optuna.Study) -> None:
        from optuna.trial import TrialState

        self._search = search
        self._study = study
        self._states = TrialState
        self._asked: dict[int, optuna.Trial] = {}
        # Those that were running when an earlier start ended.
        self._open = [each.number for each in self._trials() if each.state == TrialState.RUNNING]

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def next(self) -> Trial | None:
        """Return what is to be tried next, None where all trials were asked for.

        Those that an earlier start has left come first.
        """
        from optuna import trial as optuna_trial

        trials = self._trials()
        if not self._open and len(trials) >= self._search.settings.n_trials:
            return None
        number = self._open.pop(0) if self._open else len(trials)
        self._study.sampler = self._sampler(number)
        if number < len(trials):
            trial = optuna_trial.Trial(self._study, trials[number]._trial_id)
        else:
            trial = self._study.ask()
        texts = {key: suggested(trial, key, found) for key, found in self._search.space.items()}
        self._asked[number] = trial
        return Trial(number, texts, dict(self._trials()[number].intermediate_values))

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        from optuna import samplers

        seed = seed_for(self._search.settings.seed, "trial", number) % 2**32
        if self._search.settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        return samplers.TPESampler(seed=seed)

    def report(self, number: int, step: int, value: float) -> bool:
        """Note what a running trial has reached, and tell whether it is not worth going on with."""
        trial = self._asked[number]
        trial.report(value, step)
        return trial.should_prune()

    def tell(self, number: int, value: float, why: str = "") -> None:
        """Note what a trial came to. NaN is the worst there is, as it is where `why` says so."""
        worst = math.inf if self._search.minimised else -math.inf
        if why or math.isnan(value):
            self._asked[number].set_user_attr(WHY, why or "its value is NaN")
            value = worst
        self._study.tell(number, value)

    def tell_pruned(self, number: int) -> None:
        """Note that a trial was stopped before its end."""
        self._study.tell(number, state=self._states.PRUNED)

    def known(self, texts: Mapping[str, str]) -> Told | None:
        """Return the trial that has tried the same values before; None without one."""
        return next((told for told in self.told if told.texts == texts), None)

    @property
    def told(self) -> list[Told]:
        """The trials that came to a value, and those that failed, in order."""
        found = []
        for each in self._trials():
            if each.state == self._states.COMPLETE and each.value is not None:
                texts = {key: typed(p, each.params[key]) for key, p in self._search.space.items()}
                why = "" if math.isfinite(each.value) else str(each.user_attrs.get(WHY))
                found.append(Told(each.number, texts, each.value, why))
        return found

    @property
    def left(self) -> int:
        """How many trials are to be made, or to be gone on with."""
        missing = self._search.settings.n_trials - len(self._trials())
        return len(self._open) + max(0, missing)

    @property
    def best(self) -> Told | None:
        """The trial with the best value, the first of equal ones; None where none has one."""
        known = [told for told in self.told if not told.why]
        sign = 1 if self._search.minimised else -1
        return min(known, key=lambda told: (sign * told.value, told.number), default=None)

    @property
    def counts(self) -> dict[str, int]:
        """How many trials came to a value, failed, were pruned, and are open still."""
        states = [each.state for each in self._trials()]
        failed = sum(bool(told.why) for told in self.told)
        return {
            "with a value": len(self.told) - failed,
            "failed": failed,
            "pruned": states.count(self._states.PRUNED),
            "open": states.count(self._states.RUNNING),
        }

    @property
    def failure(self) -> str:
        """Why the first trial failed that did; "" where none has."""
        return next((told.why for told in self.told if told.why), "")


def suggested(trial: optuna.Trial, key: str, found: Parameter) -> str:
    """Return the value that a trial sets `key` to, as it would be typed."""
    if not isinstance(found, Numbers):
        return trial.suggest_categorical(key, found.ends)
    if found.whole:
        step = int(found.step or 1)
        return found.text(
            trial.suggest_int(key, int(found.low), int(found.high), step=step, log=found.log)
        )
    return found.text(
        trial.suggest_float(key, found.low, found.high, step=found.step, log=found.log)
    )


def typed(found: Parameter, value: Any) -> str:
    """Return a value that Optuna knows as it would be typed."""
    return found.text(value) if isinstance(found, Numbers) else str(value)
