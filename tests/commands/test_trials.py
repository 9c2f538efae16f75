"""What a trial comes to: a value, the worst there is, pruned, or open for the same command.

The slow test is a search of real runs, one of which diverges, killed in the middle.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from segtrain.commands.report import report
from segtrain.commands.study import FILE, Study, opened
from segtrain.commands.trials import Trials, _open, summary
from segtrain.config import search as config
from segtrain.config.compose import sort_out
from segtrain.config.jobs import Job
from segtrain.config.search import Search
from segtrain.config.settings import read as read_setting
from segtrain.config.space import Numbers, Parameter, Texts
from segtrain.errors import (
    DataError,
    DiskError,
    InternalError,
    Interrupted,
    LockedError,
    ResourceError,
    SegtrainError,
    Stopped,
    UserError,
)
from segtrain.logs.follow import Followed

pytest.importorskip("optuna", reason="needs the extra `search`")
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6"]


class Uncomposed(Search):
    """A search whose runs are only named: to compose each takes a tenth of a second."""

    def job(self, number: int, texts: Mapping[str, str]) -> Job:
        words = [*self.fixed, *(f"{key}={text}" for key, text in texts.items())]
        name = f"{number:03},{','.join(words)}"
        return Job(name, words, self.folder / name, OmegaConf.create())


def made_up(folder: Path, space: dict[str, Parameter], **settings: object) -> Search:
    conf = config.SearchSettings(n_trials=6)._replace(**settings)
    swept = {key: read_setting(f"{key}=...") for key in space}
    return Uncomposed(space, swept, ["train.steps=5"], [], sort_out([]), folder, conf, None, "mIoU")


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return made_up(tmp_path / "sweep", {"optimizer.lr": Numbers(1e-4, 1e-1)})


@pytest.fixture
def study(search: Search) -> Iterator[Study]:
    with opened(search) as study:
        yield study


def complete(job: Job | None, value: float | None) -> Job:
    """Leave what a complete run leaves of its best value."""
    assert job is not None
    job.folder.mkdir(parents=True)
    best = None if value is None else {"step": 3, "value": value}
    (job.folder / "summary.json").write_text(json.dumps({"status": "complete", "best": best}))
    return job


def test_the_value_of_a_run_is_its_best_monitored_one(search: Search, study: Study) -> None:
    trials = Trials(search, study)
    for value in (0.25, None, 0.5, float("nan")):
        trials.ended(complete(trials.next(), value), None)
    assert [told.value for told in study.told] == [0.25, float("-inf"), 0.5, float("-inf")]
    assert study.told[1].why == "mIoU was never measured"
    lines = summary(search, study)
    assert lines[0] == "study  4 trials: 2 with a value, 2 failed"
    lr = study.told[2].texts["optimizer.lr"]
    assert lines.pop(1) == "failed trial 1, counts as the worst: mIoU was never measured"
    assert lines.pop(1) == "failed trial 3, counts as the worst: its value is NaN"
    assert lines[1] == f"best   trial 2: mIoU 0.5000, optimizer.lr={lr}"
    assert lines[2] == f"run    {search.folder}/002,train.steps=5,optimizer.lr={lr}"
    assert lines[3] == f"again  segtrain train.steps=5 optimizer.lr={lr}"


@pytest.mark.parametrize(
    ("error", "worst", "goes_on"),
    [
        (InternalError("step 2: the loss is not finite"), True, True),
        (ResourceError("out of memory"), True, True),
        (UserError("train.batch_size=3: too small"), True, True),  # others came to a value
        (
            InternalError("was killed by SIGKILL; the same command runs what is missing"),
            False,
            True,
        ),
        (Interrupted("SIGTERM at step 3: saved"), False, True),
        (Stopped("stopped before anything was saved"), False, True),
        (LockedError("is in use"), False, True),
        (DataError("a.png: is damaged"), False, False),
        (DiskError("no space left"), False, False),
    ],
)
def test_what_says_nothing_about_the_values_of_a_trial_leaves_it_open(
    error: SegtrainError, worst: bool, goes_on: bool, search: Search, study: Study
) -> None:
    trials = Trials(search, study)
    trials.ended(complete(trials.next(), 0.5), None)
    job = trials.next()
    assert job is not None
    trials.ended(job, error)
    assert study.counts["failed"] == worst
    assert study.counts["open"] == (not worst)
    assert trials.kept_open == ([] if worst else [error])
    assert (trials.next() is not None) is goes_on
    if worst:
        assert study.failure == str(error)
    else:
        said = _open(trials.kept_open)
        assert str(said) == (
            f"1 trial stays open, and the same command goes on with the study: {error}"
        )
        assert said.exit_code == error.exit_code


def test_what_is_refused_before_any_value_stops_the_study(search: Search, study: Study) -> None:
    trials = Trials(search, study)
    job = trials.next()
    assert job is not None
    trials.ended(job, UserError("model: has no backbone"))
    assert trials.next() is None
    assert study.counts == {"with a value": 0, "failed": 0, "pruned": 0, "open": 1}


@pytest.mark.slow
def test_values_that_cannot_be_composed_together_are_the_worst(tmp_path: Path) -> None:
    pairs = ["train.processes=1,2", "train.batch_size=4,3", f"hydra.sweep.dir={tmp_path}"]
    search = config.read([*OPTUNA, *pairs])
    with opened(search) as study:
        trials = Trials(search, study)
        while (job := trials.next()) is not None:
            trials.ended(complete(job, 0.5), None)
        refused = {"train.processes": "2", "train.batch_size": "3"}
        assert {str(told.texts) for told in study.told if told.why} == {str(refused)}
        assert "does not split" in study.failure


def test_values_that_were_tried_are_not_trained_again(tmp_path: Path) -> None:
    search = made_up(tmp_path, {"model": Texts(["unet", "fcn"])})
    with opened(search) as study:
        trials = Trials(search, study)
        trained = []
        while (job := trials.next()) is not None:
            trained.append(job.words)
            trials.ended(complete(job, 0.1 * len(trained)), None)
        assert sorted(words[-1] for words in trained) == ["model=fcn", "model=unet"]
        assert len(study.told) == 6
        assert {told.value for told in study.told} == {0.1, 0.2}


def test_a_run_below_the_others_is_stopped_and_told_as_pruned(tmp_path: Path) -> None:
    space: dict[str, Parameter] = {"optimizer.lr": Numbers(1e-4, 1e-1)}
    search = made_up(tmp_path, space, pruner="median", n_trials=9)
    with opened(search) as study:
        trials = Trials(search, study)

        def follow(job: Job, *lines: tuple[int, float]) -> Followed:
            job.folder.mkdir()
            text = "".join(
                json.dumps({"phase": "val", "step": step, "mIoU": value}) + "\n"
                for step, value in lines
            )
            (job.folder / "metrics.jsonl").write_text(text)
            followed = Followed(job.folder, 20, 4, "mIoU", "max")
            followed.look()
            return followed

        for value in (0.1, 0.2, 0.3, 0.4, 0.5):
            job = trials.next()
            assert job is not None
            assert not trials.watch(job, follow(job, (10, value), (20, value)))
            (job.folder / "summary.json").write_text(json.dumps({"best": {"value": value}}))
            trials.ended(job, None)
        worse, late = trials.next(), trials.next()
        assert worse is not None
        assert late is not None
        assert trials.watch(worse, follow(worse, (10, 0.2)))
        assert not trials.watch(late, follow(late, (20, 0.0)))  # at its end already
        trials.ended(worse, Interrupted("SIGTERM at step 11: saved"))
        assert study.counts == {"with a value": 5, "failed": 0, "pruned": 1, "open": 1}
        assert trials.kept_open == []


# ---------------------------------------------------------------------- real runs

TINY = [
    "dataset=shapes",
    "dataset.train=8",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "model=unet",
    "model.width=16",
    "train.steps=2",
    "train.eval_every=1",
    "train.save_every=1",
    "train.batch_size=4",
    "train.threads=1",
    "train.precision=fp32",
    "optimizer=sgd",
    "writer=[]",
    "log.progress=false",
    "log.images=0",
]


def command(folder: Path, *words: str) -> list[str]:
    start = [sys.executable, "-m", "segtrain", "-m", *TINY, *OPTUNA, *words]
    return [*start, f"hydra.sweep.dir={folder}"]


def ranked(folder: Path) -> list[dict[str, str]]:
    """The complete runs as segreport ranks them."""
    report([folder])
    with (folder / "report_settings.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["status"] == "complete"]


@pytest.mark.slow
def test_a_search_survives_a_diverging_trial_and_a_kill_and_names_the_run_that_is_best(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "sweep"
    # With this seed one of six rates is above 1e28, the fourth, and the others below 1e5.
    words = ["optimizer.lr=tag(log,interval(1e-4,1e30))", "hydra.sweeper.seed=10"]
    process = subprocess.Popen(
        command(folder, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not list(folder.glob("001,*/checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = (folder / FILE).read_bytes()
    with (folder / FILE).open("ab") as file:
        file.write(before.splitlines()[-1][:20])  # as a kill inside a line leaves it
    first = (next(folder.glob("000,*/summary.json"))).read_bytes()

    done = subprocess.run(
        command(folder, *words), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "study  6 trials: 5 with a value, 1 failed\n" in done.stdout
    assert "trial 3, counts as the worst: step 2: the loss is not finite" in done.stdout
    assert next(folder.glob("000,*/summary.json")).read_bytes() == first  # not trained again
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [path.name[:4] for path in runs] == ["000,", "001,", "002,", "003,", "004,", "005,"]
    assert [path for path in runs if not (path / "summary.json").exists()] == [runs[3]]
    steps = [
        json.loads(line)["step"] for line in (runs[1] / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)  # it went on where it was

    best = re.search(r"^run    (.*)$", done.stdout, re.MULTILINE)
    assert best is not None
    rows = ranked(folder)
    assert len(rows) == 5
    assert rows[0]["run"] == Path(best[1]).name
    scores = [
        json.loads((run / "summary.json").read_text())["best"]["value"]
        for run in runs
        if (run / "summary.json").exists()
    ]
    value = re.search(r"^best   trial \d: mIoU (\S+), ", done.stdout, re.MULTILINE)
    assert value is not None
    assert float(value[1]) == pytest.approx(max(scores), abs=5e-5)

    again = subprocess.run(
        command(folder, *words), capture_output=True, text=True, timeout=600, check=False
    )
    assert again.returncode == 0
    assert again.stdout == done.stdout[done.stdout.index("study  6") :]  # nothing is left to do


@pytest.mark.slow
def test_a_signal_saves_the_running_trials_of_a_search(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = ["optimizer.lr=interval(1e-4,1e-1)", "train.steps=500", "hydra.sweeper.n_jobs=2"]
    process = subprocess.Popen(
        command(folder, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*/checkpoints/step_*2"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "SIGTERM: 2 trials are saved; the same command goes on with the study" in said[1]
    assert len(list(folder.glob("*/checkpoints"))) == 2


@pytest.mark.slow
def test_runs_that_fall_behind_are_pruned_and_saved(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = ["optimizer.lr=tag(log,interval(1e-6,1e-1))", "hydra.sweeper.pruner=median"]
    words += ["train.steps=40", "train.eval_every=5", "train.save_every=40"]
    # With this seed the first five are 2.8e-2, 1.1e-4, 5.9e-6, 2.1e-2 and 1.2e-5, the next 1.5e-5.
    done = subprocess.run(
        command(folder, *words), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "study  6 trials: 5 with a value, 1 pruned\n" in done.stdout
    assert re.search(r"^\[5\] pruned at step (5|6|7|8|9)$", done.stdout, re.MULTILINE)
    (pruned,) = folder.glob("005,*/")
    assert not (pruned / "summary.json").exists()
    assert list(pruned.glob("checkpoints/step_*"))  # whoever wants it goes on with it
    assert ranked(folder)[0]["run"].startswith("000,")
    assert re.search(r"^best   trial 0: ", done.stdout, re.MULTILINE)
