"""Clocks that jump, time zones that change, file times that lie (matrix row R24).

Members: two starts in one second; the clock set forth and back by hours in the middle of a run; a
resume in another time zone, and over the hour that comes twice; checkpoints whose times are all
equal or reversed; durations while the clock runs backwards.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from datetime import datetime, tzinfo
from pathlib import Path

import hydra.core.utils
import pytest
from commandline import SMALL_RUN, trained, typed

from segtrain.checkpoints import reading
from segtrain.config.compose import compose_config
from segtrain.logs.clock import Clock
from segtrain.logs.metrics_file import METRICS, TIMING, read_lines_of

pytestmark = pytest.mark.row("R24")

SHAPES = ("dataset.train=4", "dataset.val=1", "dataset.size=[32,32]", "train.verify=false")
RUN = (*SHAPES, *SMALL_RUN, "train.steps=4", "train.save_every=1", "train.eval_every=2")
RUN = (*RUN, "train.threads=1", "log.every=1", "log.images=0", "train.keep=9")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("clocks") / "run", *RUN)


def in_order(folder: Path) -> None:
    """Assert that no duration is negative, and that the lines stand in the order of steps."""
    lines = read_lines_of(folder / TIMING)
    assert all(
        value >= 0
        for line in lines
        for name, value in line.items()
        if name not in ("step", "phase")
    )
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert reading.find(folder, "latest").step == 4


def test_two_starts_in_one_second_get_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    class Moments(datetime):
        moments = itertools.count()

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 10, 25, 2, 30, 5, next(cls.moments))

    monkeypatch.setattr(hydra.core.utils, "datetime", Moments)
    names = [compose_config([])[1].name for _ in range(2)]
    assert names[0] < names[1]
    assert {name[:-6] for name in names} == {"2026-10-25_02-30-05-"}


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_jumps_in_the_middle_of_a_run_changes_nothing(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    real = time.time
    folder = tmp_path / "run"

    def jumped() -> float:
        later = (folder / "checkpoints" / "step_00000002").exists()
        return real() + 3600 * hours * later

    monkeypatch.setattr(time, "time", jumped)
    trained(folder, *RUN)
    in_order(folder)
    assert (folder / METRICS).read_bytes() == (unbroken / METRICS).read_bytes()


@pytest.mark.parametrize(
    ("first", "second"), [("XXX-12", "XXX+12"), ("CET-1CEST,0/0,365/23", "CET-1")], ids=str
)
def test_a_resume_in_another_time_zone_goes_on_where_it_was(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    monkeypatch.setenv("TZ", first)
    time.tzset()
    folder = tmp_path / "run"
    try:
        trained(folder, *RUN)
        for step in (3, 4):
            shutil.rmtree(folder / "checkpoints" / f"step_{step:08d}")
        (folder / "summary.json").unlink()
        monkeypatch.setenv("TZ", second)
        time.tzset()
        ended = typed("segtrain", f"resume={folder}")
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert (ended.code, ended.err) == (0, "")
    in_order(folder)
    assert (folder / METRICS).read_bytes() == (unbroken / METRICS).read_bytes()


@pytest.mark.parametrize("apart", [0, -3600], ids=["equal", "reversed"])
def test_checkpoints_are_ordered_by_step_whatever_their_times(
    unbroken: Path, tmp_path: Path, apart: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for step in (1, 2, 3, 4):
        saved = folder / "checkpoints" / f"step_{step:08d}"
        for path in (*saved.rglob("*"), saved):
            os.utime(path, (10**9 + apart * step,) * 2)
    newest = reading.latest(folder / "checkpoints")
    assert newest is not None
    assert newest.step == reading.find(folder, "latest").step == 4


def test_durations_are_those_of_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    clock = Clock(0)
    clock.begin()
    for clock.step in range(1, 5):
        with clock.spending("validate"):
            assert clock.since_entered() >= 0
    assert clock.rate() > 0
    assert clock.elapsed() >= 0
    assert min(clock.spent().values()) >= 0
