"""A sweep of real jobs: one that is refused and one that diverges must not cost the others anything
(R33).
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segtrain.commands.report import report

TINY = [
    "dataset=shapes",
    "dataset.train=8",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "train.steps=2",
    "train.batch_size=4",
    "train.threads=1",  # two of them wait for each other on a busy machine
    "train.precision=fp32",
    "train.eval_every=2",
    "optimizer=sgd",
    "writer=[]",
    "log.progress=false",
    "log.images=0",
]

SMALL = ["model=unet", "model.width=16"]  # a checkpoint of the default network is 150 MB


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`segtrain -m` with tiny settings into `folder`."""
    start = [sys.executable, "-m", "segtrain", "-m", *TINY, f"hydra.sweep.dir={folder}", *arguments]
    return subprocess.run(
        start, capture_output=True, text=True, timeout=300, cwd=folder.parent, check=False
    )


def jobs(folder: Path, key: str) -> dict[str, Path]:
    """Run folders by the value of `key`."""
    configs = sorted(folder.glob("*/.hydra/overrides.yaml"))
    values = {}
    for path in configs:
        line = next(line for line in path.read_text().splitlines() if line.startswith(f"- {key}="))
        values[line.partition("=")[2]] = path.parent.parent
    return values


def statuses(folder: Path, key: str) -> dict[str, str]:
    """What segreport says of each job, by the value of `key`."""
    report([folder])
    with (folder / "report.csv").open() as file:
        return {row[key]: row["status"] for row in csv.DictReader(file)}


@pytest.mark.row("R33")
def test_a_failing_and_a_diverging_job_leave_the_others_complete_and_are_all_that_runs_again(
    tmp_path,
):
    folder = tmp_path / "sweep"
    ask = "optimizer.lr=-1,0.01,1e30,0.02"
    first = sweep(folder, ask, *SMALL)
    assert first.returncode not in (0, 75)
    assert "Traceback" not in first.stderr
    assert "not finite" in first.stderr
    assert "optimizer.lr" in first.stderr
    found = jobs(folder, "optimizer.lr")
    complete = {value for value, run in found.items() if (run / "summary.json").exists()}
    assert complete == {"0.01", "0.02"}
    for value in complete:
        summary = json.loads((found[value] / "summary.json").read_text())
        assert summary["status"] == "complete"
        assert summary["step"] == 2
        assert summary["final"]["mIoU"] >= 0
    said = {float(value): status for value, status in statuses(folder, "optimizer.lr").items()}
    assert said == {0.01: "complete", 1e30: "incomplete", 0.02: "complete"}  # -1 never began

    before = {value: (found[value] / "summary.json").stat().st_mtime_ns for value in complete}
    again = sweep(folder, ask, *SMALL)
    assert again.returncode not in (0, 75)
    assert before == {
        value: (found[value] / "summary.json").stat().st_mtime_ns for value in complete
    }
    assert again.stdout.count("complete already, left alone") == 2
    assert "not finite" in again.stderr


@pytest.mark.slow
def test_a_sweep_over_two_keys_that_succeeds_ends_with_zero_and_one_folder_each(tmp_path):
    folder = tmp_path / "sweep"
    done = sweep(folder, "model.backbone=resnet18,resnet34", "train.seed=0,1")
    assert done.returncode == 0, done.stderr
    runs = [path.parent for path in sorted(folder.glob("*/summary.json"))]
    assert [run.name for run in runs] == [
        f"{rest}"
        for rest in sorted(run.name for run in runs)
        if "backbone=resnet" in rest and "train.seed=" in rest
    ]
    assert len(runs) == 4
    losses = {json.loads((run / "summary.json").read_text())["final"]["loss"] for run in runs}
    assert len(losses) == 4  # every job trained something else
    assert set(statuses(folder, "model.backbone").values()) == {"complete"}


@pytest.mark.row("R33")
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_stopped_goes_on_where_it_was(tmp_path, sent):
    folder = tmp_path / "sweep"
    settings = [*SMALL, "train.steps=30", "train.save_every=1", "train.eval_every=30"]
    settings += ["train.seed=0,1"]
    start = [sys.executable, "-m", "segtrain", "-m", *TINY, f"hydra.sweep.dir={folder}", *settings]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(folder.glob("*seed=1/checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, sent)
    said = process.communicate()
    assert process.returncode == (75 if sent == signal.SIGTERM else -sent), said
    runs = jobs(folder, "train.seed")
    assert [(runs[seed] / "summary.json").exists() for seed in "01"] == [True, False]
    done = sweep(folder, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left alone") == 1
    steps = [
        json.loads(line)["step"] for line in (runs["1"] / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)
    assert steps[-1] == 30
