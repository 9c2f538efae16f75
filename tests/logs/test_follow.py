"""A run is followed by what it has written, while it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segtrain.logs.follow import Followed


def add(folder: Path, name: str, *lines: dict) -> None:
    with (folder / name).open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


def val(step: int, **numbers: float | None) -> dict:
    return {"step": step, "phase": "val", **numbers}


def test_a_run_that_has_not_begun_has_nothing_to_say(tmp_path: Path) -> None:
    run = Followed(tmp_path / "none", 100, 8, "mIoU", "max")
    run.look()
    assert (run.step, run.best, run.seconds_left, run.validations) == (0, None, None, [])


def test_step_best_score_and_time_left_are_those_of_the_lines_so_far(tmp_path: Path) -> None:
    run = Followed(tmp_path, 100, 8, "mIoU", "max")
    add(tmp_path, "metrics.jsonl", {"step": 10, "phase": "train", "loss": 1.0}, val(20, mIoU=0.25))
    add(tmp_path, "timing.jsonl", {"step": 10, "phase": "train", "images_per_second": 16.0})
    run.look()
    assert (run.step, run.best) == (20, (0.25, 20))
    assert run.seconds_left == 80 * 8 / 16
    add(tmp_path, "metrics.jsonl", val(40, mIoU=0.5), val(60, mIoU=0.5), val(80, mIoU=None))
    run.look()
    assert (run.step, run.best) == (80, (0.5, 40))
    assert run.validations == [(20, 0.25), (40, 0.5), (60, 0.5), (80, None)]


@pytest.mark.parametrize(("monitor", "best"), [("loss", (0.5, 20)), ("train/loss", (2.0, 10))])
def test_a_loss_is_best_where_it_is_least(
    tmp_path: Path, monitor: str, best: tuple[float, int]
) -> None:
    run = Followed(tmp_path, 100, 8, monitor, "min")
    add(tmp_path, "metrics.jsonl", {"step": 10, "phase": "train", "loss": 2.0})
    add(tmp_path, "metrics.jsonl", val(20, loss=0.5), val(40, loss=0.75))
    run.look()
    assert run.best == best


def test_a_line_that_is_being_written_or_damaged_is_passed_over(tmp_path: Path) -> None:
    run = Followed(tmp_path, 100, 8, "mIoU", "max")
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'no json\n[1]\n{"step": 5}\n{"step": 6, "phase": "val", "mI')
    run.look()
    assert (run.step, run.best) == (5, None)
    with file.open("ab") as more:
        more.write(b'oU": 0.5}\n')
    run.look()
    assert (run.step, run.best) == (6, (0.5, 6))


def test_a_run_that_went_back_to_a_checkpoint_is_followed_from_there(tmp_path: Path) -> None:
    """What a kill left behind the checkpoint is dropped: a shorter file takes the place."""
    run = Followed(tmp_path, 100, 8, "mIoU", "max")
    file = tmp_path / "metrics.jsonl"
    add(tmp_path, "metrics.jsonl", val(20, mIoU=0.25), val(40, mIoU=0.75))
    run.look()
    assert run.best == (0.75, 40)
    shorter = tmp_path / "new"
    shorter.write_text(file.read_text().splitlines(keepends=True)[0])
    shorter.replace(file)
    run.look()
    assert (run.step, run.best, run.validations) == (20, (0.25, 20), [(20, 0.25)])
