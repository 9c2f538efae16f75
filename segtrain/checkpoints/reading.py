"""Find the checkpoint that a path means."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from segtrain.checkpoints.manifest import MANIFEST, STEP_FOLDER, Checkpoint, check_files, inspect
from segtrain.checkpoints.match import modern_state, tensors
from segtrain.checkpoints.safe_load import Damaged
from segtrain.config.old_names import input_before_3
from segtrain.config.settings import at_home
from segtrain.errors import UserError, did_you_mean
from segtrain.runtime.run_folder import check_entries

log = logging.getLogger("segtrain")


def latest(folder: Path) -> Checkpoint | None:
    """Return the whole checkpoint with the highest step, None when there is none.

    Damaged ones are named in the log.
    """
    return next(filter(is_whole, scan(folder)), None)


def newest_sound(folder: Path) -> Checkpoint | None:
    """Return the checkpoint with the highest step whose manifest is sound, None without one.

    Its other files are not looked at, and damaged ones are passed over without a word: `latest`
    names them. Errors: UserError where a newer segtrain wrote it.
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        if STEP_FOLDER.fullmatch(path.name):
            with suppress(OSError, Damaged):
                found.append(inspect(path))
    return max(found, key=_age, default=None)


def best(folder: Path) -> Checkpoint | None:
    """Return the whole checkpoint with the highest `meta["score"]`, None when none has a score.

    Of equal ones the newest counts.
    """
    return next(filter(is_whole, ranked(scan(folder))), None)


def find(path: str | Path, prefer: Literal["best", "latest"] = "latest") -> Checkpoint:
    """Return the checkpoint that a path means, with all of its files checked.

    The path is a run folder, a `checkpoints` folder, one step folder or a file inside one. Where
    several are meant, `prefer` picks; "best" is "latest" when no checkpoint has a score. Errors:
    UserError where there is no whole one.
    """
    given = at_home(path)
    if not given.exists():
        siblings = given.parent.iterdir() if given.parent.is_dir() else []
        hint = did_you_mean(str(given), map(str, siblings))
        raise UserError(f"{given}: does not exist.{hint}")
    folder = given.resolve()
    if folder.is_file():
        if folder.name != MANIFEST and not (folder.parent / MANIFEST).is_file():
            raise UserError(
                f"{given}: a foreign file, no segtrain checkpoint; "
                "segtrain import=FILE makes a run of published weights, train.init=FILE starts "
                "from them"
            )
        folder = folder.parent
    if (folder / MANIFEST).is_file() or STEP_FOLDER.fullmatch(folder.name):
        try:
            checkpoint = inspect(folder)
            check_files(checkpoint)
        except (OSError, Damaged) as error:
            raise UserError(f"{given}: damaged checkpoint ({error}); use another one") from None
        return checkpoint
    check_entries(folder, ("checkpoints",))
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    chosen = (best(folder) if prefer == "best" else None) or latest(folder)
    if chosen is None:
        raise UserError(
            f"{given}: holds no whole checkpoint; "
            "give a run folder, or a folder step_NNNNNNNN inside one"
        )
    return chosen


def is_bare(source: str | Path) -> bool:
    """Return whether a path means a file of weights alone, no checkpoint of ours.

    TensorFlow's checkpoints are named without the ends of their files.
    """
    path = at_home(source)
    if path.is_file():
        return not (path.resolve().parent / MANIFEST).is_file()
    return path.with_name(f"{path.name}.index").is_file() and not path.exists()


class Start(NamedTuple):
    """Weights to start from, and what is known of them."""

    weights: dict[str, Tensor]
    class_names: list[str]  # [] where nobody knows them
    input: Any = None  # what `input_of` returns


def input_of(checkpoint: Checkpoint) -> Any:
    """Return the input that the weights of a checkpoint were trained on, as it tells it, unchecked.

    A checkpoint of before it was told has what its weights meant in training, by the table old ->
    new. None: the model normalises in a way of its own. Errors: UserError.
    """
    if "input" in checkpoint.meta:
        return checkpoint.meta["input"]
    return input_before_3(checkpoint.meta.get("config"), str(checkpoint.path))


def weights_of(source: str | Path) -> Start:
    """Read weights to start from, and the names of their classes.

    They are those of the checkpoint that `find` prefers as best, averaged if it has an average.
    Errors: UserError as in `find`.
    """
    checkpoint = find(source, "best")
    trained_on = input_of(checkpoint)
    class_names = list(checkpoint.meta.get("class_names", []))
    if "ema.pt" not in checkpoint.files:
        stored = tensors(checkpoint.read("model"), checkpoint.path)
        weights = modern_state(stored, checkpoint.meta.get("config"))
        return Start(weights, class_names, trained_on)
    # torch's AveragedModel keeps the weights below `module.`, beside a counter.
    stored = tensors(checkpoint.read("ema"), checkpoint.path)
    averaged = modern_state(stored, checkpoint.meta.get("config"))
    weights = {
        key.removeprefix("module."): value for key, value in averaged.items() if key != "n_averaged"
    }
    return Start(weights, class_names, trained_on)


def scan(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints with a sound manifest, newest first.

    A replaced one comes after its successor. Their files are not hashed yet, as that takes seconds.
    """
    checkpoints = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if STEP_FOLDER.fullmatch(path.name):
            try:
                checkpoints.append(inspect(path))
            except (OSError, Damaged) as error:
                _warn_skipped(path, error)
    return sorted(checkpoints, key=_age, reverse=True)


def is_whole(checkpoint: Checkpoint) -> bool:
    """Return whether all files are as they were saved, and warn where they are not."""
    try:
        check_files(checkpoint)
    except (OSError, Damaged) as error:
        _warn_skipped(checkpoint.path, error)
        return False
    return True


def has_score(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint has a score that can be compared."""
    score = checkpoint.meta.get("score")
    return isinstance(score, int | float) and not math.isnan(score)


def ranked(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints that have a score, the best first; of equal ones the newest is."""
    return sorted(filter(has_score, checkpoints), key=rank, reverse=True)


def rank(checkpoint: Checkpoint) -> tuple[float, int, bool]:
    """Return what the best of several checkpoints has most of: score, then step."""
    return checkpoint.meta["score"], *_age(checkpoint)


def _age(checkpoint: Checkpoint) -> tuple[int, bool]:
    """Return the step, and whether this is its current checkpoint, not one that was replaced."""
    return checkpoint.step, ".old-" not in checkpoint.path.name


def _warn_skipped(path: Path, reason: Exception) -> None:
    log.warning("%s: damaged checkpoint skipped: %s", path, reason)
