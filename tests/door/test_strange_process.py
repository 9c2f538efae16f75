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
