"""What the time of a run goes into: on a CPU, on a GPU that is ahead of its host, and in words."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from commandline import SMALL_RUN, trained, typed

from segtrain.config.compose import check, compose_config
from segtrain.datasets.shapes import Shapes
from segtrain.engine.parts import build_parts
from segtrain.engine.where_time_goes import DeviceIdle, ways_out
from segtrain.logs.clock import STAGES, Clock, in_words, shares
from segtrain.logs.metrics_file import METRICS, TIMING, read_lines_of
from segtrain.runtime.distributed import World

SHAPES = ("dataset.train=12", "dataset.val=1", "dataset.size=[32,32]", "train.verify=false")
RUN = (*SHAPES, *SMALL_RUN, "train.threads=1", "log.images=0")
RUN = (*RUN, "train.batch_size=12", "train.steps=2", "train.eval_every=2")


class Moments:
    """Clocks of a host and of a GPU that go only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.free = 0.0  # when the GPU has computed all that it was given
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))

    def compute(self, seconds: float) -> None:
        """The host takes 10 ms to give the GPU work of so many seconds."""
        self.now += 0.01
        self.free = max(self.now, self.free) + seconds

    def read(self) -> None:
        """The host waits for the GPU."""
        self.now = max(self.now, self.free)


@dataclass
class Event:
    """An event in the queue of the GPU."""

    moments: Moments
    at: float = 0.0

    def record(self) -> None:
        self.at = max(self.moments.now, self.moments.free)

    def query(self) -> bool:
        return self.moments.now >= self.at

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other.at - self.at)


def spent(moments: Moments, device: float, data: float, on_gpu: bool) -> dict[str, float]:
    """Return what eight steps go into, whose losses are read every fourth time."""

    def batches():
        for _ in range(8):
            moments.now += data
            yield None

    clock = Clock(0, DeviceIdle() if on_gpu else None)
    clock.begin()
    for step, _ in enumerate(clock.waiting(batches()), 1):
        moments.compute(device)
        if step % 4 == 0:
            moments.read()
    return {stage: round(seconds, 6) for stage, seconds in clock.spent().items() if seconds}


def test_a_gpu_that_is_busy_while_the_host_waits_for_data_does_not_wait_for_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """100 ms of computing and 80 ms of loading, side by side but where losses were just read."""
    moments = Moments(monkeypatch)
    assert spent(moments, device=0.1, data=0.08, on_gpu=True) == {"data": 0.16, "compute": 0.82}


def test_a_gpu_that_is_done_before_the_data_are_there_waits_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """30 ms of computing and 80 ms of loading: 80 after a read, else 50."""
    moments = Moments(monkeypatch)
    found = spent(moments, device=0.03, data=0.08, on_gpu=True)
    assert found == {"data": 0.46, "compute": 0.32}  # 2 x 80 + 6 x 50; 8 x (10 + 30)


def test_a_host_that_computes_itself_waits_for_data_all_the_time_that_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = Moments(monkeypatch)
    assert spent(moments, device=0.0, data=0.08, on_gpu=False) == {"data": 0.64, "compute": 0.08}


def test_what_is_done_inside_something_else_counts_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = Moments(monkeypatch)
    clock = Clock(0)
    moments.now += 9  # before the loop
    clock.begin()
    moments.now += 1
    with clock.spending("validate"):
        moments.now += 2
        with clock.spending("save"):
            moments.now += 4
        moments.now += 1
    assert clock.spent() == {"data": 0, "compute": 1, "validate": 3, "save": 4, "log": 0}
    assert shares(clock.spent())["save"] == 0.5
    assert (clock.elapsed(), shares(dict.fromkeys(STAGES, 0.0))) == (17, {})


def test_the_largest_share_comes_first_with_its_way_out_and_computing_has_none() -> None:
    ways = {"data": "raise train.workers=4"}
    parts = {"data": 0.73, "compute": 0.25, "validate": 0.018, "save": 0.002, "log": 0.0}
    assert in_words(parts, ways) == (
        "73 % waiting for data: raise train.workers=4; 25 % computing, 2 % validating"
    )
    parts |= {"data": 0.25, "compute": 0.73}
    assert in_words(parts, ways) == "73 % computing, 25 % waiting for data, 2 % validating"
    assert in_words({"compute": 1.0}, ways) == "100 % computing"


def test_only_what_the_run_can_still_do_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    run = check(compose_config([*RUN, "train.save_every=2"])[0])
    parts = build_parts(run, World())
    assert ways_out(run, parts)["data"] == "raise train.workers=0"  # generated: nothing to cache
    monkeypatch.setattr(parts.train_set, "files", lambda index: "a photo")
    assert ways_out(run, parts)["data"] == (
        "raise train.workers=0 or make the cache (segdata prepare with dataset.cache=FOLDER)"
    )
    assert ways_out(run, parts)["save"] == "save more seldom (train.save_every)"
    run.dataset["cache"] = "cache"
    run.train.save_every = None
    assert ways_out(run, parts)["data"] == "raise train.workers=0"
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    parts = replace(parts, workers=1)
    assert ways_out(run, parts)["data"].startswith("take smaller images, ")
    assert ways_out(run, parts)["save"] == "validate more seldom (train.eval_every)"


def test_a_loader_slowed_by_50_ms_a_sample_is_named_and_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "fast", *RUN)
    fast = Shapes.__getitem__
    monkeypatch.setattr(Shapes, "__getitem__", lambda *given: time.sleep(0.05) or fast(*given))
    ended = typed("segtrain", *RUN, f"hydra.run.dir={tmp_path / 'slow'}")
    assert ended.code == 0
    told = ended.out.splitlines()[-2]
    assert " % waiting for data: raise train.workers=0; " in told
    assert told.startswith("time   ")
    lines = read_lines_of(tmp_path / "slow" / TIMING)
    assert [(line["step"], line["phase"]) for line in lines] == [
        *((1, "train"), (2, "val"), (2, "all")),
    ]
    for line in lines:
        if line["phase"] != "val":
            assert sum(line[stage] for stage in STAGES) == pytest.approx(1, abs=1e-9)
            assert line["data"] == max(line[stage] for stage in STAGES)
        if line["phase"] == "train":
            assert line["grad_norm"] > 0
            assert "loss_scale" not in line
    # 24 training samples and one of validation, which counts as validating.
    assert lines[-1]["data"] * lines[-1]["seconds"] >= 1.2
    assert lines[-1]["validate"] * lines[-1]["seconds"] >= 0.05
    bits = [(tmp_path / name / METRICS).read_bytes() for name in ("fast", "slow")]
    assert bits[0] == bits[1]


def test_what_a_step_is_measured_by_costs_it_less_than_50_microseconds() -> None:
    """5 are usual, here and where the disk, the console and the host are slow: it reads clocks."""
    clock = Clock(0)
    clock.begin()
    steps = 1000
    best = 1.0
    for _ in range(5):
        begun = time.perf_counter()
        for _ in clock.waiting(iter(range(steps))):
            clock.rate()
        best = min(best, (time.perf_counter() - begun) / steps)
    assert best < 50e-6
