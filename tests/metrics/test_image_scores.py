"""What each image scores by itself, and that the set's number can be made from it."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from segtrain.commands.evaluate import cost_of
from segtrain.commands.results import write_results
from segtrain.metrics.confusion import SemanticEvaluator

NAMES = ["sky", "road", "car, red"]


def evaluated(images: list[int], leave_out: list[str] | None = None) -> SemanticEvaluator:
    evaluator = SemanticEvaluator(NAMES, leave_out)
    for index in images:
        generator = np.random.default_rng(index)
        truth = generator.choice([0, 1, 2, 255], (5, 7), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        predicted = np.where(generator.random((5, 7)) < 0.7, truth, 1).astype(np.uint8)
        predicted[truth == 255] = 2  # ignored, whatever it is
        evaluator.update(f"image {index}", torch.from_numpy(predicted), truth)
    return evaluator


def test_the_iou_of_the_set_is_the_sum_of_the_images() -> None:
    evaluator = evaluated([0, 1, 2])
    scores = evaluator.image_scores()
    for name in NAMES:
        both, unions = (
            sum(own[f"{part}/{name}"] or 0 for own in scores.values())
            for part in ("intersection", "union")
        )
        assert both / unions == evaluator.compute()[f"IoU/{name}"]
    assert {name: own["mIoU"] for name, own in scores.items()} == evaluator.images


def test_an_images_own_numbers_are_those_of_a_set_of_it_alone() -> None:
    alone = evaluated([1]).compute()
    own = evaluated([0, 1, 2]).image_scores()["image 1"]
    assert own["mIoU"] == alone["mIoU"]
    assert own["pixAcc"] == pytest.approx(alone["pixAcc"], abs=1e-15)


def test_the_scores_are_the_same_under_any_sharding() -> None:
    whole = evaluated([0, 1, 2, 3])
    merged = SemanticEvaluator(NAMES)
    merged.merge([evaluated([3, 1]).state(), evaluated([2, 0]).state()])
    assert merged.image_scores() == whole.image_scores()
    assert list(merged.image_scores()) == list(whole.image_scores())


def test_a_class_that_is_left_out_and_an_ignored_image_have_no_number() -> None:
    evaluator = evaluated([0], ["road"])
    evaluator.update("void", torch.zeros(2, 2, dtype=torch.uint8), np.full((2, 2), 255, np.uint8))
    scores = evaluator.image_scores()
    assert "union/road" not in scores["image 0"]
    assert scores["void"] == {
        "mIoU": None,
        "pixAcc": None,
        **{
            f"{part}/{name}": 0
            for part in ("intersection", "union")
            for name in (NAMES[0], NAMES[2])
        },
    }


def test_segeval_writes_a_row_per_image(tmp_path: Path) -> None:
    evaluator = evaluated([0, 1])
    write_results(tmp_path, evaluator.compute(), evaluator, {"images": 2, "split": "val"})
    with open(tmp_path / "images.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["image 0", "image 1"]
    assert float(rows[1]["mIoU"]) == evaluator.images["image 1"]
    assert int(rows[0]["union/car, red"]) == evaluator.image_scores()["image 0"]["union/car, red"]


@pytest.mark.slow  # torch imports its compiler to count
def test_flops_are_two_for_each_multiply_add_of_the_first_image() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1))

    class Loaded:
        def __init__(self) -> None:
            self.network = network

        def __call__(self, image: np.ndarray, sample_id: str) -> torch.Tensor:
            with torch.inference_mode():
                return network(torch.from_numpy(image).permute(2, 0, 1)[None].float())

    class Images:
        ids = ("first",)

        def __getitem__(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(image=np.zeros((10, 20, 3), np.uint8))

    cost = cost_of(Loaded(), Images())  # type: ignore[arg-type]
    assert cost == {
        "flops": 2 * 200 * (3 * 9 * 8 + 8 * 2),
        "image": "first",
        "height": 10,
        "width": 20,
        "parameters": 3 * 9 * 8 + 8 + 8 * 2 + 2,
    }


def test_what_an_earlier_measurement_left_is_not_taken_for_this_one(tmp_path: Path) -> None:
    evaluator = evaluated([0])
    write_results(tmp_path, evaluator.compute(), evaluator, {"images": 1, "split": "val"})
    (tmp_path / "cost.json").write_text("{}")
    write_results(tmp_path, evaluator.compute(), evaluator, {"images": 1, "split": "val"})
    assert not (tmp_path / "cost.json").exists()
    assert (tmp_path / "images.csv").exists()
