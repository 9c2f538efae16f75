"""What only describes a run never ends it, and says once what it failed at.

Members: no git, one that hangs, fails or is of somebody else's checkout, a picture that cannot be
written, a writer that fails at its start, in the middle and at its end, a memory file that cannot
be read, TensorBoard that is not installed or does not fit another package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import typed

import segtrain
from segtrain.config import parts
from segtrain.logs import run_log, summary, writers

SHAPES = [
    "dataset.train=4",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_every=1",
    "train.precision=fp32",
    "train.device=cpu",
    "train.threads=1",
    "model=unet",
    "model.width=4",
]


def completed(folder: Path, *settings: str) -> tuple[dict[str, Any], str]:
    """The summary and the log of a run that must end well."""
    ended = typed("segtrain", *SHAPES, f"hydra.run.dir={folder}", *settings)
    assert ended.code == 0, ended
    told = json.loads((folder / "summary.json").read_text())
    assert told["status"] == "complete"
    return told, (folder / "train.log").read_text()


def test_without_git_or_room_for_pictures_a_run_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    folder = tmp_path / "run"
    save = run_log.RunLog.validation

    def blocked(self: Any, step: int, numbers: Any) -> None:
        save(self, step, numbers)
        if not (folder / "samples").exists():
            (folder / "samples").write_text("a file where a folder should be")

    monkeypatch.setattr(run_log.RunLog, "validation", blocked)
    told, log = completed(folder)
    assert told["git"] is None
    assert told["versions"]["torch"]
    assert log.count("summary.json: git: ") == 1
    assert "'git'; the run goes on without it" in log
    assert log.count("warn   samples/: ") == 1  # of two validations


class Fails:
    """A writer that fails at one of its duties."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls: list[str] = []

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if what == self.at:
            raise ConnectionError(f"no server for {what}")

    def scalars(self, step: int, values: Any) -> None:
        self._do("scalars")

    def image(self, step: int, name: str, picture: Any) -> None:
        self._do("image")

    def close(self) -> None:
        self._do("close")


@pytest.mark.parametrize("at", ["scalars", "image", "close"])
def test_a_writer_that_fails_is_said_once_and_left_out(tmp_path: Path, at: str) -> None:
    broken = Fails(at)
    whole = Fails("never")
    log = run_log.RunLog(tmp_path, 4, 0, 2, writers=[broken, whole], progress=False)
    for step in (1, 2):
        log.train(step, {"loss": 1.0})
        log.image(step, "a", None)  # type: ignore[arg-type]
    log.close()
    text = (tmp_path / "train.log").read_text()
    assert text.count(f"warn   writer Fails: no server for {at}; the run goes on") == 1
    assert broken.calls.count(at) == 1
    assert broken.calls[-1] == at
    assert whole.calls == ["scalars", "scalars", "image", "scalars", "scalars", "image", "close"]


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'tensorboard'"),
        AttributeError("module 'distutils' has no attribute 'version'"),
        PermissionError(13, "Permission denied"),
    ],
    ids=["absent", "of another version", "no folder"],
)
@pytest.mark.slow
def test_a_writer_that_cannot_begin_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(self: object, folder: Path, start: int) -> None:
        raise error

    monkeypatch.setattr(writers.TensorBoard, "__init__", broken)
    _, log = completed(tmp_path / "run")
    assert log.count("warn   writer tensorboard: ") == 1
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize(
    "raised",
    [
        "TypeError('Descriptors cannot be created directly')",
        "ValueError('numpy.dtype size changed')",
        "RuntimeError('module compiled against another ABI')",
    ],
)
def test_tensorboard_that_does_not_fit_another_package_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: str
) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/__init__.py").write_text(f"raise {raised}")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in list(sys.modules):
        if name.split(".")[0] == "tensorboard" or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    run = segtrain.compose([*SHAPES, "writer=tensorboard"])
    log = run_log.RunLog(tmp_path, 1, 0, 1, progress=False)
    with log.aside("writer tensorboard"):
        parts.writer(run, "tensorboard", tmp_path, 0)
    log.close()
    said = (tmp_path / "train.log").read_text()
    assert said.count(f"warn   writer tensorboard: {raised.split(chr(39))[1]}; the run goes") == 1


def git_that(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    """Put a program `git` of these lines where git is looked for."""
    folder.mkdir()
    (folder / "git").write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_git_that_hangs_or_fails_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(summary.__file__).resolve().parents[2]
    git_that(monkeypatch, tmp_path / "fails", f"echo {root}", "echo abc", "exit 1")
    assert summary._revision() is None
    git_that(monkeypatch, tmp_path / "works", f"echo {root}", "echo abc")
    assert summary._revision() == "abc"
    git_that(monkeypatch, tmp_path / "hangs", "exec sleep 600")
    monkeypatch.setattr(summary, "GIT_SECONDS", 0.2)
    log = run_log.RunLog(tmp_path, 1, 0, 1, progress=False)
    assert summary.environment(log.aside)["git"] is None
    log.close()
    assert "summary.json: git: Command " in (tmp_path / "train.log").read_text()


def test_the_revision_is_that_of_segtrain_not_of_a_checkout_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mine/venv/segtrain/logs"
    package.mkdir(parents=True)
    words = ["git", "-C", str(tmp_path / "mine"), "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*words[:3], "init", "-q"], check=True)
    subprocess.run([*words, "commit", "-q", "--allow-empty", "-m", "mine"], check=True)
    monkeypatch.setattr(summary, "__file__", str(package / "summary.py"))
    assert summary._revision() is None
    monkeypatch.setattr(summary, "__file__", str(tmp_path / "mine/segtrain/logs/summary.py"))
    (tmp_path / "mine/segtrain/logs").mkdir(parents=True)
    assert len(summary._revision() or "") == 40


@pytest.mark.parametrize("name", ["versions", "machine", "peak_memory_mib"])
def test_what_cannot_be_looked_up_is_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refused() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(summary._DESCRIBED, name, refused)
    log = run_log.RunLog(tmp_path, 1, 0, 1, progress=False)
    told = summary.environment(log.aside)
    log.close()
    assert told[name] is None
    assert all(told[other] is not None for other in {"versions", "machine"} - {name})
    assert f"summary.json: {name}: [Errno 13]" in (tmp_path / "train.log").read_text()


def test_a_wrong_setting_is_still_refused(tmp_path: Path) -> None:
    ended = typed(
        "segtrain", *SHAPES, f"hydra.run.dir={tmp_path / 'run'}", "writer.tensorboard.flush=1"
    )
    assert ended.code == 2
    assert "flush" in ended.err
