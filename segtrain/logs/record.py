"""What writers that keep a record of a run elsewhere share: its name there, rows, earlier numbers.

Such a record is given each number as it is made, so that it can be watched. After a kill the run
repeats the steps since its last checkpoint, and nothing that was sent can be taken back. So a
record that goes on is first asked up to which step it holds numbers: what is missing before this
start is sent from metrics.jsonl, and what is repeated is not sent again.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segtrain.logs.clock import STAGES
from segtrain.logs.metrics_file import METRICS, TIMING, read_lines_of
from segtrain.runtime.files import replace_file
from segtrain.runtime.run_folder import TRACKERS

_NAME = re.compile(r"[0-9a-f]{16}")
_CLOCKS = ("images_per_second", *STAGES)  # the others of timing.jsonl are no times
_NO_NUMBERS = ("step", "phase", "elapsed")


def record_name(folder: Path) -> str:
    """Return the name by which records know the run in `folder`; it is made at the first call.

    It stands in the run folder, so a run that is moved or renamed goes on in the same record.
    Errors: OSError.
    """
    name = remembered(folder).get("id")
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    name = secrets.token_hex(8)
    remember(folder, "id", name)
    return name


def remembered(folder: Path) -> dict[str, Any]:
    """Return what trackers remember of the run in `folder`; it may be a stranger's."""
    try:
        found = json.loads((folder / TRACKERS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(folder: Path, key: str, value: object) -> None:
    """Have a tracker remember something of the run in `folder`. Errors: OSError."""
    text = json.dumps({**remembered(folder), key: value}) + "\n"
    replace_file(folder / TRACKERS, text.encode())


def title(folder: Path) -> str:
    """Return what people call the run in `folder`: its name, and that of the folder around it."""
    return "/".join(folder.absolute().parts[-2:])


def earlier(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (step, numbers by name) of the lines that a run had written before this start."""
    lines = [
        (line["step"], place, _numbers(line, timed=name == TIMING))
        for place, name in enumerate((METRICS, TIMING))
        for line in read_lines_of(folder / name)
        if name == METRICS or line["phase"] == "train"  # the others are of no use to a curve
    ]
    for step, _, numbers in sorted(lines, key=lambda line: line[:2]):
        yield step, numbers


def _numbers(line: Mapping[str, Any], timed: bool) -> dict[str, float]:
    """Return the numbers of a line by the names that `RunLog` hands them on with."""
    return {
        f"{'time' if timed and name in _CLOCKS else line['phase']}/{name}": value
        for name, value in line.items()
        if name not in _NO_NUMBERS and isinstance(value, (int, float))
    }


class Rows:
    """Collects the numbers of a step, and hands them on as one row once another step begins."""

    def __init__(self, send: Callable[[int, dict[str, Any]], None]) -> None:
        self._send = send
        self._step = 0
        self._row: dict[str, Any] = {}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Add numbers of `step`, which never falls."""
        if step != self._step:
            self.send()
        self._step = step
        self._row |= values

    @property
    def validated(self) -> bool:
        """Whether the row that is still collected holds numbers of a validation."""
        return any(name.startswith("val/") for name in self._row)

    def send(self) -> None:
        """Hand on what is still collected."""
        row = self._row
        self._row = {}
        if row:
            self._send(self._step, row)
