"""The engine's contracts, before any real system.

Gradients do not depend on how a batch is split, and one semantic and one instance stub train,
resume and evaluate through the same loop.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_folders import assert_same_bits, make_run

from segtrain.checkpoints import reading

SLOW = pytest.mark.slow
STUBS = Path(__file__).parents[1] / "stubs.py"


def processes(task: str, folder: Path, world: int) -> list[subprocess.Popen]:
    """One process per rank, as a launcher would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(world):
        group = {
            "RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        env |= {key: str(value) for key, value in group.items()} if world > 1 else {}
        command = [sys.executable, str(STUBS), task, str(folder)]
        started.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return started


def train(task: str, folder: Path, world: int = 1) -> None:
    """Run to the end on `world` real processes."""
    for process in processes(task, folder, world):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output


def lines(folder: Path, phase: str) -> list[dict]:
    """metrics.jsonl of one phase."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if line["phase"] == phase]


def first_gradient(folder: Path) -> torch.Tensor:
    """Without weight decay, SGD's momentum after the first step is the first gradient itself."""
    state = reading.find(folder / "checkpoints" / "step_00000001", "latest").read("optimizer")[
        "state"
    ]
    return torch.cat([state[i]["momentum_buffer"].flatten() for i in sorted(state)])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unsplit run that the others are compared with."""
    folder = make_run(tmp_path_factory.mktemp("alone") / "run")
    train("semantic", folder)
    return folder


@pytest.mark.parametrize(
    ("world", "accumulate"),
    [(2, 4)] + [pytest.param(*split, marks=SLOW) for split in ((2, 1), (1, 4))],
)
def test_splitting_a_batch_changes_neither_gradient_nor_losses(alone, tmp_path, world, accumulate):
    folder = make_run(tmp_path / "run", f"train.accumulate={accumulate}")
    train("semantic", folder, world)
    whole = first_gradient(alone)
    split = first_gradient(folder)
    assert whole.norm() > 0.01
    assert (split - whole).norm() / whole.norm() < 1e-5
    losses = [[line["loss"] for line in lines(run, "train")] for run in (alone, folder)]
    assert len(losses[0]) == len(losses[1]) == 20
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-5
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_a_mean_per_process_would_not_have_passed(alone):
    """The ignore counts of the two halves of the first batch differ, so averaging two means gives
    another loss.
    """
    from segtrain.data.sampler import batches

    sys.path.insert(0, str(STUBS.parent))
    from stubs import SemanticData

    data = SemanticData("train")
    halves = [next(iter(batches(len(data), 8, 0, 0, 1, rank, 2, 1))) for rank in range(2)]
    valid = [sum(int((data[index].mask != 255).sum()) for _, index in half) for half in halves]
    assert abs(valid[0] - valid[1]) > 100


# Quick is what tests/reliability/test_kills.py leaves out there: objects.
@pytest.mark.parametrize(
    ("world", "task"),
    [(1, "instance")]
    + [
        pytest.param(*pair, marks=SLOW)
        for pair in ((1, "semantic"), (2, "semantic"), (2, "instance"))
    ],
)
def test_a_killed_run_ends_in_the_bits_of_an_unbroken_one(tmp_path, task, world):
    unbroken = make_run(tmp_path / "unbroken")
    killed = make_run(tmp_path / "killed")
    train(task, unbroken, world)
    group = processes(task, killed, world)
    deadline = time.monotonic() + 60
    while len(list((killed / "checkpoints").glob("step_*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.002)
    for process in group:
        process.send_signal(signal.SIGKILL)
    for process in group:
        process.communicate()
    reached = reading.latest(killed / "checkpoints")
    assert reached is not None, "the kill must land after a checkpoint"
    assert 4 <= reached.step < 20, "the kill must land before the end"
    train(task, killed, world)
    for name in ("model", "optimizer"):
        ends = [reading.latest(run / "checkpoints").read(name) for run in (unbroken, killed)]
        assert_same_bits(*ends)
    assert (unbroken / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()


# Seven images are shared unevenly by two processes and by three.
@pytest.mark.row("R11")
@pytest.mark.slow  # the quick case is that of label maps
@pytest.mark.parametrize("world", [2, 3])
def test_instances_are_evaluated_once_each_on_any_number_of_processes(tmp_path, world):
    alone = make_run(tmp_path / "alone", "train.batch_size=6")
    shared = make_run(tmp_path / "shared", "train.batch_size=6")
    train("instance", alone, 1)
    train("instance", shared, world)
    ends = [lines(run, "val")[-1] for run in (alone, shared)]
    assert ends[0]["images"] == ends[1]["images"] == 7
    assert ends[0]["mIoU"] == ends[1]["mIoU"]
