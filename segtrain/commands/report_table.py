"""Read run folders and put them into rows of a table."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtrain.config.files import flatten, load_yaml
from segtrain.config.old_names import modern
from segtrain.errors import UserError, printable
from segtrain.runtime.run_folder import check_entries

Row = dict[str, Any]

MAX_TERMINAL_KEYS = 6  # differing config keys in the terminal's table; the files have all of them
# Numbers of instances and proposals that are shown beside the metric that decides, because those of
# a benchmark are read together.
INSTANCE_NUMBERS = (
    *(f"segm/{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")),
    "bbox/AP",
    *(f"{kind}/{name}" for kind in ("segm", "bbox") for name in ("AR@100", "AR@1000")),
)
READ = ("config.yaml", "summary.json", "metrics.jsonl", "samples")  # of a run folder
CLASS_NUMBERS = ("segm/AP/", "bbox/AP/", "IoU/")  # what precedes the name of a class


@dataclass(frozen=True)
class Run:
    """What could be read from one run folder; `problems` says what could not."""

    name: str
    folder: Path
    config: dict[str, Any]  # dotted keys
    summary: dict[str, Any]
    lines: list[dict[str, Any]]  # of metrics.jsonl
    problems: list[str]

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
        pick = min if self.config.get("train.monitor_mode") == "min" else max
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
    return Run(name, folder, config, summary, lines, problems)


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names without what all of them share."""
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [str(folder.relative_to(common)) for folder in folders]


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the config keys whose values differ between the runs whose config could be read."""
    configs = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]


def row(run: Run, keys: Sequence[str]) -> Row:
    """Return one run as unformatted values, None where there is nothing to say."""
    final = run.final()
    best_step, best = run.best()
    steps = [step for line in run.lines if (step := number(line.get("step"))) is not None]
    return {
        "run": run.name,
        "status": run.status,
        "step": number(run.summary.get("step")) or max(steps, default=None),
        "of": run.config.get("train.steps"),
        **{key: run.config.get(key) for key in keys},
        "metric": run.metric,
        "best": best,
        "at step": best_step,
        "final": number(final.get(run.metric)),
        **{name: number(final.get(name)) for name in INSTANCE_NUMBERS},
        "pixAcc": number(final.get("pixAcc")),
        "val loss": number(final.get("loss")),
        "images/s": number(run.summary.get("images_per_second")),
        "time": number(run.summary.get("wall_seconds")),
        "parameters": number(run.summary.get("parameters")),
        "MiB": number(run.summary.get("peak_gpu_memory_mib") or run.summary.get("peak_memory_mib")),
        "problems": "; ".join(run.problems) or None,
    }


def shown(column: str, value: Any) -> str:
    """Format a value: fractions with four places, seconds as h:mm:ss, '-' for nothing."""
    if value is None:
        return "-"
    if column == "time":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    if column == "images/s":
        return f"{value:.1f}"
    if column in ("parameters", "MiB"):
        return f"{value:,.0f}"
    if column in ("best", "final", "pixAcc", "val loss", *INSTANCE_NUMBERS):
        return f"{value:.4f}"
    return printable(str(value))


def used_columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns in which at least one run has something to say."""
    return [column for column in rows[0] if any(r[column] is not None for r in rows)]


def text_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the table with aligned columns, for a terminal."""
    cells = [list(map(printable, columns)), *([shown(c, r[c]) for c in columns] for r in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def markdown_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the table as Markdown."""
    cells = [
        list(map(printable, columns)),
        ["---"] * len(columns),
        *([shown(c, r[c]) for c in columns] for r in rows),
    ]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in cells
    )


def csv_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return the table as CSV with full precision, empty cells for nothing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    cells = [columns, *([r[c] for c in columns] for r in rows)]
    writer.writerows([printable(c) if isinstance(c, str) else c for c in line] for line in cells)
    return buffer.getvalue()


def class_table(runs: Sequence[Run]) -> list[list[str]]:
    """Return the last validations' numbers of each class in percent, with a header; [] for none.

    Rows are classes, columns a run and a kind of number.
    """
    finals = [(run.name, run.final()) for run in runs]
    columns = [
        (name, prefix, final)
        for name, final in finals
        for prefix in CLASS_NUMBERS
        if any(key.startswith(prefix) for key in final)
    ]
    classes = dict.fromkeys(
        key.removeprefix(prefix)
        for _, prefix, final in columns
        for key in final
        if key.startswith(prefix)
    )
    lines = [["class", *(f"{prefix.rstrip('/')} {name}" for name, prefix, _ in columns)]]
    for name in classes:
        values = [number(final.get(prefix + name)) for _, prefix, final in columns]
        lines.append([name, *("-" if value is None else f"{100 * value:.1f}" for value in values)])
    return lines if classes else []
