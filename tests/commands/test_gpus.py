"""`hydra/launcher=gpus`: real sweeps, on the CPU and on devices that only a variable names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from segtrain.commands.report_runs import find_runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "dataset=shapes",
    "dataset.train=8",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "model=unet",
    "model.width=4",
    "train.steps=4",
    "train.batch_size=4",
    "train.threads=1",
    "train.eval_every=2",
    "writer=[]",
    "log.every=1",
    "log.progress=false",
    "log.images=0",
]
GPUS = "hydra/launcher=gpus"
LONG = ["train.steps=2000", "train.save_every=2000", "train.eval_every=2000"]


def words(*more: str) -> list[str]:
    return [sys.executable, "-m", "segtrain", "-m", *TINY, *more]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def ended(folder: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(*more),
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def complete(sweep: Path) -> list[str]:
    return sorted(path.parent.name for path in sweep.glob("*/summary.json"))


def steps(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


Start = Callable[..., subprocess.Popen]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """Start a sweep whose output goes to `out.txt`; it ends with the test."""
    processes = []

    def start(*more: str, **variables: str) -> subprocess.Popen:
        with (tmp_path / "out.txt").open("w") as out:
            process = subprocess.Popen(
                words(*more),
                cwd=tmp_path,
                env=environment(**variables),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def jobs_of(process: subprocess.Popen) -> dict[str, int]:
    """The run folders that processes of a sweep train -> those processes."""
    found = {}
    for file in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with suppress(OSError):
            for pid in file.read_text().split():
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "--job" in line:
                    found[Path(line[line.index("--job") + 1]).name] = int(pid)
    return found


def until(true: Callable[[], object], process: subprocess.Popen, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, "ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trains(run: Path) -> bool:
    """Whether a run has made updates."""
    with suppress(OSError):
        return (run / "metrics.jsonl").stat().st_size > 0
    return False


def test_runs_are_those_of_the_basic_launcher_to_the_byte(tmp_path: Path) -> None:
    """But for the clocks, and the name of the folder: it stands in no compared file."""
    asked = ("train.seed=0,1,2", "hydra.sweep.dir=sweep")
    for name, launcher in {"plain": "basic", "ours": "gpus"}.items():
        (tmp_path / name).mkdir()
        done = ended(tmp_path / name, *asked, f"hydra/launcher={launcher}")
        assert done.returncode == 0, done
    names = complete(tmp_path / "plain" / "sweep")
    assert len(names) == 3
    assert complete(tmp_path / "ours" / "sweep") == names
    for name in names:
        pair = [tmp_path / place / "sweep" / name for place in ("plain", "ours")]
        for file in ("config.yaml", "metrics.jsonl", ".hydra/overrides.yaml"):
            one, other = ((run / file).read_bytes() for run in pair)
            assert one == other, file
        last = [run / "checkpoints" / "step_00000004" / "model.pt" for run in pair]
        assert last[0].read_bytes() == last[1].read_bytes()
        files = [sorted(str(f.relative_to(run)) for f in run.rglob("*")) for run in pair]
        assert files[0] == files[1]


def test_what_fails_is_one_line_and_costs_the_others_nothing(tmp_path: Path) -> None:
    asked = ("optimizer.lr=-1,0.01,1e30,0.02", "optimizer=sgd", GPUS, "hydra.sweep.dir=sweep")
    first = ended(tmp_path, *asked, "hydra.launcher.jobs=2")
    assert first.returncode == 2, first
    lines = first.stderr.splitlines()
    assert lines[-1].startswith("segtrain: 2 of 4 runs failed: optimizer.lr=-1 cannot work")
    assert sum(line.startswith("segtrain: job ") for line in lines) == 2
    assert any(line.startswith("segtrain: job 2: step ") for line in lines)
    names = [name.partition(",")[0] for name in complete(tmp_path / "sweep")]
    assert names == ["optimizer.lr=0.01", "optimizer.lr=0.02"]
    assert not list((tmp_path / "sweep").glob("optimizer.lr=-1*"))  # not even an empty file
    again = ended(tmp_path, *asked)
    assert again.stdout.count("complete already, left alone") == 2
    assert len(find_runs([tmp_path / "sweep"])) == 3


def test_each_job_sees_one_of_four_devices_and_a_killed_one_frees_its_own(
    tmp_path: Path, started: Start
) -> None:
    process = started(
        *("train.seed=range(5)", *LONG, "model.width=4", GPUS, "hydra.sweep.dir=sweep"),
        CUDA_VISIBLE_DEVICES="4,5,6,7",
    )
    sweep = tmp_path / "sweep"
    until(lambda: sum(map(trains, sweep.glob("*"))) == 4, process)
    jobs = jobs_of(process)
    assert len(jobs) == 4

    def device(pid: int) -> str:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        return next(line for line in lines if line.startswith("CUDA_VISIBLE_DEVICES="))[21:]

    seen = {name: device(pid) for name, pid in jobs.items()}
    assert sorted(seen.values()) == ["4", "5", "6", "7"]
    killed, *_ = jobs
    os.kill(jobs[killed], signal.SIGKILL)
    until(lambda: set(jobs_of(process)) - set(jobs), process)
    (fifth,) = set(jobs_of(process)) - set(jobs)
    assert device(jobs_of(process)[fifth]) == seen[killed]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 75
    said = (tmp_path / "out.txt").read_text()
    assert "4 at a time on 4 GPUs (4, 5, 6, 7)" in said
    assert "was killed by SIGKILL" in said
    assert "no driver of a GPU" in said


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR2"])
def test_a_signal_saves_all_jobs_and_the_same_command_goes_on(
    tmp_path: Path, started: Start, name: str
) -> None:
    asked = ("train.seed=0,1,2", "train.steps=60", "train.eval_every=60", GPUS)
    asked = (*asked, "hydra.launcher.jobs=2", "hydra.sweep.dir=sweep")
    process = started(*asked)
    sweep = tmp_path / "sweep"
    until(lambda: sum(map(trains, sweep.glob("*"))) == 2, process)
    if name == "SIGINT":  # as a terminal sends it: to all processes at once
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.Signals[name])
    assert process.wait(60) == 75
    said = (tmp_path / "out.txt").read_text().splitlines()
    assert said[-1].startswith(f"segtrain: {name}: saved 2 of the runs that were under way; the")
    saved = list(sweep.glob("*/checkpoints/step_*"))
    assert len({path.parent.parent for path in saved}) == 2
    assert complete(sweep) == []
    done = ended(tmp_path, *asked)
    assert done.returncode == 0, done
    assert len(complete(sweep)) == 3
    for run in sweep.glob("*/"):
        assert [step for step in steps(run) if step != 60] == list(range(1, 60))


def test_a_killed_parent_leaves_no_orphans(tmp_path: Path, started: Start) -> None:
    process = started("train.seed=0,1", *LONG, GPUS, "hydra.launcher.jobs=2", "hydra.sweep.dir=s")
    until(lambda: len(list(filter(trains, (tmp_path / "s").glob("*")))) == 2, process)
    pids = jobs_of(process).values()
    assert len(pids) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_of_two_processes_takes_two_devices(tmp_path: Path) -> None:
    asked = ("train.processes=2", "train.seed=0,1", "train.device=auto", GPUS)
    done = ended(tmp_path, *asked, "hydra.sweep.dir=sweep", CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 0, done
    begun = [line for line in done.stdout.splitlines() if " on GPU " in line]
    assert [line.rpartition(" on ")[2] for line in begun] == ["GPU 0,1", "GPU 0,1"]
    too_many = ended(tmp_path, *asked, "hydra.sweep.dir=other", CUDA_VISIBLE_DEVICES="0")
    assert too_many.returncode == 2, too_many
    assert "train.processes=2: takes as many GPUs, and there are 1: 0" in too_many.stderr
