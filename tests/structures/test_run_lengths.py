"""Run-length masks: a mask counted by hand, and pycocotools as the judge."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances

coco_mask = pytest.importorskip("pycocotools.mask", reason="the dev extra installs pycocotools")


def test_runs_go_down_the_columns() -> None:
    mask = np.array([[0, 1, 0], [1, 1, 0]], bool)  # down: 0 1, 1 1, 0 0
    (found,) = run_lengths.encode(mask[None])
    assert found == run_lengths.from_counts([1, 3, 2], (2, 3))
    assert found["size"] == [2, 3]
    assert isinstance(found["counts"], str)
    assert (run_lengths.decode([found], (2, 3))[0] == mask).all()
    assert run_lengths.areas([found]).tolist() == [3]
    assert run_lengths.boxes([found]).tolist() == [[0, 0, 2, 2]]


def test_random_masks_and_polygons_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((20, 37, 53)) < rng.random((20, 1, 1))
    ours = run_lengths.encode(masks)
    theirs = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    assert [r["counts"] for r in ours] == [r["counts"].decode() for r in theirs]
    assert (run_lengths.decode(ours, (37, 53)) == masks).all()
    assert (run_lengths.boxes(ours) == coco_mask.toBbox(theirs)).all()
    for _ in range(50):
        polygons = [
            rng.uniform(-3, 55, 2 * int(rng.integers(3, 9))).tolist()
            for _ in range(int(rng.integers(1, 4)))
        ]
        expected = coco_mask.merge(coco_mask.frPyObjects(polygons, 37, 53))
        assert (
            run_lengths.from_polygons(polygons, (37, 53))["counts"] == expected["counts"].decode()
        )


def test_nothing_stays_nothing() -> None:
    assert run_lengths.encode(np.zeros((0, 4, 5), bool)) == []
    assert run_lengths.decode([], (4, 5)).shape == (0, 4, 5)
    assert run_lengths.areas([]).shape == (0,)
    assert run_lengths.boxes([]).shape == (0, 4)
    empty = run_lengths.encode(np.zeros((1, 4, 5), bool))
    assert run_lengths.areas(empty).tolist() == [0]
    assert run_lengths.boxes(empty).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_masks_in_any_order_of_memory_and_of_either_type_are_the_same(
    kind: type, order: Literal["C", "F"]
) -> None:
    masks = np.random.default_rng(0).random((3, 17, 23)) < 0.3
    given = np.stack([np.array(mask, kind, order=order) for mask in masks])
    given = (
        given
        if order == "C"
        else np.array(masks.transpose(0, 2, 1), kind, order="C").transpose(0, 2, 1)
    )
    assert run_lengths.encode(given) == [run_lengths.encode(mask[None])[0] for mask in masks]
    assert (run_lengths.decode(run_lengths.encode(given), (17, 23)) == masks).all()


def test_dense_instances_become_corners_and_extents_with_the_areas_of_their_masks() -> None:
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    dense = Instances(torch.tensor([[2.0, 1, 5, 3], [0.5, 0, 1, 4]]), torch.tensor([7, 0]), masks)
    found = run_lengths.segments(dense)
    assert found.size == (4, 5)
    assert found.labels.tolist() == [7, 0]
    assert found.areas.tolist() == [6, 0]
    assert found.boxes.tolist() == [[2, 1, 3, 2], [0.5, 0, 0.5, 4]]
    assert found.boxes.dtype == np.float64
    assert found.masks == run_lengths.encode(masks.numpy())
    assert found.scores is None
    assert found.crowd is None
