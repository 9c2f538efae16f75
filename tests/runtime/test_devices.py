"""Which GPUs there are to be used, and which nobody uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from segtrain.errors import UserError
from segtrain.runtime import devices, distributed
from segtrain.runtime.devices import Seat, chosen, devices_here, idle
from segtrain.runtime.distributed import World

VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("0,1,2", ["0", "1", "2"]),
        ("3, 1", ["3", "1"]),
        ("GPU-8f2c,MIG-1", ["GPU-8f2c", "MIG-1"]),
        ("", []),
        ("-1", []),
        ("0,-1,2", ["0"]),  # as CUDA reads it
        ("0,0", ["0"]),
    ],
)
def test_the_devices_are_those_that_the_variable_lists(listed: str, names: list[str]) -> None:
    assert devices_here({VISIBLE: listed}) == names


def test_without_the_variable_they_are_all_that_a_driver_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "has_driver", lambda: False)
    assert devices_here({}) == []
    monkeypatch.setattr(devices, "has_driver", lambda: True)
    monkeypatch.setattr(devices, "_count", lambda: 3)
    assert devices_here({}) == ["0", "1", "2"]


def test_devices_that_are_asked_for_are_those_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    where = "hydra.launcher.devices=[2,3]"
    assert chosen(["2", "3"], where) == ["2", "3"]
    monkeypatch.setenv(VISIBLE, "0,2")
    with pytest.raises(UserError, match=r"=\[2,3\]: CUDA_VISIBLE_DEVICES allows 0, 2, and not 3"):
        chosen(["2", "3"], where)
    with pytest.raises(UserError, match="names 2 twice; for two jobs on one GPU"):
        chosen(["2", "2"], where)


def test_a_container_has_the_cores_and_the_memory_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    free = devices.free_memory()
    assert devices.cores_here() == 64  # no limit is told
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert devices.cores_here() == 64
    assert free is not None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert (devices.cores_here(), devices.free_memory()) == (2, 4000)
    (tmp_path / "cpu.max").write_text("10000 100000\n")
    assert devices.cores_here() == 1


def test_gpus_that_no_process_of_a_plain_run_uses_are_named() -> None:
    four = ("a", "b", "c", "d")
    assert idle([Seat("here", four, "b")]) == (
        "3 of 4 GPUs are used by no process of this run: cuda:0, cuda:2, cuda:3; "
        "train.processes=4 uses all"
    )
    assert idle([Seat("here", four, name) for name in four]) is None


def test_two_nodes_of_four_gpus_with_two_tasks_are_told_so() -> None:
    seats = [Seat(host, tuple(f"{host}-{n}" for n in range(4)), f"{host}-0") for host in "AB"]
    assert idle(seats) == (
        "6 of 8 GPUs are used by no process of this run: 3 of 4 on A, 3 of 4 on B; start a process "
        "per GPU (train.processes=4, torchrun --nproc-per-node=4, srun --ntasks-per-node=4)"
    )


def test_tasks_that_see_one_gpu_each_leave_none() -> None:
    """Slurm's --gpus-per-task: to each its own is cuda:0."""
    assert idle([Seat("A", (name,), name) for name in "wxyz"]) is None


def test_a_run_asks_the_driver_for_names_and_on_the_cpu_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert distributed.idle_gpus(World()) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "_name_of_gpu", lambda index: f"GPU-{index}")
    said = distributed.idle_gpus(World(device=torch.device("cuda", 0)))
    assert said is not None
    assert said.startswith("1 of 2 GPUs are used by no process of this run: cuda:1; ")

    def nameless(index: int) -> str:
        raise AttributeError("uuid")

    monkeypatch.setattr(distributed, "_name_of_gpu", nameless)
    assert distributed.idle_gpus(World(device=torch.device("cuda", 0))) is None
