"""A machine that runs out of memory, open files, threads or processes (matrix row R26).

Members: what Python, numpy, torch, CUDA's libraries and Linux say; in the process, in a loader
worker, in one of two ranks; in training, validation, segeval, segpredict and segdata; real limits
of the address space and of open files.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import SMALL_RUN, refused, save, trained, typed
from rows import amount

from segtrain.checkpoints import reading
from segtrain.data.images import read_image
from segtrain.datasets import shapes
from segtrain.errors import DataError, InternalError, UserError
from segtrain.models.unet import UNet
from segtrain.runtime import distributed, signals
from segtrain.runtime.exhausted import exhausted

pytestmark = pytest.mark.row("R26")

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ("dataset.train=4", "dataset.val=2", "dataset.size=[32,32]")
RUN = (*SHAPES, *SMALL_RUN, "train.steps=4", "train.save_every=1", "train.threads=1")
OF_HOST = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
)
OF_GPU = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 10.00 GiB"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of four steps."""
    return trained(tmp_path_factory.mktemp("runs") / "run", *RUN)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "this machine ran out of memory: lower train.batch_size"),
        (
            MemoryError("Unable to allocate 8.00 TiB for an array with shape (2, 3)"),
            "this machine ran out of memory (it asked for 8.00 TiB): lower",
        ),
        (RuntimeError(OF_HOST), "this machine ran out of memory"),
        (RuntimeError("std::bad_alloc"), "this machine ran out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "this machine ran out of memory"),
        (torch.OutOfMemoryError(OF_GPU), "the GPU ran out of memory (it asked for 2.50 GiB): "),
        (RuntimeError("CUDA error: out of memory"), "the GPU ran out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), "the GPU ran out of memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU ran out of memory"),
        (OSError(errno.EMFILE, "Too many open files", "a.png"), "too many files are open"),
        (OSError(errno.ENFILE, "Too many open files in system"), "too many files are open"),
        (
            RuntimeError("Caught OSError in DataLoader worker process 1.\nToo many open files"),
            "too many files are open",
        ),
        (RuntimeError("can't start new thread"), "no more threads or processes can be started"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more threads"),
        (ImportError("libx.so: failed to map segment from shared object"), "ran out of memory"),
        (InternalError("a worker: can't allocate memory"), "ran out of memory"),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, Exception) else "",
)
def test_what_ran_out_is_said_with_what_to_lower(error: Exception, words: str) -> None:
    said = exhausted(error)
    assert said is not None
    assert said.startswith(words) or words in said
    assert "lower" in said


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of range"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        FileNotFoundError(errno.ENOENT, "No such file", "can't allocate memory.png"),
        UserError("train.workers=9: can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_none_of_it(error: Exception) -> None:
    assert exhausted(error) is None


def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_not_called_damaged(
    tmp_path: Path,
) -> None:
    save(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises((DataError, OSError)) as caught:
            read_image(tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert str(exhausted(caught.value)).startswith("too many files are open")


def failing(*_: Any, **__: Any) -> None:
    raise RuntimeError(OF_HOST)


def test_a_run_without_memory_keeps_its_last_checkpoint_and_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = UNet.forward
    calls: list[int] = []

    def forward(self: UNet, batch: Any) -> Any:
        calls.append(1)
        if self.training and sum(calls) > 4:
            failing()
        return real(self, batch)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", forward)
        words = ["segtrain: this machine ran out of memory (it asked for 439", f"resume={folder}"]
        refused(71, words, "segtrain", f"hydra.run.dir={folder}", *RUN)
    saved = reading.find(folder, "latest").step
    assert 0 < saved < 4
    ended = typed("segtrain", f"resume={folder}")
    assert (ended.code, ended.err) == (0, ""), ended
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("segeval", ["checkpoint={run}", "eval.output={place}/eval"]),
        ("segpredict", ["checkpoint={run}", "input={place}/photos", "output={place}/seen"]),
    ],
)
def test_other_commands_say_it_in_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]
) -> None:
    save(tmp_path / "photos/a.png", np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(UNet, "forward", failing)
    arguments = [word.format(run=run, place=tmp_path) for word in words]
    refused(
        71,
        [f"{name}: this machine ran out of memory (it asked for 4398046511104 bytes): lower "],
        name,
        *arguments,
    )
    assert not (tmp_path / "eval/metrics.json").exists()
    assert not list((tmp_path / "seen").rglob("*.png"))


def test_a_data_command_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(shapes.Shapes, "__getitem__", many)
    words = ["segdata: no more threads or processes can be started"]
    refused(71, words, "segdata", "stats", "dataset=shapes", *SHAPES)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")], ids=["memory", "files"]
)
def test_a_loader_worker_that_runs_out_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def out(*_: Any) -> None:
        raise error

    monkeypatch.setattr(shapes.Shapes, "__getitem__", out)
    words = ["ran out of memory" if isinstance(error, MemoryError) else "too many files"]
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    refused(71, words, "segtrain", folder, *RUN, "train.workers=1", "train.verify=false")


def test_threads_that_cannot_be_started_are_refused_before_openmp_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = distributed.threading.Thread.start
    left = [3]

    def start(self: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        real(self)

    monkeypatch.setattr(distributed.threading.Thread, "start", start)
    with pytest.raises(
        distributed.ResourceError, match=r"train\.threads=9: only 4 threads can be started here"
    ):
        distributed.use_threads(9, 1)


def test_a_command_without_another_thread_or_descriptor_answers_signals_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(signals.os, "pipe", none)
    with pytest.raises(signals.Stop), signals.Stopping():
        os.kill(os.getpid(), signals.SIGNALS[0])


# ---------------------------------------------------------------------- real limits

HUGE = ("model.width=64", "dataset.crop=[2048,2048]", "train.verify=false")  # 2 GiB a feature map


def limited(limit: int, most: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that may have `most` of what `limit` counts."""
    return subprocess.run(
        [sys.executable, "-m", "segtrain", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(limit, (most, most)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_a_real_limit_of_memory_ends_with_71_in_one_line(tmp_path: Path) -> None:
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    ended = limited(resource.RLIMIT_AS, 4 << 30, *RUN, *HUGE, folder)
    assert (ended.returncode, ended.stderr.count("\n")) == (71, 1), ended
    assert "segtrain: this machine ran out of memory" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("most", amount([18], [5, 18, 30], [*range(5, 45)]))
def test_a_real_limit_of_open_files_ends_with_71_in_one_line(tmp_path: Path, most: int) -> None:
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    began = time.monotonic()
    ended = limited(resource.RLIMIT_NOFILE, most, *RUN, "train.workers=8", folder)
    assert (ended.returncode, ended.stderr.count("\n")) == (71, 1), ended
    assert time.monotonic() - began < 30
    assert "segtrain: too many files are open" in ended.stderr


@pytest.mark.slow
def test_ranks_without_memory_end_with_71_and_one_line(tmp_path: Path) -> None:
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    ended = limited(resource.RLIMIT_AS, 4 << 30, *RUN, *HUGE, "train.processes=2", folder)
    assert (ended.returncode, ended.stderr.count("\n")) == (71, 1), ended
    assert not list((tmp_path / "run").rglob("step_*"))
