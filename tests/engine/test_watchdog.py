"""A training that stands still is ended with the true cause, and one that goes on is not.

Members: a step, a first step, a validation, slow steps, a process that was stopped as a whole; of
several ranks one behind the others, one without a sign of life, one that is slow but at work, one
that cannot speak for itself. The real processes are in tests/reliability/test_stalls.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain.config.schema import RunConf, TrainConf, cross_check
from segtrain.engine import watchdog as module
from segtrain.engine.watchdog import SILENT_LOOKS, SPEAK_LOOKS, Signs, Watchdog
from segtrain.errors import UserError
from segtrain.runtime import heartbeat
from segtrain.runtime.distributed import World
from segtrain.runtime.files import write_file

FLOOR = 0.4


def conf(times: float | None = 2.0, floor: float = FLOOR) -> TrainConf:
    return TrainConf(watchdog=times, watchdog_floor=floor)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Signs]]:
    """Whom a watchdog would have ended a process for."""
    told: list[tuple[int, Signs]] = []

    def end(self: Watchdog, rank: int, signs: Signs) -> None:
        told.append((rank, signs))
        self._over.set()

    monkeypatch.setattr(Watchdog, "_end", end)
    return told


def until(seconds: float, what: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        what()
        time.sleep(0.01)


@pytest.mark.row("R21")
def test_what_stands_still_is_ended_within_twice_the_limit_and_what_moves_is_not(
    tmp_path: Path, ended: list[tuple[int, Signs]]
) -> None:
    with Watchdog(conf(), tmp_path, World()) as watchdog:
        watchdog.step()
        until(3 * FLOOR, heartbeat.beat)
        assert not ended
        heartbeat.doing("making step 7", "street")
        began = time.monotonic()
        while not ended and time.monotonic() < began + 20:
            time.sleep(0.005)
        assert time.monotonic() - began < 2 * FLOOR + 1  # and what a busy machine adds
    ((rank, signs),) = ended
    assert (rank, signs.what, signs.images) == (0, "making step 7", "street")
    assert FLOOR < signs.idle < 2 * FLOOR
    assert not list(tmp_path.iterdir())  # alone there is nobody to leave a sign for


def test_first_steps_validations_and_slow_steps_have_longer_limits(tmp_path: Path) -> None:
    watchdog = Watchdog(conf(times=3), tmp_path, World())
    assert watchdog.limit() == pytest.approx(6 * FLOOR)  # the first step
    watchdog.step()
    assert watchdog.limit() == FLOOR
    with heartbeat.patiently():
        assert watchdog.limit() == pytest.approx(6 * FLOOR)
        with heartbeat.patiently():
            pass
        assert watchdog.limit() == pytest.approx(6 * FLOOR)
    assert watchdog.limit() == FLOOR
    watchdog._ends.extend(watchdog._ends[0] + seconds for seconds in (1, 2, 30, 31))
    assert watchdog.limit() == 3.0  # the median step is one second: 1, 1, 28, 1


def test_a_process_that_was_stopped_as_a_whole_and_goes_on_has_not_stood_still(
    tmp_path: Path, ended: list[tuple[int, Signs]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Watchdog(conf(floor=2.0), tmp_path, World()) as watchdog:
        watchdog.step()
        now = time.monotonic
        monkeypatch.setattr(module.time, "monotonic", lambda: now() + 3600)
        time.sleep(0.5)
    assert not ended


def test_null_switches_it_off(tmp_path: Path, ended: list[tuple[int, Signs]]) -> None:
    with Watchdog(conf(times=None, floor=0.01), tmp_path, World()) as watchdog:
        watchdog.step()
        time.sleep(0.2)
    assert not ended


def signs(arrived: int, idle: float, silent: int = 0) -> Signs:
    return Signs(1234, 9, arrived, idle, 10.0, "making step 3", "a", silent)


@pytest.mark.row("R12")
@pytest.mark.parametrize(
    ("others", "awaited"),
    [
        ({1: signs(6, 11)}, 1),  # it came to fewer exchanges, and does nothing
        ({1: signs(6, 3)}, None),  # it is at work: a larger image, a save
        ({1: signs(8, 11)}, 0),  # it waits for this one
        ({1: signs(7, 11)}, 0),  # in the same exchange: the first of them
        ({1: signs(6, 3, SILENT_LOOKS)}, 1),  # it is stopped
        ({1: signs(6, 11), 2: signs(8, 3, SILENT_LOOKS)}, 2),  # the one behind may wait for it
        ({1: signs(8, 11), 2: signs(5, 11)}, 2),
        ({}, 0),
    ],
)
def test_of_several_the_one_that_the_others_wait_for_is_named(
    tmp_path: Path, others: dict[int, Signs], awaited: int | None
) -> None:
    watchdog = Watchdog(conf(), tmp_path, World(size=3))
    watchdog._others = others
    assert watchdog._awaited(signs(7, 11), SILENT_LOOKS) is None  # not sure yet
    assert watchdog._awaited(signs(7, 11), SILENT_LOOKS + 1) == awaited


def test_one_that_is_stopped_in_the_exchange_where_all_wait_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGTRAIN_ERRORS", raising=False)
    (tmp_path / ".alive").mkdir()
    write_file(tmp_path / ".alive" / "alive_1", json.dumps(vars(signs(7, 3))).encode())
    watchdog = Watchdog(conf(), tmp_path, World(size=2))
    named = []
    for late in range(1, SILENT_LOOKS + 2):
        watchdog._read()
        named.append(watchdog._awaited(signs(7, 11), late))
    assert named == [*[None] * SILENT_LOOKS, 1]


def test_another_rank_is_told_where_it_is_stopped_or_cannot_speak(
    tmp_path: Path, ended: list[tuple[int, Signs]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGTRAIN_ERRORS", raising=False)
    looks = 0

    def live() -> None:  # rank 1, whose watchdog looks but is not heard
        nonlocal looks
        looks += 1
        told = {**vars(signs(-1, 99)), "looks": looks}
        write_file(tmp_path / ".alive" / "alive_1", json.dumps(told).encode())

    for other in (live, lambda: None):
        with Watchdog(conf(), tmp_path, World(size=2)) as watchdog:
            watchdog.step()
            live()
            began = time.monotonic()
            while not ended and time.monotonic() < began + 20:
                other()
                time.sleep(0.01)
        ((rank, told),) = ended
        assert (rank, told.pid) == (1, 1234)
        least = SPEAK_LOOKS if other is live else SILENT_LOOKS
        assert time.monotonic() - began > FLOOR * (1 + (least - 2) / 16)
        ended.clear()


@pytest.mark.parametrize("launched", [True, False])
def test_signs_of_life_are_taken_away_and_the_folder_of_the_parent_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    told = tmp_path / "told"
    told.mkdir()
    monkeypatch.delenv("SEGTRAIN_ERRORS", raising=False)
    if launched:
        monkeypatch.setenv("SEGTRAIN_ERRORS", str(told))
    place = told if launched else tmp_path / ".alive"
    with Watchdog(conf(), tmp_path, World(size=2)):
        # At once: a process that is stopped in its first steps shall be known too.
        assert (place / "alive_0").exists()
    assert list(tmp_path.rglob("*")) == [told]


@pytest.mark.row("R21")
def test_the_end_is_one_line_with_the_images_and_a_file_with_all_stacks(tmp_path: Path) -> None:
    child = os.fork()
    if not child:  # it must not come back into pytest
        try:
            os.dup2(os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT), 2)
            os.environ.pop("SEGTRAIN_ERRORS", None)
            with Watchdog(conf(), tmp_path, World()) as watchdog:
                watchdog.step()
                heartbeat.doing("making step 7", "street, garden")
                time.sleep(60)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 70
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith("segtrain: the training has stood still for 0 s (limit 0 s, train.watch")
    stacks = tmp_path / "stalled" / "rank_0.txt"
    assert line.endswith(
        f"making step 7: street, garden; the stacks are in {stacks}; the same command begins again"
    )
    name = sys._getframe().f_code.co_name
    assert f"in {name}" in stacks.read_text()
    assert "in _watch" in stacks.read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [("watchdog", 0.5), ("watchdog", float("nan")), ("watchdog_floor", 0.0)],
)
def test_a_limit_that_is_none_is_refused(key: str, value: float) -> None:
    run = RunConf(train=TrainConf(**{key: value}))
    with pytest.raises(UserError, match=f"train.{key}="):
        cross_check(run)


def test_a_beat_costs_a_step_less_than_ten_microseconds() -> None:
    began = time.perf_counter()
    for _ in range(1000):
        heartbeat.doing("loading", "a")
        heartbeat.arrive()
        heartbeat.beat()
    assert (time.perf_counter() - began) / 1000 < 10e-6
