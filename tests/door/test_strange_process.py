"""The commands in a process that has next to nothing: each completes, or says one line.

Members: no git or any other program, no HOME, a user without an entry in the list of users, no
terminal, LC_ALL=POSIX, a working folder that cannot be written; all of these at once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commandline import save

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = Path("/usr/bin/unshare")  # gives a process another user without rights, where allowed
STRANGER = [str(UNSHARE), "--user", "--map-user=12345", "--map-group=12345"]
SMALL = ["dataset.train=2", "dataset.val=2", "dataset.size=[32,32]", "train.batch_size=2"]
SMALL += ["train.steps=1", "train.threads=1", "model=unet", "model.width=4", "log.progress=false"]


def can_be_strange() -> bool:
    """Whether this machine lets a process take a user that nobody knows."""
    return UNSHARE.exists() and subprocess.run([*STRANGER, "true"], check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_be_strange(), reason="user namespaces are not allowed here"),
]


def strange(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command with `folder`, which cannot be written, as its working folder."""
    folder.chmod(0o555)
    return subprocess.run(
        [*STRANGER, sys.executable, "-m", "segtrain", *words],
        cwd=folder,
        env={"LC_ALL": "POSIX", "PATH": "/nowhere", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a run, and an empty folder to stand in."""
    folder = tmp_path_factory.mktemp("strange")
    (folder / "here").mkdir()
    save(folder / "photos/a.png", np.zeros((32, 32, 3), np.uint8))
    made = strange(folder / "here", *SMALL, f"hydra.run.dir={folder / 'run'}")
    assert (made.returncode, "Traceback" in made.stderr) == (0, False), made.stderr
    assert "written to" in made.stdout
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["segeval", "checkpoint={place}/run"],
        ["segpredict", "checkpoint={place}/run", "input={place}/photos", "output={place}/seen"],
        ["segdata", "verify", "dataset=shapes", "dataset.train=2", "dataset.val=2"],
        ["segdata", "stats", "dataset=shapes", "dataset.train=2", "dataset.val=2"],
        ["segdata", "browse", "dataset=shapes", "output={place}/browse.png"],
        ["segreport", "{place}/run", "output={place}/report"],
        ["extend={place}/run", "train.steps=2", "log.progress=false"],
        ["resume={place}/run"],
        ["recipes"],
        ["--help"],
    ],
    ids=lambda words: " ".join(words[:2]).replace("{place}/", ""),
)
def test_a_command_that_needs_nothing_from_here_completes(place: Path, words: list[str]) -> None:
    ended = strange(place / "here", *(word.format(place=place) for word in words))
    assert ended.returncode == 0, ended
    assert "Traceback" not in ended.stderr
    assert "rror" not in ended.stderr, ended.stderr


def test_what_may_not_be_read_is_named(place: Path) -> None:
    locked = place / "locked"
    save(locked / "photo.png", np.zeros((32, 32, 3), np.uint8))
    save(place / "mixed/b.png", np.zeros((32, 32, 3), np.uint8))
    save(place / "mixed/deep/c.png", np.zeros((32, 32, 3), np.uint8))
    for folder in (locked, place / "mixed/deep"):
        folder.chmod(0)
    words = ["segpredict", f"checkpoint={place}/run", f"output={place}/seen2", "log.progress=false"]
    ended = strange(place / "here", *words, f"input={locked}/photo.png")
    assert ended.returncode == 65, ended
    assert f"{locked}/photo.png: Permission denied" in ended.stderr
    ended = strange(place / "here", *words, f"input={place}/mixed")
    assert ended.returncode == 0, ended
    assert "left out: 1 folder that cannot be read" in ended.stdout
    (place / "truth.json").write_text("{}")
    (place / "truth.json").chmod(0)
    ended = strange(
        place / "here",
        "segdata",
        "verify",
        "dataset=coco_json",
        f"dataset.annotations={place}/truth.json",
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (65, 2), ended
    assert f"{place}/truth.json" in ended.stderr
    for path in (locked, place / "mixed/deep"):
        path.chmod(0o755)


def test_a_working_folder_that_is_gone_is_said(place: Path) -> None:
    gone = place / "gone"
    gone.mkdir()
    ended = subprocess.run(
        [
            "sh",
            "-c",
            'cd "$0" && rmdir "$0" && "$1" -m segtrain train.steps=1',
            gone,
            sys.executable,
        ],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = "segtrain: the working folder is no longer there; change to another one\n"
    assert (ended.returncode, ended.stderr) == (2, said)


def test_names_that_the_terminal_cannot_show_are_escaped(place: Path) -> None:
    words = ["dataset.labels=[кот,пёс]", "dataset=folder", f"dataset.root={place}/cats"]
    save(place / "cats/images/train/a.png", np.zeros((32, 32, 3), np.uint8))
    save(place / "cats/masks/train/a.png", np.eye(32, dtype=np.uint8))
    ended = subprocess.run(
        [sys.executable, "-m", "segtrain", "segdata", "verify", *words, "dataset.split=train"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\u043a\\u043e\\u0442" in ended.stdout
    assert "96.88 % of labelled pixels" in ended.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (SMALL, "outputs/shapes/unet/"),
        (["segpredict", "checkpoint={place}/run", "input={place}/photos", "output=seen"], "seen"),
        (["segdata", "stats", "dataset=shapes", "output=stats.txt"], "stats.txt"),
        (["segdata", "browse", "dataset=shapes"], "browse.png"),
        (["segreport", "{place}/run", "output=report"], "report"),
        (["segeval", "checkpoint={place}/run", "eval.output=scores"], "scores"),
        (["-m", "train.seed=0,1", *SMALL], "outputs"),
    ],
    ids=["segtrain", "segpredict", "stats", "browse", "segreport", "segeval", "multirun"],
)
def test_what_cannot_be_written_here_is_one_line(place: Path, words: list[str], named: str) -> None:
    typed = [word.format(place=place) for word in words]
    if "dataset=shapes" in typed:
        typed += ["dataset.train=2", "dataset.val=2", "log.progress=false"]
    ended = strange(place / "here", *typed)
    assert ended.returncode == 74, ended
    assert "Permission denied" in ended.stderr.splitlines()[-1]
    assert named in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
