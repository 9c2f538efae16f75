"""The matrix of failures: what each row demands, and what a test says of the cases it ran.

A test belongs to rows by `@pytest.mark.row("R5")`, and counts as one case of them, or as many as it
tells `tally`. How many it runs is `amount(quick, fast, long)`: `make test` runs the quick form of
tests that are not slow, `make reliability` the fast form of all, with LONG=1 the long one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

FORM = os.environ.get("SEGTRAIN_RELIABILITY", "quick")
# What scripts/reliability.py says: where it reads what ran, which rows, which share of the tests.
RECORD = os.environ.get("SEGTRAIN_ROWS_RECORD")
CHOSEN = os.environ.get("SEGTRAIN_ROWS", "").split()
SHARE = os.environ.get("SEGTRAIN_ROWS_SHARE", "0/1")

Amount = TypeVar("Amount")


class Row(NamedTuple):
    """A row: what happens, and the cases that the fast and the long form must reach."""

    what: str
    fast: int
    long: int


ROWS = {
    "R1": Row("kill -9 anywhere in training", 10, 500),
    "R2": Row("death at each file-system event of a save", 12, 60),
    "R3": Row("death at byte n of a file", 25, 500),
    "R4": Row("disk full during save, log, pictures", 25, 500),
    "R5": Row("damaged checkpoint", 200, 10_000),
    "R6": Row("hostile checkpoint", 12, 60),
    "R7": Row("hostile or mistaken config", 80, 80),
    "R8": Row("resume in the middle of an epoch, exact order", 24, 200),
    "R9": Row("number of processes changes over resumes", 6, 24),
    "R10": Row("number of processes does not divide the batch", 1, 1),
    "R11": Row("uneven shares of an evaluation", 8, 60),
    "R12": Row("a process raises, is killed, stands still", 6, 100),
    "R13": Row("signals, at any moment, to any process", 14, 140),
    "R14": Row("torchrun --max-restarts", 2, 20),
    "R15": Row("time limit of a Slurm job", 4, 4),
    "R16": Row("NaN or Inf in loss, gradient, input, weights", 24, 96),
    "R17": Row("a loss that spikes", 4, 4),
    "R18": Row("corrupted inputs", 25, 300),
    "R19": Row("the data change between runs", 6, 6),
    "R20": Row("a loader worker dies or hangs", 4, 20),
    "R21": Row("a step stands still", 2, 10),
    "R22": Row("two runs, one folder", 6, 50),
    "R23": Row("a folder that cannot be written, vanishes, is moved", 10, 10),
    "R24": Row("clocks that jump, time zones, two starts in a second", 8, 8),
    "R25": Row("slow, read-only or odd file systems", 10, 10),
    "R26": Row("out of memory, descriptors, threads", 6, 6),
    "R27": Row("the same command twice, workers, prefetch, threads", 12, 60),
    "R28": Row("deterministic CUDA (needs a GPU)", 10, 10),
    "R29": Row("golden losses", 10, 20),
    "R30": Row("checkpoints of earlier formats", 1, 1),
    "R31": Row("a checkpoint of another model", 12, 12),
    "R32": Row("segeval gives the numbers of the training", 6, 30),
    "R33": Row("sweeps in which a job fails or is killed", 2, 6),
    "R34": Row("leaks of memory, descriptors, threads, shared memory", 1, 1),
    "R35": Row("hostile archives, broken downloads", 14, 14),
    "R36": Row("fuzzed overrides, manifests, images, files", 500, 50_000),
    "R37": Row("every command of the README", 1, 1),
}


def amount(quick: Amount, fast: Amount, long: Amount) -> Amount:
    """Return what this form takes: a number of cases, or a list of them."""
    return {"quick": quick, "fast": fast, "all": long}[FORM]


@dataclass
class Tally:
    """What a test says of its cases. `before`, `between` and `inside` count where kills landed:
    before the first checkpoint, between checkpoints, inside a save.
    """

    cases: int = 0
    seeds: list[int] = field(default_factory=list)
    before: int = 0
    between: int = 0
    inside: int = 0
    notes: list[str] = field(default_factory=list)

    def __call__(self, cases: int = 1, *, seed: int | None = None, note: str = "") -> None:
        """Count cases that held, and say by which seed they were drawn."""
        self.cases += cases
        self.seeds += [] if seed is None or seed in self.seeds else [seed]
        self.notes += [note] if note else []


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """What this test counts; without a call it is one case."""
    told = Tally()
    request.node.stash[TALLY] = told
    return told


TALLY = pytest.StashKey[Tally]()


def rows_of(item: pytest.Item) -> list[str]:
    """Return the rows that a test belongs to."""
    return [name for mark in item.iter_markers("row") for name in mark.args]


@pytest.hookimpl(trylast=True)  # after `-m` has chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of the chosen rows and of this share. Errors: a row that does not exist."""
    for item in items:
        for name in rows_of(item):
            if name not in ROWS:
                raise pytest.UsageError(f"{item.nodeid}: there is no row {name}")
    if CHOSEN:
        items[:] = [item for item in items if set(rows_of(item)) & set(CHOSEN)]
    share, shares = map(int, SHARE.split("/"))
    items[:] = items[share::shares]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Write a line about each test of a row, whatever became of it."""
    began = time.monotonic()
    outcomes.clear()
    result = yield
    names = rows_of(item)
    if not RECORD or not names:
        return result
    told = item.stash.get(TALLY, Tally())
    if not told.cases and "passed" in outcomes and outcomes <= {"passed"}:
        told.cases = 1
    line = {
        "test": item.nodeid,
        "rows": names,
        "failed": "failed" in outcomes,
        "skipped": "skipped" in outcomes,
        "seconds": round(time.monotonic() - began, 2),
        **asdict(told),
    }
    with Path(RECORD).open("a") as file:
        file.write(json.dumps(line) + "\n")
    return result


outcomes: set[str] = set()  # of the phases of the test that runs


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember how a phase of the test ended."""
    if report.when == "call" or report.outcome != "passed":
        outcomes.add(report.outcome)
