"""The run log: bytes on the disk, resume, full disks, TensorBoard, progress."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from segtrain.contracts import Writer
from segtrain.errors import DataError, DiskError
from segtrain.logs import run_log as run_log_module
from segtrain.logs.clock import STAGES
from segtrain.logs.metrics_file import read_lines_of, read_metrics, rewind
from segtrain.logs.run_log import RunLog
from segtrain.logs.writers import TensorBoard

Open = Callable[..., RunLog]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """A quiet log of a 100-step run in the test's folder; arguments as of RunLog."""

    def make(start: int = 0, writers: Sequence[Writer] = (), progress: bool = False) -> RunLog:
        return RunLog(tmp_path, 100, start, 8, writers, progress)

    return make


class Clock:
    """A monotonic clock that goes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(run_log_module.time, "monotonic", lambda: self.now)


def run(make: Open, start: int, end: int) -> None:
    """What a trainer logs: a line a step, a validation every 5."""
    run_log = make(start)
    for step in range(start + 1, end + 1):
        run_log.advance(step, 1 / step)
        run_log.train(step, {"loss": 1 / step, "lr": 0.1})
        if step % 5 == 0:
            run_log.validation(step, {"mIoU": step / 7, "IoU/bus": None})
    run_log.sync()
    run_log.close()


def test_a_train_and_a_validation_line_are_these_bytes(opened: Open, tmp_path: Path) -> None:
    run_log = opened()
    run_log.train(1, {"loss": 0.1, "lr": 1e-05})
    run_log.validation(2, {"mIoU": 0.5, "IoU/caf\u00e9": None, "images": 7})
    run_log.close()
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == (
        '{"step": 1, "phase": "train", "loss": 0.1, "lr": 1e-05}\n'
        '{"step": 2, "phase": "val", "mIoU": 0.5, "IoU/caf\u00e9": null, "images": 7}\n'
    )


def test_floats_read_back_exactly_and_what_is_not_finite_is_null(
    opened: Open, tmp_path: Path
) -> None:
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, np.float32(0.1)]
    run_log = opened()
    run_log.train(
        1, {str(i): v for i, v in enumerate(values)} | {"nan": float("nan"), "inf": float("inf")}
    )
    run_log.close()
    (line,) = read_metrics(tmp_path)
    assert [line[str(i)] for i in range(5)] == [float(v) for v in values]
    assert line["nan"] is None
    assert line["inf"] is None


def test_a_resumed_run_writes_the_bytes_of_the_unbroken_one(opened: Open, tmp_path: Path) -> None:
    run(opened, 0, 20)
    unbroken = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").unlink()
    run(opened, 0, 13)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 14, "pha')
    rewind(tmp_path, 10)
    run(opened, 10, 20)
    assert (tmp_path / "metrics.jsonl").read_bytes() == unbroken


def test_rewind_keeps_the_lines_up_to_the_step_and_drops_the_rest_of_both_files(
    opened: Open, tmp_path: Path
) -> None:
    run(opened, 0, 7)
    rewind(tmp_path, 5)
    for name in ("metrics.jsonl", "timing.jsonl"):
        records = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [(r["step"], r["phase"]) for r in records] == [
            *((s, "train") for s in range(1, 6)),
            (5, "val"),
        ]
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    "torn", [b"", b"{", b'{"step": 3, "phase": "train", "loss": 1.0}', b"\0\0\0\0"]
)
def test_a_last_line_without_its_end_does_not_count(
    opened: Open, tmp_path: Path, torn: bytes
) -> None:
    run(opened, 0, 2)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + torn)
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
    rewind(tmp_path, 50)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("damage", [b"###\n", b"[1]\n", b'{"phase": "val"}\n', b"\xff\xfe\n"])
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_removed(
    tmp_path: Path, damage: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + damage + b'{"step": 3}\n'
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is damaged"):
        rewind(tmp_path, 1)
    assert path.read_bytes() == content


def test_a_folder_without_a_log_has_no_metrics_and_nothing_to_rewind(tmp_path: Path) -> None:
    rewind(tmp_path, 0)
    assert read_metrics(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_on_the_file_before_the_log_is_closed(opened: Open, tmp_path: Path) -> None:
    run_log = opened()
    run_log.train(1, {"loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1, "phase": "train", "loss": 0.5}]
    run_log.close()


def test_other_ranks_write_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_log = RunLog(tmp_path / "run", 10, 0, 8, enabled=False)
    run_log.advance(1, 0.5)
    run_log.evaluating(1, 2)
    run_log.train(1, {"loss": 0.5})
    run_log.validation(1, {"mIoU": 0.5})
    run_log.image(1, "a", np.zeros((2, 2, 3), np.uint8))
    run_log.text("hello")
    run_log.sync()
    assert run_log.totals() == {}
    run_log.close()
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
def test_a_full_disk_is_a_disk_error_that_names_the_file(
    opened: Open, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk(path: Path) -> io.FileIO:
        return io.FileIO("/dev/full" if path.name == name else path, "ab")

    monkeypatch.setattr("segtrain.logs.metrics_file.open_to_append", disk)
    run_log = opened()

    def write_to_every_file() -> None:
        run_log.train(1, {"loss": 0.5})
        run_log.text("hello")

    with pytest.raises(DiskError, match=f"{name}: cannot write .No space left on device.*resume="):
        write_to_every_file()
    run_log.close()


@pytest.mark.row("R4")
def test_where_only_train_log_is_full_one_line_says_so_and_the_run_goes_on(
    opened: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def disk(path: Path) -> io.FileIO:
        return io.FileIO("/dev/full" if path.name == "train.log" else path, "ab")

    monkeypatch.setattr("segtrain.logs.metrics_file.open_to_append", disk)
    run_log = opened()
    for step in (1, 2):
        run_log.train(step, {"loss": 0.5})
        run_log.text(f"step {step}")
    run_log.close()
    first, said, second = capsys.readouterr().out.splitlines()
    assert (first, second) == ("step 1", "step 2")
    assert said.startswith(f"warn   train.log: {tmp_path}/train.log: cannot write (No space left")
    assert said.endswith("; the run goes on without it")
    assert len(read_metrics(tmp_path)) == 2


def test_a_folder_that_is_a_file_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(DiskError, match="run"):
        RunLog(tmp_path / "run", 10, 0, 8, writers=())


def test_text_goes_to_the_console_as_it_is_and_to_train_log_with_the_time(
    opened: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_log = opened()
    run_log.text("first\nsecond")
    run_log.close()
    assert capsys.readouterr().out == "first\nsecond\n"
    head, tail = (tmp_path / "train.log").read_text().splitlines()
    assert head.endswith("  first")
    assert head[4] == "-"
    assert tail == "second"


def test_a_validation_shows_its_overall_numbers_and_not_those_of_classes(
    opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    run_log = opened()
    run_log.validation(5, {"mIoU": 0.5, "pixAcc": None, "IoU/bus": 0.25})
    run_log.close()
    assert capsys.readouterr().out == "step 5  val  mIoU 0.5000  pixAcc absent\n"


def test_rates_count_training_time_and_not_the_validation(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    run_log = opened()
    run_log.begin()
    for step in (1, 2):  # 2 s a step of 8 images
        clock.now += 2
        run_log.advance(step, 0.5)
    run_log.train(2, {"loss": 0.5}, {"grad_norm": float("nan"), "loss_scale": 4.0})
    with run_log.spending("validate"):
        clock.now += 50
        run_log.validation(2, {"mIoU": 0.5})
    clock.now += 1
    run_log.advance(3, 0.5)
    run_log.train(3, {"loss": 0.5})
    assert run_log.totals() == {
        "wall_seconds": 55.0,
        "images_per_second": pytest.approx(24 / 5),
        "shares": {"data": 0, "compute": 0.0909, "validate": 0.9091, "save": 0, "log": 0},
    }
    run_log.close()
    first, val, second, whole = read_lines_of(tmp_path / "timing.jsonl")
    none = dict.fromkeys(STAGES, 0.0)
    assert first == {
        **{"step": 2, "phase": "train", "elapsed": 4.0, "images_per_second": 4.0},
        **none,
        **{"compute": 1.0, "grad_norm": None, "loss_scale": 4.0},
    }
    assert val == {"step": 2, "phase": "val", "elapsed": 54.0, "seconds": 50.0}
    assert second == {
        **{"step": 3, "phase": "train", "elapsed": 55.0, "images_per_second": 8.0},
        **none,
        **{"compute": 1 / 51, "validate": 50 / 51},
    }
    assert whole == {
        **{"step": 3, "phase": "all", "elapsed": 55.0, "seconds": 55.0},
        **none,
        **{"compute": 5 / 55, "validate": 50 / 55},
    }


def test_rates_and_shares_leave_out_what_was_before_the_loop_and_rates_what_was_saved(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    run_log = opened()
    clock.now += 30  # every file is read before the first update
    run_log.begin()
    clock.now += 2
    run_log.advance(1, 0.5)
    with run_log.spending("save"):
        clock.now += 12
    clock.now += 2
    run_log.advance(2, 0.5)
    assert run_log.totals() == {
        "wall_seconds": 46.0,
        "images_per_second": 4.0,  # 16 in 4 s
        "shares": {"data": 0, "compute": 0.25, "validate": 0, "save": 0.75, "log": 0},
    }
    run_log.close()


def test_in_a_file_progress_is_a_plain_line_every_15_seconds(
    opened: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    run_log = opened(progress=True)
    run_log.begin()
    for step in range(1, 17):
        clock.now += 2
        run_log.advance(step, None if step == 8 else 0.5)
    for done in range(1, 7):
        clock.now += 4
        run_log.evaluating(done, 6)
    run_log.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 8/100  loss 0.5000  4.0 images/s  0:03:04 left",
        "step 16/100  loss 0.5000  4.0 images/s  0:02:48 left",
        "validating 4/6",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_shows_loss_rate_and_steps_and_text_does_not_tear_it(
    opened: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    run_log = opened(start=40, progress=True)
    run_log.begin()
    clock.now += 2
    run_log.advance(41, 0.25)
    run_log.text("hello")
    run_log.evaluating(3, 3)
    run_log.close()
    assert capsys.readouterr().out == "hello\ntime   100 % computing\n"
    drawn = screen.getvalue()
    assert "41/100" in drawn
    assert "loss 0.2500, 4.0 images/s" in drawn
    assert "validating 3/3" in drawn


def test_a_lost_terminal_does_not_stop_the_run(
    opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> int:
        raise BrokenPipeError

    lost = io.StringIO()
    monkeypatch.setattr(lost, "write", broken, raising=False)
    run_log = opened()
    monkeypatch.setattr(sys, "stdout", lost)
    run_log.text("hello")
    run_log.close()
    assert "hello" in (tmp_path / "train.log").read_text()


def test_tensorboard_reads_scalars_and_pictures_back_and_a_resume_replaces_later_steps(
    opened: Open, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = opened(writers=[TensorBoard(tmp_path, 0)])
    for step in (1, 2, 3):
        first.train(step, {"loss": float(step)})
    first.image(2, "sample", np.zeros((4, 6, 3), np.uint8))
    first.close()
    second = opened(start=2, writers=[TensorBoard(tmp_path, 2)])
    second.train(3, {"loss": 30.0})
    second.validation(3, {"mIoU": 0.5, "IoU/bus": None})
    second.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]
    assert [(e.step, e.value) for e in events.Scalars("val/mIoU")] == [(3, 0.5)]
    assert "val/IoU/bus" not in events.Tags()["scalars"]
    assert [(i.step, i.height, i.width) for i in events.Images("sample")] == [(2, 4, 6)]
