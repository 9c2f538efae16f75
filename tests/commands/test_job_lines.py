"""What stands on a terminal, and in a file, while many runs train at once."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from segtrain.commands import gpus, job_lines
from segtrain.commands.job_lines import JobLines
from segtrain.config.launchers import PoolConf
from segtrain.errors import UserError
from segtrain.logs.follow import Followed
from segtrain.runtime import devices


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after these characters."""
    lines: list[str] = []
    for piece in written.split("\x1b[J"):
        text, _, back = piece.partition("\x1b[")
        lines += text.split("\n")[:-1]
        if back:
            del lines[-int(back.removesuffix("F")) :]
    return lines


@pytest.fixture(autouse=True)
def _each_tick_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_lines, "DRAW_SECONDS", 0.0)
    monkeypatch.setattr(job_lines, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((80, 6)))


def followed(folder: Path, name: str, step: int, score: float | None) -> Followed:
    run = folder / name
    run.mkdir()
    line = {"step": step, "phase": "val", "mIoU": score}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run / "timing.jsonl").write_text('{"step": 1, "images_per_second": 4.0}\n')
    return Followed(run, 100, 2, "mIoU", "max")


def test_a_terminal_has_a_line_a_job_and_the_best_of_all_drawn_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    lines = JobLines(total=3)
    lines.begin(0, "lr=0.1", "GPU 0", followed(tmp_path, "0", 40, 0.25), "mIoU")
    lines.begin(1, "lr=0.2", "GPU 1", followed(tmp_path, "1", 60, 0.5), "mIoU")
    lines.tick()
    lines.tick()
    assert screen(terminal.getvalue()) == [
        "[0] GPU 0  step 40/100  best mIoU 0.2500 at 40  0:00:30 left  lr=0.1",
        "[1] GPU 1  step 60/100  best mIoU 0.5000 at 60  0:00:20 left  lr=0.2",
        "0 of 3 ended, 2 running; best mIoU so far 0.5000: [1] lr=0.2",
    ]
    lines.end(1, complete=True)
    assert screen(terminal.getvalue()) == []
    lines.tick()
    assert screen(terminal.getvalue())[-1] == (
        "1 of 3 ended, 1 running; best mIoU so far 0.5000: [1] lr=0.2"
    )
    lines.close()
    assert screen(terminal.getvalue()) == []
    said = capsys.readouterr().out
    assert said == "[1] complete in 0:00:00  best mIoU 0.5000 at 60  lr=0.2\n"


def test_more_jobs_than_a_terminal_has_lines_are_counted_and_long_lines_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    lines = JobLines(total=None)
    for number in range(7):
        lines.begin(number, "x" * 100, "", followed(tmp_path, str(number), 1, None), "mIoU")
    lines.tick()
    shown = screen(terminal.getvalue())
    assert [len(line) for line in shown[:3]] == [79, 79, 79]
    assert shown[3:] == ["... and 4 more", "0 ended, 7 running"]


def test_in_a_file_every_line_is_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = JobLines(total=1)
    lines.begin(0, "lr=0.1", "", followed(tmp_path, "0", 40, 0.25), "mIoU")
    lines.tick()
    lines.end(0, complete=False)
    lines.say("segtrain: job 0: killed\x1b[31m", error=True)
    out, err = capsys.readouterr()
    assert out == "[0] lr=0.1\n"
    assert err.splitlines() == [
        "[0]  step 40/100  best mIoU 0.2500 at 40  0:00:30 left  lr=0.1",
        "0 of 1 ended, 1 running; best mIoU so far 0.2500: [0] lr=0.1",
        r"segtrain: job 0: killed\x1b[31m",
    ]


# What the pool is, as it is said before the first run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, five GiB of free memory, four GPUs."""
    monkeypatch.setattr(devices, "cores_here", lambda: 8)
    monkeypatch.setattr(devices, "free_memory", lambda: 5 * 2**30)
    monkeypatch.setattr(devices, "has_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("conf", "asked", "jobs", "said"),
    [
        (PoolConf(), ["auto"], 9, "4 at a time on 4 GPUs (0, 1, 2, 3)\n"),
        (PoolConf(("1", "3"), 2), ["auto"], 9, "4 at a time on 2 GPUs (1, 3), 2 on each\n"),
        (PoolConf(), ["cpu", "cpu"], 9, "2 at a time on the CPU, 4 of 8 cores each\n"),
        (PoolConf(jobs=3), ["cpu"], 9, "3 at a time on the CPU, 2 of 8 cores each\n"),
        (PoolConf(jobs=3), ["cpu"], 2, "2 at a time on the CPU, 4 of 8 cores each\n"),
        (PoolConf(), ["auto", "cpu"], None, "4 at a time on 4 GPUs (0, 1, 2, 3)\n"),
    ],
)
def test_the_command_says_how_many_runs_train_at_a_time_and_where(
    conf: PoolConf,
    asked: list[str],
    jobs: int | None,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpus.pool_of(conf, asked, jobs)
    assert capsys.readouterr() == (said, "")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("conf", "jobs", "why"),
    [(PoolConf(), 3, "there are 3 runs"), (PoolConf(jobs=3), 9, "hydra.launcher.jobs=3")],
)
def test_gpus_that_no_run_of_a_sweep_uses_are_named(
    conf: PoolConf, jobs: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus.pool_of(conf, ["auto"], jobs)
    assert capsys.readouterr().err == f"warn   1 of 4 GPUs are used by no run: {why}\n"


@pytest.mark.usefixtures("machine")
def test_under_torchrun_or_srun_a_pool_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="would train every run; start it once"):
        gpus.pool_of(PoolConf(), ["auto"], 2)
