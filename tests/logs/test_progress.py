"""What long work shows where stderr is a pipe or a file: whole plain lines, of every command."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from commandline import SMALL_RUN, command_of, save

from segtrain.commands import exit_codes
from segtrain.logs import progress as progress_module
from segtrain.logs import run_log as run_log_module
from segtrain.logs.progress import Progress

LEFT = r", +\S+, [\d:]+ left"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of a progress is a line, not one in 15 seconds."""
    monkeypatch.setattr(progress_module, "PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(run_log_module, "PLAIN_INTERVAL", 0.0)


def told(capfd: pytest.CaptureFixture[str], name: str, *arguments: str) -> str:
    """Run a command with progress, and return what it left in two files: whole plain lines."""
    exit_codes.run_command(name, command_of(name), list(arguments))
    both = capfd.readouterr()
    for text in both:
        assert text == "" or text.endswith("\n")
        assert all(line.isprintable() for line in text.split("\n")), text
        assert "|" not in text.replace(" | ", ""), text  # of a bar
    return both.err


@pytest.mark.slow
def test_no_command_leaves_remains_of_a_bar_in_a_file(
    tmp_path: Path, at_once: None, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            name = f"{split}/{index}"
            pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
            save(tmp_path / "images" / f"{name}.png", pixels)
            save(tmp_path / "masks" / f"{name}.png", pixels[..., 0] // 128)
    data = ["dataset=folder", f"dataset.root={tmp_path}", "dataset.labels=[background, car]"]
    run = tmp_path / "run"

    err = told(capfd, "segdata", "verify", *data)
    assert re.search(rf"^verifying train: 3 of 3{LEFT}$", err, re.M)
    assert "counting val: 2 of 2, " in told(capfd, "segdata", "stats", *data)
    cache = f"dataset.cache={tmp_path / 'cache'}"
    assert "caching train: 3 of 3, " in told(capfd, "segdata", "prepare", *data, cache)
    sums = f"output={tmp_path / 'sums'}"
    assert "summing: 10 of 10, " in told(capfd, "segdata", "manifest", *data, sums)
    words = (*data, *SMALL_RUN, f"hydra.run.dir={run}", "train.steps=2", "train.threads=1")
    err = told(capfd, "segtrain", *words)
    assert re.search(r"^step 1/2  loss [\d.]+  [\d.]+ images/s  [\d:]+ left$", err, re.M)
    assert "verifying train: 3 of 3, " in err
    assert "validating 2/2\n" in err
    assert "evaluating: 2 of 2, " in told(capfd, "segeval", f"checkpoint={run}")
    photos = (f"input={tmp_path / 'images'}", f"output={tmp_path / 'maps'}")
    assert "predicting: 5 of 5, " in told(capfd, "segpredict", f"checkpoint={run}", *photos)
    assert told(capfd, "segreport", str(run)) == ""


def test_a_pass_leaves_a_line_every_15_seconds_and_a_short_one_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Progress(40, "evaluating") as bar:
        for done in range(1, 41):
            now[0] = float(done)
            bar.to(done)
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 15 of 40,  1.00image/s, 00:25 left",
        "evaluating: 30 of 40,  1.00image/s, 00:10 left",
    ]
    with Progress(10, "evaluating") as bar:
        bar.to(10)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal_is_gone_when_its_pass_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(2, "evaluating") as bar:
        bar.to(2)
    assert "evaluating:   0%" in screen.getvalue()
    assert screen.getvalue().endswith(" \r"), "the line is wiped"
