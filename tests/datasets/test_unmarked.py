"""Images that nobody has labelled yet, and labels that are misspelt, are noted.

Members: labelme's images without .json, YOLO's without .txt, both left out on request; a rare label
beside a frequent one that it nearly is, two frequent labels alike; .json in hidden folders.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from commandline import done, save

from segtrain.data.verify import notes, verify_labels
from segtrain.datasets.labelme import Labelme
from segtrain.datasets.yolo import Yolo

SQUARE = [[2, 2], [12, 2], [12, 12], [2, 12]]


def photo(path: Path) -> Path:
    return save(path, np.zeros((16, 20, 3), np.uint8))


def labelled(path: Path, *labels: str) -> None:
    shapes = [{"label": label, "points": SQUARE, "shape_type": "polygon"} for label in labels]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"shapes": shapes, "imageHeight": 16, "imageWidth": 20}))


def folder(root: Path) -> Path:
    """Six images: four with a person, one with a `persn`, one without a file."""
    for name in "abcdef":
        photo(root / f"train/{name}.png")
    for name in "abcd":
        labelled(root / f"train/{name}.json", "person", "person")
    labelled(root / "train/e.json", "persn")
    return root


def test_labelmes_images_without_a_file_are_background_and_noted(tmp_path: Path) -> None:
    found = Labelme(str(folder(tmp_path)), "train")
    assert found.ids == list("abcdef")
    assert (found.mask(5) == 0).all()
    assert (
        "no .json beside it, so that all of it is background (dataset.unmarked=leave_out leaves "
        f"such images out): 1 of 6 images ({tmp_path}/train/f.png)"
    ) in notes(found, verify_labels(found))
    assert Labelme(str(tmp_path), "train", unmarked="leave_out").ids == list("abcde")


def test_yolos_images_without_a_file_are_background_and_noted(tmp_path: Path) -> None:
    for name in "ab":
        photo(tmp_path / f"images/train/{name}.png")
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    found = Yolo(str(tmp_path), "train", labels=["car"])
    assert "no .txt beside it, so that all of it is background" in "".join(
        notes(found, verify_labels(found))
    )
    assert Yolo(str(tmp_path), "train", labels=["car"], unmarked="leave_out").ids == ["a"]


def test_a_label_that_is_nearly_another_is_noted_with_its_file(tmp_path: Path) -> None:
    found = Labelme(str(folder(tmp_path)), "train")
    assert found.labels.names == ("background", "persn", "person")
    said = (
        "the label `persn` is nearly `person`, and a class of its own; dataset.labels=[NAME,...] "
        f"refuses what it does not list: 1 of 6 images ({tmp_path}/train/e.json)"
    )
    assert said in notes(found, verify_labels(found))
    out = done(
        "segdata", "verify", "dataset=labelme", f"dataset.root={tmp_path}", "dataset.split=train"
    )
    assert f"  note: {said}\n" in out
    for name in "abcdef":  # as frequent as the other: two classes
        labelled(tmp_path / f"train/{name}.json", "person", "persons")
    both = Labelme(str(tmp_path), "train")
    assert not [line for line in notes(both, verify_labels(both)) if "nearly" in line]


def test_labels_of_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    folder(tmp_path)
    labelled(tmp_path / "train/.ipynb_checkpoints/a-checkpoint.json", "crane")
    labelled(tmp_path / "__MACOSX/train/a.json", "dune")
    assert Labelme(str(tmp_path), "train").labels.names == ("background", "persn", "person")
