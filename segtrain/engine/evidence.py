"""What a run folder says of its settings, and what a resume may change of them.

Three things say it: config.yaml as the run was begun with, its copy .hydra/config.yaml, and the
newest checkpoint. The checkpoint is in force; the other two are evidence and are never written
again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segtrain.config import parts, places, trust
from segtrain.config.compose import with_overrides
from segtrain.config.files import ABSENT, differences, load_yaml, stored_run, to_yaml
from segtrain.config.old_names import modern, modern_overrides
from segtrain.config.schema import ALLOW_CHANGE, RunConf, typed
from segtrain.config.sources import show
from segtrain.errors import UserError
from segtrain.runtime.run_folder import NewRun, started_in

# What a resumed run may change, beside places. None of it changes a number on one machine, except
# through the order in which floats are summed.
MAY_CHANGE: dict[str, str] = {
    "train.processes": "processes on this machine",
    "train.threads": "CPU threads of each process",
    "train.workers": "loader processes of each process",
    "train.keep": "newest checkpoints kept",
    "train.keep_best": "best checkpoints kept",
    "train.bad_samples": "what becomes of a sample that cannot be read",
    "train.non_finite": "what a number that is not finite does",
    "train.watchdog": "when a run that stands still is ended, in steps",
    "train.watchdog_floor": "when a run that stands still is ended, in seconds",
    "log.*": "how much is written down",
    "writer": "where else it is written down",
    f"dataset.{ALLOW_CHANGE}": "go on with data that changed; holds for this resume alone",
}


@dataclass(frozen=True)
class Told:
    """What the process that a user started knows of the run, for `fit` and for its workers."""

    config: dict[str, Any]  # the settings in force, as text
    started_in: str | None  # the folder that relative places mean
    new: NewRun | None = None  # to be stored once it is known that it can begin

    def write(self, folder: Path) -> None:
        """Leave it in `folder`, which is the workers' own."""
        (folder / "config.yaml").write_text(to_yaml(self.config))
        rest = {"started_in": self.started_in, "new": self.new and asdict(self.new)}
        (folder / "rest.json").write_text(json.dumps(rest))

    @classmethod
    def read(cls, folder: Path) -> Told:
        """Read what `write` left."""
        rest = json.loads((folder / "rest.json").read_text())
        new = NewRun(**rest["new"]) if rest["new"] else None
        return cls(load_yaml(folder / "config.yaml"), rest["started_in"], new)


def may_change(key: str) -> bool:
    """Tell whether a resume may change a dotted key."""
    group = key.partition(".")[0]
    return key in MAY_CHANGE or group in ("log", "writer") or places.resumable(key)


def in_force(folder: Path, changes: Sequence[str] = ()) -> tuple[RunConf, Told]:
    """Return the run in `folder` with `changes` as it goes on, and the same as text.

    Errors: UserError for a change that is not allowed, or where config.yaml is not what the run was
    begun with.
    """
    changes = modern_overrides(changes)
    refuse_changes(changes)
    file = folder / "config.yaml"
    begun = load_yaml(file)
    stored_run(begun, str(file))  # a config that says nothing is named before it is compared
    plain = modern(begun, str(file))
    copy = folder / ".hydra" / "config.yaml"
    if copy.is_file():
        compare(folder, modern(load_yaml(copy), str(copy)), plain, str(copy))

    from segtrain.checkpoints.reading import newest_sound  # only now: it imports torch

    newest = newest_sound(folder / "checkpoints")
    place = started_in(folder)
    if newest is not None and newest.meta.get("imported"):
        raise UserError(
            f"resume={folder}: holds imported weights, nothing was trained there; train from it "
            f"with {trust.command(f'train.init={folder}', 'key=value')}"
        )
    if newest is not None:
        saved = modern(newest.meta.get("config"), str(newest.path))
        plain = with_earlier_changes(folder, plain, saved, newest.path)
        place = place or newest.meta.get("started_in")
    # What was typed for a start before this one allows nothing now.
    allowed = (ALLOW_CHANGE,)
    plain["dataset"] = {k: v for k, v in plain["dataset"].items() if k not in allowed}
    plain = changed(plain, changes)
    place = place if isinstance(place, str) else None
    return run_of(plain, str(folder), place), Told(plain, place)


def gone_on_with(folder: Path, plain: Mapping[str, Any]) -> tuple[RunConf, Told]:
    """Return the run in `folder` as it goes on with the settings `plain`, as `in_force` does.

    Errors: UserError as there, and where they are those of another run.
    """
    _, told = in_force(folder)
    plain = with_found(plain, told.config)
    changes = differences(told.config, plain)
    other = {key: pair for key, pair in changes.items() if not may_change(key)}
    if other:
        key, (there, here) = next(iter(other.items()))
        more = f", and {len(other) - 1} settings more" if len(other) > 1 else ""
        raise UserError(
            f"{folder}: holds another run already: {key} is {_told(there)} there, {_told(here)} "
            f"here{more}; choose another folder"
        )
    result = _copied(told.config)
    for key, (_, value) in changes.items():
        if key.startswith("writer"):
            result["writer"] = plain["writer"]
        elif value != ABSENT:
            _put(result, key, places.typed_now(key, value, result["dataset"]))
    return run_of(result, str(folder), told.started_in), Told(result, told.started_in)


def with_found(plain: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the batch that the stored run found, where they leave it to be found."""
    train = plain.get("train", {})
    if train.get("batch_size") != "auto":
        return dict(plain)
    found = stored.get("train", {}).get("batch_size")
    return {**plain, "train": {**train, "batch_size": found}}


def with_earlier_changes(
    folder: Path, plain: dict[str, Any], saved: dict[str, Any], checkpoint: Path
) -> dict[str, Any]:
    """Return `plain`, which is config.yaml, with what earlier resumes changed in `saved`.

    Order and types are config.yaml's: a manifest sorts its keys. Errors: UserError where they
    differ in anything else.
    """
    different = differences(saved, plain)
    earlier = {key: pair for key, pair in different.items() if may_change(key)}
    rest = {key: pair for key, pair in different.items() if key not in earlier}
    refuse(folder, str(checkpoint), rest)
    result = _copied(plain)
    for key, (value, _) in earlier.items():
        if key.startswith("writer"):
            result["writer"] = saved.get("writer", {})
        elif value != ABSENT:
            _put(result, key, value)
    return result


def compare(folder: Path, before: dict[str, Any], now: dict[str, Any], of: str) -> None:
    """Refuse a config.yaml, `now`, that differs from `before`, which `of` holds."""
    refuse(folder, of, differences(before, now))


def run_of(plain: Mapping[str, Any], where: str, started_in: str | None) -> RunConf:
    """Return a run of the text that `in_force` found. Errors: UserError."""
    run = stored_run(plain, where)
    parts.check(run)
    return places.from_start(run, started_in)


def refuse_changes(changes: Sequence[str]) -> None:
    """Refuse what a resume may not change. Errors: UserError naming it and what may change."""
    for change in changes:
        key = change.partition("=")[0].lstrip("+")
        if not may_change(key):
            raise UserError(
                f"{change}: a resumed run keeps its settings; only {', '.join(MAY_CHANGE)} and "
                "places such as dataset.root may change"
            )


def refuse(folder: Path, of: str, different: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse a config.yaml that differs from `of`. Errors: UserError.

    It names each key, both values and the way out.
    """
    if not different:
        return
    told = "; ".join(
        f"{key} is {_told(now)}, was {_told(before)}" for key, (before, now) in different.items()
    )
    ways = [
        f"{key}={now}"
        for key, (_, now) in different.items()
        if may_change(key) and isinstance(now, str | int | float) and now != ABSENT
    ]
    how = trust.command(f"resume={folder}", *(ways or ["key=value"]))
    raise UserError(
        f"{folder / 'config.yaml'}: differs from {of}: {told}. Put it back: a run goes on with "
        f"the settings it has; {', '.join(MAY_CHANGE)} and places change by {how}"
    )


def _told(value: Any) -> str:
    return value if value == ABSENT else show(value)


def changed(plain: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return a run's settings as text with what was typed for them. Errors: UserError."""
    if not changes:
        return plain
    with places.environment_as_text():
        wanted = asdict(with_overrides(typed(plain), changes))
    result = _copied(plain)
    for change in changes:
        key = change.partition("=")[0].lstrip("+")
        key = "writer" if key.startswith("writer") else key
        value = wanted
        for name in key.split("."):
            value = value[name]
        if places.resumable(key) and not isinstance(value, str | None):
            raise UserError(f"{change}: expected a folder or a file")
        _put(result, key, places.typed_now(key, value, wanted["dataset"]))
    return result


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    *groups, name = key.split(".")
    for group in groups:
        config = config.setdefault(group, {})
    config[name] = value


def _copied(node: Any) -> Any:
    """Return nested mappings that share none with the original."""
    return {key: _copied(value) for key, value in node.items()} if isinstance(node, dict) else node


def with_changes(run: RunConf, changes: Sequence[str]) -> RunConf:
    """Return a run with what a resume may change of it. Errors: UserError."""
    changes = modern_overrides(changes)
    refuse_changes(changes)
    return typed(changed(asdict(run), changes))
