"""Two tasks of Slurm's train one run. Slurm is what a task sees of it: variables."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import assert_same_bits
from test_torchrun import RUN, result

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def job_of_a_free_port() -> int:
    """A job's number whose port nobody uses: it is 20000 and the last four digits, see `join`."""
    for job in range(os.getpid() % 10000, 20000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20000 + job % 20000)):
                return job
    raise AssertionError("no free port")


def tasks(folder: Path, *words: str) -> list[subprocess.Popen]:
    """Start two tasks of one step, as `srun --ntasks=2` does on one node."""
    folder.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "SLURM_JOB_ID": str(job_of_a_free_port()),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    }
    started = []
    for task in ("0", "1"):
        with (folder / f"task{task}.txt").open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "segtrain", *RUN, *words],
                cwd=folder,
                env={**environment, "SLURM_PROCID": task, "SLURM_LOCALID": task},
                stdout=out,
                stderr=out,
            )
        started.append(process)
    return started


def test_two_tasks_train_the_run_of_two_processes_to_the_bit(tmp_path: Path) -> None:
    started = tasks(tmp_path / "slurm", "hydra.run.dir=run")
    assert [task.wait(200) for task in started] == [0, 0]
    said = (tmp_path / "slurm" / "task0.txt").read_text()
    assert "batch  4 images = 2 processes x 1 micro-batches x 2 images" in said
    assert (tmp_path / "slurm" / "task1.txt").read_text() == ""  # all is said once
    alone = [sys.executable, "-m", "segtrain", *RUN, "train.processes=2", "hydra.run.dir=run"]
    (tmp_path / "own").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(alone, cwd=tmp_path / "own", env=environment, check=True, timeout=200)
    assert_same_bits(result(tmp_path / "slurm" / "run"), result(tmp_path / "own" / "run"))


def test_a_pool_of_runs_in_two_tasks_is_refused_in_one_line_by_each(tmp_path: Path) -> None:
    words = ("-m", "train.seed=0,1", "hydra/launcher=gpus", "hydra.sweep.dir=sweep")
    started = tasks(tmp_path / "slurm", *words)
    assert [task.wait(100) for task in started] == [2, 2]
    for task in ("0", "1"):
        said = (tmp_path / "slurm" / f"task{task}.txt").read_text()
        assert said.count("\n") == 1
        assert "would train every run; start it once" in said
    assert not (tmp_path / "slurm" / "sweep").exists()
