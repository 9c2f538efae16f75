"""Find the checkpoint that a path means."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Literal

from torch import Tensor

from segtrain.checkpoints.manifest import MANIFEST, STEP_FOLDER, Checkpoint, check_files, inspect
from segtrain.checkpoints.match import tensors
from segtrain.checkpoints.safe_load import Damaged, load_weights
from segtrain.errors import UserError, did_you_mean

log = logging.getLogger("segtrain")


# ---- finding


def latest(folder: Path) -> Checkpoint | None:
    """The whole checkpoint with the highest step, None when there is none. Damaged ones are named in the log."""
    return next(filter(is_whole, scan(folder)), None)


def best(folder: Path) -> Checkpoint | None:
    """The whole checkpoint with the highest `meta["score"]`, ties to the newest; None when none has a score."""
    ranked = sorted(filter(has_score, scan(folder)), key=rank, reverse=True)
    return next(filter(is_whole, ranked), None)


def find(path: str | Path, prefer: Literal["best", "latest"] = "latest") -> Checkpoint:
    """The checkpoint meant by a run folder, a `checkpoints` folder, one step folder or a file inside one.

    Where several are meant, `prefer` picks; "best" is "latest" when no checkpoint has a score. UserError otherwise.
    """
    given = Path(path).expanduser()
    if not given.exists():
        near = [str(p) for p in given.parent.iterdir()] if given.parent.is_dir() else []
        raise UserError(f"{given}: does not exist.{did_you_mean(str(given), near)}")
    place = given.resolve()
    if place.is_file():
        if place.name != MANIFEST and not (place.parent / MANIFEST).is_file():
            raise UserError(
                f"{given}: a foreign file, no segtrain checkpoint; bare weights go to train.init=FILE"
            )
        place = place.parent
    if (place / MANIFEST).is_file() or STEP_FOLDER.fullmatch(place.name):
        try:
            found = inspect(place)
            check_files(found)
        except (OSError, Damaged) as error:
            raise UserError(f"{given}: damaged checkpoint ({error}); use another one") from None
        return found
    folder = place / "checkpoints" if (place / "checkpoints").is_dir() else place
    chosen = (best(folder) if prefer == "best" else None) or latest(folder)
    if chosen is None:
        raise UserError(
            f"{given}: holds no whole checkpoint; give a run folder, or a folder step_NNNNNNNN inside one"
        )
    return chosen


def weights_of(source: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Weights to start from, and the names of their classes: of whatever `find` finds (the best, averaged if it has an
    average), or of a bare file, which knows no names. UserError as in `find` and `load_weights`."""
    place = Path(source).expanduser()
    if place.is_file() and not (place.resolve().parent / MANIFEST).is_file():
        return load_weights(place), []
    found = find(place, "best")
    names = list(found.meta.get("class_names", []))
    if "ema.pt" not in found.files:
        return dict(tensors(found.read("model"), found.path)), names
    averaged = tensors(
        found.read("ema"), found.path
    )  # torch's AveragedModel: `module.` and a counter
    return {
        key.removeprefix("module."): value for key, value in averaged.items() if key != "n_averaged"
    }, names


def scan(folder: Path) -> list[Checkpoint]:
    """Checkpoints with a sound manifest, newest first, a replaced one after its successor. Files are not hashed yet."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if STEP_FOLDER.fullmatch(path.name):
            try:
                found.append(inspect(path))
            except (OSError, Damaged) as error:
                _skip(path, error)
    return sorted(found, key=lambda c: (c.step, ".old-" not in c.path.name), reverse=True)


def _skip(path: Path, reason: Exception) -> None:
    log.warning("%s: damaged checkpoint skipped: %s", path, reason)


def is_whole(found: Checkpoint) -> bool:
    try:
        check_files(found)
    except (OSError, Damaged) as error:
        _skip(found.path, error)
        return False
    return True


def has_score(found: Checkpoint) -> bool:
    score = found.meta.get("score")
    return isinstance(score, int | float) and not math.isnan(score)


def rank(found: Checkpoint) -> tuple[float, int, bool]:
    return found.meta["score"], found.step, ".old-" not in found.path.name
