"""`dataset=folder` reads trees with folders below a split, and names that end in a kind.

Members: Cityscapes' tree with other classes, folders below a split with equal names, one folder
without splits whose images lie in folders, images that lack the ending, a mask folder that is
missing below.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from commandline import save

from segtrain.data.division import Division
from segtrain.datasets.folder import Folder
from segtrain.errors import DataError, UserError

OWN = {0: "sky", 1: "ground", 7: None, 255: None}
ENDS = {"image_suffix": "_leftImg8bit", "mask_suffix": "_gtFine_labelIds"}


def planted(folder: Path, image: str, mask: str, value: int = 1) -> None:
    save(folder / image, np.full((4, 6, 3), 9, np.uint8))
    save(folder / mask, np.full((4, 6), value, np.uint8))


def city(root: Path, split: str, name: str, value: int = 1) -> None:
    stem = f"{split}/{name.split('_')[0]}/{name}"
    image = f"leftImg8bit/{stem}_leftImg8bit.png"
    planted(root, image, f"gtFine/{stem}_gtFine_labelIds.png", value)


def test_cityscapes_tree_with_other_classes(tmp_path: Path) -> None:
    for number in range(3):
        city(tmp_path, "train", f"york_00000{number}_000019", 7 if number == 1 else 1)
        city(tmp_path, "train", f"leeds_00000{number}_000019")
    found = Folder(str(tmp_path), "train", images="leftImg8bit", masks="gtFine", labels=OWN, **ENDS)
    assert found.problems == []
    assert found.ids == [
        f"{city}/{city}_00000{number}_000019" for city in ("leeds", "york") for number in range(3)
    ]
    assert [int(found.mask(index)[0, 0]) for index in range(6)] == [1, 1, 1, 1, 255, 1]

    bare = Folder(str(tmp_path), "train", images="leftImg8bit", masks="gtFine", labels=OWN)
    assert bare.ids == []
    assert all(
        "set dataset.image_suffix=_leftImg8bit dataset.mask_suffix=_gtFine_labelIds" in problem
        for problem in bare.problems
    )
    with pytest.raises(UserError, match=r"set dataset\.images=leftImg8bit dataset\.masks=gtFine$"):
        Folder(str(tmp_path), "train", labels=OWN)


def test_equal_names_in_two_folders_are_two_samples(tmp_path: Path) -> None:
    for day, value in (("mon", 0), ("tue", 1)):
        planted(tmp_path, f"images/val/{day}/a.png", f"masks/val/{day}/a.png", value)
    found = Folder(str(tmp_path), "val", labels=OWN)
    assert found.ids == ["mon/a", "tue/a"]
    assert [int(found.mask(index).max()) for index in range(2)] == [0, 1]


def test_folders_without_splits_are_divided_too(tmp_path: Path) -> None:
    for number in range(10):
        name = f"{'ab'[number % 2]}/{number}.png"
        planted(tmp_path, f"images/{name}", f"masks/{name}")
    sides = [Folder(str(tmp_path), s, labels=OWN, val_share=0.4) for s in ("train", "val")]
    ids = [set(side.ids) for side in sides]
    assert ids[0] | ids[1] == {f"{'ab'[number % 2]}/{number}" for number in range(10)}
    assert not ids[0] & ids[1]


def test_folders_beside_images_are_left_out_as_before(tmp_path: Path) -> None:
    planted(tmp_path, "images/train/a.png", "masks/train/a.png")
    planted(tmp_path, "images/train/old/b.png", "masks/train/old/b.png")
    assert Folder(str(tmp_path), "train", labels=OWN).ids == ["a"]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    city(tmp_path, "train", "york_000000_000019")
    save(tmp_path / "leftImg8bit/train/york/york_1.png", np.zeros((4, 6, 3), np.uint8))
    arguments = {"images": "leftImg8bit", "masks": "gtFine", "labels": OWN, **ENDS}
    found = Folder(str(tmp_path), "train", **arguments)
    assert found.ids == ["york/york_000000_000019"]
    assert found.problems == [
        f"{tmp_path}/leftImg8bit/train/york: 1 images do not end in "
        "dataset.image_suffix=_leftImg8bit, e.g. york_1.png"
    ]
    (tmp_path / "gtFine/train/york").rename(tmp_path / "gtFine/train/York")
    with pytest.raises(DataError, match=r"`York` is there in place of `york`"):
        Folder(str(tmp_path), "train", **arguments)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"dataset\.image_suffix: with dataset\.lists"):
        Folder(str(tmp_path), "train", lists="lists", **arguments)


def test_folders_of_splits_are_not_divided_once_more(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        planted(tmp_path, f"images/{split}/{split}.png", f"masks/{split}/{split}.png")
    with pytest.raises(UserError, match=r"folders of splits \(test, train, val\); leave dataset"):
        Folder(str(tmp_path), "train", labels=OWN, val_share=0.5)


def test_an_image_keeps_the_side_of_its_name_as_a_mac_writes_it(tmp_path: Path) -> None:
    for number in range(40):
        name = unicodedata.normalize("NFD", f"é{number}")
        planted(tmp_path, f"images/{name}.png", f"masks/{name}.png")
    val = Folder(str(tmp_path), "val", labels=OWN, val_share=0.3).ids
    by_name = [
        f"é{number}"
        for number in range(40)
        if Division(0.3).held_out(unicodedata.normalize("NFD", f"é{number}"))
    ]
    assert sorted(val) == sorted(by_name)
