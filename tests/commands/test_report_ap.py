"""The AP of a set and its interval over images: the numbers are hotcoco's on images drawn again.

Members of the kind "a matches.json that is not what it seems": no JSON, no object, columns of other
lengths, images, classes or thresholds that are not there, an image twice, scores that are none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.test_report_images import setting
from commands.test_report_settings import evaluate, make_run

from segtrain.commands import report_images
from segtrain.commands.report_ap import average_precision, read_matches
from segtrain.commands.report_images import compare
from segtrain.metrics.coco import CocoEvaluator
from segtrain.structures.instances import Segments

CLASSES = ["car", "bus", "never there"]
SIDE = 200


def scene(index: int) -> Segments:
    """The truth of an image: up to six boxes, some of them crowds; some images have none."""
    rng = np.random.default_rng(index)
    count = int(rng.integers(0, 7))
    boxes = np.concatenate([rng.uniform(0, 150, (count, 2)), rng.uniform(10, 50, (count, 2))], 1)
    return Segments(
        (SIDE, SIDE),
        labels=rng.integers(0, 2, count),
        boxes=boxes,
        masks=None,
        areas=boxes[:, 2:].prod(1),
        crowd=rng.uniform(size=count) < 0.1,
    )


def found(index: int, seed: int, noise: float, levels: int) -> Segments:
    """What a detector of this `noise` finds there: each object twice, and two that are none.

    With few `levels` of scores many are equal.
    """
    truth = scene(index)
    rng = np.random.default_rng((index, seed))
    boxes = np.repeat(truth.boxes, 2, 0) + rng.normal(0, noise, (2 * len(truth), 4))
    boxes = np.concatenate([boxes, rng.uniform(20, 100, (2, 4))]).clip(1, 150)
    return Segments(
        (SIDE, SIDE),
        labels=np.concatenate([np.repeat(truth.labels, 2), [0, 1]]),
        boxes=boxes,
        masks=None,
        areas=boxes[:, 2:].prod(1),
        scores=rng.integers(0, levels, len(boxes)) / levels,
    )


def measured(images: list[int], seed: int, noise: float, levels: int = 1 << 40) -> CocoEvaluator:
    """The evaluation of these images, which may be there more than once."""
    evaluator = CocoEvaluator(CLASSES, kinds=["bbox"])
    for place, index in enumerate(images):
        evaluator.update(f"{place:04d}", found(index, seed, noise, levels), scene(index))
    return evaluator


def kept(folder: Path, images: int, seed: int, noise: float) -> Path:
    """A run with an evaluation that `segeval` measured."""
    evaluator = measured(list(range(images)), seed, noise)
    run = make_run(folder, 0.5, optimizer__lr=seed)
    evaluate(run, "e", evaluator.compute()["bbox/AP"])
    (run / "eval" / "e" / "matches.json").write_text(json.dumps(evaluator.counts()["matches"]))
    rows = [
        f"{name},{s['AP'] if s['AP'] is not None else ''}"
        for name, s in evaluator.image_scores().items()
    ]
    (run / "eval" / "e" / "images.csv").write_text("\n".join(["image,AP", *rows]) + "\n")
    return run


def test_the_ap_of_images_drawn_again_is_that_of_measuring_them_again(tmp_path: Path) -> None:
    run = kept(tmp_path / "run", 30, seed=1, noise=4.0)
    matches = read_matches(run / "eval" / "e")
    assert matches is not None
    rng = np.random.default_rng(0)
    draws = [np.arange(30), *(rng.integers(0, 30, 30) for _ in range(12)), np.zeros(30, int)]
    weights = np.stack([np.bincount(draw, minlength=30) for draw in draws]).astype(float)
    again = [measured(sorted(draw.tolist()), 1, 4.0).compute()["bbox/AP"] for draw in draws]
    assert average_precision(matches, weights) == pytest.approx(again, abs=1e-12)
    assert len(set(np.round(again, 6))) > 10
    assert average_precision(matches, np.zeros((1, 30))).tolist() == pytest.approx(
        [np.nan], nan_ok=True
    )
    part = matches.at(["0003", "0017", "0005"])
    alone = measured([3, 17, 5], 1, 4.0).compute()["bbox/AP"]
    assert average_precision(part, np.ones((1, 3))) == pytest.approx([alone], abs=1e-12)


def test_the_ap_of_the_set_is_the_measured_one_whatever_scores_are_equal(tmp_path: Path) -> None:
    for levels in (1, 2, 50):
        evaluator = measured(list(range(40)), 1, 4.0, levels)
        (tmp_path / "matches.json").write_text(json.dumps(evaluator.counts()["matches"]))
        matches = read_matches(tmp_path)
        assert matches is not None
        ap = evaluator.compute()["bbox/AP"]
        assert average_precision(matches, np.ones((1, 40))) == pytest.approx([ap], abs=1e-12)


def test_the_difference_of_two_runs_is_that_of_their_ap_and_of_equal_ones_none(
    tmp_path: Path,
) -> None:
    a, b, c = (
        kept(tmp_path / name, 30, seed, noise)
        for name, seed, noise in (("a", 1, 3.0), ("b", 2, 5.0), ("c", 1, 3.0))
    )
    comparison = compare(setting(a), setting(b), "e")
    assert comparison is not None
    difference, own = comparison.differences
    assert (difference.of, own.of) == ("bbox/AP of the set", "mean of the images' own AP")
    aps = [measured(list(range(30)), *how).compute()["bbox/AP"] for how in ((1, 3.0), (2, 5.0))]
    assert difference.value == pytest.approx(aps[0] - aps[1], abs=1e-12)
    assert difference.low < difference.value < difference.high
    same = compare(setting(a), setting(c), "e")
    assert same is not None
    assert same.differences[0][1:4] == (0, 0, 0)
    assert same.differences[0].holds_zero


def test_a_large_set_is_drawn_less_often_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_images, "RANKED", 1)
    a, b = (kept(tmp_path / str(seed), 10, seed, 3.0) for seed in (1, 2))
    comparison = compare(setting(a), setting(b), "e")
    assert comparison is not None
    assert "] (500 draws), which " in str(comparison.differences[0])
    assert "draws" not in str(comparison.differences[1])


def changed(record: dict[str, Any], **columns: Any) -> str:
    return json.dumps(record | columns)


@pytest.mark.parametrize(
    "damage",
    [
        {"image": [0]},
        {"image": [10**6] * 4},
        {"label": [7] * 4},
        {"hits": [1 << 10] * 4},
        {"hits": [1023, 512, 0, 0]},  # one object, hit twice
        {"ignored": [-1] * 4},
        {"score": [float("nan")] * 4},
        {"score": ["high"] * 4},
        {"images": ["a", "a"]},
        {"truths": [[0, 0, 0]]},
        {"truths": [[0, 9, 1]]},
        {"truths": [[0, 0, 10**30]]},
        {"truths": [[0, 0]]},
        {"classes": 3},
    ],
    ids=str,
)
def test_matches_that_are_damaged_are_none(tmp_path: Path, damage: dict[str, Any]) -> None:
    record = {
        **{"kind": "bbox", "images": ["a", "b"], "classes": ["car"], "truths": [[0, 0, 1]]},
        **{"image": [0] * 4, "label": [0] * 4, "score": [0.5] * 4, "hits": [1023, 0, 0, 0]},
        "ignored": [0] * 4,
    }
    path = tmp_path / "matches.json"
    path.write_text(json.dumps(record))
    matches = read_matches(tmp_path)
    assert matches is not None
    assert average_precision(matches, np.ones((1, 2))) == 1  # one object, hit by the first
    path.write_text(json.dumps(record | damage))
    assert read_matches(tmp_path) is None
    for text in ("", "[", "[]", "null", '"matches"', "\0"):
        path.write_text(text)
        assert read_matches(tmp_path) is None


@pytest.mark.slow
def test_the_interval_is_that_of_10000_draws_of_hotcocos_own_comparison(tmp_path: Path) -> None:
    """hotcoco ranks again in every draw, with its own random numbers."""
    from hotcoco import compare as reference

    from segtrain.metrics import coco

    evaluators = [measured(list(range(150)), 1, noise) for noise in (3.0, 3.3)]
    runs = [kept(tmp_path / str(noise), 150, 1, noise) for noise in (3.0, 3.3)]
    comparison = compare(setting(runs[0]), setting(runs[1]), "e")
    assert comparison is not None
    difference = comparison.differences[0]
    prepared = []
    for evaluator in evaluators:
        images = [evaluator.images[name] for name in sorted(evaluator.images)]
        prepared.append(coco._prepared(images, "bbox", len(CLASSES)))
        prepared[-1].evaluate()
    theirs = reference(prepared[1], prepared[0], n_bootstrap=10_000)
    assert difference.value == pytest.approx(theirs["deltas"]["AP"], abs=1e-9)
    assert difference.low == pytest.approx(theirs["ci"]["AP"]["lower"], abs=1e-3)
    assert difference.high == pytest.approx(theirs["ci"]["AP"]["upper"], abs=1e-3)
