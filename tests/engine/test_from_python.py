"""`segtrain.fit` is the command in somebody else's process, which it leaves as it was.

Members of what is given back: threads, default type and device, determinism, precision of products,
gradients, autocast, random state, signal handlers, environment, filters of warnings.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import done, trained
from processes import ENVIRONMENT

import segtrain
from segtrain.engine import from_python
from segtrain.engine.watchdog import Signs, Watchdog
from segtrain.errors import Interrupted, UserError
from segtrain.runtime import heartbeat
from segtrain.runtime.distributed import World
from segtrain.runtime.guest import COMPUTES

RUN = [
    "dataset.train=8",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "model=unet",
    "model.width=4",
    "train.batch_size=2",
    "train.device=cpu",
    "train.steps=4",
    "train.save_every=1",
    "train.keep=9",
    "train.threads=1",
    "writer=[]",
    "log.every=1",
    "log.images=0",
    "log.progress=false",
]


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a run folder that does not depend on the time, byte for byte."""
    kept = [folder / "config.yaml", folder / "metrics.jsonl", folder / ".hydra" / "config.yaml"]
    kept += [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def of_command(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files(trained(tmp_path_factory.mktemp("command") / "run", *RUN))


def state() -> dict[str, Any]:
    """What a caller may have set in the process."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "computes": [getattr(owner, name) for owner, name, _ in COMPUTES],
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "random": torch.get_rng_state().tolist(),
        "handlers": [signal.getsignal(number) for number in (2, 10, 15, signal.SIGCHLD)],
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "folder": Path.cwd(),
    }


@pytest.fixture
def odd_process() -> Iterator[None]:
    """A process in which nothing is as a new one has it."""
    before = [getattr(owner, name) for owner, name, _ in COMPUTES]
    threads = torch.get_num_threads()
    handler = signal.signal(signal.SIGUSR1, lambda *_: None)
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(123)
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    finally:
        signal.signal(signal.SIGUSR1, handler)
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
        for (owner, name, _), value in zip(COMPUTES, before, strict=True):
            setattr(owner, name, value)


def test_a_run_from_python_has_every_byte_of_the_command_and_leaves_the_process_as_it_was(
    of_command: dict[str, bytes], tmp_path: Path, odd_process: None
) -> None:
    before = state()
    summary = segtrain.fit(segtrain.compose(RUN), tmp_path / "run")
    assert state() == before
    assert files(tmp_path / "run") == of_command
    assert (summary["status"], summary["step"]) == ("complete", 4)
    assert "complete already" in done("segtrain", f"resume={tmp_path / 'run'}")


def at_step(monkeypatch: pytest.MonkeyPatch, numbers: dict[int, Any]) -> None:
    """Call `numbers[step]` as that step begins."""
    real = heartbeat.doing

    def doing(what: str, images: str) -> None:
        real(what, images)
        numbers.pop(int(what.split()[-1]) if what.startswith("making step") else -1, int)()

    monkeypatch.setattr(heartbeat, "doing", doing)


def test_the_stop_button_saves_and_the_same_call_goes_on_to_the_same_bytes(
    of_command: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = segtrain.compose(RUN)
    before = state()
    at_step(monkeypatch, {2: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(Interrupted, match="SIGINT at step 2: saved; go on with: segtrain resume="):
        segtrain.fit(run, tmp_path / "run")
    assert {**state(), "filters": before["filters"]} == before
    changed = segtrain.compose([*RUN, "train.seed=1", "optimizer.lr=0.5"])
    said = "holds another run already: .* is .* there, .* here, and 1 settings more; choose another"
    with pytest.raises(UserError, match=said):
        segtrain.fit(changed, tmp_path / "run")
    assert segtrain.fit(run, tmp_path / "run")["step"] == 4
    assert files(tmp_path / "run") == of_command


def test_a_second_interrupt_before_the_save_is_raised_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segtrain.runtime.signals.SAME_KEY_PRESS_SECONDS", -1.0)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, {1: twice})
    with pytest.raises(KeyboardInterrupt, match="second interrupt"):
        segtrain.fit(segtrain.compose(RUN), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_complete_run_is_left_alone_and_its_summary_returned(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = segtrain.compose([*RUN, "train.steps=1"])
    first = segtrain.fit(run, tmp_path / "run")
    before = files(tmp_path / "run")
    capsys.readouterr()
    again = segtrain.fit(segtrain.compose([*RUN, "train.steps=1", "log.every=2"]), tmp_path / "run")
    assert again == first
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: complete already, left alone\n"
    assert files(tmp_path / "run") == before
    with pytest.raises(UserError, match=r"train.steps is 1 there, 2 here; choose another folder"):
        segtrain.fit(segtrain.compose([*RUN, "train.steps=2"]), tmp_path / "run")


def test_a_thread_that_is_not_the_main_one_trains_to_the_same_bytes_one_run_at_a_time(
    of_command: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = segtrain.compose(RUN)
    said: list[str] = []

    def another() -> None:
        with pytest.raises(UserError, match="this process trains a run already") as refused:
            segtrain.fit(run, tmp_path / "other")
        said.append(str(refused.value))

    at_step(monkeypatch, {3: another})
    thread = threading.Thread(target=segtrain.fit, args=(run, tmp_path / "run"))
    thread.start()
    thread.join()
    assert len(said) == 1
    assert files(tmp_path / "run") == of_command
    assert not (tmp_path / "other").exists()


def test_a_run_that_was_changed_by_hand_is_checked_as_a_command_is(tmp_path: Path) -> None:
    run = segtrain.compose(RUN)
    run.train.steps = -3
    with pytest.raises(UserError, match=r"train.steps=-3"):
        segtrain.fit(run, tmp_path / "run")
    run = segtrain.compose(RUN)
    run.model["widht"] = 3
    with pytest.raises(UserError, match=r"widht"):
        segtrain.fit(run, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_watchdog_of_a_guest_says_what_stands_still_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dog = Watchdog(segtrain.compose(RUN).train, tmp_path, World(), guest=True)
    dog._end(0, Signs(os.getpid(), 1, 0, 400.0, 300.0, "making step 3", "a, b"))
    told = capsys.readouterr().err
    assert told.startswith("segtrain: the training has stood still for 400 s")
    assert told.count("\n") == 1


SCRIPT = """
import sys, segtrain
words = sys.argv[2:]
print("summary", segtrain.fit(segtrain.compose(words), sys.argv[1])["step"])
"""


@pytest.mark.slow
def test_a_script_that_was_interrupted_with_loader_workers_has_none_left_and_ends(
    tmp_path: Path,
) -> None:
    """The error is held to the end, as a notebook holds its last one."""
    words = [*RUN, "train.workers=2", "train.eval_every=4"]
    code = f"""
import multiprocessing, os, signal, sys
import segtrain
from segtrain.errors import Interrupted
from segtrain.runtime import heartbeat
real = heartbeat.doing
def doing(what, images):
    real(what, images)
    if what == "making step 2":
        os.kill(os.getpid(), signal.SIGINT)
heartbeat.doing = doing
run, folder = segtrain.compose({words!r}), {str(tmp_path / "run")!r}
child = signal.getsignal(signal.SIGCHLD)
held = None
try:
    segtrain.fit(run, folder)
except Interrupted as stopped:
    held = stopped
heartbeat.doing = real
print(held.args[0].partition(" saved")[0], multiprocessing.active_children())
assert signal.getsignal(signal.SIGCHLD) is child
print(segtrain.fit(run, folder)["step"], multiprocessing.active_children())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "\nSIGINT at step 2: []\n" in ended.stdout
    assert ended.stdout.endswith("\n4 []\n")


@pytest.mark.slow
def test_two_processes_from_python_give_the_bytes_of_the_command(tmp_path: Path) -> None:
    words = [*RUN, "train.processes=2"]
    commands = (
        [sys.executable, "-m", "segtrain", f"hydra.run.dir={tmp_path / 'command'}", *words],
        [sys.executable, "-c", SCRIPT, str(tmp_path / "python"), *words],
    )
    for command in commands:
        ended = subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
    assert "summary 4" in ended.stdout
    assert files(tmp_path / "python") == files(tmp_path / "command")


@pytest.mark.slow
def test_two_processes_from_python_are_interrupted_with_a_save_and_go_on(tmp_path: Path) -> None:
    words = [*RUN, "train.processes=2", "train.steps=4000", "train.save_every=2", "train.keep=1"]
    code = f"""
import _thread, pathlib, threading, time
import segtrain
from segtrain.errors import Interrupted
folder = pathlib.Path({str(tmp_path / "run")!r})
def stop():
    while not list((folder / "checkpoints").glob("step_*")):
        time.sleep(0.05)
    _thread.interrupt_main()
if __name__ == "__main__":
    threading.Thread(target=stop, daemon=True).start()
    try:
        segtrain.fit(segtrain.compose({words!r}), folder)
    except Interrupted as stopped:
        print("said", stopped)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert f"stopped; go on with: segtrain resume={tmp_path / 'run'}" in ended.stdout
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_what_was_left_is_one_state_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error lets the next run begin."""
    for _ in range(2):
        run = segtrain.compose(RUN)
        run.train.precision = "fp64"
        with pytest.raises(UserError, match=r"train.precision=fp64: not one of"):
            segtrain.fit(run, "nowhere")
    assert not from_python._TRAINING.locked()
