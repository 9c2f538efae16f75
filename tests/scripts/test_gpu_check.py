"""scripts/gpu_check.py runs on a CPU in small, so that a GPU, once there is one, finds no slip."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module; threads are as before afterwards."""
    import torch

    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    yield importlib.import_module("gpu_check")
    torch.set_num_threads(threads)


def rows_of(script: ModuleType, out: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    code = script.main(["--device", "cpu", "--tiny", "--out", str(out), *arguments])
    rows = json.loads((out / "gpu_check.json").read_text())["rows"]
    table = (out / "gpu_check.md").read_text()
    assert table.count("\n| ") - 1 == len(rows)  # beside the header
    return code, rows


def test_a_step_of_unet_waits_nowhere_for_the_host(script: ModuleType, tmp_path: Path) -> None:
    code, (row,) = rows_of(script, tmp_path, "--part", "waits", "--models", "unet")
    assert code == 0
    assert (row["ok"], row["waits"], row["where"]) == (True, 0, "nowhere")


def test_a_row_that_fails_or_comes_too_late_is_named_and_the_others_go_on(
    script: ModuleType, tmp_path: Path
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("no kernel\nfor this device")

    report = script.Report(tmp_path, time.monotonic() + 60)
    report.row("speed", "one", broken)
    report.row("speed", "two", lambda: {"images/s": 3.0})
    report.deadline = time.monotonic() - 1
    report.row("speed", "three", broken)
    assert [row["ok"] for row in report.rows] == [False, None, None]
    table = (tmp_path / "gpu_check.md").read_text()
    assert "| speed | one | FAILED | note RuntimeError: no kernel |" in table
    assert "| speed | two | - | images/s 3 |" in table
    assert "| speed | three | - | note not run: the time was up | - |" in table


@pytest.mark.slow
def test_every_part_runs_in_small(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    models = ("deeplabv3plus_r18", "mask_rcnn_r18", "unet")
    code, rows = rows_of(script, tmp_path, "--minutes", "60", "--models", *models)
    assert [row for row in rows if row["ok"] is False] == []
    assert code == 0
    assert {row["part"] for row in rows} == set(script.PARTS)
    assert sorted(row["name"] for row in rows if row["part"] == "models") == sorted(models)
    speeds = [row["images/s"] for row in rows if row["part"] == "speed"]
    assert len(speeds) == 9
    assert min(speeds) > 0
    waits = {row["name"]: row for row in rows if row["part"] == "waits"}
    assert waits["deeplabv3plus_r18"]["waits"] == 0
    # Which anchors and regions are drawn is decided on the host.
    assert "layers/regions.py" in waits["mask_rcnn_r18"]["where"]
