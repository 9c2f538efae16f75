"""The table old -> new: stored configs of before keep their meaning; odd ones end in one line.

That stored runs evaluate to the numbers they had is asserted in tests/test_golden.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from segtrain.commands.report_runs import read_run
from segtrain.commands.report_settings import differing
from segtrain.commands.train import start
from segtrain.config import instantiate, old_names, parts
from segtrain.config.files import load_run, stored_run, to_yaml
from segtrain.config.old_names import Change, modern, modern_overrides
from segtrain.config.schema import PACKAGE, typed
from segtrain.errors import UserError

STORED = sorted((Path(__file__).parents[1] / "golden" / "stored").glob("*.json"))
EVALUATOR = "segtrain.metrics.confusion.SemanticEvaluator"


def stored_config(path: Path) -> dict[str, Any]:
    """config.yaml of a run that was stored before configs had a version."""
    return yaml.safe_load("\n".join(json.loads(path.read_text())["config.yaml"]))


@pytest.fixture
def before() -> dict[str, Any]:
    return stored_config(STORED[0])


@pytest.mark.row("R30")
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_config_stored_before_the_version_is_a_whole_run_of_today(path: Path) -> None:
    before = stored_config(path)
    assert "version" not in before
    run = typed(modern(before))
    parts.check(run)
    assert run.version == old_names.VERSION
    assert run.metric["_target_"] == before["dataset"]["metric"]["_target_"]
    assert set(run.writer) == ({"tensorboard"} if before["log"]["tensorboard"] else set())
    assert run.optimizer["_target_"].startswith("segtrain.optim.optimizers.")


def test_a_config_of_today_comes_back_equal_and_shares_nothing_with_the_original(
    before: dict[str, Any],
) -> None:
    today = modern(before)
    again = modern(today)
    assert again == today
    again["dataset"]["crop"][0] = 1
    assert modern(before) == today


def takes(target: str, arguments: Iterable[str]) -> None:
    """The target is there and has these arguments; others may be needed too."""
    try:
        instantiate.check({"_target_": target}, "row", given=list(arguments))
    except UserError as error:
        if "needs a value here" not in str(error):
            raise


def test_every_row_leads_to_a_part_that_exists_and_to_arguments_that_it_takes() -> None:
    assert sorted(old_names.CHANGES) == list(range(2, old_names.VERSION + 1))
    for change in old_names.CHANGES.values():
        for module in change.modules.values():
            assert PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py").is_file()
        for target in change.targets.values():
            takes(target, [])
        for target, names in change.arguments.items():
            takes(target, names.values())
        for target, values in change.values.items():
            takes(target, values)
    for target in old_names.PARAMETERS:
        takes(target, [])


def test_rows_rename_parts_and_arguments_and_give_the_values_of_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = Change(
        modules={"old.nets": "new.nets"},
        targets={"new.nets.Net": "new.nets.Network"},
        arguments={"new.nets.Network": {"rate": "dilation"}},
        values={"new.nets.Network": {"dilation": 1, "align": [True]}},
        move_keys=lambda run: run.update(train=run.pop("training", {})),
    )
    monkeypatch.setattr(old_names, "CHANGES", {2: Change(), 3: change})
    monkeypatch.setattr(old_names, "VERSION", 3)
    node = {"_target_": "old.nets.Net", "rate": 6}
    inner = {"_target_": "old.nets.Other", "parts": [{"_target_": "old.nets.Net", "align": None}]}
    run = modern({"version": 2, "model": node, "loss": inner, "training": {"rate": 2}})
    assert run == {
        "version": 3,
        "model": {"_target_": "new.nets.Network", "dilation": 6, "align": [True]},
        "loss": {
            "_target_": "new.nets.Other",
            "parts": [{"_target_": "new.nets.Network", "align": None, "dilation": 1}],
        },
        "train": {"rate": 2},
    }
    run["model"]["align"].append(False)
    assert change.values["new.nets.Network"]["align"] == [True]
    assert modern({"version": 3, "model": node})["model"] == node


@pytest.mark.parametrize(
    ("version", "roi", "paste"),
    [(2, "legacy", "box"), (2, "align", "aligned"), (3, "legacy", "expanded")],
)
def test_masks_of_a_stored_run_with_roi_legacy_stay_in_their_boxes(
    version: int, roi: str, paste: str
) -> None:
    inference = {"_target_": "segtrain.inference.instances.InstanceSegmentation"}
    if version == 3:
        inference["paste"] = "expanded"
    model = {"_target_": "segtrain.models.mask_rcnn.MaskRCNN", "roi": roi}
    run = modern({"version": version, "model": model, "inference": inference})
    assert run["inference"]["paste"] == paste
    assert run["model"].get("anchor_corners") == ("rounded" if version == 2 else None)


def test_mask_proposals_of_a_stored_run_keep_their_regions_and_rules() -> None:
    sampling = {"_target_": "segtrain.models.fpn.Sampling", "count": 64, "far": 0.2}
    rules = "segtrain.models.fpn.DeepMaskSampling"
    model = {"_target_": "segtrain.models.fpn.FPN", "levels": 6, "sampling": sampling}
    run = modern({"version": 3, "model": model})["model"]
    assert (run["levels"], run["geometry"]) == (6, "cells")
    assert run["sampling"] == {"_target_": rules, "count": 64, "far": 0.2}
    run = modern({"version": 3, "model": {"_target_": "segtrain.models.fpn.FPN"}})["model"]
    assert (run["levels"], run["sampling"]) == (7, {"_target_": rules})
    assert modern({"version": 4, "model": model})["model"] == model


EVERY_KIND = ["weight", "depthwise", "bias", "norm_scale", "norm_shift"]


@pytest.mark.parametrize(
    ("before", "decay"),
    [
        ({"decay_norm_and_bias": True}, EVERY_KIND),
        ({"decay_norm_and_bias": False}, ["weight", "depthwise"]),
        ({}, ["weight", "depthwise"]),
    ],
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_stored_run_decays_what_it_did(name: str, before: dict[str, Any], decay: list) -> None:
    node = {"_target_": f"segtrain.optim.optimizers.{name}", "lr": 0.1}
    run = modern({"version": 3, "optimizer": node | before})
    added = {"norm_shift_factor": 1.0, "freeze": []}
    assert run["optimizer"] == node | {"decay": decay, **added}
    foreign = {"_target_": "mylab.optimizers.lion", **before}
    assert modern({"version": 3, "optimizer": foreign})["optimizer"] == foreign


@pytest.mark.row("R30")
def test_a_config_of_a_newer_segtrain_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("version: 99\nmodel: {}\n")
    with pytest.raises(UserError, match=r"config\.yaml: version 99 is of a newer segtrain"):
        load_run(path)
    for version in (0, -1, True, 1.5, "2", None, [2]):
        with pytest.raises(UserError, match="a version is a whole number from 1 on"):
            modern({"version": version})


def nested(depth: int) -> dict[str, Any]:
    node: Any = 1
    for _ in range(depth):
        node = {"a": [node]}
    return node


def cycle() -> dict[str, Any]:
    node: dict[str, Any] = {}
    node["a"] = node
    return node


def laughs() -> dict[str, Any]:
    """Ten names for ten names for ...: 10 to the 12th values in a few hundred bytes of YAML."""
    node: Any = "ha"
    for _ in range(12):
        node = [node] * 10
    return {"a": node}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (nested(5000), "nested too deeply"),
        (nested(40), "nested too deeply"),
        (cycle(), "nested too deeply"),
        (laughs(), "more than 100,000 values"),
        ({("a", "b"): 1}, "a key of type tuple"),
        ({"model": {b"x": 1}}, "a key of type bytes"),
        ([1], "holds no configuration"),
        (None, "holds no configuration"),
    ],
    ids=["deep", "beyond", "cycle", "laughs", "tuple", "bytes", "list", "none"],
)
def test_a_config_that_no_run_could_have_written_ends_in_one_line(config: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        stored_run(config, "RUN")
    assert str(caught.value).startswith("RUN: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("odd", [{1: 2}, {None: 1}, {"dataset": 3, "log": []}, {"_target_": 5}])
def test_odd_keys_and_values_are_left_to_the_check_of_the_run(odd: Any) -> None:
    assert modern(odd) == {"version": old_names.VERSION, **odd}
    with pytest.raises(UserError):
        parts.check(typed(modern(odd)))


@pytest.mark.parametrize(
    ("before", "today"),
    [
        (f"dataset.metric._target_={EVALUATOR}", "metric=semantic"),
        ("dataset.metric.kind=bbox,segm", "metric.kind=bbox,segm"),
        ("+dataset.metric.leave_out=[sky]", "++metric.leave_out=[sky]"),
        ("log.tensorboard=false", "writer=[]"),
        ("log.tensorboard=True", "writer=[tensorboard]"),
        (
            "optimizer.decay_norm_and_bias=true",
            "optimizer.decay=[weight,depthwise,bias,norm_scale,norm_shift]",
        ),
        ("optimizer.decay_norm_and_bias=False", "optimizer.decay=[weight,depthwise]"),
        ("dataset.root=dataset.metric", "dataset.root=dataset.metric"),
        ("--multirun", "--multirun"),
    ],
)
def test_a_setting_of_before_is_read_as_the_one_of_today(before: str, today: str) -> None:
    assert modern_overrides([before]) == [today]


def test_a_setting_that_became_another_kind_of_thing_says_what_to_write() -> None:
    with pytest.raises(UserError, match=r"dataset\.metric=.*write metric=NAME, one of semantic"):
        modern_overrides(["dataset.metric={_target_: x}"])
    with pytest.raises(UserError, match=r"log\.tensorboard=5: .*writer=\[tensorboard\] or"):
        modern_overrides(["log.tensorboard=5"])


def test_a_finished_run_of_a_sweep_of_before_is_left_alone(
    before: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(before))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "summary.json").write_text("{}")
    today = modern(before)
    start(typed(today), today, tmp_path, [], again=True)
    assert capsys.readouterr().out == f"{tmp_path}: complete already, left alone\n"
    today["train"]["steps"] += 1
    with pytest.raises(UserError, match="holds a run with another configuration"):
        start(typed(today), today, tmp_path, [], again=True)


def test_a_report_compares_runs_of_before_and_of_today_by_the_same_keys(
    before: dict[str, Any], tmp_path: Path
) -> None:
    for name, config in (("before", before), ("today", modern(before))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(to_yaml(config))
        (tmp_path / name / "metrics.jsonl").write_text("")
    runs = [read_run(tmp_path / name, name) for name in ("before", "today")]
    assert all("metric._target_" in run.config for run in runs)
    assert differing(runs) == []
