"""Masks as people have them: drawn in colours, with a suffix, in one folder without splits.

Members of the colours: classes, ignored ones, an unknown colour, opacity, a mask of values. Of the
suffix: two folders, one folder, lists. Of the division: a share, folds, one side empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import SMALL_RUN, done, save, trained, typed
from PIL import Image

from segtrain.datasets.folder import Folder
from segtrain.errors import DataError, UserError

COLOURS = [
    {"id": 0, "name": "ground", "color": [10, 20, 30]},
    {"id": 1, "name": "person", "color": [220, 20, 60]},
    {"id": 255, "ignore": True, "color": [0, 0, 0]},
]
DRAWN = np.array([[[10, 20, 30], [220, 20, 60]], [[0, 0, 0], [10, 20, 30]]], np.uint8)


def photos(folder: Path, names: list[str]) -> None:
    for name in names:
        save(folder / f"{name}.jpg", np.zeros((2, 2, 3), np.uint8))


def made(root: Path, masks: Mapping[str, np.ndarray], **arguments: Any) -> Folder:
    """A data set of one split with these masks."""
    photos(root / "images/train", list(masks))
    for name, values in masks.items():
        save(root / f"masks/train/{name}.png", values)
    return Folder(str(root), "train", **{"labels": COLOURS, **arguments})


def test_masks_drawn_in_colours_or_by_a_palette_are_read_by_the_class_list(tmp_path: Path) -> None:
    opaque = np.dstack([DRAWN, np.full((2, 2), 255, np.uint8)])
    data = made(tmp_path, {"a": opaque, "b": DRAWN}, rgb=True)
    indexed = Image.fromarray(DRAWN).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    indexed.save(tmp_path / "masks/train/b.png")
    for index in (0, 1):
        assert data.mask(index).tolist() == [[0, 1], [255, 0]]
        assert data[index].mask.tolist() == [[0, 1], [255, 0]]


def test_an_unknown_colour_is_named_with_file_and_pixel(tmp_path: Path) -> None:
    strange = DRAWN.copy()
    strange[1, 0] = (10, 20, 31)
    data = made(tmp_path, {"a": strange}, rgb=True)
    said = r"masks/train/a\.png: colour \[10, 20, 31\] at \(x=0, y=1\) is of no class.*person \[220"
    with pytest.raises(DataError, match=said):
        data.mask(0)
    values = made(tmp_path / "v", {"a": np.zeros((2, 2), np.uint8)}, rgb=True)
    with pytest.raises(DataError, match=r"a\.png: is not drawn in colours"):
        values.mask(0)
    plain = made(tmp_path / "p", {"a": DRAWN})
    with pytest.raises(DataError, match=r"a\.png: mode RGB, but a mask is 1 channel"):
        plain.mask(0)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_suffix_of_masks_is_left_away(tmp_path: Path, side_by_side: bool) -> None:
    masks = "images" if side_by_side else "masks"
    photos(tmp_path / "images/train", ["a", "b_1"])
    for name in ("a", "b_1"):
        save(tmp_path / f"{masks}/train/{name}_mask.png", np.ones((2, 2), np.uint8))
    data = Folder(
        str(tmp_path), "train", masks=masks, labels=["ground", "person"], mask_suffix="_mask"
    )
    assert data.ids == ["a", "b_1"]
    assert data.problems == []
    assert data.files(0)[1] == tmp_path / f"{masks}/train/a_mask.png"


def test_a_suffix_holds_for_lists_too_and_a_mask_that_lacks_it_is_named(tmp_path: Path) -> None:
    photos(tmp_path / "images", ["a", "b"])
    for name in ("a_gt", "b"):
        save(tmp_path / f"masks/{name}.png", np.ones((2, 2), np.uint8))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("a\nb\n")
    data = Folder(
        str(tmp_path), "train", lists="lists", labels=["ground", "person"], mask_suffix="_gt"
    )
    assert data.ids == ["a"]
    assert data.problems == [
        f"{tmp_path}/masks/b_gt.*: listed, but not there; found only without `_gt` at the end "
        "(`b.png`); name both alike"
    ]


def divided(root: Path, split: str, **arguments: Any) -> list[str]:
    return Folder(str(root), split, labels=["ground", "person"], **arguments).ids


def test_a_share_divides_a_folder_exactly_and_stays_put(tmp_path: Path) -> None:
    names = [f"photo_{number}" for number in range(100)]
    photos(tmp_path / "images", names)
    for name in names:
        save(tmp_path / f"masks/{name}.png", np.ones((2, 2), np.uint8))
    train = divided(tmp_path, "train", val_share=0.2)
    val = divided(tmp_path, "val", val_share=0.2)
    assert sorted([*train, *val]) == sorted(names)
    assert 10 <= len(val) <= 30  # about a fifth
    folds = [divided(tmp_path, "val", folds=5, fold=fold) for fold in range(5)]
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    rest = divided(tmp_path, "train", folds=5, fold=2)
    assert sorted([*rest, *folds[2]]) == sorted(names)
    more = [f"later_{number}" for number in range(20)]
    photos(tmp_path / "images", more)
    for name in more:
        save(tmp_path / f"masks/{name}.png", np.ones((2, 2), np.uint8))
    assert {*divided(tmp_path, "val", val_share=0.2)} & {*names} == {*val}
    with pytest.raises(UserError, match=r"no split `test`"):
        divided(tmp_path, "test", val_share=0.2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"val_share": 0.001}, r"dataset.val_share=0.001: of 3 images none is left for val"),
        ({"val_share": 0.9999}, r"none is left for train"),
        ({"val_share": 1.5}, r"dataset.val_share=1.5: lies between 0 and 1"),
        ({"folds": 1}, r"dataset.folds=1 dataset.fold=0: at least 2 folds"),
        ({"folds": 3, "fold": 3}, r"dataset.fold=3: at least 2 folds, counted from 0"),
        ({"folds": 3, "val_share": 0.2}, r"leave one of them out"),
        ({"lists": "lists", "val_share": 0.2}, r"leave them or dataset.lists out"),
    ],
)
def test_a_division_that_cannot_be_is_refused(
    tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    photos(tmp_path / "images", ["a", "b", "c"])
    for name in ("a", "b", "c"):
        save(tmp_path / f"masks/{name}.png", np.ones((2, 2), np.uint8))
    split = "train" if "left for train" in said else "val"
    with pytest.raises(UserError, match=said):
        divided(tmp_path, split, **arguments)


@pytest.mark.slow
def test_a_person_verifies_and_trains_on_one_folder_of_coloured_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        save(tmp_path / f"d/images/{number}.jpg", rng.integers(0, 256, (32, 32, 3), np.uint8))
        drawn = np.where(rng.random((32, 32, 1)) < 0.5, DRAWN[0, 0], DRAWN[0, 1]).astype(np.uint8)
        save(tmp_path / f"d/masks/{number}_mask.png", drawn)
    words = [
        "dataset=folder",
        f"dataset.root={tmp_path / 'd'}",
        "dataset.labels=[{id: 0, name: ground, color: [10, 20, 30]}, "
        "{id: 1, name: person, color: [220, 20, 60]}]",
        "dataset.rgb=true",
        "dataset.mask_suffix=_mask",
        "dataset.val_share=0.3",
    ]
    assert "0 problems" in done("segdata", "verify", *words)
    run = trained(
        tmp_path / "run",
        *words,
        *SMALL_RUN,
        "train.steps=1",
    )
    assert (run / "summary.json").is_file()
    drawn = np.zeros((32, 32, 3), np.uint8)
    save(tmp_path / "d/masks/3_mask.png", drawn)
    ended = typed("segdata", "verify", *words)
    assert ended.code == 65
    assert "3_mask.png: colour [0, 0, 0] at (x=0, y=0) is of no class" in ended.err
