"""Read run folders for `segreport`: what can be read of them, and what cannot."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from segtrain.config.files import bounded_text, flatten, load_yaml
from segtrain.config.old_names import modern
from segtrain.errors import UserError, words_of
from segtrain.runtime.run_folder import check_entries

READ = ("config.yaml", "summary.json", "metrics.jsonl", "samples", "eval", ".hydra")  # of a run


@dataclass(frozen=True)
class Evaluation:
    """What one `segeval` measured: a folder with a metrics.json below `eval/`."""

    name: str
    folder: Path
    numbers: dict[str, float]
    protocol: dict[str, Any]
    cost: dict[str, Any]  # of cost.json, {} without one
    speed: dict[str, Any]  # of speed.json, {} without one

    def main(self, metric: str) -> float | None:
        """Return the number by which the run is judged, else the first one that was measured."""
        return self.numbers.get(metric, next(iter(self.numbers.values()), None))

    def in_words(self) -> str:
        """Return by which protocol it was measured: images, split, inference and rules."""
        inference = flatten(mapping(self.protocol.get("inference")))
        words = [
            f"{self.protocol.get('images', '?')} images of {self.protocol.get('split', '?')}",
            " ".join(f"{key}={value}" for key, value in inference.items() if value is not None),
            str(self.protocol.get("rules", "rules not stated")),
        ]
        return "; ".join(word for word in words if word)


@dataclass(frozen=True)
class Run:
    """What could be read from one run folder; `problems` says what could not."""

    name: str
    folder: Path
    config: dict[str, Any]  # dotted keys
    summary: dict[str, Any]
    lines: list[dict[str, Any]]  # of metrics.jsonl
    problems: list[str]
    typed: dict[str, str] = field(default_factory=dict)  # what the user set, by key
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def status(self) -> str:
        """Return what summary.json says, such as `complete`.

        Without the file it is `incomplete`, and with one that cannot be read `damaged`.
        """
        if not (self.folder / "summary.json").exists():
            return "incomplete"
        return str(self.summary.get("status", "damaged"))

    @property
    def metric(self) -> str:
        """Return the name of the scalar that decides which checkpoint is best."""
        return str(self.summary.get("metric") or self.config.get("train.monitor") or "mIoU")

    @property
    def complete(self) -> bool:
        """Whether the training came to its end."""
        return self.status == "complete"

    @property
    def begun(self) -> bool:
        """Whether there is a number of it: a run that failed at once has none."""
        return bool(self.summary) or any(number(line.get("step")) for line in self.lines)

    @property
    def minimised(self) -> bool:
        """Whether the smallest value of the metric is the best."""
        return self.config.get("train.monitor_mode") == "min"

    def curve(self, phase: str, name: str) -> list[tuple[float, float]]:
        """Return (step, value) of one logged scalar. Lines without a finite value are left out."""
        pairs = [
            (number(line.get("step")), number(line.get(name)))
            for line in self.lines
            if line.get("phase") == phase
        ]
        return [(step, value) for step, value in pairs if step is not None and value is not None]

    def best(self) -> tuple[float | None, float | None]:
        """Return (step, value) of the best monitored scalar: the summary's, or the best so far."""
        stored = mapping(self.summary.get("best"))
        if stored:
            return number(stored.get("step")), number(stored.get("value", stored.get(self.metric)))
        points = (
            self.curve("train", self.metric.removeprefix("train/"))
            if self.metric.startswith("train/")
            else []
        )
        points = points or self.curve("val", self.metric)
        pick = min if self.minimised else max
        return pick(points, key=lambda point: point[1]) if points else (None, None)

    def final(self) -> dict[str, Any]:
        """Return the numbers of the last validation."""
        validations = [line for line in self.lines if line.get("phase") == "val"]
        return mapping(self.summary.get("final")) or (validations[-1] if validations else {})


def mapping(value: Any) -> dict[str, Any]:
    """Return `value` when it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """Return `value` when it is a finite number, else None."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def is_run(files: Iterable[str]) -> bool:
    """Whether a training wrote these file names; config.yaml alone is too common."""
    names = set(files)
    started = "config.yaml" in names and bool(
        names & {"train.log", ".lock"}
    )  # refused before its log was opened
    return started or bool(names & {"metrics.jsonl", "summary.json"})


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders at or below the given ones, each once.

    Errors: UserError for a path without any.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give run folders, sweep folders or outputs/")
        below = []
        for folder, names, files in os.walk(path):
            if is_run(files):
                below.append(Path(folder).resolve())
                names.clear()
            names[:] = sorted(name for name in names if not name.startswith("."))
        if not below:
            raise UserError(
                f"{path}: no run below this folder (a run holds config.yaml and metrics.jsonl)"
            )
        folders |= dict.fromkeys(below)
    return list(folders)


def read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file.

    A torn last line belongs to a run that is being written, and is left out.
    """
    objects = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for line_number, line in enumerate(lines, 1):
        try:
            objects.append(mapping(json.loads(line)))
        except (ValueError, RecursionError):
            if line_number < len(lines) or line.endswith("\n"):
                problems.append(f"{path.name}: line {line_number} is not JSON")
    return objects


def read_run(folder: Path, name: str) -> Run:
    """Return everything of one run that can be read. Its content never raises an error.

    Links in it do: what is read through one is not of the run. Errors: UserError.
    """
    check_entries(folder, READ)
    problems: list[str] = []
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    try:
        config = flatten(modern(load_yaml(folder / "config.yaml"), "config.yaml"))
    except UserError as error:
        problems.append(str(error).replace(f"{folder}{os.sep}", ""))
    try:
        if (folder / "summary.json").exists():
            summary = mapping(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"summary.json: {error}")
    try:
        lines = read_lines(folder / "metrics.jsonl", problems)
    except OSError as error:
        problems.append(f"metrics.jsonl: {error.strerror or error}")
    except ValueError as error:
        problems.append(f"metrics.jsonl: {error}")
    typed = read_typed(folder, problems)
    return Run(
        name, folder, config, summary, lines, problems, typed, read_evaluations(folder, problems)
    )


def read_typed(folder: Path, problems: list[str]) -> dict[str, str]:
    """Return what the user typed for a run, {key: value}; {} for a run without a record."""
    path = folder / ".hydra" / "overrides.yaml"
    if not path.exists():
        return {}
    try:
        words = yaml.safe_load(bounded_text(path))
    except (OSError, UserError, yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(f".hydra/overrides.yaml: {words_of(error)}")
        return {}
    # Only texts: what a stranger nests without end is not looked into.
    words = [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
    pairs = [word.lstrip("+~").partition("=") for word in words]
    return {key.partition("@")[0]: value for key, _, value in pairs}


def read_evaluations(folder: Path, problems: list[str]) -> list[Evaluation]:
    """Return every measurement `eval/<name>/metrics.json` of a run, by name."""
    found = []
    for path in sorted((folder / "eval").glob("*/metrics.json")):
        try:
            content = mapping(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"eval/{path.parent.name}/metrics.json: {error}")
            continue
        pairs = [(name, number(value)) for name, value in content.items()]
        numbers = {name: value for name, value in pairs if value is not None}
        protocol = mapping(content.get("protocol"))
        cost, speed = (_beside(path, name, problems) for name in ("cost.json", "speed.json"))
        found.append(Evaluation(path.parent.name, path.parent, numbers, protocol, cost, speed))
    return found


def _beside(path: Path, name: str, problems: list[str]) -> dict[str, Any]:
    """Return what a file beside a metrics.json says, {} where there is none."""
    beside = path.with_name(name)
    try:
        return mapping(json.loads(beside.read_text("utf-8"))) if beside.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"eval/{path.parent.name}/{name}: {error}")
        return {}


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names without what all of them share."""
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [str(folder.relative_to(common)) for folder in folders]
