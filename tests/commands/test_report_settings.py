"""segreport decides: seeds are one line, the best is marked, evaluations are columns.

The numbers are compared with numpy's. Members of the kind "what makes a mean mean something else":
a run that is not complete, a seed that occurs twice, runs of another metric or other images, an
evaluation that was made otherwise in one run, places that differ, a run without any number.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.commands.report import report
from segtrain.config.headers import EXPERIMENT_KEYS, read_header
from segtrain.config.recipes import FOLDER, names

CONFIG = {
    "recipe": None,
    "dataset": {"_target_": "segtrain.datasets.shapes.Shapes", "val_split": "val", "root": "data"},
    "model": {"backbone": "resnet18", "width": 64},
    "optimizer": {"lr": 0.1},
    "train": {"steps": 30, "seed": 0, "monitor": "mIoU", "monitor_mode": "max"},
}


def changed(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    config = json.loads(json.dumps(config))
    for key, value in settings.items():
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = value
    return config


def make_run(
    folder: Path,
    score: float | None,
    typed: tuple[str, ...] = (),
    status: str = "complete",
    **settings: Any,
) -> Path:
    """A run whose best and last value is `score`; keys are written `optimizer__lr`."""
    (folder / ".hydra").mkdir(parents=True)
    named = {key.replace("__", "."): value for key, value in settings.items()}
    (folder / "config.yaml").write_text(json.dumps(changed(CONFIG, named)))
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in typed))
    (folder / "train.log").write_text("")
    lines = [{"step": 30, "phase": "val", "mIoU": score, "loss": 1.0}] if score is not None else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status == "complete":
        summary = {
            "status": status,
            "step": 30,
            "metric": named.get("train.monitor", "mIoU"),
            "best": {"step": 30, "value": score},
            "final": {"mIoU": score, "loss": 1.0},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


SCORES = {0.01: (0.5, 0.53, 0.47), 0.1: (0.61, 0.64, 0.6), 1.0: (0.2, 0.25, 0.3)}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three rates of three seeds, where `model.backbone` was typed and is always the same."""
    for lr, scores in SCORES.items():
        for seed, score in enumerate(scores):
            typed = (f"optimizer.lr={lr}", f"train.seed={seed}", "model.backbone=resnet18")
            name = tmp_path / "sweep" / f"lr={lr},seed={seed}"
            make_run(name, score, typed, optimizer__lr=lr, train__seed=seed)
    return tmp_path / "sweep"


def test_three_settings_of_three_seeds_are_three_lines_equal_to_numpys(sweep: Path) -> None:
    text = report([sweep], sweep / "out").splitlines()
    assert [line.split()[0] for line in text[:4]] == ["optimizer.lr", "0.1", "0.01", "1.0"]
    assert text[4].startswith("best: optimizer.lr=0.1, mIoU 0.6167, 0.1167 from the next")
    assert "within" not in text[4]
    assert re.search(r"0\.6167 ± 0\.0208 \*", text[1])
    assert "*" not in "".join(text[2:4])
    lines = table(sweep / "out" / "report_settings.csv")
    assert list(lines[0])[:3] == ["setting", "optimizer.lr", "n"]
    for line in lines:
        scores = SCORES[float(line["optimizer.lr"])]
        assert float(line["best"]) == pytest.approx(np.mean(scores), rel=1e-12)
        assert float(line["best sd"]) == pytest.approx(np.std(scores, ddof=1), rel=1e-12)
        assert line["n"] == line["best n"] == "3"
    runs = table(sweep / "out" / "report.csv")
    assert len(runs) == 9
    assert {run["optimizer.lr"] for run in runs if run["setting"] == "1"} == {"0.1"}
    assert {run["train.seed"] for run in runs} == {"0", "1", "2"}


def test_what_was_typed_comes_first_and_a_group_by_its_name(tmp_path: Path) -> None:
    for name, width, score in (("fcn", 64, 0.5), ("pspnet", 128, 0.6)):
        words = (f"model={name}", "optimizer.lr=0.1")
        make_run(tmp_path / name, score, words, model__width=width, model__backbone=name)
    head, first, *_, more, best, _ = report([tmp_path]).splitlines()
    assert head.split()[:2] == ["model", "metric"]
    assert first.split()[0] == "pspnet"
    assert more == "2 more config keys differ; report.csv has them all"
    assert best.startswith("best: model=pspnet, mIoU 0.6000, 0.1000 from the next (one seed each")


def test_places_and_seeds_are_no_settings(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, dataset__root="/here", train__seed=1)
    make_run(tmp_path / "b", 0.7, dataset__root="/there", train__seed=2)
    report([tmp_path])
    (line,) = table(tmp_path / "report_settings.csv")
    assert (line["n"], float(line["best"])) == ("2", pytest.approx(0.6))
    assert "dataset.root" not in line


def test_a_run_without_a_number_is_apart_and_an_unfinished_one_is_in_no_mean(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "a", 0.5, train__seed=0)
    make_run(tmp_path / "b", 0.9, status="incomplete", train__seed=1)
    make_run(tmp_path / "c", None, status="incomplete", train__seed=2)
    text = report([tmp_path])
    (line,) = table(tmp_path / "report_settings.csv")
    assert (line["n"], line["best"], line["status"]) == ("1", "0.5", "1 complete, 1 incomplete")
    assert "\nb: not complete, and left out of the mean\n" in text
    assert "\nwithout any number, never begun or failed at once: 1 (c)\n" in text
    assert [run["setting"] for run in table(tmp_path / "report.csv")] == ["1", "1", ""]


def test_only_runs_without_a_number_are_still_a_report(tmp_path: Path) -> None:
    make_run(tmp_path / "a", None, status="incomplete")
    assert report([tmp_path]).startswith("without any number, never begun or failed at once: 1 (a)")
    assert [run["status"] for run in table(tmp_path / "report.csv")] == ["incomplete"]


def test_a_report_is_written_again_over_itself_whatever_its_first_line_holds(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "few" / "a", None, status="incomplete")
    many = {f"model__a_key_of_a_long_name_{index}": 0 for index in range(30)}
    make_run(tmp_path / "many" / "a", 0.5)
    make_run(tmp_path / "many" / "b", 0.5, **many)
    for name in ("few", "many"):
        report([tmp_path / name])
        report([tmp_path / name])


def test_many_runs_that_count_nowhere_are_named_in_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "0", 0.5)
    for seed in range(1, 13):
        make_run(tmp_path / str(seed), 0.5, status="incomplete", train__seed=seed)
    (line,) = [line for line in report([tmp_path]).splitlines() if "left out of" in line]
    assert line == "1, 10, 11, 12, 2, 3, 4, 5 and 4 more: not complete, and left out of the mean"


def test_another_metric_that_was_typed_is_a_column_by_its_class(tmp_path: Path) -> None:
    for name in ("semantic", "boundary"):
        run = make_run(tmp_path / name, 0.5, (f"metric={name}",))
        config = json.loads((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(json.dumps({**config, "metric": {"_target_": name}}))
    report([tmp_path])
    lines = table(tmp_path / "report_settings.csv")
    assert list(lines[0])[1] == "metric._target_"
    assert {line["metric._target_"] for line in lines} == {"semantic", "boundary"}


def test_a_seed_that_occurs_twice_is_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, 0.5)
    assert "a, b: the same config with the same seed 0; their deviation is not" in report(
        [tmp_path]
    )


def test_a_difference_below_the_deviation_over_seeds_is_told(tmp_path: Path) -> None:
    for lr, scores in ((0.1, (0.5, 0.6)), (0.2, (0.51, 0.61))):
        for seed, score in enumerate(scores):
            make_run(tmp_path / f"{lr}-{seed}", score, optimizer__lr=lr, train__seed=seed)
    text = report([tmp_path])
    assert (
        "best: optimizer.lr=0.2, mIoU 0.5600, 0.0100 from the next, which is within the deviation "
        "over seeds (0.0707)" in text
    )


def test_runs_of_other_images_or_another_number_are_ranked_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5)
    make_run(tmp_path / "b", 0.6, optimizer__lr=0.2)
    make_run(tmp_path / "c", 0.9, dataset__val_split="easy")
    make_run(tmp_path / "d", 0.95, train__monitor="pixAcc")
    text = report([tmp_path])
    assert [line["run"] for line in table(tmp_path / "report_settings.csv")] == ["b", "a", "c", "d"]
    assert text.count("0 *") == 1
    assert "not all judged by the same number on the same images" in text


def test_the_smallest_is_the_best_of_a_minimised_number(tmp_path: Path) -> None:
    for lr, score in ((0.1, 0.5), (0.2, 0.3)):
        make_run(tmp_path / str(lr), score, optimizer__lr=lr, train__monitor_mode="min")
    assert "best: optimizer.lr=0.2, mIoU 0.3000, 0.2000 from the next" in report([tmp_path])


def evaluate(run: Path, name: str, score: float, **protocol: Any) -> None:
    (run / "eval" / name).mkdir(parents=True)
    how = {"images": 8, "split": "val", "inference": {"flip": False}, "rules": "FCN's", **protocol}
    content = {"pixAcc": 0.9, "mIoU": score, "IoU/road": 0.1, "protocol": how}
    (run / "eval" / name / "metrics.json").write_text(json.dumps(content))


def test_each_evaluation_is_a_column_with_its_protocol(tmp_path: Path) -> None:
    for seed, score in enumerate((0.25, 0.75)):
        run = make_run(tmp_path / str(seed), score, train__seed=seed)
        evaluate(run, "shapes-val", score / 2)
    evaluate(tmp_path / "1", "shapes-val-flip", 0.5, inference={"flip": True})
    text = report([tmp_path])
    (line,) = table(tmp_path / "report_settings.csv")
    assert [line[f"eval shapes-val{end}"] for end in ("", " n")] == ["0.25", "2"]
    assert float(line["eval shapes-val sd"]) == pytest.approx(np.std([0.125, 0.375], ddof=1))
    assert [line[f"eval shapes-val-flip{end}"] for end in ("", " sd", " n")] == ["0.5", "", "1"]
    assert "\neval shapes-val: 8 images of val; flip=False; FCN's\n" in text
    first, second = table(tmp_path / "report.csv")
    assert (first["eval/shapes-val/mIoU"], first["eval/shapes-val-flip/mIoU"]) == ("0.125", "")
    assert second["eval/shapes-val/pixAcc"] == "0.9"
    assert "eval/shapes-val/IoU/road" not in first


def test_an_evaluation_that_was_made_otherwise_in_one_run_is_told(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = make_run(tmp_path / str(seed), 0.5, train__seed=seed)
        evaluate(run, "e", 0.5, images=8 + seed)
    assert "eval e: NOT the same in all runs: 8 images of val; flip=False; FCN's / 9 images" in (
        report([tmp_path])
    )


def test_the_published_number_of_the_recipe_stands_beside_ours_with_its_protocol(
    tmp_path: Path,
) -> None:
    name = names()[0]
    header = read_header(FOLDER / f"{name}.yaml", EXPERIMENT_KEYS)
    make_run(tmp_path / "a", 0.5, recipe=name)
    make_run(tmp_path / "b", 0.4, recipe="../../../etc/passwd")
    text = report([tmp_path])
    first, second = table(tmp_path / "report_settings.csv")
    assert (first["published"], second["published"]) == (header.number, "")
    assert f"published ({name}, in percent): {header['Paper']}; {header['Split']}\n" in text


def test_broken_evaluations_and_records_cost_no_other_number(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 0.5)
    for name, text in (("x", "{"), ("y", '{"mIoU": "high", "protocol": 3}'), ("z", "[[[")):
        (run / "eval" / name).mkdir(parents=True)
        (run / "eval" / name / "metrics.json").write_text(text)
    (run / ".hydra" / "overrides.yaml").write_text("- &a [x]\n- *a\n- {b: c}\n- 3\n- train.seed=0")
    report([tmp_path])
    (row,) = table(tmp_path / "report.csv")
    assert row["best"] == "0.5"
    assert re.findall(r"eval/(\w)/metrics.json: ", row["problems"]) == ["x", "z"]
    (run / ".hydra" / "overrides.yaml").write_text("- [")
    report([tmp_path])
    assert ".hydra/overrides.yaml: " in table(tmp_path / "report.csv")[0]["problems"]


def test_flops_are_a_column_with_the_size_of_their_image(tmp_path: Path) -> None:
    for name, height in (("a", 64), ("b", 96)):
        run = make_run(tmp_path / name, 0.5, model__backbone=name)
        evaluate(run, "e", 0.5)
        cost = {"flops": height * 1_000_000_000, "height": height, "width": 32}
        (run / "eval" / "e" / "cost.json").write_text(json.dumps(cost))
    text = report([tmp_path])
    assert [line["GFLOPs"] for line in table(tmp_path / "report_settings.csv")] == ["64.0", "96.0"]
    assert (
        "GFLOPs: two for a multiply-add, of an image of 64 x 32 (eval e) / 96 x 32 (eval e), which "
        "differ: GFLOPs are not comparable" in text
    )
    (tmp_path / "a" / "eval" / "e" / "cost.json").write_text("{")
    report([tmp_path])
    assert "eval/e/cost.json: " in table(tmp_path / "report.csv")[0]["problems"]


def test_shares_of_the_time_and_the_speed_are_columns(tmp_path: Path) -> None:
    for seed, data in enumerate((0.5, 0.7)):
        run = make_run(tmp_path / "sweep" / str(seed), 0.5, train__seed=seed)
        summary = json.loads((run / "summary.json").read_text())
        shares = {"data": data, "compute": 0.9 - data, "validate": 0.06, "save": 0.04, "log": 0.0}
        (run / "summary.json").write_text(json.dumps({**summary, "shares": shares}))
        evaluate(run, "e", 0.5)
        measured = [{"what": "prediction", "batch": 1, "p50_ms": 20.0 + seed}, "?", {"what": 3}]
        speed = {"device": "cpu", "threads": 2, "precision": "bf16", "height": 48, "width": 64}
        (run / "eval" / "e" / "speed.json").write_text(json.dumps({**speed, "measured": measured}))
    text = report([tmp_path / "sweep"])
    (row,) = table(tmp_path / "sweep" / "report_settings.csv")
    assert {name: float(row[f"{name} %"]) for name in ("data", "compute", "validate", "save")} == {
        **{"data": pytest.approx(60), "compute": pytest.approx(30)},
        **{"validate": pytest.approx(6), "save": pytest.approx(4)},
    }
    assert float(row["ms/image"]) == 20.5
    assert "log %" not in row
    assert "data %  compute %  validate %  save %" in text
    assert (
        "ms/image: median of a whole prediction, on cpu (threads: 2), bf16, 48 x 64 pixels" in text
    )
    for damaged in ("[]", "{", '{"measured": 3}', '{"measured": [{"what": "prediction"}]}'):
        (run / "eval" / "e" / "speed.json").write_text(damaged)
        report([tmp_path / "sweep"])
