"""A run goes on with the data that it was begun with, or says that they are others.

`fingerprint.json` in the run folder says what the data were (see `data/fingerprint.py`), and each
checkpoint which fingerprint is its own, by its SHA-256. Both are written together, at a save.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtrain.config.schema import DatasetKeys, RunConf, dataset_keys
from segtrain.contracts import Dataset
from segtrain.data import fingerprint, sums
from segtrain.data.images import shown
from segtrain.engine.parts import Parts
from segtrain.engine.state import TrainState
from segtrain.errors import DataError, complain
from segtrain.logs.run_log import RunLog
from segtrain.runtime.distributed import World
from segtrain.runtime.run_folder import FINGERPRINT as FILE

FORMAT = 1
Paths = Mapping[str, Path]  # the files of a split, by their names in a fingerprint


def check_data(
    run: RunConf, folder: Path, parts: Parts, state: TrainState, log: RunLog, world: World
) -> bool:
    """Take the fingerprint of the data, and compare it with that of the checkpoint gone on from.

    Returns whether they changed, and `dataset.allow_change` lets the run go on. The files are
    shared among the ranks. Errors: DataError on all ranks, where they changed or are not as
    `dataset.manifest` lists them.
    """
    keys = dataset_keys(run.dataset)
    splits = {keys.train_split: parts.train_set, keys.measured_split: parts.val_set}
    files = {split: fingerprint.named_files(dataset) for split, dataset in splits.items()}
    before, changes = _before(folder, state) if world.main else (None, [])
    # A run that does not verify its files when it begins does not read them all for this either.
    deep = world.broadcast(run.train.verify if before is None else before["deep"])
    # What verification left out may stay unreadable.
    spared = keys.train_split if run.train.bad_samples == "skip" else None
    now = _taken(splits, files, deep, spared, world)
    wrong = []
    if keys.manifest is not None:
        now["manifest"], wrong = _not_as_listed(Path(keys.manifest), run, files, world)

    def judged() -> list[str]:
        if before is not None:
            changes.extend(_changes(before, now, files, folder))
        _refuse(folder, keys, state, changes, wrong)
        return changes

    changes = world.decide(judged)
    allowed = bool(state.step and (changes or wrong))
    if world.main:
        state.fingerprint = json.dumps(now).encode()
    if allowed:
        what = "; ".join([*changes, *_many(wrong)])
        log.text(f"warn   the data changed: {what}. The run goes on with them as they are")
    elif state.step and before is None:
        log.text("note   no fingerprint of the data from before: what changed is not noticed")
    if said := _unseen(now):
        log.text(f"note   {said}")
    return allowed


def _taken(
    splits: Mapping[str, Dataset],
    files: Mapping[str, Paths],
    deep: bool,
    spared: str | None,
    world: World,
) -> dict[str, Any]:
    """Return the fingerprint of all splits.

    Errors: DataError on all ranks for a bad file of another split than `spared`.
    """
    now: dict[str, Any] = {"format": FORMAT, "deep": deep, "manifest": None, "splits": {}}
    for split, dataset in splits.items():
        names = list(files[split])
        hashed = fingerprint.spread(names) if deep else set()
        mine = {name: files[split][name] for name in names[world.rank :: world.size]}
        found = world.gather(fingerprint.marks(mine, hashed))
        if split != spared:
            complain([line for _, problems in found for line in problems])
        marked = {name: mark for marks, _ in found for name, mark in marks.items()}
        now["splits"][split] = fingerprint.record(dataset, {name: marked[name] for name in names})
    return now


def _before(folder: Path, state: TrainState) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the fingerprint that the checkpoint gone on from names, and what is wrong with it.

    None for a new run, for one of before there were any, and for a wrong one.
    """
    if state.fingerprint_sum is None:
        return None, []
    path = folder / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        return None, [f"{shown(path)}, what they were, cannot be read: {error.strerror}"]
    if hashlib.sha256(content).hexdigest() != state.fingerprint_sum:
        return None, [f"{shown(path)} is not what the checkpoint was saved with"]
    try:
        before = json.loads(content)
        if before["format"] != FORMAT or type(before["deep"]) is not bool:
            raise ValueError("of another segtrain")
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        return None, [f"{shown(path)} is damaged ({error!r})"]
    return before, []


def _changes(
    before: dict[str, Any], now: dict[str, Any], files: Mapping[str, Paths], folder: Path
) -> list[str]:
    """Say for each split what changed."""
    lines = []
    try:
        for split, record in now["splits"].items():
            said = fingerprint.differences(before["splits"][split], record, files[split])
            lines += [f"{split}: {', '.join(said)}"] if said else []
        lists = {before["manifest"], now["manifest"]} - {None}
        lines += ["dataset.manifest is another list"] if len(lists) > 1 else []
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{shown(folder / FILE)}: damaged ({error!r})") from error
    return lines


def _not_as_listed(
    path: Path, run: RunConf, files: Mapping[str, Paths], world: World
) -> tuple[str, list[str]]:
    """Return the sum of the list at `path`, and a line for each file that is not as it says."""
    path = path.expanduser()
    paths = [each for of_split in files.values() for each in of_split.values()]
    root = sums.root_of(run.dataset.get("root"), paths)
    known = sums.read_sums(path)
    mine = list(known)[world.rank :: world.size]
    found = world.gather(sums.wrong_sums(known, mine, root, path))
    lines = [line for lines in found for line in lines]
    return fingerprint.sum_of(path), [*lines, *sums.not_listed(known, paths, root, path)]


def _refuse(
    folder: Path, keys: DatasetKeys, state: TrainState, changes: list[str], wrong: list[str]
) -> None:
    """Refuse data that changed, or are not as they are listed. Errors: DataError."""
    if keys.allow_change and state.step:
        return
    if state.step and (changes or wrong):
        raise DataError(
            f"{folder}: the data changed since this run read them: "
            f"{'; '.join([*changes, *_many(wrong)])}; put back what was there, or go on with them "
            "as they are by dataset.allow_change=true"
        )
    if wrong:
        raise DataError(
            f"{'; '.join(_many(wrong))}; put back what was there, or write the list anew by "
            "segdata manifest"
        )


def _many(lines: list[str]) -> list[str]:
    """Return the first of some lines with the number of the others; nothing for none."""
    more = f" (and {len(lines) - 1:,} more)" if len(lines) > 1 else ""
    return [lines[0] + more] if lines else []


def _unseen(now: dict[str, Any]) -> str:
    """Say what a resume would not notice; "" where it would notice everything."""
    if now["manifest"]:
        return ""
    return fingerprint.unseen(now["splits"].values())
