"""The learning-rate range test: what its curve says, and that the run's own updates make it."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pytest
from PIL import Image

from segtrain.commands import find_lr
from segtrain.config.compose import check, compose_config
from segtrain.config.files import masked_container, stored_text
from segtrain.engine import rate_range
from segtrain.engine.rate_range import Point, Ramp, diverged, range_test, reading
from segtrain.errors import UserError
from segtrain.logs.metrics_file import read_metrics
from segtrain.runtime.distributed import World
from segtrain.runtime.run_folder import NewRun

TINY = [
    "model=unet",
    "model.width=16",
    "dataset=shapes",
    "dataset.train=8",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "train.batch_size=4",
    "train.threads=1",
    "train.precision=fp32",
    "optimizer=sgd",
    "writer=[]",
    "log.progress=false",
    "log.images=0",
]


def test_a_ramp_grows_by_the_same_factor_with_each_update() -> None:
    ramp = Ramp(1e-4, 1.0, 5)
    assert [ramp.rate(step) for step in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_the_rate_is_where_the_loss_falls_fastest_over_its_logarithm() -> None:
    ramp = Ramp(1e-6, 1.0, 61)  # ten a decade
    curve = [Point(ramp.rate(i), 2.0 - math.tanh((i - 35) / 5)) for i in range(61)]
    found = reading(curve)
    assert found.steepest == 35
    assert curve[35].rate == pytest.approx(10**-2.5)
    # What diverges at the end changes nothing, as far as it comes behind the lowest point.
    torn = [*curve, *(Point(curve[-1].rate * 1.26**i, 10.0 ** (4 * i)) for i in range(1, 8))]
    assert reading(torn).steepest == 35
    assert reading([*torn, Point(10.0, math.inf)]).steepest == 35
    assert len(found.smooth) == 61
    assert found.smooth[35] == pytest.approx(2.0)  # the curve is the same to both sides


def test_on_a_quadratic_the_loss_diverges_once_the_rate_is_above_two_over_its_curvature() -> None:
    curvature = 4.0
    ramp = Ramp(1e-4, 10.0, 101)
    weight, curve = 1.0, []
    for step in range(101):
        curve.append(Point(ramp.rate(step), curvature / 2 * weight**2))
        weight -= ramp.rate(step) * curvature * weight
        if diverged([point.loss for point in curve]):
            break
    # Nearer to 0 than floats tell after rates about 1 / curvature, so that it takes some to grow.
    assert 2 / curvature < curve[-1].rate <= 10.0
    rate = curve[reading(curve).steepest].rate
    assert 1e-3 < rate < 1 / curvature


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0] * 10, False),
        ([1.0, math.nan], True),
        ([math.inf], True),
        ([1.0] * 5 + [4.0] * 5, False),  # four times, not above
        ([1.0] * 5 + [4.1] * 5, True),
        ([1.0] * 5 + [15.0], False),  # one of five: the mean is 3.8
        ([1.0] * 5 + [17.0], True),  # 4.2
        ([9.0, 1.0, 1.0], False),
    ],
)
def test_a_loss_diverges_at_four_times_its_least_mean_of_five(
    losses: list[float], expected: bool
) -> None:
    assert diverged(losses) is expected


def test_a_curve_that_cannot_be_read_says_what_to_change() -> None:
    with pytest.raises(UserError, match=r"diverged after 3 updates.*lowest=1e-10"):
        reading([Point(1e-7, 1.0), Point(2e-7, 1.0), Point(4e-7, 1.0), Point(8e-7, math.nan)])
    with pytest.raises(UserError, match="does not fall by more than it scatters"):
        reading([Point(10.0**-i, 1.0 + (i % 2)) for i in range(40)])


def test_the_curve_is_of_the_runs_own_updates(tmp_path: Path) -> None:
    from segtrain.engine.train import fit

    cfg, _ = compose_config([*TINY, "schedule=constant", "optimizer.lr=0.05", "train.steps=3"])
    cfg["log"]["every"] = 1
    cfg["train"]["eval_every"] = 3
    shown: list[int] = []
    flat = Ramp(0.05, 0.05, 3)  # a ramp that does not grow is a training with that rate
    curve = range_test(check(cfg), tmp_path / "none", flat, World(), shown.append)
    new = NewRun(stored_text(masked_container(cfg)), (), str(tmp_path))
    fit(check(cfg), tmp_path / "run", World(), new)
    lines = [line for line in read_metrics(tmp_path / "run") if line["phase"] == "train"]
    assert [point.loss for point in curve] == [line["loss"] for line in lines]
    assert [point.rate for point in curve] == pytest.approx([line["lr"] for line in lines])
    assert shown == [1, 2, 3]
    assert not (tmp_path / "none").exists()


def test_it_leaves_a_picture_and_a_table_and_the_value_to_paste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = [Point(10.0 ** (i / 10 - 6), 2.0 - math.tanh((i - 35) / 5)) for i in range(61)]
    monkeypatch.setattr(rate_range, "range_test", lambda *_: curve)
    folder = tmp_path / "found"
    find_lr.run([*TINY, f"hydra.run.dir={folder}", "updates=61", "lowest=1e-6", "highest=1"])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "optimizer.lr=0.0032"
    assert "arXiv:1506.01186" in said[-3]
    assert {path.name for path in folder.iterdir()} == {"find_lr.csv", "find_lr.png"}
    with (folder / "find_lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [point.loss for point in curve]
    with Image.open(folder / "find_lr.png") as picture:
        column = 76 + round(35 / 60 * (900 - 76 - 24))
        assert picture.convert("RGB").getpixel((column, 200)) == (222, 45, 62)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lowest=0"], "lowest=0: must be above 0"),
        (["lowest=nan"], "lowest=nan: must be above 0"),
        (["highest=inf"], "highest=inf: must be above 0"),
        (["lowest=1", "highest=0.1"], "lowest=1: must lie below highest=0.1"),
        (["updates=ten"], "updates=ten: a whole number is expected"),
        (["updates=1e9"], "updates=1e9: a whole number is expected"),
        (["updates=1000000"], "updates=1000000: must be at most 100,000"),
        (["updates=5"], "updates=5: a curve has at least 20"),
        (["optimizer.rl=1"], "optimizer.rl: no such key"),
        (["steps=5"], "steps: no such key. Write train.steps=5"),
    ],
)
def test_a_bad_setting_of_the_finder_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        find_lr.run(words)
    assert said in str(error.value)


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds a run; choose another"):
        find_lr.run([f"hydra.run.dir={tmp_path}"])


def _found(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """Find a rate with the real command, which leaves two files alone."""
    find_lr.run([*words, f"hydra.run.dir={folder}"])
    key, _, value = capsys.readouterr().out.splitlines()[-1].partition("=")
    assert key == "optimizer.lr"
    assert {path.name for path in folder.iterdir()} == {"find_lr.csv", "find_lr.png"}
    return float(value)


@pytest.mark.slow
def test_a_rate_is_found_that_a_network_learns_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from segtrain.engine.train import fit

    words = [*TINY, "dataset.train=64", "train.steps=60", "train.eval_every=60"]
    rate = _found([*words, "updates=60", "lowest=1e-5"], tmp_path / "found", capsys)
    losses = {}
    for factor in (1.0, 0.01, 0.0001):
        cfg, _ = compose_config([*words, f"optimizer.lr={rate * factor}"])
        new = NewRun(stored_text(masked_container(cfg)), (), str(tmp_path))
        summary = fit(check(cfg), tmp_path / str(factor), World(), new)
        losses[factor] = summary["final"]["loss"]
    assert losses[1.0] < losses[0.01] < losses[0.0001]


@pytest.mark.slow
@pytest.mark.skipif("SEGTRAIN_DATA" not in os.environ, reason="needs the sample data sets")
def test_a_rate_is_found_for_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(os.environ["SEGTRAIN_DATA"]) / "coco"
    words = [
        "model=mask_rcnn_r18",
        "model.width=32",
        "model.proposals=[60,40]",
        "model.regions=32",
        "dataset=coco_json",
        f"dataset.annotations={data}/annotations/instances_train2017.json",
        f"dataset.images={data}/train2017",
        "augment.shorter=[96]",
        "augment.longest=160",
        "train.batch_size=2",
        "train.threads=1",
        "log.progress=false",
    ]
    assert 1e-6 < _found([*words, "updates=60", "lowest=1e-6"], tmp_path, capsys) < 10
