"""The generated data set: reproducible, fast, and not solvable pixel by pixel."""

from __future__ import annotations

import time

import numpy as np
import pytest

from segtrain.datasets.shapes import NAMES, Shapes, outline, turned
from segtrain.errors import UserError


def test_an_image_depends_on_seed_split_and_index_only() -> None:
    first = Shapes("val")[5]
    again = Shapes("val", val=9)[5]
    assert first.id == "val_00005"
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    for other in (Shapes("val")[6], Shapes("train")[5], Shapes("val", seed=1)[5]):
        assert not np.array_equal(first.image, other.image)


def test_images_and_masks_have_the_asked_size_and_type() -> None:
    sample = Shapes("train", size=(40, 65))[0]
    assert sample.image.shape == (40, 65, 3)
    assert sample.image.dtype == np.uint8
    assert isinstance(sample.mask, np.ndarray)
    assert sample.mask.shape == (40, 65)
    assert sample.mask.dtype == np.uint8


def test_lengths_are_the_counts_of_the_split() -> None:
    assert (len(Shapes("train")), len(Shapes("val")), len(Shapes("val", val=3))) == (2000, 64, 3)


def test_all_classes_appear_and_no_other_value() -> None:
    counts = np.bincount(
        np.concatenate([mask(Shapes("val"), i).ravel() for i in range(64)]), minlength=256
    )
    share = counts / counts.sum()
    assert not share[len(NAMES) :].any()
    assert (share[1 : len(NAMES)] > 0.02).all()
    assert share[0] < 0.85


@pytest.mark.parametrize(
    ("name", "area"),  # in units of radius squared
    [
        ("circle", 0.8 * np.pi),
        ("square", 1.5**2),
        ("triangle", 0.55**2 * 3 * np.sqrt(3)),
        ("cross", 4 * 0.64 - 0.64**2),
        ("ring", 0.7 * np.pi),
    ],
)
def test_outlines_have_the_area_of_their_shape_at_any_angle(name: str, area: float) -> None:
    y, x = np.mgrid[-60:61, -60:61].astype(np.float32)
    for angle in (0.1, 0.7, 2.0):
        assert outline(name, *turned(y, x, 50.0, angle)).sum() == pytest.approx(
            area * 50**2, rel=0.01
        )


def test_colour_alone_does_not_solve_it() -> None:
    """The most likely class of each of 16^3 colours, fitted on 300 images, stays far below what a
    network reaches.
    """
    table = np.zeros((4096, len(NAMES)))
    train = Shapes("train")
    val = Shapes("val")
    for i in range(300):
        np.add.at(table, (bins(train, i), mask(train, i).ravel()), 1)
    best = table.argmax(1)
    matrix = np.zeros((len(NAMES), len(NAMES)))
    for i in range(64):
        np.add.at(matrix, (mask(val, i).ravel(), best[bins(val, i)]), 1)
    hits = np.diag(matrix)
    assert (hits / (matrix.sum(0) + matrix.sum(1) - hits)).mean() < 0.45


def test_an_image_takes_milliseconds() -> None:
    data = Shapes("train")
    best = 1.0
    for i in range(20):
        start = time.perf_counter()
        data[i]
        best = min(best, time.perf_counter() - start)
    assert best < 0.01


def test_wrong_arguments_name_value_and_way_out() -> None:
    with pytest.raises(UserError, match=r"split=test: .* train and val"):
        Shapes("test")
    with pytest.raises(UserError, match=r"dataset.size=\[16, 16\]"):
        Shapes("val", size=(16, 16))
    with pytest.raises(UserError, match=r"dataset.val=0"):
        Shapes("val", val=0)


def mask(data: Shapes, index: int) -> np.ndarray:
    target = data[index].mask
    assert isinstance(target, np.ndarray)
    return target


def bins(data: Shapes, index: int) -> np.ndarray:
    coarse = data[index].image.reshape(-1, 3).astype(np.int64) // 16
    return coarse @ np.array([256, 16, 1])
