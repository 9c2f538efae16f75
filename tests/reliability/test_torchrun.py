"""A rank is killed under `torchrun --max-restarts` (matrix row R14).

Members: either rank, before the first checkpoint and after it, a folder that was typed and one that
is named by the clock; a folder that another start left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rows import Tally, amount
from run_folders import assert_same_bits

from segtrain.checkpoints import reading
from segtrain.runtime import run_folder
from segtrain.runtime.run_folder import NewRun

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
RUN = [
    "model=unet",
    "model.width=4",
    "dataset.size=[64,64]",
    "dataset.crop=[64,64]",
    "dataset.train=32",
    "dataset.val=2",
    "train.device=cpu",
    "train.batch_size=4",
    f"train.steps={STEPS}",
    "train.save_every=2",
    "train.threads=1",
    "train.precision=fp32",
    "log.every=1",
    "log.progress=false",
    "log.images=0",
    "writer=[]",
]
TWO = ["--standalone", "--nproc-per-node=2"]
RUNS = amount(1, 1, 10)  # each with two kills


Start = Callable[..., subprocess.Popen]


@pytest.fixture
def torchrun() -> Iterator[Start]:
    """Start it in a folder, where its output goes too; it ends with the test."""
    agents = []

    def start(place: Path, *words: str, restarts: int = 3) -> subprocess.Popen:
        place.mkdir(exist_ok=True)
        launcher = [sys.executable, "-m", "torch.distributed.run", *TWO]
        launcher.append(f"--max-restarts={restarts}")
        with (place / "out.txt").open("w") as out:
            agents.append(
                subprocess.Popen(
                    [*launcher, "-m", "segtrain", *RUN, *words],
                    cwd=place,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )
        return agents[-1]

    yield start
    for agent in agents:
        with suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()


def ranks(agent: subprocess.Popen) -> dict[str, int]:
    """Return rank -> pid of the processes below a torchrun."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    found = {}
    for pid in children:
        with suppress(OSError):  # it has just ended
            words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            found |= {word[5:]: int(pid) for word in words if word.startswith("RANK=")}
    return found


def below(place: Path, name: str) -> list[Path]:
    """Return what the run in `place` has by this name; its own folders come and go meanwhile."""
    return [*place.glob(f"run/{name}"), *place.glob(f"outputs/*/*/*/{name}")]


def logged(place: Path) -> int:
    """Return the last step that the run in `place` has logged."""
    files = [file.read_bytes() for file in below(place, "metrics.jsonl")]
    lines = [line for text in files for line in text.splitlines(keepends=True)]
    return max((json.loads(line)["step"] for line in lines if line.endswith(b"\n")), default=0)


def result(folder: Path) -> tuple:
    """Return what must not differ by a bit."""
    last = reading.find(folder, "latest")
    summary = json.loads((folder / "summary.json").read_text())
    saved = {name: last.read(name) for name in ("model", "optimizer", "precision")}
    metrics = (folder / "metrics.jsonl").read_text()
    return last.step, metrics, summary["best"], summary["final"], saved


@pytest.mark.slow
@pytest.mark.row("R14")
def test_a_group_that_torchrun_restarts_ends_in_the_bits_of_an_unbroken_run(
    tmp_path: Path, torchrun: Start, tally: Tally
) -> None:
    assert torchrun(tmp_path / "unbroken", "hydra.run.dir=run").wait(60) == 0
    unbroken = result(tmp_path / "unbroken" / "run")
    assert unbroken[0] == STEPS
    for seed in range(RUNS):
        dice = random.Random(seed)
        place = tmp_path / str(seed)
        agent = torchrun(place, *(["hydra.run.dir=run"] if seed % 2 else []))
        # One in the first half, at times before the first checkpoint, and one in the second.
        for low, high in ((1, STEPS // 2), (STEPS // 2 + 1, STEPS - 3)):
            step = dice.randint(low, high)
            rank = str(dice.randrange(2))
            deadline = time.monotonic() + 120
            while logged(place) < step or rank not in ranks(agent):
                assert agent.poll() is None, (place / "out.txt").read_text()
                assert time.monotonic() < deadline, (place / "out.txt").read_text()
                time.sleep(0.002)
            saved = bool(below(place, "checkpoints/step_*"))
            os.kill(ranks(agent)[rank], signal.SIGKILL)
            tally(seed=seed)
            tally.between += saved
            tally.before += not saved
            while rank in ranks(agent) and agent.poll() is None:
                time.sleep(0.01)  # until it is gone: the next kill is of the next group
                if logged(place) == STEPS:
                    break
        assert agent.wait(90) == 0, (place / "out.txt").read_text()
        (config,) = place.rglob("summary.json")  # one run, and no other folder
        assert_same_bits(result(config.parent), unbroken)


@pytest.mark.slow
def test_a_restart_does_not_take_a_run_that_another_start_left(
    tmp_path: Path, torchrun: Start
) -> None:
    run = begun(tmp_path / "run")
    before = (run / "metrics.jsonl").read_bytes()
    agent = torchrun(tmp_path / "place", f"hydra.run.dir={run}", restarts=1)
    assert agent.wait(90) == 1
    said = (tmp_path / "place/out.txt").read_text()
    assert said.count("holds a run already") == 2  # at the start and at the restart
    assert (run / "metrics.jsonl").read_bytes() == before


def begun(folder: Path) -> Path:
    """A run that has begun in `folder`."""
    folder.mkdir(parents=True)
    NewRun("train: {}\n", [], "/somewhere").write(folder)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


@pytest.mark.row("R14")
def test_the_run_of_a_restarted_group_is_found_by_its_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = begun(tmp_path / "2026-01-01_00-00-03")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    mine = begun(tmp_path / "2026-01-01_00-00-01")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    now = tmp_path / "2026-01-01_00-00-09"
    assert run_folder.begun_by_launcher(now) == mine
    assert run_folder.begun_by_launcher(mine) == mine
    assert not (strange / run_folder.LAUNCHER).exists()
    (mine / run_folder.LAUNCHER).write_text("host 1 2")  # of another torchrun
    assert run_folder.begun_by_launcher(now) is None
    assert run_folder.begun_by_launcher(mine) is None
