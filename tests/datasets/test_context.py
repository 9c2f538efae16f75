"""PASCAL-Context: 59 and 60 classes, three numberings of masks, and never a guess between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from context_masks import ID_459, NAMES, Numbering, other_masks, planes
from PIL import Image
from scipy.io import savemat

from segtrain.config import parts
from segtrain.datasets.context import Context, label_map
from segtrain.errors import DataError, UserError
from segtrain.structures.labels import LabelMap


@pytest.fixture
def sample(data_root: Path) -> Path:
    return data_root / "pascal_context"


def made(
    root: Path, values: Any, folder: str = "59_context_labels", listed: str = "val.txt"
) -> Path:
    for path in (root / "JPEGImages", root / folder, (root / listed).parent):
        path.mkdir(parents=True, exist_ok=True)
    plane = np.array(values)
    Image.fromarray(np.zeros((*plane.shape, 3), np.uint8)).save(root / "JPEGImages/a.jpg")
    Image.fromarray(plane.astype(np.uint8 if plane.max() < 256 else np.uint16)).save(
        root / folder / "a.png"
    )
    (root / listed).write_text("a\n")
    return root


def test_the_names_are_those_of_the_official_list_in_every_numbering() -> None:
    for numbering in ("official", "sorted", 459):
        assert list(label_map(59, numbering).names) == NAMES
        assert list(label_map(60, numbering).names) == ["background", *NAMES]
        assert label_map(60, numbering).colors == LabelMap.load("context").colors


def test_59_classes_ignore_background_and_60_count_it(sample: Path) -> None:
    fewer = Context(str(sample), "val")
    more = Context(str(sample), "val", classes=60)
    stored = planes(sample)
    assert sorted(fewer.ids) == sorted(more.ids) == sorted(stored)
    assert fewer.problems == []
    for index, name in enumerate(fewer.ids):
        assert (more.mask(index) == stored[name]).all()
        expected = np.where(stored[name] == 0, 255, stored[name] - 1)
        assert (fewer.mask(index) == expected).all()
        assert (fewer[index].mask == expected).all()
    assert sum((plane == 0).sum() for plane in stored.values()) > 1000  # else nothing was compared


@pytest.mark.parametrize("classes", [59, 60])
@pytest.mark.parametrize("numbering", ["sorted", 459])
def test_other_numberings_give_identical_train_ids(
    sample: Path, tmp_path: Path, numbering: Numbering, classes: Literal[59, 60]
) -> None:
    other = Context(
        str(other_masks(sample, tmp_path, numbering)), "val", classes, "masks", numbering
    )
    official = Context(str(sample), "val", classes)
    assert other.ids == official.ids
    assert len(other) == 4
    assert other.labels.names == official.labels.names
    for index in range(4):
        assert (other.mask(index) == official.mask(index)).all()
    assert other.files(0)[1].suffix == (".mat" if numbering == 459 else ".png")


@pytest.mark.parametrize("classes", [59, 60])
@pytest.mark.parametrize("numbering", ["official", "sorted", 459])
def test_every_map_writes_what_it_reads_and_survives_a_record(
    numbering: Numbering, classes: Literal[59, 60]
) -> None:
    labels = label_map(classes, numbering)
    every = np.arange(classes, dtype=np.uint8)[None]
    raw = labels.decode(every)
    assert labels.encode(raw, "m").tolist() == every.tolist()
    assert raw.dtype == (np.uint16 if numbering == 459 else np.uint8)
    if numbering == 459:
        assert raw[0].tolist() == ([0] if classes == 60 else []) + ID_459
    assert LabelMap.from_record(labels.record(), "run") == labels
    if classes == 59:
        # ignored pixels are background again
        assert labels.decode(np.array([[255]], np.uint8)).tolist() == [[0]]


def test_label_255_of_the_459_is_money_and_cannot_mean_ignored() -> None:
    labels = label_map(60, 459)
    assert labels.encode(np.array([[255, 431, 0, 459, 458]], np.uint16), "m").tolist() == [
        [0, 0, 0, 0, 59]
    ]
    with pytest.raises(UserError, match="class 255 predicted, but context has classes 0-459"):
        labels.decode(np.array([[255]], np.uint8))


def test_a_folder_of_unknown_numbering_is_refused_until_somebody_says(tmp_path: Path) -> None:
    root = made(tmp_path, [[0, 1]], "SegmentationClassContext")
    with pytest.raises(
        UserError,
        match=r"SegmentationClassContext: how are these masks numbered.*dataset.ids=sorted",
    ):
        Context(str(root), "val", masks="SegmentationClassContext")
    assert len(Context(str(root), "val", masks="SegmentationClassContext", ids="sorted")) == 1


def test_files_of_the_other_kind_name_the_key(tmp_path: Path) -> None:
    root = made(tmp_path, [[0, 1]])
    with pytest.raises(
        UserError, match=r"^dataset.ids=459: .*59_context_labels holds no .mat files"
    ):
        Context(str(root), "val", ids=459)
    (root / "trainval").mkdir()
    savemat(root / "trainval/a.mat", {"LabelMap": np.array([[0, 2]], np.uint16)})
    for ids in ("official", "sorted"):
        with pytest.raises(
            UserError, match=f"^dataset.ids={ids}: .*trainval holds .mat files; set dataset.ids=459"
        ):
            Context(str(root), "val", masks="trainval", ids=ids)
    assert Context(str(root), "val", masks=str(root / "trainval"), ids=459)[0].mask.tolist() == [
        [255, 0]
    ]
    with pytest.raises(UserError, match=r"gone: no such folder; set dataset.masks="):
        Context(str(root), "val", masks="gone", ids="sorted")


def test_values_of_another_numbering_suggest_the_key(tmp_path: Path) -> None:
    root = made(tmp_path, [[0, 1], [427, 3]])
    with pytest.raises(
        DataError,
        match=r"a.png: mask value 427 at \(x=0, y=1\).* Set dataset.ids=.*it is official now",
    ):
        Context(str(root), "val")[0]
    (root / "trainval").mkdir()
    savemat(root / "trainval/a.mat", {"LabelMap": np.array([[0, 460], [1, 1]], np.uint16)})
    with pytest.raises(
        DataError,
        match=r"a.mat: mask value 460 at .*has classes 2-458 .59 values. and .*it is 459 now",
    ):
        Context(str(root), "val", masks="trainval", ids=459)[0]


@pytest.mark.parametrize(
    "listed", ["val.txt", "ImageSets/SegmentationContext/val.txt", "ImageSets/Main/val.txt"]
)
def test_the_list_is_found_in_each_of_its_places(tmp_path: Path, listed: str) -> None:
    root = made(tmp_path / "VOC2010", [[0, 1]], listed=listed)
    for place in (root, tmp_path):
        assert Context(str(place), "val").ids == ["a"]
    with pytest.raises(
        DataError, match=r"VOC2010/train.txt or .*Main/train.txt: missing; set dataset.root="
    ):
        Context(str(root), "train")


def test_other_lists_are_taken_from_their_folder(tmp_path: Path) -> None:
    root = made(tmp_path, [[0, 1]])
    (root / "mine").mkdir()
    (root / "mine/few.txt").write_text("a\ngone\n")
    data = Context(str(root), "few", lists="mine")
    assert data.ids == ["a"]
    assert len(data.problems) == 1
    with pytest.raises(UserError, match="no split `val`; there is few"):
        Context(str(root), "val", lists="mine")
    with pytest.raises(UserError, match=r"no split `vall`.*Did you mean `val`"):
        Context(str(root), "vall")


def test_the_config_takes_numbers_as_a_command_line_gives_them(tmp_path: Path) -> None:
    root = made(tmp_path, [[0, 1]])
    splits = {"train_split": "train", "val_split": "val"}
    node = {"_target_": "segtrain.datasets.context.Context", "root": str(root), **splits}
    assert parts.dataset(node | {"classes": 60}, "val").labels.num_classes == 60
    with pytest.raises(UserError, match=r"dataset.classes: expected 59 or 60, got 33"):
        parts.dataset(node | {"classes": 33}, "val")
    with pytest.raises(UserError, match=r"dataset.ids=459"):
        parts.dataset(node | {"ids": 459}, "val")
