"""Real runs through the real command, ended by real signals.

What is resumed ends in the bits of a run that nobody touched.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from rows import amount
from run_folders import digest

from segtrain.checkpoints import reading

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
BASE = [
    "dataset=shapes",
    "dataset.size=[64,64]",
    "dataset.crop=[64,64]",
    "dataset.train=32",
    "dataset.val=2",
    "train.device=cpu",
    "train.batch_size=4",
    f"train.steps={STEPS}",
    "train.save_every=1",
    "train.keep=2",
    "train.threads=1",
    "train.precision=fp32",
    "log.every=1",
    "log.progress=false",
    "writer=[]",
    "log.images=0",
]
TAG = "SEGTRAIN_TEST_RUN"  # in the environment of every process of a run, forked ones too


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed again: a checkpoint here is 150 MB."""
    yield tmp_path
    for process in alive(tmp_path):  # of a test that failed halfway
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    shutil.rmtree(tmp_path)


class Run:
    """One run folder, and the command that is started on it again and again."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self.overrides = overrides
        self.process: subprocess.Popen | None = None
        self.log = folder.with_name(f"{folder.name}.stderr")

    def start(self) -> subprocess.Popen:
        """`segtrain ... hydra.run.dir=FOLDER` for a new folder, `segtrain resume=FOLDER` for one
        that holds a run.
        """
        new = [*BASE, *self.overrides, f"hydra.run.dir={self.folder}"]
        resumes = (self.folder / "config.yaml").exists()
        self.process = command(
            self.folder, self.log, *([f"resume={self.folder}"] if resumes else new)
        )
        return self.process

    def end(self, timeout: float = 300) -> int:
        """Wait for the end; the exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def finish(self) -> None:
        """Start and train to the end."""
        self.start()
        assert self.end() == 0, self.stderr()
        assert (self.folder / "summary.json").exists()

    def stderr(self) -> str:
        """What the last start wrote there."""
        return self.log.read_text()

    def saved(self, pattern: str = "step_*") -> int:
        """The highest step that has a checkpoint (or, with `*step_*`, one being written).

        0 without any.
        """
        names = [path.name for path in (self.folder / "checkpoints").glob(pattern)]
        return max((int(name.partition("step_")[2][:8]) for name in names), default=0)

    def logged(self) -> int:
        """The last step with a line in metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith(b"\n")), default=0)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        """Until `condition`, while the run is alive."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process is not None
            assert self.process.poll() is None, self.stderr()
            assert time.monotonic() < deadline, self.stderr()
            time.sleep(0.002)

    def result(self) -> tuple:
        """Everything that must not differ by a bit: the last weights and optimizer, all metrics,
        the best, the numbers.
        """
        last = reading.find(self.folder, "latest")
        summary = json.loads((self.folder / "summary.json").read_text())
        assert last.step == summary["step"] == STEPS
        hashes = {name: digest(last.read(name)) for name in ("model", "optimizer", "precision")}
        return (
            hashes,
            (self.folder / "metrics.jsonl").read_text(),
            summary["best"],
            summary["final"],
            dict(last.meta),
        )


def command(folder: Path, stderr: Path, *arguments: str) -> subprocess.Popen:
    """`python -m segtrain ARGUMENTS` in a session of its own, every process of it findable by
    `alive(folder)`.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), TAG: str(folder), "OMP_NUM_THREADS": "1"}
    with stderr.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "segtrain", *arguments],
            cwd=folder.parent,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; {} for one that is gone."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def alive(folder: Path) -> list[int]:
    """Processes of runs in `folder` or below: parents, ranks and loader workers, by environment or
    command line.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if environment(int(entry.name)).get(TAG, "").startswith(str(folder)) or (
            "segtrain" in line and str(folder) in line
        ):
            found.append(int(entry.name))
    return found


def ranks(run: Run) -> dict[int, int]:
    """{rank: pid} of the training processes below the parent."""
    assert run.process is not None
    children = [
        int(pid)
        for pid in Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
        .read_text()
        .split()
    ]
    return {
        int(rank): pid for pid in children if (rank := environment(pid).get("RANK")) is not None
    }


def gone_within(folder: Path, seconds: float) -> bool:
    """Whether every process of the run in `folder` ends in time."""
    deadline = time.monotonic() + seconds
    while alive(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill(run: Run, step: int, dice: random.Random) -> None:
    """SIGKILL the parent 0 to 30 ms after checkpoint `step` stands, or after the next one begins to
    be written.
    """
    run.start()
    pattern = dice.choice(["step_*", "*step_*"])
    run.wait_for(lambda: run.saved(pattern) >= step)
    time.sleep(dice.uniform(0, 0.03))
    assert run.process is not None
    run.process.kill()
    assert run.end() == -signal.SIGKILL
    assert gone_within(run.folder, 30), alive(run.folder)
    assert 1 <= run.saved() < STEPS, "not a kill after a checkpoint and before the end"
    assert not (run.folder / "summary.json").exists()


def survives(place: Path, kills: int, *overrides: str) -> None:
    """One run left alone and one killed `kills` times end in the same bits."""
    unbroken = Run(place / "unbroken", *overrides)
    killed = Run(place / "killed", *overrides)
    unbroken.finish()
    dice = random.Random(repr(overrides))
    reach = (STEPS - 3) // kills
    for number in range(kills):
        kill(killed, number * reach + dice.randint(2, reach + 1), dice)
    killed.finish()
    assert killed.result() == unbroken.result()


# The quick case is `test_a_killed_run_ends_in_the_bits_of_an_unbroken_one`.
@pytest.mark.slow
def test_a_run_killed_twice_ends_in_the_bits_of_an_unbroken_one(place):
    survives(place, 2, "train.processes=1", "train.workers=0", "train.precision=fp32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "processes", "precision", "kills"),
    [(2, 1, "bf16", 3), (0, 2, "bf16", 2), (2, 2, "fp32", 3)],
)
def test_a_killed_run_ends_in_the_same_bits_with_workers_processes_and_bf16(
    place, workers, processes, precision, kills
):
    survives(
        place,
        kills,
        f"train.processes={processes}",
        f"train.workers={workers}",
        f"train.precision={precision}",
    )


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over_from_its_folder(place):
    run = Run(place / "run", "train.processes=2")
    unbroken = Run(place / "unbroken", "train.processes=2")
    process = run.start()
    run.wait_for((run.folder / "config.yaml").exists)
    time.sleep(random.Random(0).uniform(0, 3))
    process.kill()
    run.end()
    assert gone_within(run.folder, 30), alive(run.folder)
    run.finish()
    unbroken.finish()
    assert run.result() == unbroken.result()


# ---------------------------------------------------------------------- signals that ask


# no checkpoint but the one that the signal causes
LAZY = (
    "train.save_every=null",
    "train.eval_every=100",
)


SENT = [
    ("SIGTERM", False, 1),
    pytest.param("SIGTERM", True, 2, marks=pytest.mark.slow),
    # Ctrl-C: the terminal tells every process
    pytest.param("SIGINT", True, 2, marks=pytest.mark.slow),
    pytest.param("SIGTERM", False, 2, marks=pytest.mark.slow),
    pytest.param("SIGINT", False, 2, marks=pytest.mark.slow),
    pytest.param("SIGINT", True, 1, marks=pytest.mark.slow),
    pytest.param("SIGUSR1", False, 2, marks=pytest.mark.slow),
    # A terminal that is closed
    pytest.param("SIGHUP", False, 1, marks=pytest.mark.slow),
    pytest.param("SIGHUP", False, 2, marks=pytest.mark.slow),
]


@pytest.mark.row("R13")
@pytest.mark.parametrize(("name", "group", "processes"), amount(SENT, SENT[:1], SENT))
def test_a_signal_saves_the_exact_step_and_the_resumed_run_ends_in_the_same_bits(
    place, name, group, processes
):
    overrides = (*LAZY, f"train.processes={processes}", "train.workers=1")
    run = Run(place / "run", *overrides)
    unbroken = Run(place / "unbroken", *overrides)
    process = run.start()
    run.wait_for(lambda: run.logged() >= 4)
    number = signal.Signals[name]
    os.killpg(process.pid, number) if group else process.send_signal(number)
    assert run.end(40) == 75, run.stderr()
    assert gone_within(run.folder, 1), alive(run.folder)
    assert run.stderr().count(f"resume={run.folder}") == 1, run.stderr()
    assert name in run.stderr()
    assert "Traceback" not in run.stderr()
    assert 4 <= run.saved() == run.logged() < STEPS
    assert len(list((run.folder / "checkpoints").iterdir())) == 1
    run.finish()
    unbroken.finish()
    assert run.result() == unbroken.result()


@pytest.mark.slow
@pytest.mark.row("R13")
@pytest.mark.parametrize("processes", amount([1, 2], [1], [1, 2]))
def test_sigterm_during_validation_saves_and_the_resumed_run_validates_again(place, processes):
    overrides = (
        "train.save_every=null",
        "train.eval_every=6",
        "dataset.val=160",
        f"train.processes={processes}",
    )
    run = Run(place / "run", *overrides)
    unbroken = Run(place / "unbroken", *overrides)
    process = run.start()
    run.wait_for(lambda: run.logged() >= 6)
    time.sleep(0.3)
    process.terminate()
    assert run.end(40) == 75, run.stderr()
    assert gone_within(run.folder, 1), alive(run.folder)
    found = reading.find(run.folder, "latest")
    assert (found.step, found.meta["evaluated"]) == (6, False)
    assert '"val"' not in (run.folder / "metrics.jsonl").read_text()
    run.finish()
    unbroken.finish()
    assert run.result() == unbroken.result()


# --------------------------------------------------------------------- a lost process, a second one


@pytest.mark.parametrize(
    ("rank", "resumes"),
    [(1, False)] + [pytest.param(rank, True, marks=pytest.mark.slow) for rank in (0, 1)],
)
def test_when_one_rank_is_killed_all_end_within_30_s_and_the_cause_is_named_once(
    place, rank, resumes
):
    # A small network, of which saves are fast, and so many steps that it is killed in their middle.
    steps = 400
    small = ("model=unet", "model.width=16", f"train.steps={steps}")
    run = Run(place / "run", "train.processes=2", "train.workers=1", *small)
    run.start()
    run.wait_for(lambda: run.saved() >= 2)
    pid = ranks(run)[rank]
    os.kill(pid, signal.SIGKILL)
    assert run.end(30) == 70, run.stderr()
    assert gone_within(run.folder, 1), alive(run.folder)
    assert run.stderr().count("was killed by SIGKILL") == 1, run.stderr()
    assert f"process {rank} (pid {pid})" in run.stderr()
    assert run.stderr().count("\n") == 1, run.stderr()
    assert run.saved() < steps
    if resumes:
        run.finish()
        assert reading.find(run.folder, "latest").step == steps


# The quick case is `test_of_eight_processes_that_want_one_folder_...` of run_folder.
@pytest.mark.slow
@pytest.mark.parametrize("again", ["resume", "new"])
def test_a_folder_in_use_is_refused_with_exit_73_naming_the_process(place, again):
    run = Run(place / "run", "train.steps=40")
    process = run.start()
    run.wait_for(lambda: run.saved() >= 1)
    new = [*BASE, f"hydra.run.dir={run.folder}"]
    arguments = [f"resume={run.folder}"] if again == "resume" else new
    second = place / "second.stderr"
    assert command(place / "second", second, *arguments).wait(60) == 73, second.read_text()
    assert f"pid {process.pid} " in second.read_text()
    assert second.read_text().count("\n") == 1, second.read_text()
    assert process.poll() is None, run.stderr()
    before = run.saved()
    run.wait_for(lambda: run.saved() > before)  # the first one goes on
    process.kill()
    run.end()


# ---------------------------------------------------------------------- a diverged run, a full disk


# The quick cases are in tests/engine/test_not_finite.py.
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_naming_step_and_images_and_saves_nothing(
    place, processes
):
    run = Run(place / "run", f"train.processes={processes}", "optimizer=sgd", "optimizer.lr=1e30")
    run.start()
    assert run.end() == 70, run.stderr()
    assert gone_within(run.folder, 1), alive(run.folder)
    text = run.stderr()
    assert text.count("\n") == 1, text
    assert "the loss is not finite" in text
    assert "train_000" in text
    step = int(text.partition("step ")[2].partition(":")[0])
    assert run.saved() == run.logged() == step - 1
    last = reading.find(run.folder, "latest")
    for name, value in last.read("model").items():
        assert torch.isfinite(value).all(), f"{name} of step {last.step}"
    assert not (run.folder / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_update_that_ruins_weights_is_not_saved_though_its_loss_was_finite(place, processes):
    run = Run(place / "run", f"train.processes={processes}", "optimizer=sgd", "optimizer.lr=1e42")
    run.start()
    assert run.end() == 70, run.stderr()
    assert "step 1: weights are not finite" in run.stderr()
    assert run.stderr().count("\n") == 1, run.stderr()
    assert run.saved() == 0


# A full disk has its quick cases in test_save_crashes.py, at any byte of a save.
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_fills_up_ends_the_run_with_exit_74_and_leaves_the_older_checkpoint_whole(
    place, processes
):
    run = Run(place / "run", f"train.processes={processes}")
    process = run.start()
    run.wait_for(lambda: run.saved() >= 2)
    for pid in [process.pid, *ranks(run).values()]:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    assert run.end() == 74, run.stderr()
    assert gone_within(run.folder, 1), alive(run.folder)
    text = run.stderr()
    assert text.count("\n") == 1, text
    assert "was not saved: File too large" in text
    assert not list((run.folder / "checkpoints").glob(".tmp-*"))
    last = reading.find(run.folder, "latest")
    assert f"step {last.step + 1} was not saved" in text
    run.finish()
    assert reading.find(run.folder, "latest").step == STEPS
