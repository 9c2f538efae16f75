"""A pool of devices, with processes that do next to nothing: who is where, and how it ends."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain.errors import UserError
from segtrain.runtime import parent
from segtrain.runtime.pool import Pool, PoolJob

# Says when it began and ended, on which device, and with how many threads.
WORK = """
import json, os, sys, time
began = time.time()
exec(sys.argv[2])
told = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
open(sys.argv[1], "w").write(json.dumps({**told, "began": began, "ended": time.time()}))
"""
KILL = "os.kill(os.getpid(), 9)"


class Jobs:
    """Jobs with files for what they tell, and what the pool told of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codes: dict[str, int] = {}
        self.began: list[tuple[str, list[str]]] = []
        self.left: list[PoolJob] = []

    def add(self, name: str, work: str = "", devices: int = 1) -> None:
        command = (sys.executable, "-I", "-S", "-c", WORK, str(self.folder / name), work)
        self.left.append(PoolJob(name, command, self.folder / f"{name}.log", devices))

    def next(self) -> PoolJob | None:
        return self.left.pop(0) if self.left else None

    def ended(self, job: PoolJob, code: int) -> None:
        self.codes[job.name] = code

    def run(self, pool: Pool, **asked: Callable) -> None:
        began = asked.pop("began", lambda job, devices: self.began.append((job.name, devices)))
        pool.run(self.next, self.ended, began=began, **asked)

    def told(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def test_ten_jobs_on_four_devices_are_four_at_a_time_and_never_two_on_one(jobs: Jobs) -> None:
    for number in range(10):
        jobs.add(str(number), "time.sleep(0.15)")
    jobs.run(Pool(["0", "1", "2", "3"]))
    assert jobs.codes == {str(number): 0 for number in range(10)}
    told = [jobs.told(str(number)) for number in range(10)]
    for one in told:
        beside = [t for t in told if t["began"] <= one["began"] < t["ended"]]
        assert len({t["CUDA_VISIBLE_DEVICES"] for t in beside}) == len(beside) <= 4
    first = [t["CUDA_VISIBLE_DEVICES"] for t in told[:4]]
    assert first == ["0", "1", "2", "3"]
    assert max(t["began"] for t in told[:4]) < min(t["ended"] for t in told[:4])


def test_a_killed_and_a_failed_job_free_their_devices_and_the_others_go_on(jobs: Jobs) -> None:
    jobs.add("killed", KILL)
    jobs.add("failed", "sys.exit(65)")
    jobs.add("third")
    jobs.add("fourth")
    jobs.run(Pool(["a", "b"]))
    assert jobs.codes == {"killed": -signal.SIGKILL, "failed": 65, "third": 0, "fourth": 0}
    assert {jobs.told(name)["CUDA_VISIBLE_DEVICES"] for name in ("third", "fourth")} <= {"a", "b"}


def test_a_job_of_two_processes_waits_for_two_devices_and_sees_both(jobs: Jobs) -> None:
    jobs.add("one", "time.sleep(0.2)")
    jobs.add("two", devices=2)
    jobs.add("after")
    jobs.run(Pool(["0", "1"]))
    assert [name for name, _ in jobs.began] == ["one", "two", "after"]
    assert dict(jobs.began)["two"] == ["0", "1"]
    assert jobs.told("two")["began"] >= jobs.told("one")["ended"]


def test_a_job_that_needs_more_devices_than_there_are_is_refused(jobs: Jobs) -> None:
    jobs.add("three", devices=3)
    with pytest.raises(UserError, match=r"three: takes 3 GPUs, and there are 2: 0, 1"):
        jobs.run(Pool(["0", "1"]))


def test_two_jobs_share_a_device_where_that_is_asked_for(jobs: Jobs) -> None:
    for number in range(4):
        jobs.add(str(number), "time.sleep(0.1)")
    jobs.run(Pool(["0", "1"], per_device=2))
    assert jobs.began == [("0", ["0"]), ("1", ["1"]), ("2", ["0"]), ("3", ["1"])]


def test_on_the_cpu_jobs_see_no_device_of_ours_and_share_the_cores(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parent, "_environment", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs.add("job")
    pool = Pool([], at_once=3, cores=8)
    jobs.run(pool)
    told = jobs.told("job")
    assert (told["CUDA_VISIBLE_DEVICES"], told["OMP_NUM_THREADS"]) == (None, "2")
    assert pool.at_once == 3


def test_gpus_share_the_cores_too_and_a_job_on_two_has_two_shares() -> None:
    pool = Pool(["0", "1", "2", "3"], per_device=2, cores=32)
    assert (pool.at_once, pool.threads(1), pool.threads(2)) == (8, 4, 8)
    assert Pool(["0"], per_device=4, cores=2).threads() == 1


def test_a_job_that_shall_stop_gets_sigterm_and_its_device_goes_to_the_next(jobs: Jobs) -> None:
    """Jobs are asked for one after the other, as a search does, which knows none beforehand."""
    jobs.add("pruned", "time.sleep(30)")
    jobs.add("next")
    asked: list[int] = []

    def next_job() -> PoolJob | None:
        asked.append(len(jobs.codes))
        return jobs.next()

    began = time.monotonic()
    Pool(["0"]).run(next_job, jobs.ended, watch=lambda job: job.name == "pruned")
    assert time.monotonic() - began < 10
    assert jobs.codes == {"pruned": -signal.SIGTERM, "next": 0}
    assert asked == [0, 1, 2]  # when there was room, and each time with the ends before


def test_one_that_has_no_job_now_is_asked_again_once_a_job_has_ended(jobs: Jobs) -> None:
    jobs.add("first", "time.sleep(0.1)")
    jobs.add("second")

    def next_job() -> PoolJob | None:
        waits = len(jobs.left) == 1 and not jobs.codes
        return None if waits else jobs.next()

    Pool(["0", "1"]).run(next_job, jobs.ended)
    assert jobs.codes == {"first": 0, "second": 0}
    assert jobs.told("second")["began"] >= jobs.told("first")["ended"]


def test_what_ends_the_pool_reaches_every_job_and_all_have_ended_before_it_goes_on(
    jobs: Jobs,
) -> None:
    saves = "import signal; signal.signal(15, lambda *_: (time.sleep(0.2), sys.exit(75)))"
    for name in ("one", "two"):
        ready = f"; open({str(jobs.folder / name)!r} + '.ready', 'w'); time.sleep(30)"
        jobs.add(name, saves + ready)

    def interrupt() -> None:
        ready = [(jobs.folder / f"{name}.ready") for name in ("one", "two")]
        if all(file.exists() for file in ready):
            ready[0].unlink()  # once: inside an exception of a signal no other one raises
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(Pool([], at_once=2), tick=interrupt)
    assert jobs.codes == {"one": 75, "two": 75}


def test_what_a_job_writes_is_in_its_file_behind_what_was_there(jobs: Jobs) -> None:
    jobs.add("job", "print('said'); sys.stderr.write('and this\\n')")
    (jobs.folder / "job.log").write_text("before\n")
    jobs.run(Pool(["0"]))
    lines = (jobs.folder / "job.log").read_text().splitlines()
    assert lines[0] == "before"
    assert sorted(lines[1:]) == ["and this", "said"]
