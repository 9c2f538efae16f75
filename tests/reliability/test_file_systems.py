"""File systems that lack a call, fail once, fail for good, or are slow (matrix row R25).

Members: no locks (ENOLCK, ENOSYS, EOPNOTSUPP), no fsync (EINVAL, ENOSYS, EOPNOTSUPP), a read-only
one, an input/output error (EIO) at a write, a sync or a rename, once and for good, a rename that
copies and may be cut off, a rename whose answer is lost, calls that take long.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rows import Tally, amount

from segtrain.checkpoints import reading, writing
from segtrain.errors import DiskError, LockedError
from segtrain.logs.metrics_file import Appender
from segtrain.runtime import files, lock_file
from segtrain.runtime.run_folder import STAND_IN, RunLock

pytestmark = pytest.mark.row("R25")

Called = Callable[..., object]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was said yet, and waiting costs nothing."""
    monkeypatch.setattr(files, "_said", set())
    monkeypatch.setattr(files, "WAIT_SECONDS", 0.0)


def fail(monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int) -> list[int]:
    """Let `os.NAME` fail with an error `times` times; return a list that counts its calls."""
    real = getattr(os, name)
    calls: list[int] = []

    def faulty(*arguments: object) -> object:
        calls.append(1)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, name, faulty)
    return calls


def save(folder: Path, step: int) -> Path:
    weights = torch.full((300,), float(step))
    return writing.save(folder, step, {"model": {"w": weights}}, {"score": 0.1}, keep=2)


def newest(folder: Path) -> tuple[int, float]:
    """Return the step of the newest whole checkpoint, and what it holds."""
    found = reading.latest(folder)
    assert found is not None
    return found.step, float(found.read("model")["w"][0])


ALWAYS = 10**9


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_fsync_a_run_saves_and_says_so_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    fail(monkeypatch, "fsync", number, ALWAYS)
    with caplog.at_level(logging.WARNING, "segtrain"):
        for step in (1, 2, 3):
            save(tmp_path / "checkpoints", step)
            file = Appender(tmp_path / "metrics.jsonl")
            file.add(b"line\n")
            file.sync()
            file.close()
    assert newest(tmp_path / "checkpoints") == (3, 3.0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"line\n" * 3
    assert [r.getMessage().partition(":")[0] for r in caplog.records] == [
        "this file system cannot wait for its disk (fsync"
    ]


@pytest.mark.parametrize("name", ["fsync", "rename", "mkdir"])
def test_an_error_of_the_disk_is_tried_again_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tally: Tally
) -> None:
    """Each of the first calls of a save fails, and two in a row."""
    tally()
    save(tmp_path, 1)
    for step, times in ((2, 1), (3, 2)):
        with monkeypatch.context() as patch:
            fail(patch, name, errno.EIO, times)
            save(tmp_path, step)
        assert newest(tmp_path) == (step, float(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize("name", ["fsync", "rename"])
def test_a_lasting_error_of_the_disk_ends_with_74_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        calls = fail(patch, name, errno.EIO, ALWAYS)
        with pytest.raises(DiskError, match="step 2 was not saved: Input/output error") as caught:
            save(tmp_path, 2)
    assert (caught.value.exit_code, len(calls)) == (74, files.TRIES)
    assert newest(tmp_path) == (1, 1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    save(tmp_path, 2)
    assert newest(tmp_path) == (2, 2.0)


def test_an_error_of_another_kind_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fail(monkeypatch, "fsync", errno.EROFS, ALWAYS)
    with pytest.raises(DiskError, match="Read-only file system"):
        save(tmp_path, 1)
    assert len(calls) == 1


def test_a_metrics_file_whose_sync_failed_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second `fsync` would succeed, and the lines would be lost all the same."""
    path = tmp_path / "metrics.jsonl"
    file = Appender(path)
    file.add(b"one\n")
    before = path.stat().st_ino
    with monkeypatch.context() as patch:
        fail(patch, "fsync", errno.EIO, 1)
        file.sync()
    assert path.stat().st_ino != before
    file.add(b"two\n")
    file.close()
    assert path.read_bytes() == b"one\ntwo\n"
    file = Appender(path)
    fail(monkeypatch, "fsync", errno.EIO, ALWAYS)
    with pytest.raises(DiskError, match=r"metrics\.jsonl: cannot write"):
        file.sync()
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_rename_whose_answer_was_lost_has_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def repeated(old: Path, new: Path) -> None:
        real(old, new)
        real(old, new)  # the old name is gone: ENOENT

    monkeypatch.setattr(os, "rename", repeated)
    files.replace_file(tmp_path / "a", b"old")
    files.replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    save(tmp_path / "run", 1)
    assert newest(tmp_path / "run") == (1, 1.0)


def test_a_rename_that_copies_and_is_cut_off_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def cut_off(old: Path, new: Path) -> None:
        new.mkdir()
        shutil.copy(old / "manifest.json", new)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", cut_off)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert newest(tmp_path) == (1, 1.0)
    save(tmp_path, 2)
    assert newest(tmp_path) == (2, 2.0)


# ---------------------------------------------------------------------- locks


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_file_stands_for_one_and_that_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING, "segtrain"):
        for _ in range(2):
            with RunLock(tmp_path):
                held = rf"is in use by pid {os.getpid()} on host {socket.gethostname()} "
                with pytest.raises(LockedError, match=held), RunLock(tmp_path):
                    pass
                assert lock_file.owner(tmp_path / STAND_IN) == (os.getpid(), socket.gethostname())
            assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("unlocked")
def test_the_file_of_a_process_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        lock_file.take(tmp_path / STAND_IN)
        os._exit(0)
    os.waitpid(child, 0)
    assert lock_file.owner(tmp_path / STAND_IN) == (child, socket.gethostname())
    with RunLock(tmp_path):
        assert lock_file.owner(tmp_path / STAND_IN) == (os.getpid(), socket.gethostname())
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("unlocked")
def test_the_file_of_another_host_and_what_is_no_lock_are_refused(tmp_path: Path) -> None:
    stands = tmp_path / STAND_IN
    stands.write_text(json.dumps({"pid": 1, "host": "node17"}))
    with pytest.raises(LockedError, match=r"pid 1 on host node17 .*remove it"), RunLock(tmp_path):
        pass
    stands.write_text("mine")
    with pytest.raises(LockedError, match=r"another process .*remove it"), RunLock(tmp_path):
        pass
    assert stands.read_text() == "mine"


@pytest.mark.usefixtures("unlocked")
def test_of_processes_that_want_the_lock_of_a_dead_one_exactly_one_gets_it(
    tmp_path: Path, tally: Tally
) -> None:
    """Eight forks at once, several times."""
    tally(1)
    for turn in range(amount(2, 4, 100)):
        path = tmp_path / str(turn)
        path.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
        start, go = os.pipe()
        children = []
        for _ in range(8):
            children.append(os.fork())
            if children[-1] == 0:
                os.close(go)
                os.read(start, 1)
                got = lock_file.take(path) is None
                if got:
                    time.sleep(0.05)  # until the others have tried
                os._exit(int(got))
        os.close(go)
        os.close(start)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sum(codes) == 1, turn
