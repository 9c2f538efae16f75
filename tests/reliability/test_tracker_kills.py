"""W&B (offline) and MLflow (a folder) hold each line of metrics.jsonl once, whatever ends a run.

Real runs, real signals; what the trackers hold is read back from their own files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from run_folders import digest
from test_kills import Run
from tracked import lines, mlflow_numbers, of_lines, wandb_files, wandb_numbers

from segtrain.checkpoints import reading

pytest.importorskip("wandb", reason="needs segtrain[wandb]")
pytest.importorskip("mlflow", reason="needs segtrain[mlflow]")
pytestmark = pytest.mark.slow

STEPS = 60
BOTH = (
    "model=unet",
    "model.width=4",
    "train.save_every=4",
    "train.eval_every=6",
    "log.images=1",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "train.batch_size=2",
    f"train.steps={STEPS}",
    "writer=[tensorboard,wandb,mlflow]",
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def services(parent: int) -> list[str]:
    """W&B's processes that were started by a process, which may be gone."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if line.endswith(f"--pid {parent}")]


def test_each_line_is_there_once_after_kills_and_resumes_and_no_bit_changes(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", *BOTH)
    for sent in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        before = run.logged()
        process = run.start()
        # Between two checkpoints, so that steps come again.
        run.wait_for(lambda: run.logged() > before + 6 and run.logged() % 4 == 2)  # noqa: B023
        process.send_signal(sent)
        assert run.end(60) == (75 if sent == signal.SIGINT else -sent)
        deadline = time.monotonic() + 30
        while services(process.pid):
            assert time.monotonic() < deadline, "W&B's process outlives the run"
            time.sleep(0.2)
    process = run.start()
    assert run.end() == 0, run.stderr()
    assert services(process.pid) == []
    told = lines(run.folder)
    assert len({step for _, step, _ in told}) == STEPS
    assert of_lines(wandb_numbers(run.folder)) == told
    assert of_lines(mlflow_numbers(run.folder)) == told
    assert len(wandb_files(run.folder)) == 2  # of the starts that were ended in order
    assert len(list((run.folder / "wandb/earlier").iterdir())) == 2
    assert not [path for path in run.folder.rglob("*") if path.is_symlink()]
    assert "warn" not in (run.folder / "train.log").read_text()
    plain = Run(tmp_path / "plain", *BOTH, "writer=[]", "log.images=0")
    plain.finish()
    assert (plain.folder / "metrics.jsonl").read_bytes() == (
        run.folder / "metrics.jsonl"
    ).read_bytes()
    for name in ("model", "optimizer", "precision"):
        one, other = (reading.find(place.folder, "latest").read(name) for place in (run, plain))
        assert digest(one) == digest(other)
