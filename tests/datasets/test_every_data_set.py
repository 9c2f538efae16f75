"""Data sets on disk: layouts, pairing, and the line a user gets when something is missing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.config import parts
from segtrain.datasets.camvid import CamVid
from segtrain.datasets.folder import Folder
from segtrain.datasets.voc import VOC
from segtrain.errors import DataError, UserError

LABELS = [{"id": 0, "name": "background"}, {"id": 5, "name": "object"}, {"id": 255, "ignore": True}]
MASK = np.array([[0, 5, 255], [5, 5, 0]], np.uint8)


def image(path: Path, value: int = 9, shape: tuple[int, int] = (2, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*shape, 3), value, np.uint8)).save(path)


def mask(path: Path, values: np.ndarray = MASK) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def layout(root: Path, kind: str) -> str | None:
    """Two train samples and one val sample; returns `lists`."""
    for split, name, value in (("train", "b", 2), ("train", "a", 1), ("val", "c", 3)):
        images, masks = {
            "images/split": (f"images/{split}", f"masks/{split}"),
            "split/images": (f"{split}/images", f"{split}/masks"),
            "lists": ("images", "masks"),
        }[kind]
        image(root / images / f"{name}.png", value)
        mask(root / masks / f"{name}.png")
    if kind != "lists":
        return None
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text("b\na\n\n")
    (root / "lists" / "val.txt").write_text("c\n")
    return "lists"


@pytest.mark.parametrize("kind", ["images/split", "split/images", "lists"])
def test_a_folder_is_read_in_each_of_its_layouts(tmp_path: Path, kind: str) -> None:
    lists = layout(tmp_path, kind)
    data = Folder(str(tmp_path), "train", lists=lists, labels=LABELS)
    assert data.ids == (["b", "a"] if lists else ["a", "b"])  # a list keeps its own order
    assert len(data) == 2
    sample = data[data.ids.index("b")]
    assert sample.id == "b"
    assert (sample.image == 2).all()
    assert sample.image.shape == (2, 3, 3)
    assert isinstance(sample.mask, np.ndarray)
    assert sample.mask.tolist() == [[0, 1, 255], [1, 1, 0]]
    assert data.files(data.ids.index("b"))[0].name == "b.png"
    assert Folder(str(tmp_path), "val", lists=lists, labels=LABELS).ids == ["c"]


@pytest.mark.parametrize("kind", ["images/split", "split/images", "lists"])
def test_an_unknown_split_lists_the_known_ones_with_a_suggestion(tmp_path: Path, kind: str) -> None:
    lists = layout(tmp_path, kind)
    with pytest.raises(
        UserError, match=r"no split `vall`; there is train, val .*Did you mean `val`"
    ):
        Folder(str(tmp_path), "vall", lists=lists, labels=LABELS)


def test_classes_come_from_the_table_then_the_named_file_then_the_roots_own(tmp_path: Path) -> None:
    layout(tmp_path, "images/split")
    with pytest.raises(
        UserError, match=r"which mask value is which class.*dataset.labels=\{0: background"
    ):
        Folder(str(tmp_path), "train")
    (tmp_path / "classes.json").write_text(
        '{"classes": [{"id": 5, "name": "own"}], "ignored": [0, 255]}'
    )
    assert Folder(str(tmp_path), "train").labels.names == ("own",)
    assert Folder(str(tmp_path), "train", classes="voc").labels.num_classes == 21
    assert Folder(str(tmp_path), "train", classes="voc", labels=LABELS).labels.names == (
        "background",
        "object",
    )


def test_a_missing_root_names_its_key(tmp_path: Path) -> None:
    for make in (
        lambda r: Folder(r, "train", labels=LABELS),
        lambda r: CamVid(r, "train"),
        lambda r: VOC(r, "train"),
    ):
        with pytest.raises(UserError, match=r"nowhere: no such folder; set dataset.root="):
            make(str(tmp_path / "nowhere"))


@pytest.mark.row("R18")
def test_an_image_without_mask_and_a_mask_without_image_are_named(tmp_path: Path) -> None:
    layout(tmp_path, "images/split")
    image(tmp_path / "images/train/alone.png")
    data = Folder(str(tmp_path), "train", labels=LABELS)
    (problem,) = data.problems
    assert re.search(r"images/train/alone.png: has no partner .*masks/train/alone\.\*$", problem)
    assert data.ids == ["a", "b"]  # what is whole can be read
    (tmp_path / "images/train/alone.png").unlink()
    for name in ("x", "y", "z"):
        mask(tmp_path / f"masks/train/{name}.png")
    problems = Folder(str(tmp_path), "train", labels=LABELS).problems
    for name, problem in zip("xyz", problems, strict=True):
        assert re.search(
            rf"masks/train/{name}.png: has no partner .*images/train/{name}\.\*$", problem
        )


def test_a_data_set_with_problems_is_refused_by_what_builds_it_for_a_run(tmp_path: Path) -> None:
    layout(tmp_path, "images/split")
    for name in ("x", "y"):
        mask(tmp_path / f"masks/train/{name}.png")
    splits = {"train_split": "train", "val_split": "val"}
    target = "segtrain.datasets.folder.Folder"
    node = {"_target_": target, "root": str(tmp_path), "labels": LABELS, **splits}
    with pytest.raises(
        DataError,
        match=r"masks/train/x.png: has no partner .*\(and 1 more; segdata verify lists them\)$",
    ):
        parts.dataset(node, "train")
    assert len(parts.dataset(node, "train", tolerant=True).problems) == 2
    assert parts.dataset(node, "val").ids == ["c"]


@pytest.mark.row("R18")
def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    layout(tmp_path, "images/split")
    image(tmp_path / "images/train/a.jpg")
    (problem,) = Folder(str(tmp_path), "train", labels=LABELS).problems
    assert re.search(r"a\.png: has the same name as .*a\.jpg", problem)


@pytest.mark.row("R18")
def test_hidden_and_foreign_files_are_left_out(tmp_path: Path) -> None:
    layout(tmp_path, "images/split")
    for name in ("._a.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "images/train" / name).write_bytes(b"x")
    assert Folder(str(tmp_path), "train", labels=LABELS).ids == ["a", "b"]


@pytest.mark.row("R18")
def test_names_that_differ_only_in_case_stay_two_samples(tmp_path: Path) -> None:
    layout(tmp_path, "images/split")
    image(tmp_path / "images/train/A.png", 7)
    mask(tmp_path / "masks/train/A.png")
    data = Folder(str(tmp_path), "train", labels=LABELS)
    assert data.ids == ["A", "a", "b"]
    assert [int(data[i].image[0, 0, 0]) for i in range(3)] == [7, 1, 2]


def test_a_split_may_be_empty_but_not_have_masks_alone(tmp_path: Path) -> None:
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "masks/train").mkdir(parents=True)
    assert len(Folder(str(tmp_path), "train", labels=LABELS)) == 0
    mask(tmp_path / "masks/train/a.png")
    with pytest.raises(DataError, match="images/train: holds no images"):
        Folder(str(tmp_path), "train", labels=LABELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", "train.txt, line 3: `a` is listed twice .first in line 1"),
        ("a\ngone\n", r"images/gone\.\* and .*masks/gone\.\*: listed, but not there$"),
        (
            "a.png\n",
            r"images/a\.png\.\* and .*masks/a\.png\.\*: listed, but not there; "
            r"list ids without the suffix",
        ),
        ("c\n", r"masks/c\.\*: listed, but not there"),
    ],
)
def test_a_wrong_list_is_named_with_its_line_or_id(tmp_path: Path, text: str, message: str) -> None:
    layout(tmp_path, "lists")
    (tmp_path / "masks/c.png").unlink()
    (tmp_path / "lists/train.txt").write_text(text)
    (problem,) = Folder(str(tmp_path), "train", lists="lists", labels=LABELS).problems
    assert re.search(message, problem)


@pytest.mark.row("R18")
def test_a_mask_of_another_size_is_refused_with_both_files(tmp_path: Path) -> None:
    layout(tmp_path, "images/split")
    mask(tmp_path / "masks/train/a.png", np.zeros((2, 4), np.uint8))
    data = Folder(str(tmp_path), "train", labels=LABELS)
    with pytest.raises(
        DataError, match=r"masks/train/a.png: mask of 4 x 2 pixels, but its image .*a.png has 3 x 2"
    ):
        data[0]


def voc_tree(root: Path) -> Path:
    base = root / "VOC2012"
    for name in ("2007_1", "2007_2"):
        image(base / "JPEGImages" / f"{name}.jpg")
        mask(base / "SegmentationClass" / f"{name}.png")
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/train.txt").write_text("2007_2\n2007_1\n")
    return base


def test_voc_is_found_from_the_devkit_and_from_its_own_folder(tmp_path: Path) -> None:
    base = voc_tree(tmp_path)
    for root in (tmp_path, base):
        data = VOC(str(root), "train")
        assert data.ids == ["2007_2", "2007_1"]
        assert data[0].mask.tolist() == MASK.tolist()


def test_voc_says_what_to_do_when_parts_are_missing(tmp_path: Path) -> None:
    voc_tree(tmp_path)
    with pytest.raises(
        DataError, match=r"train_aug.txt: missing; not part of the VOC archive.*train_split=train$"
    ):
        VOC(str(tmp_path), "train_aug")
    with pytest.raises(DataError, match=r"val.txt: missing; set dataset.root="):
        VOC(str(tmp_path), "val")
    with pytest.raises(UserError, match=r"no split `trainaug`.*Did you mean `train_aug`"):
        VOC(str(tmp_path), "trainaug")


def test_camvid_reads_void_as_ignored(tmp_path: Path) -> None:
    image(tmp_path / "val/s.png")
    mask(tmp_path / "valannot/s.png", np.array([[0, 10, 11], [1, 2, 3]], np.uint8))
    assert CamVid(str(tmp_path), "val")[0].mask.tolist() == [[0, 10, 255], [1, 2, 3]]
    with pytest.raises(DataError, match=r"train: no such folder; is dataset.root right"):
        CamVid(str(tmp_path), "train")
    with pytest.raises(
        UserError, match=r"no split `tets`; there is test, train, val .*Did you mean `test`"
    ):
        CamVid(str(tmp_path), "tets")


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_the_real_camvid_has_the_published_counts(data_root: Path, split: str, count: int) -> None:
    data = CamVid(str(data_root / "camvid"), split)
    assert len(data) == len(set(data.ids)) == count
    sample = data[0]
    with Image.open(data.files(0)[1]) as file:
        raw = np.asarray(file)
    assert sample.image.shape == (360, 480, 3)
    assert (sample.mask == np.where(raw == 11, 255, raw)).all()


@pytest.mark.parametrize(
    ("split", "count"), [("train", 46), ("val", 67), ("trainval", 113), ("train_aug", 65)]
)
def test_the_real_voc_sample_has_all_listed_pairs(data_root: Path, split: str, count: int) -> None:
    data = VOC(str(data_root / "voc2012" / "VOCdevkit"), split)
    assert len(data) == count
    assert set(np.unique(data[0].mask)) <= {*range(21), 255}
    assert data.files(0)[1].parent.name == (
        "SegmentationClassAug" if split == "train_aug" else "SegmentationClass"
    )
