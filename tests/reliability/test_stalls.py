"""Real runs in which a rank or a loader worker raises, is killed or stands still.

Members: a rank that raises, is killed by SIGKILL, is stopped by SIGSTOP or sleeps in its forward
pass; a worker that is killed, in training and in validation, stopped, or sleeps while it reads.
All processes are gone within 30 s, and the cause is told once.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import test_kills
import test_random_kills as random_kills
from forks import Forks
from rows import Tally, amount
from test_kills import ROOT, TAG, Run, alive, environment, gone_within

from segtrain.checkpoints import reading

SMALL = (
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "model=unet",
    "model.width=4",
    "train.steps=2000",
    "train.eval_every=2000",
    "train.watchdog=4",
    "train.watchdog_floor=6",
)
SABOTAGE = ROOT / "tests" / "sabotage"
WITHIN = 30.0  # seconds, after which no process is left
# A busy machine: the median step of the run, which the limit follows, may be a second.
LIMIT = 40.0

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for process in alive(tmp_path):  # of a test that failed halfway
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)


def run_with(place: Path, monkeypatch: pytest.MonkeyPatch, fault: str, *overrides: str) -> Run:
    """Start a run with a fault, see tests/sabotage."""
    monkeypatch.setenv("SEGTRAIN_TEST_FAULT", fault)
    monkeypatch.setenv("SEGTRAIN_TEST_STRUCK", str(place / "struck"))
    monkeypatch.setattr(test_kills, "ROOT", f"{ROOT}{os.pathsep}{SABOTAGE}")  # its PYTHONPATH
    run = Run(place / "run", *SMALL, *overrides)
    run.start()
    return run


def told_once(run: Run, words: str, waited: float = 0.0) -> str:
    """The run ended with 70 in time, left no process and told `words` once; return its line.

    It may wait for twice the limit that it names, and `waited` where it names none.
    """
    ended = run.end()
    struck = float((run.folder.parent / "struck").read_text())
    seconds = time.monotonic() - struck
    assert ended == 70, run.stderr()
    assert gone_within(run.folder, 5), alive(run.folder)
    last = run.stderr().splitlines()[-1]
    assert last.startswith("segtrain: "), run.stderr()
    assert run.stderr().count(words) == 1, run.stderr()
    assert words in last
    limits = [float(limit) for limit in re.findall(r"limit (\d+) s", last)]
    assert seconds < 2 * max([waited, *limits]) + WITHIN
    return last


def cases(kinds: list[str], quick: int, fast: int, long: int) -> list[tuple[str, int, int, int]]:
    """Draw (kind, ranks, rank, step): every kind in turn."""
    dice = random.Random(12)
    drawn = []
    for number in range(amount(quick, fast, long)):
        ranks = dice.choice([2, 2, 3, 4]) if number > 2 else 2
        rank = dice.randrange(ranks)
        drawn.append((kinds[number % len(kinds)], ranks, rank, dice.randint(0, 12)))
    return drawn


@pytest.mark.row("R12")
@pytest.mark.parametrize(
    ("kind", "ranks", "rank", "step"), cases(["kill", "stop", "raise", "sleep"], 2, 4, 92)
)
def test_when_a_rank_is_lost_or_stands_still_all_end_and_it_is_named_once(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    ranks: int,
    rank: int,
    step: int,
) -> None:
    run = run_with(
        place,
        monkeypatch,
        f"{kind} {rank} {step}",
        f"train.processes={ranks}",
        "train.batch_size=12",
    )
    words = {
        "kill": "was killed by SIGKILL",
        "stop": "gives no sign of life",
        "raise": "internal error",
        "sleep": "has stood still for",
    }[kind]
    line = told_once(run, words, LIMIT if kind == "stop" else 0.0)
    assert f"process {rank}" in line, run.stderr()
    if kind == "sleep":
        assert f"making step {step + 1}: train_" in line
        assert "sitecustomize.py" in (run.folder / f"stalled/rank_{rank}.txt").read_text()
    if kind == "raise":
        assert run.stderr().count("ValueError: planted") == 1


@pytest.mark.row("R21")
@pytest.mark.parametrize("step", amount([3], [3, 0], [3, 0, *range(4, 12)]))
def test_a_step_that_stands_still_ends_the_run_within_twice_the_limit(
    place: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    # The first step may take six times as long as the others: nothing is known yet of this run.
    floor = "train.watchdog_floor=1" if step == 0 else "train.watchdog_floor=6"
    run = run_with(place, monkeypatch, f"sleep 0 {step}", floor)
    line = told_once(run, "the training has stood still for")
    assert f"making step {step + 1}: train_" in line
    assert "sitecustomize.py" in (run.folder / "stalled/rank_0.txt").read_text()


UNET = random_kills.MODELS["unet"]
EVAL_EVERY = 8  # of random_kills.BASE


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def workers(run: Run) -> list[int]:
    """The loader workers of a run in one process."""
    assert run.process is not None
    pid = run.process.pid
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split() if environment(int(child)).get(TAG)]


def strike(run: Run, number: signal.Signals, *processes: int) -> None:
    """Send a signal to processes, and note the time."""
    (run.folder.parent / "struck").write_text(str(time.monotonic()))
    for process in processes:
        os.kill(process, number)


@pytest.mark.row("R20")
@pytest.mark.parametrize("processes", amount([1], [1, 2], [1, 2]))
def test_a_worker_that_is_killed_at_any_moment_ends_the_run_in_one_line_after_a_save(
    tmp_path: Path, processes: int, tally: Tally
) -> None:
    """A moment is 0 to 30 ms after a step, after a save began, or in a validation."""
    dice = random.Random(20 + processes)
    more = [f"train.processes={processes}", "train.workers=2", "dataset.val=32"]
    with Forks() as forks:
        for number in range(amount(3, 3, 30 // processes)):
            run = random_kills.Run(forks, tmp_path / str(number), [*UNET, *more])
            forked = run.start()
            moment = ("step", "save", "validation")[number % 3]
            least = dice.randint(1, 10) if moment != "validation" else EVAL_EVERY
            reached = run.begun if moment == "save" else run.logged
            until(lambda least=least, reached=reached: reached() >= least)
            trains = {*forked.workers(processes)}
            time.sleep(dice.uniform(0, 0.03))
            if moment == "validation":
                until(lambda forked=forked, trains=trains: {*forked.workers(processes)} - trains)
                victim = max({*forked.workers(processes)} - trains)
            else:
                victim = dice.choice(sorted(trains))
            os.kill(victim, signal.SIGKILL)
            assert forked.end(WITHIN) == 70, forked.stderr()
            line, *others = forked.stderr().splitlines()
            assert not others
            assert line.startswith("segtrain: "), line
            assert "a data worker was killed by SIGKILL" in line
            images = "val_" if moment == "validation" else "train_"
            assert f"Its images: {images}" in line
            saved = reading.find(run.folder, "latest").step
            assert saved == run.logged() >= least
            hint = f"step {saved} is saved, go on with: segtrain resume={run.folder}"
            assert moment == "validation" or hint in line
            tally(seed=20 + processes)
            if moment == "save":
                tally.inside += 1
            else:
                tally.between += 1


@pytest.mark.row("R20")
@pytest.mark.parametrize("kind", ["stop", "item", "eval"])
def test_a_worker_that_stands_still_or_dies_in_validation_ends_the_run_in_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    more = ("train.workers=2", "train.save_every=null")
    if kind == "eval":
        more += ("dataset.val=4000", "train.eval_every=4")
    run = run_with(place, monkeypatch, "item 0 5" if kind == "item" else "", *more)
    if kind == "item":
        line = told_once(run, "a data worker gave no batch within the time limit", LIMIT)
        assert "train_00005" in line
        return
    run.wait_for(lambda: run.logged() >= 4)
    if kind == "eval":
        time.sleep(0.5)
        strike(run, signal.SIGKILL, max(workers(run)))  # the newest: those of the validation
        line = told_once(run, "a data worker was killed by SIGKILL")
        assert "Its images: val_" in line
        assert reading.find(run.folder, "latest").step == 4
    else:
        strike(run, signal.SIGSTOP, *workers(run))
        # The loader's own limit, or the watchdog's where torch waits without one.
        line = told_once(run, "segtrain: ", LIMIT)
        assert "loading: train_" in line or "Its images: train_" in line
