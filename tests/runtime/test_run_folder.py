"""One process per run folder, and signals that wait for the end of a step."""

import fcntl
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commandline import refused
from rows import Tally, amount

from segtrain.errors import DiskError, LockedError, UserError
from segtrain.runtime import run_folder
from segtrain.runtime import signals as signals_module
from segtrain.runtime.files import open_to_append
from segtrain.runtime.run_folder import NewRun, RunLock
from segtrain.runtime.signals import Signals

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from segtrain.errors import SegtrainError
from segtrain.runtime.run_folder import RunLock
sys.stdin.readline()  # all start at once
try:
    with RunLock(sys.argv[1]) as lock:
        Path(sys.argv[1], "winner").write_text(str(__import__("os").getpid()))
        print("held", flush=True)
        sys.stdin.readline()
except SegtrainError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def process(code: str, *arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def say(child: subprocess.Popen, line: str = "\n") -> None:
    assert child.stdin is not None
    child.stdin.write(line)
    child.stdin.flush()


def hear(child: subprocess.Popen) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def end(child: subprocess.Popen) -> int:
    child.communicate("\n", timeout=20)
    return child.returncode


@pytest.mark.row("R22")
def test_of_eight_processes_that_want_one_folder_one_gets_it_and_the_others_exit_73_naming_it(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    children = [process(HOLD, run) for _ in range(8)]
    for child in children:
        say(child)
    lines = [hear(child) for child in children]
    assert lines.count("held\n") == 1
    winner = children[lines.index("held\n")]
    for child, line in zip(children, lines, strict=True):
        if child is not winner:
            holder = f"pid {winner.pid} on host {socket.gethostname()}"
            expected = rf"{run} is in use by {holder} since \d{{4}}-.*: -c {run}\. "
            assert re.match(expected, line), line
            assert end(child) == 73
    assert (run / "winner").read_text() == str(winner.pid)
    assert sorted(p.name for p in run.iterdir()) == [".lock", "winner"]
    assert end(winner) == 0


@pytest.mark.slow
@pytest.mark.row("R22")
def test_of_any_number_of_processes_one_gets_a_folder_whoever_had_it_before(
    tmp_path: Path, tally: Tally
) -> None:
    """Before: nobody, a process that was killed, one on another host, one with our number."""
    dice = random.Random(0)
    stale = {"pid": 2**22 + 1, "host": socket.gethostname(), "started": "x", "command": "killed"}
    before = [None, stale, {**stale, "host": "node17"}, {**stale, "pid": os.getpid()}]
    for number in range(amount(2, 4, 45)):
        run = tmp_path / f"{number}"
        if held := before[number % len(before)]:
            run.mkdir()
            (run / ".lock").write_text(json.dumps(held))
        children = [process(HOLD, run) for _ in range(dice.randint(2, 5))]
        for child in children:
            say(child)
        lines = [hear(child) for child in children]
        assert lines.count("held\n") == 1, lines
        winner = children.pop(lines.index("held\n"))
        assert [end(child) for child in children] == [73] * len(children)
        assert (run / "winner").read_text() == str(winner.pid)
        assert end(winner) == 0
        tally(seed=0)


@pytest.mark.row("R22")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    child = process(HOLD, tmp_path)
    say(child)
    assert hear(child) == "held\n"
    child.kill()
    child.communicate()
    # Its name is still there.
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == child.pid
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.row("R22")
def test_a_forked_worker_does_not_keep_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    code = """
import os, sys, time
# a slow worker, which lets go after its parent's death
os.register_at_fork(after_in_child=lambda: time.sleep(0.3))
from segtrain.runtime.run_folder import RunLock
with RunLock(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    sys.stdin.readline()
"""
    child = process(code, tmp_path)
    assert hear(child) == "held\n"
    worker = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())
    child.kill()
    child.wait()
    try:
        with RunLock(tmp_path):
            os.kill(worker, 0)  # still alive, and yet the lock is ours
    finally:
        os.kill(worker, signal.SIGKILL)
        child.communicate()


@pytest.mark.row("R22")
def test_a_refused_run_leaves_no_trace(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        before = (tmp_path / ".lock").read_bytes(), (tmp_path / ".lock").stat().st_mtime_ns
        with (
            pytest.raises(LockedError, match=rf"is in use by pid {os.getpid()} on host"),
            RunLock(tmp_path),
        ):
            pass
        assert before == (
            (tmp_path / ".lock").read_bytes(),
            (tmp_path / ".lock").stat().st_mtime_ns,
        )
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    with RunLock(tmp_path):  # free again
        pass
    assert (tmp_path / ".lock").read_bytes() == b""


@pytest.mark.row("R22")
def test_a_holder_on_another_host_is_named_though_its_pid_means_nothing_here(
    tmp_path: Path,
) -> None:
    with RunLock(tmp_path):
        other = {
            "pid": 2**22 + 1,
            "host": "node17",
            "started": "2026-01-01T00:00:00+00:00",
            "command": "segtrain x=1",
        }
        (tmp_path / ".lock").write_text(json.dumps(other))
        expected = r"pid 4194305 on host node17 since 2026-01-01T00:00:00\+00:00: segtrain x=1\. "
        with pytest.raises(LockedError, match=expected), RunLock(tmp_path):
            pass


@pytest.mark.row("R22")
def test_a_holder_without_a_name_is_still_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(LockedError, match="is in use by another process"), RunLock(tmp_path):
        pass
    os.close(descriptor)


def test_the_lock_is_freed_when_the_body_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path):
        pass


@pytest.mark.row("R23")
def test_a_folder_that_cannot_be_used_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(UserError, match=r"file.*: in the way \(.*\); take another run folder"),
            RunLock(place),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "odd" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"\.lock: in the way"), RunLock(tmp_path / "odd"):
        pass

    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_folder.os, "open", refuse)
    with (
        pytest.raises(
            DiskError, match="cannot be written: Permission denied; check its permissions"
        ),
        RunLock(tmp_path),
    ):
        pass


NEW = NewRun("train: {}\n", ["train.steps=2"], "/somewhere")


@pytest.mark.parametrize(
    "name", [*run_folder.OURS, ".tmp-config.yaml", "checkpoints/a", "eval/b/c"]
)
def test_a_link_in_place_of_any_of_our_entries_is_named_and_not_followed(
    tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (run / "config.yaml").write_text("train: {}\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    words = [f"{run / name}: is a symbolic link"]
    refused(2, words, "segtrain", f"resume={run}")
    with pytest.raises(UserError, match=re.escape(words[0])):
        run_folder.left_to_do(run, NEW)
    (run / name).unlink()
    os.mkfifo(run / name)
    refused(2, [f"{run / name}: is a pipe"], "segtrain", f"resume={run}")
    assert outside.read_text() == "mine"


def test_links_of_wandb_inside_its_folder_keep_no_run_from_going_on(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    run_folder.check_folder(tmp_path)
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "0").symlink_to(tmp_path)
    with pytest.raises(UserError, match="mlflow/0: is a symbolic link"):
        run_folder.check_folder(tmp_path)


def test_the_path_to_a_run_folder_may_pass_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    run_folder.check_folder(tmp_path / "link" / "run")
    run_folder.check_folder(tmp_path / "link")


@pytest.mark.row("R23")
@pytest.mark.parametrize("name", [*run_folder.OURS, ".hydra/config.yaml", "samples/a.png"])
def test_what_a_user_has_under_one_of_our_names_is_refused_and_stays(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    first = name.partition("/")[0]
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / first))}: .* another"):
        run_folder.left_to_do(tmp_path, NEW)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_what_a_run_left_before_its_first_step_may_begin_again_unless_it_was_edited(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run_folder.left_to_do(tmp_path, NEW)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / ".tmp-hydra.yaml").write_text("killed")
    assert run_folder.left_to_do(tmp_path, NEW)
    NEW.write(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "train.log").write_text("run ...\n")
    assert run_folder.started_in(tmp_path) == "/somewhere"
    assert run_folder.left_to_do(tmp_path, NEW)
    with RunLock(tmp_path):
        pass
    assert run_folder.left_to_do(tmp_path, NEW)
    (tmp_path / "config.yaml").write_text("train: {steps: 3}\n")
    with pytest.raises(UserError, match=r"config\.yaml: stands where a run would write"):
        run_folder.left_to_do(tmp_path, NEW)
    assert (tmp_path / "config.yaml").read_text() == "train: {steps: 3}\n"


@pytest.mark.row("R23")
def test_a_hard_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".lock", "metrics.jsonl"):
        (tmp_path / "run" / name).write_bytes(b"")
        os.link(tmp_path / "run" / name, tmp_path / name)
    with RunLock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_bytes() != b""
        with open_to_append(tmp_path / "run" / "metrics.jsonl") as file:
            file.write(b"line\n")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == b"line\n"
    assert (tmp_path / ".lock").read_bytes() + (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_name_with_a_control_character_is_shown_escaped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resume=.*a\\nb: holds a control character") as caught:
        run_folder.check_folder(tmp_path / "a\nb", "resume")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", signals_module.SIGNALS, ids=lambda s: s.name)
def test_a_signal_is_noted_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number.name
    assert signal.getsignal(number) is before


def test_the_first_signal_is_the_one_reported() -> None:
    with Signals() as signals:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert signals.received == "SIGUSR1"


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = [signal.getsignal(number) for number in signals_module.SIGNALS]
    seen = []

    def body() -> None:
        with Signals() as signals:
            seen.append(
                (signals.received, [signal.getsignal(number) for number in signals_module.SIGNALS])
            )

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


@pytest.mark.row("R13")
def test_a_second_interrupt_exits_130_at_once_but_not_within_one_key_press() -> None:
    code = """
import sys, time
from segtrain.runtime.signals import Signals
with Signals() as signals:
    print("ready", flush=True)
    while signals.received is None:
        time.sleep(0.01)
    print(signals.received, flush=True)
    time.sleep(60)
"""
    child = process(code)
    assert hear(child) == "ready\n"
    child.send_signal(signal.SIGINT)
    assert hear(child) == "SIGINT\n"
    child.send_signal(signal.SIGINT)  # the copy that torchrun hands on
    time.sleep(signals_module.SAME_KEY_PRESS_SECONDS + 0.2)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=5) == 130
    child.communicate()
