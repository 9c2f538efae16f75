"""Losses and gradients that spike.

Members of the kind: one batch whose loss is a thousand times as large; a level that rises for good;
noise, and numbers that are 0, negative or not finite; more spikes than a file should hold; a kill
and a resume after a spike.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pytest
from poison import Case, ended, images_of, installed
from rows import amount

from segtrain.checkpoints import reading
from segtrain.logs import run_log
from segtrain.logs.metrics_file import SPIKES, json_line, read_lines_of, rewind
from segtrain.logs.run_log import RunLog
from segtrain.logs.spikes import ENOUGH, Usual
from segtrain.runtime.distributed import World

STEPS = 26
AT = 24  # behind the 20 numbers that are needed to know what is usual


def fed(*values: float) -> list[float | None]:
    """What `Usual` says of each number."""
    usual = Usual()
    return [usual.before(value) for value in values]


@pytest.mark.row("R17")
@pytest.mark.parametrize("precision", amount(["fp32"], ["fp32", "bf16"], ["fp32", "bf16", "fp16"]))
def test_a_spike_is_written_down_with_its_images_and_changes_nothing(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("spike", precision, step=AT, ema=False)
    for name in ("told", "untold"):
        with installed(case, factor=1e3), monkeypatch.context() as patched:
            if name == "untold":
                patched.setattr(Usual, "before", lambda usual, value: None)
            assert ended(case, tmp_path / name, World(), steps=STEPS, save_every=None) == "complete"
    lines = read_lines_of(tmp_path / "told" / SPIKES)
    (line,) = [line for line in lines if line["step"] == AT]
    assert line["images"] == list(itertools.chain(*images_of(AT, 0, 1, case.accumulate)))
    assert line["loss"] > 100 * line["usual_loss"]
    if precision == "fp16":  # the scaled gradient overflows, which lowers the scale
        assert (line["norm"], line["usual_norm"]) == (None, None)
    else:
        assert line["norm"] > 100 * line["usual_norm"]
    assert not line["skipped"]
    log = (tmp_path / "told" / "train.log").read_text()
    assert f"note   step {lines[0]['step']}: " in log
    assert log.count(SPIKES) == 1
    assert not (tmp_path / "untold" / SPIKES).exists()
    for name in ("metrics.jsonl", "checkpoints/step_00000026/model.pt"):
        assert (tmp_path / "told" / name).read_bytes() == (tmp_path / "untold" / name).read_bytes()


@pytest.mark.row("R17")
def test_what_lies_far_above_the_usual_is_a_spike_and_noise_is_none() -> None:
    rest = [1.0] * ENOUGH
    assert fed(*rest[1:], 1e6)[-1] is None, "too few numbers to know"
    assert fed(*rest, 2.9)[-1] is None
    assert fed(*rest, 3.1)[-1] == 1.0
    assert fed(*rest, -5.0)[-1] is None
    assert fed(*([0.0] * ENOUGH), 1e-3)[-1] == 0.0
    assert fed(*([-1.0] * ENOUGH), 0.9)[-1] is None
    assert fed(*([-1.0] * ENOUGH), 1.1)[-1] == -1.0
    wide = [1.0, 9.0] * ENOUGH  # its median is 5, its median deviation 4
    assert fed(*wide, 28.0)[-1] is None
    assert fed(*wide, 30.0)[-1] == 5.0
    for odd in (math.nan, math.inf):
        assert fed(*rest, odd, 3.1)[-2:] == [None, 1.0]
    dice = random.Random(0)
    assert set(fed(*(dice.gauss(1, 0.3) for _ in range(10_000)))) == {None}


def test_a_new_level_is_usual_once_half_of_what_is_remembered_lies_there() -> None:
    told = fed(*[1.0] * 100, *[10.0] * 100)
    assert told[100:150] == [1.0] * 50
    assert told[151:] == [None] * 49


@pytest.mark.row("R17")
def test_after_a_resume_the_file_holds_nothing_that_is_trained_anew(tmp_path: Path) -> None:
    lines = [json_line({"step": step, "loss": 1.0}) for step in (3, 4, 9)]
    (tmp_path / SPIKES).write_bytes(b"".join(lines) + b'{"step": 10, "lo')
    rewind(tmp_path, 4)
    assert (tmp_path / SPIKES).read_bytes() == b"".join(lines[:2])


def test_the_file_holds_no_more_lines_than_somebody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "MOST_SPIKES", 3)
    for start in (0, 2):
        log = RunLog(tmp_path, 10, start, 4, progress=False)
        for step in (start + 1, start + 2):
            log.spike(step, {"loss": math.nan}, ["a"])
        log.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / SPIKES).read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_run_without_spikes_has_no_such_file(tmp_path: Path) -> None:
    with installed(Case("none")):
        assert ended(Case("none"), tmp_path / "run", World()) == "complete"
    assert not (tmp_path / "run" / SPIKES).exists()
    assert reading.latest(tmp_path / "run" / "checkpoints") is not None
