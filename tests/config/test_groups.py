"""Metric and writer as config groups, and the run's own keys of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from segtrain.config import instantiate, parts
from segtrain.config.compose import check, compose_config, with_overrides
from segtrain.config.schema import DATASET_RUN_KEYS, ONLY_TYPED, RunConf, dataset_keys
from segtrain.engine.evidence import with_changes
from segtrain.errors import UserError
from segtrain.logs.run_log import RunLog
from segtrain.logs.writers import TensorBoard

COCO = "segtrain.metrics.coco.CocoEvaluator"
SEMANTIC = "segtrain.metrics.confusion.SemanticEvaluator"
BOUNDARY = "segtrain.metrics.boundary.BoundaryEvaluator"
PROPOSALS = "segtrain.metrics.coco.ProposalEvaluator"
TENSORBOARD = {"tensorboard": {"_target_": "segtrain.logs.writers.TensorBoard"}}


@cache
def composed(*overrides: str) -> RunConf:
    return check(compose_config(overrides)[0])


def metric_of(run: RunConf) -> str:
    return run.metric["_target_"]


@pytest.mark.parametrize(
    ("overrides", "metric", "monitor"),
    [
        ([], SEMANTIC, "mIoU"),
        (["dataset=cityscapes"], "segtrain.metrics.cityscapes.CityscapesEvaluator", "mIoU"),
        (["dataset=coco_instance"], COCO, "segm/AP"),
        (["dataset=coco_proposal"], PROPOSALS, "segm/AR@1000"),
        (["dataset=coco_instance", "metric=proposals"], PROPOSALS, "segm/AP"),
        (["experiment=box_rpn_r50_coco"], PROPOSALS, "bbox/AR@1000"),
    ],
)
def test_a_data_set_chooses_its_metric_and_a_metric_that_is_named_wins(
    overrides: list[str], metric: str, monitor: str
) -> None:
    run = composed(*overrides)
    assert metric_of(run) == metric
    assert run.train.monitor == monitor


def test_settings_of_a_metric_are_set_by_their_key() -> None:
    run = composed("metric=boundary", "metric.leave_out=[background]", "metric.ratio=0.01")
    evaluator = parts.evaluator(run.metric, ["background", "ring"])
    assert evaluator.names()[0] == "mIoU"
    assert run.metric == {"_target_": BOUNDARY, "leave_out": ["background"], "ratio": 0.01}
    assert composed("experiment=box_rpn_r50_coco").metric["kind"] == "bbox"


def test_another_data_set_of_a_stored_run_brings_its_metric_unless_one_is_named() -> None:
    run = composed("metric.leave_out=[ring]")
    assert with_overrides(run, ["eval.flip=true"]).metric["leave_out"] == ["ring"]
    assert metric_of(with_overrides(run, ["dataset=coco_instance"])) == COCO
    assert (
        metric_of(with_overrides(run, ["dataset=coco_instance", "metric=proposals"])) == PROPOSALS
    )
    assert metric_of(with_overrides(run, ["metric=boundary"])) == BOUNDARY
    assert with_overrides(run, ["metric.leave_out=null"]).metric["leave_out"] is None


def test_settings_of_before_the_groups_are_understood_by_segtrain_and_by_segeval() -> None:
    target = f"dataset.metric._target_={PROPOSALS}"
    run = composed(target, "+dataset.metric.kind=bbox", "log.tensorboard=false")
    assert run.metric == {"_target_": PROPOSALS, "kind": "bbox"}
    assert run.writer == {}
    tested = with_overrides(composed(), [f"dataset.metric._target_={BOUNDARY}"])
    assert metric_of(tested) == BOUNDARY


def test_a_data_set_that_holds_its_metric_itself_is_told_how_to_name_it() -> None:
    node = {**composed().dataset, "metric": {"_target_": SEMANTIC}}
    with pytest.raises(UserError, match=r"override /metric@_global_.metric: NAME"):
        parts.check_part("dataset", node)


# Writers


@pytest.mark.parametrize(
    ("overrides", "writers"),
    [
        ([], TENSORBOARD),
        (["writer=[tensorboard]"], TENSORBOARD),
        (["writer=tensorboard"], TENSORBOARD),
        (["writer=[]"], {}),
    ],
)
def test_writers_are_a_list_of_any_length(overrides: list[str], writers: object) -> None:
    assert composed(*overrides).writer == writers
    assert with_overrides(composed(), overrides).writer == writers


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("writer=null", r"writer=null: a writer is chosen by its name; none at all is writer=\[\]"),
        ("model=null", "model=null: a model is chosen by its name"),
        ("writer=tensorbord", "no such writer; .* Did you mean `tensorboard`?"),
        ("writer=[tensorboard,tensorbord]", "no such writer; .* Did you mean `tensorboard`?"),
        ("writer.tensorboard._target_=segtrain.logs.run_log.RunLog", "there is no module"),
        ("writer.tensorboard._target_=segtrain.models.unet.UNet", "it takes no `folder`"),
        ("metric=sematic", "no such metric; .* Did you mean `semantic`?"),
        ("metric.leave_ou=[ring]", "Did you mean `metric.leave_out`?"),
        ("dataset.crop=96", r"dataset.crop=96: expected \[height, width\], dataset.crop=\[96,96\]"),
    ],
)
def test_a_choice_that_there_is_not_is_refused_with_the_nearest_one(
    override: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        composed(override)


def test_a_writer_of_a_users_own_folder_stands_beside_tensorboard(tmp_path: Path) -> None:
    (tmp_path / "writer").mkdir()
    target = TENSORBOARD["tensorboard"]["_target_"]
    (tmp_path / "writer" / "mine.yaml").write_text(f"mine:\n  _target_: {target}\n")
    run = check(compose_config(["writer=[tensorboard,mine]"], [tmp_path])[0])
    assert list(run.writer) == ["tensorboard", "mine"]
    made = [parts.writer(run, name, tmp_path, 0) for name in run.writer]
    assert [type(writer) for writer in made] == [TensorBoard, TensorBoard]
    for writer in made:
        writer.close()


def test_a_resumed_run_may_change_its_writers() -> None:
    run = with_changes(composed(), ["writer=[]", "log.progress=false"])
    assert run.writer == {}
    assert run.log.progress is False
    assert with_changes(run, ["log.tensorboard=true"]).writer == TENSORBOARD


class Notes:
    """A writer that remembers: all that a writer must offer."""

    def __init__(self) -> None:
        self.lines: list[object] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, dict(values)))

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        self.lines.append((step, name, picture.shape))

    def close(self) -> None:
        self.lines.append("closed")


def test_every_writer_gets_the_numbers_that_exist_the_pictures_and_the_end(tmp_path: Path) -> None:
    notes = Notes()
    log = RunLog(tmp_path, 10, 0, 8, writers=[notes], progress=False)
    log.train(1, {"loss": 0.5, "lr": 0.1})
    log.validation(2, {"mIoU": 0.25, "IoU/bus": None})
    log.image(2, "bus", np.zeros((4, 6, 3), np.uint8))
    log.close()
    assert notes.lines[0] == (1, {"train/loss": 0.5, "train/lr": 0.1})
    assert list(notes.lines[1][1]) == ["time/images_per_second"]
    assert notes.lines[2:] == [(2, {"val/mIoU": 0.25}), (2, "bus", (4, 6, 3)), "closed"]


# The run's own keys of a data set


def test_the_runs_own_keys_of_a_data_set_are_typed() -> None:
    node = composed("dataset.crop=[64,48]").dataset
    keys = dataset_keys(node)
    assert (keys.train_split, keys.measured_split, keys.crop) == ("train", "val", [64, 48])
    assert dataset_keys({**node, "split": "test"}).measured_split == "test"
    assert set(DATASET_RUN_KEYS) - set(node) == set(ONLY_TYPED)
    with pytest.raises(UserError, match=r"dataset\.val_split: the data set needs a value here"):
        dataset_keys({"train_split": "train"})
    least = {"_target_": "segtrain.datasets.shapes.Shapes", "train_split": "a", "val_split": "b"}
    instantiate.check(least, "dataset", skip=DATASET_RUN_KEYS, given=("split",))
    assert dataset_keys(least).cache is None
