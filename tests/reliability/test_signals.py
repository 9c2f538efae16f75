"""Every long pass ends soon after a signal, says what is true, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ENVIRONMENT, ROOT, Signalled, reading, segtrain
from rows import amount

SECONDS = 2.0  # to answer a signal
SMALL = [
    "train.device=cpu",
    "train.batch_size=4",
    "train.steps=400",
    "train.threads=1",
    "train.workers=1",
    "writer=[]",
    "log.every=1",
    "log.images=0",
]
SHAPES = [
    "dataset=shapes",
    "dataset.size=[64,64]",
    "dataset.crop=[64,64]",
    "dataset.train=32",
    "dataset.val=2",
]
WAITS = [0.0, 1.0, 2.5, 4.0, 6.0]  # seconds
STOPPED = "stopped before anything was saved; the same command begins again"


def data_set(root: Path, width: int, height: int) -> list[str]:
    """Make 2 x 28 images below `root`, and return the overrides for them."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3))
    image = Image.fromarray(noise.astype(np.uint8)).resize((width, height))
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2] = 1
    for split in ("train", "val"):
        for folder, name, picture in (
            (root / "images" / split, "0.jpg", image),
            (root / "masks" / split, "0.png", Image.fromarray(mask)),
        ):
            folder.mkdir(parents=True)
            picture.save(folder / name)
            for number in range(1, 28):
                os.link(folder / name, folder / f"{number}{name[1:]}")
    labels = "dataset.labels=[{id: 0, name: a}, {id: 1, name: b}]"
    return ["dataset=folder", f"dataset.root={root}", labels, "dataset.crop=[64,64]"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for images of 24 megapixels, all of which take many seconds to read."""
    return data_set(tmp_path_factory.mktemp("large"), 6000, 4000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on images that take a moment to predict; they lie beside it in `data`."""
    place = tmp_path_factory.mktemp("trained")
    words = [*data_set(place / "data", 640, 480), *SMALL, "train.steps=1", "train.verify=false"]
    done = subprocess.run(
        segtrain("segtrain", *words, f"hydra.run.dir={place / 'run'}"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return place / "run"


def files(folder: Path) -> list[str]:
    """What a command left, without what this module keeps there."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(p.relative_to(folder)) for p in paths if p.name != "signalled.log")


def writes(text: str, wait: float = 0.4) -> Callable[[subprocess.Popen, str], bool]:
    """A moment after `text` stands on stderr: a bar has begun, say."""

    def moment(process: subprocess.Popen, said: str) -> bool:
        if text not in said:
            return False
        time.sleep(wait)
        return True

    return moment


def reads(process: subprocess.Popen, said: str) -> bool:
    """The moment when a data set is being read in threads."""
    if not reading(process):
        return False
    time.sleep(0.4)
    return True


# ------------------------------------------------------------------------- a training


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_while_a_data_set_is_verified_ends_the_run_and_leaves_nothing(
    tmp_path: Path, large: list[str], name: str
) -> None:
    command = segtrain("segtrain", *large, *SMALL, "hydra.run.dir=run")
    ended = Signalled(command, name, reads, tmp_path)
    assert ended.lines == [f"segtrain: {name}: {STOPPED}"]
    assert (ended.code, files(tmp_path)) == (130, [])
    assert not (tmp_path / "run").exists()
    assert ended.seconds < SECONDS


@pytest.mark.slow
@pytest.mark.row("R13")
@pytest.mark.parametrize("processes", amount([1, 2], [2], [1, 2]))
@pytest.mark.parametrize("wait", amount(WAITS, [2.5], WAITS))
def test_a_signal_at_any_moment_ends_a_run_with_what_is_true_of_it(
    tmp_path: Path, processes: int, wait: float
) -> None:
    """The moments are counted from that when torch is there, and span the start of a run."""

    def moment(process: subprocess.Popen, said: str) -> bool:
        if "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            return False
        time.sleep(wait)
        return True

    words = [*SHAPES, *SMALL, f"train.processes={processes}", "hydra.run.dir=run"]
    ended = Signalled(segtrain("segtrain", *words), "SIGTERM", moment, tmp_path)
    saved = list((tmp_path / "run" / "checkpoints").glob("step_*"))
    if saved:
        assert (ended.code, len(ended.lines)) == (75, 1)
        assert ended.lines[0].endswith("go on with: segtrain resume=run")
    else:
        assert (ended.code, ended.lines) == (130, [f"segtrain: SIGTERM: {STOPPED}"])
        assert not (tmp_path / "run").exists()
    assert ended.seconds < 2 * SECONDS, "an update, and a checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_whose_hangups_are_ignored_goes_on_to_its_end(tmp_path: Path, processes: int) -> None:
    steps = ["train.steps=6", f"train.processes={processes}", "hydra.run.dir=run"]
    command = segtrain("segtrain", *SHAPES, *SMALL, *steps)

    def trains(process: subprocess.Popen, said: str) -> bool:
        metrics = tmp_path / "run" / "metrics.jsonl"
        return metrics.exists() and metrics.stat().st_size > 0

    ended = Signalled(command, "SIGHUP", trains, tmp_path, ignored=True, group=True)
    assert (ended.code, ended.lines[-1:]) == (0, [])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 6


@pytest.mark.slow
@pytest.mark.row("R13")
def test_a_second_hangup_does_not_keep_several_processes_from_saving(tmp_path: Path) -> None:
    """A terminal that is closed sends one, and its shell another one."""
    words = [*SHAPES, *SMALL, "train.processes=2", "hydra.run.dir=run"]

    def twice(process: subprocess.Popen, said: str) -> bool:
        metrics = tmp_path / "run" / "metrics.jsonl"
        if not metrics.exists() or metrics.read_text().count("\n") < 3:
            return False
        process.send_signal(1)
        time.sleep(0.05)
        return True

    ended = Signalled(segtrain("segtrain", *words), "SIGHUP", twice, tmp_path)
    assert ended.code == 75, ended.lines
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))


@pytest.mark.slow
@pytest.mark.row("R33")
@pytest.mark.parametrize("processes", amount([1, 2], [1], [1, 2]))
def test_a_sweep_saves_its_running_job_and_the_same_command_goes_on(
    tmp_path: Path, processes: int
) -> None:
    words = [*SHAPES, *SMALL, f"train.processes={processes}", "hydra.sweep.dir=sweep"]
    command = segtrain("segtrain", "-m", *words, "train.seed=0,1", "train.steps=40")

    def second(process: subprocess.Popen, said: str) -> bool:
        logs = list(tmp_path.glob("sweep/*seed=1*/metrics.jsonl"))
        return any(log.stat().st_size for log in logs)

    ended = Signalled(command, "SIGTERM", second, tmp_path)
    assert ended.code == 75, ended.lines
    assert len(list(tmp_path.glob("sweep/*seed=0*/summary.json"))) == 1
    assert not list(tmp_path.glob("sweep/*seed=1*/summary.json"))
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "complete already" in done.stdout
    assert len(list(tmp_path.glob("sweep/*/summary.json"))) == 2


# ------------------------------------------------------------------------- other commands

# A command, RUN standing for a run, IMAGES for a folder of images, LARGE for the overrides of a
# data set of large ones -> the moment of the signal.
PASSES = {
    "verify": ("segdata verify LARGE output=report.txt", writes("verifying")),
    "stats": ("segdata stats LARGE output=stats.txt", writes("counting")),
    "browse": ("segdata browse LARGE", writes("", 4)),
    "cache": ("segdata prepare LARGE dataset.cache=cache", writes("caching")),
    "segeval": ("segeval checkpoint=RUN eval.output=out", writes("evaluating")),
    "segeval of two": (
        "segeval checkpoint=RUN eval.output=out eval.processes=2",
        writes("evaluating"),
    ),
    "submission": (
        "segeval checkpoint=RUN eval.output=out eval.submission=new dataset.submission=voc",
        writes("evaluating", 4),
    ),
    "segpredict": (
        "segpredict checkpoint=RUN input=IMAGES output=out eval.submission=new "
        "dataset.submission=voc",
        writes("predicting", 4),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("of", PASSES)
def test_a_signal_ends_a_long_pass_in_one_line_and_nothing_is_half_written(
    tmp_path: Path, large: list[str], trained: Path, of: str, name: str
) -> None:
    words, moment = PASSES[of]
    command: list[str] = []
    for word in words.split():
        word = word.replace("RUN", str(trained))
        word = word.replace("IMAGES", str(trained.parent / "data" / "images" / "val"))
        command += large if word == "LARGE" else [word]
    ended = Signalled(segtrain(*command), name, moment, tmp_path)
    assert ended.code == 130, ended.lines
    assert ended.lines[-1].startswith(f"{command[0]}: {name}: stopped")
    assert len(ended.lines) == 1 or "|" in ended.lines[0], ended.lines
    left = files(tmp_path)
    assert not [path for path in left if "tmp" in path or not path.startswith("out")], left
    for path in left:  # predictions so far
        if not path.endswith(".segpredict"):  # the list of them
            Image.open(tmp_path / path).load()
    assert (of == "segpredict") == bool(left)
    assert ended.seconds < SECONDS


# ------------------------------------------------------------------------- one process by itself


@pytest.mark.slow
def test_a_signal_is_answered_though_a_library_does_not_return(tmp_path: Path) -> None:
    """A mutex that is locked twice lets no handler of Python's run."""
    script = (
        "import ctypes, sys\nfrom segtrain.runtime import signals\nwith signals.Stopping():\n"
        "    mutex = ctypes.create_string_buffer(64)\n    library = ctypes.CDLL(None)\n"
        "    library.pthread_mutex_lock(mutex)\n    print('locked', file=sys.stderr, flush=True)\n"
        "    library.pthread_mutex_lock(mutex)\n"
    )
    ended = Signalled([sys.executable, "-c", script], "SIGTERM", writes("locked"), tmp_path)
    assert (ended.code, ended.lines) == (130, ["locked", "segtrain: SIGTERM: stopped at once"])
    assert ended.seconds < SECONDS


@pytest.mark.slow
def test_workers_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("open('canary', 'w')\nraise SystemExit(3)\n")
    words = [*SHAPES, *SMALL, "train.steps=1", "train.processes=2", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "segtrain", *words],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_several_processes_run_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    environment = {key: text for key, text in ENVIRONMENT.items() if key != "PYTHONPATH"}
    words = [*SHAPES, *SMALL, "train.steps=1", "train.processes=2", f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-m", "segtrain", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_signal_that_a_library_swallows_comes_again(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom segtrain.commands.exit_codes import run_command\n"
        "def command(arguments):\n    print('begun', file=sys.stderr, flush=True)\n    try:\n"
        "        time.sleep(60)\n    except BaseException:\n        pass\n    time.sleep(60)\n"
        "run_command('segdata', command)\n"
    )
    ended = Signalled([sys.executable, "-c", script], "SIGINT", writes("begun"), tmp_path)
    assert ended.code == 130
    assert ended.lines[1].startswith("segdata: SIGINT: stopped")
    assert ended.seconds < SECONDS
