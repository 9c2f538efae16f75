"""Every command with streams that are closed, broken or full: exit code 0 means done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from processes import redirected, segtrain

SMALL = [
    "dataset=shapes",
    "dataset.size=[64,64]",
    "dataset.crop=[64,64]",
    "dataset.train=8",
    "dataset.val=2",
    "train.device=cpu",
    "train.batch_size=4",
    "train.steps=2",
    "train.threads=1",
    "log.every=1",
]
STREAMS = ["pipe", ">&- 2>&-", ">/dev/full 2>&1"]
# Words of a command, RUN standing for a trained run and OUT for a new folder -> what is there then.
# Bars are on: they write, too.
DONE = {
    "segtrain": (["segtrain", *SMALL, "hydra.run.dir=OUT"], "summary.json"),
    "two processes": (
        ["segtrain", *SMALL, "train.processes=2", "train.workers=1", "hydra.run.dir=OUT"],
        "summary.json",
    ),
    "-m": (
        ["segtrain", "-m", *SMALL, "train.seed=0,1", "hydra.sweep.dir=OUT"],
        "*seed=1*/summary.json",
    ),
    "segeval": (["segeval", "checkpoint=RUN", "eval.output=OUT"], "metrics.json"),
    "segpredict": (
        ["segpredict", "checkpoint=RUN", "input=RUN/samples", "output=OUT"],
        "val_00000_overlay.png",
    ),
    "verify": (["segdata", "verify", *SMALL, "output=OUT/report.txt"], "report.txt"),
    "stats": (["segdata", "stats", *SMALL, "output=OUT/stats.txt"], "stats.txt"),
    "browse": (["segdata", "browse", *SMALL, "output=OUT/page.html"], "page.html"),
    "segreport": (["segreport", "RUN", "output=OUT"], "report.html"),
}
# What is made to be read on the screen.
READ = {
    "help": ["segtrain", "--help"],
    "help of segeval": ["segeval", "--help"],
    "config": ["segtrain", "--cfg", "job", *SMALL],
    "stats": ["segdata", "stats", *SMALL],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    done = redirected("", *segtrain("segtrain", *SMALL, f"hydra.run.dir={run}"))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("name", DONE)
def test_a_command_does_its_work_whatever_becomes_of_its_output(
    tmp_path: Path, trained: Path, name: str, streams: str
) -> None:
    words, made = DONE[name]
    out = tmp_path / "out"
    command = [word.replace("RUN", str(trained)).replace("OUT", str(out)) for word in words]
    done = redirected(streams, *segtrain(*command))
    assert done.returncode == 0
    assert list(out.glob(made))
    shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["segtrain", "model=nothing"], 2),
        (["segtrain", *SMALL, "optimizer=sgd", "optimizer.lr=1e30", "hydra.run.dir=OUT"], 70),
        (["segeval", "checkpoint=OUT"], 2),
        (["segdata", "verify", "dataset=folder", "dataset.root=DATA", "dataset.classes=voc"], 65),
        (["segreport", "OUT"], 2),
    ],
)
def test_a_mistake_keeps_its_code_whatever_becomes_of_the_output(
    tmp_path: Path, words: list[str], code: int, streams: str
) -> None:
    for name in ("images/train/a.jpg", "masks/train/a.png", "images/val/a.jpg", "masks/val/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("no picture")
    command = [
        word.replace("OUT", str(tmp_path / "out")).replace("DATA", str(tmp_path)) for word in words
    ]
    assert redirected(streams, *segtrain(*command)).returncode == code


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["pipe", ">&-", ">/dev/full"])
@pytest.mark.parametrize("name", READ)
def test_what_is_made_to_be_read_is_not_done_when_nobody_can_read_it(
    name: str, streams: str
) -> None:
    done = redirected(streams, *segtrain(*READ[name]))
    assert done.returncode == 74
    if streams != "pipe":
        assert "standard output: cannot be written" in done.stderr
        assert len(done.stderr.splitlines()) == 1 or name == "stats"  # its bar


def test_help_that_a_full_disk_refuses_is_not_done() -> None:
    done = redirected(">/dev/full", *segtrain("segtrain", "--help"))
    assert (done.returncode, done.stderr.count("\n")) == (74, 1)
    assert "standard output: cannot be written (No space left on device)" in done.stderr
