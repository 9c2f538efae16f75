"""segreport: the table is checked against run folders whose numbers are written here."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from segtrain.commands import report_page as module
from segtrain.commands.report import report
from segtrain.errors import DiskError, UserError

CONFIG = """
model: {{_target_: segtrain.models.fcn.FCN, backbone: {backbone}}}
loss: {{weights: [1.0, 0.4]}}
train: {{steps: 30, seed: 0, monitor: mIoU, monitor_mode: max}}
"""
LINES = [
    {"step": 10, "phase": "train", "loss": 2.0},
    {"step": 10, "phase": "val", "mIoU": 0.5, "pixAcc": 0.8, "loss": 1.5},
    {"step": 20, "phase": "train", "loss": 1.0},
    {"step": 20, "phase": "val", "mIoU": 0.25, "pixAcc": 0.7, "loss": 1.25},
]


def make_run(
    folder: Path, backbone: str = "resnet50", summary: dict[str, Any] | None = None
) -> Path:
    """A run folder: incomplete without a summary."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(backbone=backbone))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def complete(**changes: Any) -> dict[str, Any]:
    return {
        "status": "complete",
        "step": 30,
        "metric": "mIoU",
        "best": {"step": 30, "value": 0.625},
        "final": {"mIoU": 0.625, "pixAcc": 0.875, "loss": 0.75},
        "wall_seconds": 3725.4,
        "images_per_second": 12.34,
        "seed": 0,
        **changes,
    }


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "report.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_complete_run_is_one_row_of_its_summary(tmp_path: Path) -> None:
    text = report([make_run(tmp_path / "fcn" / "a", summary=complete())])
    header, row, written = text.splitlines()
    assert header.split()[:2] == ["metric", "best"]
    assert re.sub(r" {2,}", "|", row) == "mIoU|0.6250|30|0.6250|0.8750|0.7500|12.3|1:02:05|a"
    assert written == (
        f"written to {tmp_path / 'fcn/a/report.html'} (and .md, .csv, report_settings.csv)"
    )
    assert rows_of(tmp_path / "fcn" / "a")[0]["time"] == "3725.4"


def test_an_incomplete_run_shows_its_best_and_last_validation(tmp_path: Path) -> None:
    report([make_run(tmp_path / "a")])
    row = rows_of(tmp_path / "a")[0]
    assert (row["status"], row["step"], row["of"]) == ("incomplete", "20", "30")
    assert (row["best"], row["at step"], row["final"], row["val loss"]) == (
        "0.5",
        "10",
        "0.25",
        "1.25",
    )


def test_a_minimised_metric_has_its_smallest_value_as_best(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    text = (run / "config.yaml").read_text().replace("mIoU", "loss").replace("max", "min")
    (run / "config.yaml").write_text(text)
    report([run])
    assert (rows_of(run)[0]["best"], rows_of(run)[0]["at step"]) == ("1.25", "20")


def test_only_config_keys_that_differ_are_columns(tmp_path: Path) -> None:
    make_run(tmp_path / "x" / "a", "resnet50")
    make_run(tmp_path / "y" / "b", "resnet101")
    text = report([tmp_path], tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [(row["run"], row["model.backbone"]) for row in rows] == [
        ("x/a", "resnet50"),
        ("y/b", "resnet101"),
    ]
    assert "model._target_" not in rows[0]
    assert "train.steps" not in rows[0]
    assert "loss.weights" not in rows[0]
    assert "model.backbone" in text
    mark, head, _, first, second, *_ = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert mark == "<!-- written by segreport -->"
    assert head.startswith("| model.backbone | metric | best |")
    assert first.startswith("| resnet50 | mIoU | 0.5000 * |")
    assert second.startswith("| resnet101 | mIoU | 0.5000 |")


def test_the_terminal_shows_six_differing_keys_and_says_where_the_rest_is(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = make_run(tmp_path / name)
        (run / "config.yaml").write_text(
            "model: {" + ", ".join(f"k{i}: {name}" for i in range(8)) + "}"
        )
    text = report([tmp_path])
    assert "model.k5" in text
    assert "model.k6" not in text
    assert "2 more config keys differ; report.csv has them all" in text
    assert rows_of(tmp_path)[1]["model.k7"] == "b"


def test_a_broken_run_says_what_is_wrong_and_leaves_the_others_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "good", summary=complete())
    bad = make_run(tmp_path / "bad", summary={})
    (bad / "summary.json").write_text("{")
    (bad / "config.yaml").write_text("model: [")
    (bad / "metrics.jsonl").write_text(
        'not json\n{"step": 5, "phase": "val", "mIoU": null}\n{"step": "x"}\n{"st'
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "summary.json").write_text(
        '{"status": "complete", "best": 3, "final": [1], "step": "no"}'
    )
    report([tmp_path])
    broken, empty, good = rows_of(tmp_path)
    assert (good["run"], good["final"], good["problems"]) == ("good", "0.625", "")
    assert (broken["status"], broken["step"], broken["best"]) == ("damaged", "5", "")
    problems = broken["problems"].split("; ")
    assert [p.split(":")[0] for p in problems] == ["config.yaml", "summary.json", "metrics.jsonl"]
    # the torn last line is a run being written
    assert problems[2] == "metrics.jsonl: line 1 is not JSON"
    assert "config.yaml: cannot be read (No such file or directory)" in empty["problems"]
    assert (empty["status"], empty["best"], empty["final"]) == ("complete", "", "")


def test_instances_lead_with_the_benchmarks_numbers_and_have_a_table_by_class(
    tmp_path: Path,
) -> None:
    names = ("segm/AP", "segm/AP50", "segm/AP75", "segm/APs", "segm/APm", "segm/APl", "bbox/AP")
    final = {name: 0.3 + place / 100 for place, name in enumerate(names)}
    final |= {
        "segm/AR@1": 0.2,
        "segm/AP/person": 0.414,
        "segm/AP/dog": 0.125,
        "bbox/AP/person": 0.5,
    }
    best = {"step": 30, "value": 0.3}
    make_run(tmp_path / "a", summary=complete(metric="segm/AP", best=best, final=final))
    make_run(tmp_path / "b", summary=complete(final={"mIoU": 0.5, "IoU/dog": 0.25}))
    make_run(
        tmp_path / "c",
        summary=complete(metric="segm/AR@1000", final={"segm/AR@100": 0.25, "segm/AR@1000": 0.5}),
    )
    head, *rows = report([tmp_path]).splitlines()
    assert head.split() == [
        "metric",
        "best",
        "at",
        "step",
        "final",
        *names,
        "segm/AR@100",
        "segm/AR@1000",
        "images/s",
        "time",
        "run",
    ]
    shown = [
        "segm/AP",
        "0.3000",
        "30",
        *(f"{final[name]:.4f}" for name in ("segm/AP", *names)),
        "-",
        "-",
    ]
    assert rows[0].split()[:-3] == shown
    assert rows[2].split()[-6:-3] == ["-", "0.2500", "0.5000"]
    page = (tmp_path / "report.html").read_text()
    start = page.index('id="by-class"')
    table = page[start : page.index("</table>", start)]
    lines = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)
        for line in re.findall(r"<tr>.*?</tr>", table)
    ]
    assert lines == [
        ["class", "segm/AP a", "bbox/AP a", "IoU b"],
        ["person", "41.4", "50.0", "-"],
        ["dog", "12.5", "-", "25.0"],
    ]


def test_a_report_without_classes_has_no_table_of_them(tmp_path: Path) -> None:
    report([make_run(tmp_path / "a", summary=complete())])
    assert "by-class" not in (tmp_path / "a" / "report.html").read_text()


def test_runs_are_found_once_and_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / ".hydra").mkdir()
    (run / ".hydra" / "summary.json").write_text("{}")
    (run / "eval").mkdir()
    (run / "eval" / "summary.json").write_text("{}")
    report([tmp_path, run], tmp_path / "out")
    assert [row["run"] for row in rows_of(tmp_path / "out")] == ["a"]


def test_a_long_curve_is_thinned_and_keeps_its_last_point() -> None:
    thin = module.thinned([(float(i), 0.0) for i in range(1001)])
    assert len(thin) == 334
    assert thin[-1] == (1000.0, 0.0)
    assert module.thinned([]) == []


def test_a_path_without_runs_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        report([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no run below this folder"):
        report([tmp_path])
    with pytest.raises(UserError, match="nothing to report on"):
        report([])


def test_an_output_that_is_a_file_is_a_disk_error_naming_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with pytest.raises(DiskError, match=r"config.yaml: the report could not be written"):
        report([run], run / "config.yaml")
