"""Lists, folders and splits of one data set are compared with each other.

Members: an image in two lists, a folder of validation images that is a copy, images on no list, a
name without a file, a name twice, a COCO image in train and val, photos that a COCO file leaves
out, VOC's trainval with its val, folders and files of other kinds among the images.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commandline import SMALL_RUN, done, load, save, trained, typed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images with masks; train lists a b c, val c d; e and f stand on no list."""
    rng = np.random.default_rng(0)
    for name in "abcdef":
        save(tmp_path / f"images/{name}.png", rng.integers(0, 256, (32, 32, 3), np.uint8))
        save(tmp_path / f"masks/{name}.png", rng.integers(0, 2, (32, 32), np.uint8))
    listed(tmp_path, train="abc", val="cd")
    return tmp_path


def listed(root: Path, **splits: str) -> None:
    (root / "lists").mkdir(exist_ok=True)
    for split, names in splits.items():
        (root / f"lists/{split}.txt").write_text("".join(f"{name}\n" for name in names))


def words(root: Path) -> list[str]:
    labels = "dataset.labels=[background,object]"
    return ["dataset=folder", f"dataset.root={root}", "dataset.lists=lists", labels]


def test_an_image_in_two_lists_and_images_on_none_are_noted(root: Path) -> None:
    lines = done("segdata", "verify", *words(root), "log.progress=false").splitlines()
    assert (
        f"note: 1 of 2 validation images are trained on too ({root}/images/c.png): their scores "
        "say nothing about new images"
    ) in lines
    assert (
        f"note: 2 images beside those in neither split ({root}/images/e.png, {root}/images/f.png)"
    ) in lines
    listed(root, train="abef", val="cd")
    assert "note: " not in done("segdata", "verify", *words(root), "log.progress=false")


def test_copies_of_training_images_are_noted(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for split, names in {"train": "abcd", "val": "ab"}.items():
        for kind in ("images", "masks"):
            for name in names:
                pixels = load(root / f"{kind}/{name}.png")
                save(copy / f"{kind}/{split}/{name}.png", pixels)
    save(copy / "images/val/b.png", 255 - load(root / "images/b.png"))  # another photo of this name
    labels = "dataset.labels=[background,object]"
    out = done("segdata", "verify", "dataset=folder", f"dataset.root={copy}", labels)
    assert f"1 of 2 validation images are trained on too ({copy}/images/val/a.png)" in out


@pytest.mark.slow
def test_a_run_that_is_measured_on_what_it_learns_says_so(root: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", *words(root), *SMALL_RUN, "train.steps=1")
    assert (
        "note   1 of 2 validation images are trained on too" in (folder / "train.log").read_text()
    )


def test_a_name_without_a_file_and_a_name_twice_are_problems(root: Path) -> None:
    listed(root, train="abgb", val="cd")
    ended = typed("segdata", "verify", *words(root), "log.progress=false")
    assert ended.code == 65
    assert f"{root}/lists/train.txt, line 4: `b` is listed twice (first in line 2)" in ended.err
    assert f"{root}/images/g.* and {root}/masks/g.*: listed, but not there" in ended.err


def test_a_coco_image_in_both_files_and_photos_in_none_are_noted(root: Path) -> None:
    def write(path: Path, names: str) -> Path:
        images = [{"id": ord(n), "file_name": f"{n}.png", "height": 32, "width": 32} for n in names]
        square = [2, 2, 20, 2, 20, 20, 2, 20]
        objects = [
            {"id": 1 + number, "image_id": ord(n), "category_id": 1, "segmentation": [square]}
            | {"bbox": [2, 2, 18, 18], "area": 324, "iscrowd": 0}
            for number, n in enumerate(names)
        ]
        categories = [{"id": 1, "name": "square"}]
        path.write_text(
            json.dumps({"images": images, "annotations": objects, "categories": categories})
        )
        return path

    out = done(
        "segdata",
        "verify",
        "dataset=coco_json",
        f"dataset.annotations={write(root / 'train.json', 'abc')}",
        f"dataset.val_annotations={write(root / 'val.json', 'bd')}",
        f"dataset.images={root / 'images'}",
        "log.progress=false",
    )
    assert f"note: 1 of 2 validation images are trained on too ({root}/images/b.png)" in out
    assert f"note: 2 images beside those in neither split ({root}/images/e.png, " in out


def test_what_is_left_out_of_a_folder_is_counted(root: Path) -> None:
    save(root / "images/day/x.png", np.zeros((8, 8, 3), np.uint8))
    for name in ("._a.png", "phone.HEIC", "clip.gif", "other.gif"):
        (root / "images" / name).write_bytes(b"?")
    lines = done("segdata", "verify", *words(root), "dataset.split=train").splitlines()
    assert (
        f"  note: left out in {root}/images: 2 .gif, 1 .heic, 1 folder, 1 hidden "
        "(convert HEIC and AVIF to JPEG)"
    ) in lines


def test_trainval_with_val_is_said(data_root: Path) -> None:
    out = done(
        "segdata",
        "verify",
        "dataset=voc",
        f"dataset.root={data_root / 'voc2012/VOCdevkit'}",
        "dataset.train_split=trainval",
        "log.progress=false",
    )
    assert "note: 67 of 67 validation images are trained on too" in out


def test_a_folder_that_is_not_there_hides_no_other_fault(root: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "height": 32, "width": 32}]
    square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 18, 18], "area": 324}
    square |= {"segmentation": [[2, 2, 20, 2, 20, 20, 2, 20]], "iscrowd": 0}
    told = {"images": images, "annotations": [square], "categories": [{"id": 1, "name": "square"}]}
    (root / "train.json").write_text(json.dumps(told))
    arguments = ["dataset=coco_json", f"dataset.annotations={root / 'train.json'}"]
    ended = typed("segdata", "verify", *arguments, f"dataset.images={root / 'imagse'}")
    assert ended.code == 65
    assert f"{root}/imagse" in ended.err
    # Roboflow puts the file beside the images.
    (root / "train.json").rename(root / "images/_annotations.coco.json")
    arguments[1] = f"dataset.annotations={root / 'images/_annotations.coco.json'}"
    out = done("segdata", "verify", *arguments, f"dataset.images={root / 'images'}")
    assert "left out" not in out
