"""A run folder that cannot be written, vanishes, is moved or replaced (row R23).

Members, before a run: a folder without rights (as another user, since root has all), a file in its
place, a link in its place, one full of other files, one below a file. While it trains: the folder
is removed, moved, replaced by a file, its checkpoints are removed, it becomes a folder of another.
It ends with one line, and what was saved is whole wherever it is then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import SMALL_RUN, typed
from processes import segtrain

from segtrain.checkpoints import reading
from segtrain.engine import train

WORDS = [
    *SMALL_RUN,
    "dataset=shapes",
    "dataset.size=[32,32]",
    "dataset.train=4",
    "dataset.val=1",
    "train.steps=6",
    "train.save_every=2",
    "train.eval_every=6",
    "train.threads=1",
    "train.workers=0",
    "log.every=1",
    "log.images=0",
]
STRANGER = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]


def removed(run: Path) -> None:
    shutil.rmtree(run)


def moved(run: Path) -> None:
    run.rename(run.with_name("moved"))


def replaced_by_a_file(run: Path) -> None:
    moved(run)
    run.write_text("mine")


def replaced_by_another(run: Path) -> None:
    moved(run)
    run.mkdir()
    (run / "notes.txt").write_text("mine")


def replaced_by_another_run(run: Path) -> None:
    moved(run)
    shutil.copytree(run.with_name("moved"), run)
    shutil.rmtree(run / "checkpoints")
    (run / ".lock").write_text('{"pid": 1, "host": "another"}')


def without_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("mine")


@pytest.mark.row("R23")
@pytest.mark.parametrize(
    "trouble",
    [
        moved,
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                removed,
                replaced_by_a_file,
                replaced_by_another,
                replaced_by_another_run,
                without_checkpoints,
            )
        ),
    ],
)
def test_a_folder_that_goes_while_a_run_trains_ends_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[Path], None]
) -> None:
    """It happens after the third update, of which the second was saved."""
    run = tmp_path / "run"
    real = train.update
    count = 0

    def update(*arguments: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == 4:
            trouble(run)
        return real(*arguments, **named)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(train, "update", update)
    ended = typed("segtrain", *WORDS, f"hydra.run.dir={run}")
    assert (ended.code, ended.err.count("\n"), "Traceback" in ended.err) == (74, 1, False), ended
    assert ended.err.startswith(f"segtrain: {run}"), ended
    if (tmp_path / "moved").exists():
        assert reading.find(tmp_path / "moved", "latest").step == 2
    for path in (run, run / "notes.txt", run / "checkpoints"):
        assert not path.is_file() or path.read_text() == "mine"
    assert not list(run.glob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.row("R23")
def test_a_folder_without_rights_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    if subprocess.run([*STRANGER, "true"], check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    for run in (tmp_path / "mine" / "run", tmp_path / "mine"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine").chmod(0o555)
        root = str(Path(train.__file__).parents[2])
        ended = subprocess.run(
            [*STRANGER, *segtrain("segtrain", *WORDS, f"hydra.run.dir={run}")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr.count("\n")) == (74, 1), ended
        assert "Permission denied" in ended.stderr
        assert list((tmp_path / "mine").iterdir()) == []
    (tmp_path / "mine").chmod(0o755)
