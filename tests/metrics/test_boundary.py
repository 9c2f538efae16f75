"""Boundary IoU against a loop of erosions, and against squares counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from segtrain.config import parts
from segtrain.errors import DataError, UserError
from segtrain.metrics.boundary import BoundaryEvaluator, boundary, boundary_iou
from segtrain.metrics.confusion import SemanticEvaluator
from segtrain.structures.samples import Scene

NAMES = ["sky", "road", "car"]


def blobs(shape: tuple[int, int], seed: int, classes: int = 2) -> np.ndarray:
    """A label map (H, W) uint8 with smooth regions."""
    noise = np.random.default_rng(seed).random((classes, *shape))
    return ndimage.gaussian_filter(noise, (0, 3, 3)).argmax(0).astype(np.uint8)


def eroded(mask: np.ndarray, ratio: float) -> np.ndarray:
    """Erode as the authors do: by 3 x 3, as many times as the distance.

    Outside the image counts as outside the mask.
    """
    steps = max(1, round(ratio * math.hypot(*mask.shape)))
    inner = mask
    for _ in range(steps):
        inner = ndimage.binary_erosion(inner, np.ones((3, 3)), border_value=0)
    return mask & ~inner


def pair(seed: int, shape: tuple[int, int] = (60, 80)) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a target with void pixels."""
    target = blobs(shape, seed, 3)
    prediction = np.roll(target, (2, -3), (0, 1))
    target[blobs(shape, seed + 1000, 4) == 3] = 255
    return prediction, target


def reference(pairs: list[tuple[np.ndarray, np.ndarray]], ratio: float) -> list[tuple[int, int]]:
    """(intersection, union) of each of three classes, one class and image at a time."""
    found = []
    for k in range(3):
        hit = union = 0
        for prediction, target in pairs:
            ours = eroded((prediction == k) & (target != 255), ratio)
            true = eroded(target == k, ratio)
            hit = hit + int((ours & true).sum())
            union = union + int((ours | true).sum())
        found.append((hit, union))
    return found


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (7, 5), (64, 48), (150, 300)])
@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.05, 0.6])
def test_a_boundary_is_what_a_loop_of_erosions_takes_away(
    shape: tuple[int, int], ratio: float
) -> None:
    for seed in range(3):
        mask = blobs(shape, seed).astype(bool)
        assert np.array_equal(boundary(mask, ratio), eroded(mask, ratio))
    assert np.array_equal(
        boundary(np.ones(shape, bool), ratio), eroded(np.ones(shape, bool), ratio)
    )
    assert not boundary(np.zeros(shape, bool), ratio).any()


def test_the_width_is_two_percent_of_the_diagonal_rounded_and_the_image_border_is_contour() -> None:
    # 300 x 400 has a diagonal of 500, so the boundary is 10 pixels wide; 90 x 120: 150, 3 pixels; 9
    # x 12: 15, at least 1
    assert boundary(np.ones((300, 400), bool)).sum() == 300 * 400 - 280 * 380
    assert boundary(np.ones((90, 120), bool)).sum() == 90 * 120 - 84 * 114
    assert boundary(np.ones((9, 12), bool)).sum() == 9 * 12 - 7 * 10


def test_boundary_iou_of_two_squares_is_as_on_paper() -> None:
    # 90 x 120: 3 pixels wide. A square of 40 and the same without its last column: rings of 40^2 -
    # 34^2 and 40 * 39 - 34 * 33.
    a = np.zeros((90, 120), bool)
    b = np.zeros((90, 120), bool)
    a[20:60, 20:60] = b[20:60, 20:59] = True
    ring_a = 40 * 40 - 34 * 34
    ring_b = 40 * 39 - 34 * 33
    shared = ring_b - 34  # the inmost column of b's right side lies inside a's ring no more
    assert boundary_iou(a, b) == pytest.approx(shared / (ring_a + ring_b - shared))
    assert boundary_iou(a, b) < (40 * 39) / (40 * 40)  # the plain IoU sees it less
    assert boundary_iou(a, a) == 1.0
    assert boundary_iou(a, ~a & False) == 0.0
    assert math.isnan(boundary_iou(~a & False, ~a & False))


@pytest.mark.parametrize("ratio", [0.02, 0.05])
def test_the_evaluator_adds_up_what_a_loop_over_classes_and_images_counts(ratio: float) -> None:
    pairs = [pair(seed, (40 + 9 * seed, 70)) for seed in range(3)]
    evaluator = BoundaryEvaluator(NAMES, ratio=ratio)
    for number, (prediction, target) in enumerate(pairs):
        evaluator.update(
            str(number),
            torch.from_numpy(prediction).to([torch.uint8, torch.int64][number % 2]),
            target,
        )
    expected = reference(pairs, ratio)
    assert evaluator.regions.T.tolist() == [list(counts) for counts in expected]
    result = evaluator.compute()
    values = [hit / union for hit, union in expected]
    assert [result[f"boundary_IoU/{name}"] for name in NAMES] == values
    assert result["boundary_IoU"] == pytest.approx(sum(values) / 3)
    plain = SemanticEvaluator(NAMES)
    for number, (prediction, target) in enumerate(pairs):
        plain.update(str(number), torch.from_numpy(prediction), target)
    assert plain.compute().items() <= result.items()
    assert set(result) == set(evaluator.names())
    assert evaluator.table().startswith(plain.table())
    assert evaluator.table().endswith(f"\nboundary IoU {100 * result['boundary_IoU']:.2f} %")


def test_a_perfect_prediction_has_boundary_iou_1_whatever_it_says_where_the_truth_is_void() -> None:
    _, target = pair(5)
    prediction = np.where(target == 255, 2, target).astype(np.uint8)
    evaluator = BoundaryEvaluator(NAMES)
    evaluator.update(
        "a", torch.from_numpy(prediction), Scene(target, np.zeros(target.shape, np.int32))
    )
    assert {v for k, v in evaluator.compute().items() if k.startswith("boundary")} == {1.0}


@pytest.mark.row("R11")
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shards_give_the_numbers_of_one_process(ranks: int) -> None:
    def evaluated(ids: list[int]) -> BoundaryEvaluator:
        evaluator = BoundaryEvaluator(NAMES)
        for i in ids:
            prediction, target = pair(i)
            evaluator.update(str(i), torch.from_numpy(prediction), target)
        return evaluator

    alone = evaluated([0, 1, 2, 3])
    merged = evaluated([9])
    merged.merge([evaluated(list(range(rank, 4, ranks))).state() for rank in range(ranks)][::-1])
    assert merged.compute() == alone.compute()
    assert merged.table() == alone.table()


def test_a_class_left_out_of_the_mean_keeps_its_own_number_and_an_absent_one_has_none() -> None:
    evaluator = BoundaryEvaluator(NAMES, leave_out=["sky"])
    target = np.zeros((20, 20), np.uint8)
    target[5:15, 5:15] = 1
    evaluator.update(
        "a", torch.from_numpy(np.where(target == 1, 1, 0).astype(np.uint8)[::-1].copy()), target
    )
    evaluator.update("b", torch.zeros(20, 20, dtype=torch.uint8), target)
    result = evaluator.compute()
    # found in one image, missed in the other
    assert result["boundary_IoU"] == result["boundary_IoU/road"] == 0.5
    assert "boundary_IoU/sky" in result
    assert "boundary_IoU/car" not in result
    assert evaluator.protocol.endswith(
        "; mIoU and mAcc without sky; "
        "boundary IoU within 2 % of the image diagonal, void in both maps"
    )


def test_a_run_builds_it_as_its_metric_and_refuses_a_width_outside_the_image() -> None:
    node = {"_target_": "segtrain.metrics.boundary.BoundaryEvaluator", "ratio": 0.01}
    assert parts.evaluator(node, NAMES).ratio == 0.01
    for ratio in (0.0, -1.0, 1.5):
        with pytest.raises(
            UserError, match=f"metric.ratio={ratio}: a share of the image's diagonal"
        ):
            BoundaryEvaluator(NAMES, ratio=ratio)


def test_illegal_labels_are_refused_as_by_the_plain_evaluator() -> None:
    with pytest.raises(DataError, match="street: the prediction holds 3, but classes are 0-2"):
        BoundaryEvaluator(NAMES).update("street", torch.full((4, 4), 3), np.zeros((4, 4), np.uint8))
