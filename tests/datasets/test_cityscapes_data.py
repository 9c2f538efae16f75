"""Cityscapes: raw labelIds become train ids, objects and groups come from instanceIds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.datasets.cityscapes import Cityscapes, CityscapesInstance
from segtrain.errors import DataError, UserError
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Scene

# road, cars, unlabeled; caravan, car, bicycle, person
LABELS = np.array([[7, 26, 26, 0], [29, 26, 33, 24]], np.uint8)
OBJECTS = np.array([[7, 26001, 26, 0], [29000, 26001, 33, 24000]], np.uint16)
NAME = "ulm/ulm_000001_000019"


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def tree(root: Path, split: str = "val", kind: str = "gtFine", name: str = NAME) -> Path:
    save(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
    save(root / f"{kind}/{split}/{name}_{kind}_labelIds.png", LABELS)
    save(root / f"{kind}/{split}/{name}_{kind}_instanceIds.png", OBJECTS)
    return root


def labels_path(
    root: Path, which: str = "labelIds", kind: str = "gtFine", split: str = "val"
) -> Path:
    return root / f"{kind}/{split}/{NAME}_{kind}_{which}.png"


def test_raw_ids_become_train_ids_and_the_same_scene_is_the_truth(tmp_path: Path) -> None:
    data = Cityscapes(str(tree(tmp_path)), "val")
    assert (data.ids, data.problems, data.labelled) == ([NAME], [], True)
    sample = data.scored(0)
    assert sample.image.shape == (2, 4, 3)
    expected = [[0, 13, 13, 255], [255, 13, 18, 11]]
    assert sample.mask.tolist() == data[0].mask.tolist() == data.mask(0).tolist() == expected
    for truth in (sample.truth, data.truth(0)):
        assert isinstance(truth, Scene)
        assert truth.mask.tolist() == expected
        assert truth.instances.tolist() == OBJECTS.tolist()
    assert data[0].truth is None


def test_without_instance_ids_the_mask_is_the_truth(tmp_path: Path) -> None:
    labels_path(tree(tmp_path), "instanceIds").unlink()
    data = Cityscapes(str(tmp_path), "val")
    assert data.scored(0).truth is None
    assert data.truth(0).tolist() == data.mask(0).tolist()


def test_coarse_labels_are_for_train_val_and_train_extra(tmp_path: Path) -> None:
    tree(tmp_path, "val", "gtCoarse")
    tree(tmp_path, "train_extra", "gtCoarse")
    for split, coarse in (("val", True), ("train_extra", False), ("train_extra", True)):
        data = Cityscapes(str(tmp_path), split, coarse)
        assert data.files(0)[1] == labels_path(tmp_path, kind="gtCoarse", split=split)
        assert data.scored(0).truth is None  # iIoU is defined on fine labels
    with pytest.raises(DataError, match=r"gtFine/val: no such folder; set dataset.root="):
        Cityscapes(str(tmp_path), "val")
    with pytest.raises(
        UserError, match=r"dataset.coarse=true: the split test has no coarse labels"
    ):
        Cityscapes(str(tmp_path), "test", coarse=True)


def test_the_test_split_reads_no_labels_even_where_placeholders_lie(tmp_path: Path) -> None:
    for data in (
        Cityscapes(str(tree(tmp_path, "test")), "test"),
        CityscapesInstance(str(tmp_path), "test"),
    ):
        assert (data.ids, data.problems, data.labelled) == ([NAME], [], False)
        assert data.files(0)[1] is None
    assert (Cityscapes(str(tmp_path), "test").scored(0).mask == np.full((2, 4), 255)).all()
    target = CityscapesInstance(str(tmp_path), "test")[0].instances
    assert isinstance(target, Instances)
    assert target.masks.shape == (0, 2, 4)


def test_files_without_a_partner_are_all_noted(tmp_path: Path) -> None:
    tree(tmp_path)
    save(tmp_path / "leftImg8bit/val/ulm/b_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
    save(tmp_path / "gtFine/val/bonn/c_gtFine_labelIds.png", LABELS)
    save(tmp_path / "gtFine/val/ulm/._x_gtFine_labelIds.png", LABELS)
    data = Cityscapes(str(tmp_path), "val")
    assert data.ids == [NAME]
    images = "/leftImg8bit/val"
    masks = "/gtFine/val"
    assert [line.replace(str(tmp_path), "") for line in data.problems] == [
        f"{images}/ulm/b_leftImg8bit.png: has no partner {masks}/ulm/b_gtFine_labelIds.png",
        f"{masks}/bonn/c_gtFine_labelIds.png: has no partner {images}/bonn/c_leftImg8bit.png",
    ]


def test_only_train_ids_beside_an_image_get_a_hint(tmp_path: Path) -> None:
    tree(tmp_path)
    labels_path(tmp_path).rename(labels_path(tmp_path, "labelTrainIds"))
    (problem,) = Cityscapes(str(tmp_path), "val").problems
    assert (
        "_gtFine_labelTrainIds.png is not read: segtrain reads labelIds (0-33) as they come"
        in problem
    )


def test_train_ids_in_place_of_label_ids_are_recognised(tmp_path: Path) -> None:
    tree(tmp_path)
    train = LabelMap.load("cityscapes").encode(LABELS, "m")
    save(labels_path(tmp_path), train)
    with pytest.raises(
        DataError,
        match=r"labelIds.png: mask value 255 at \(x=3, y=0\).* holds 255 holds trainIds: put",
    ):
        Cityscapes(str(tmp_path), "val")[0]
    # all are legal labelIds
    save(labels_path(tmp_path), np.where(train == 255, 0, train).astype(np.uint8))
    data = Cityscapes(str(tmp_path), "val")
    with pytest.raises(
        DataError,
        match=r"labelIds.png: 75% of its pixels are of another class in .*_instanceIds.png",
    ):
        data.scored(0)


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    tree(tmp_path)
    save(labels_path(tmp_path, "instanceIds"), OBJECTS[:, :3])
    with pytest.raises(
        DataError,
        match=r"instanceIds.png: mask of 3 x 2 pixels, but its image .*labelIds.png has 4 x 2",
    ):
        Cityscapes(str(tmp_path), "val").truth(0)
    with pytest.raises(
        DataError,
        match=r"instanceIds.png: mask of 3 x 2 pixels, but its image .*leftImg8bit.png has 4 x 2",
    ):
        CityscapesInstance(str(tmp_path), "val")[0]


def test_missing_folders_and_splits_are_named(tmp_path: Path) -> None:
    tree(tmp_path)
    with pytest.raises(DataError, match=r"leftImg8bit/train: no such folder; set dataset.root="):
        Cityscapes(str(tmp_path), "train")
    (tmp_path / "leftImg8bit/train").mkdir()
    with pytest.raises(DataError, match="leftImg8bit/train: holds no images <city>/"):
        Cityscapes(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"no split `trainextra`.*Did you mean `train_extra`"):
        Cityscapes(str(tmp_path), "trainextra")
    with pytest.raises(UserError, match="no split `train_extra`"):
        CityscapesInstance(str(tmp_path), "train_extra")
    with pytest.raises(UserError, match=r"nowhere: no such folder; set dataset.root="):
        Cityscapes(str(tmp_path / "nowhere"), "val")


def test_groups_are_crowds_and_classes_that_do_not_count_are_left_out(tmp_path: Path) -> None:
    data = CityscapesInstance(str(tree(tmp_path)), "val")
    assert data.labels.names == (
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    )
    assert data.labels.decode(np.arange(8, dtype=np.uint8)).tolist() == [
        24,
        25,
        26,
        27,
        28,
        31,
        32,
        33,
    ]
    target = data[0].instances
    assert isinstance(target, Instances)
    assert target.crowd is not None
    # a group of cars, one of bicycles, a person, a car; no caravan
    assert target.labels.tolist() == [
        2,
        7,
        0,
        2,
    ]
    assert target.crowd.tolist() == [True, True, False, False]
    assert target.boxes.tolist() == [[2, 0, 3, 1], [2, 1, 3, 2], [3, 1, 4, 2], [1, 0, 2, 2]]
    assert target.masks.sum((1, 2)).tolist() == [1, 1, 1, 2]
    segments = data.segments(0)
    assert segments.crowd is not None
    assert segments.crowd.tolist() == [True, True, False, False]
    assert segments.boxes[3].tolist() == [1, 0, 1, 2]


def test_an_instance_map_with_an_unknown_label_is_named(tmp_path: Path) -> None:
    tree(tmp_path)
    for stored, label in ((34_000, 34), (34, 34), (999, 999)):
        save(
            labels_path(tmp_path, "instanceIds"),
            np.where(OBJECTS == 0, stored, OBJECTS).astype(np.uint16),
        )
        for read in (
            CityscapesInstance(str(tmp_path), "val").instances,
            Cityscapes(str(tmp_path), "val").truth,
        ):
            with pytest.raises(
                DataError, match=rf"instanceIds.png: mask value {label} at \(x=3, y=0\).*id \* 1000"
            ):
                read(0)


def test_the_map_writes_label_ids_and_survives_a_record() -> None:
    labels = LabelMap.load("cityscapes")
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert labels.decode(np.array([*range(19), 255], np.uint8)).tolist() == [*evaluated, 0]
    assert LabelMap.from_record(labels.record(), "run") == labels
    objects = labels.only(("person", "bicycle"))
    assert LabelMap.from_record(objects.record(), "run") == objects


def test_real_train_ids_equal_the_samples_own_on_every_pixel(data_root: Path) -> None:
    data = Cityscapes(str(data_root / "cityscapes"), "train")
    assert (len(data), data.problems) == (6, [])
    for index in range(6):
        path = data.files(index)[1]
        assert path is not None
        target = data.mask(index)
        assert target.shape == (1024, 2048)
        assert (
            target == np.array(Image.open(str(path).replace("_labelIds", "_labelTrainIds")))
        ).all()
        ids = np.array(Image.open(path))
        evaluated = target != 255
        written = data.labels.decode(target)
        assert (written[evaluated] == ids[evaluated]).all()
        assert not written[~evaluated].any()


def test_the_real_scene_holds_both_files_as_they_are(data_root: Path) -> None:
    data = Cityscapes(str(data_root / "cityscapes"), "train")
    sample = data.scored(2)
    assert isinstance(sample.truth, Scene)
    assert sample.truth.mask is sample.mask
    path = str(data.files(2)[1]).replace("_labelIds", "_instanceIds")
    assert (sample.truth.instances == np.array(Image.open(path))).all()


@pytest.mark.parametrize("index", [2, 4])  # these hold groups
def test_real_objects_agree_with_a_count_over_the_file(data_root: Path, index: int) -> None:
    data = CityscapesInstance(str(data_root / "cityscapes"), "train")
    path = data.files(index)[1]
    assert path is not None
    stored = np.array(Image.open(path))
    counted = {24: 0, 25: 1, 26: 2, 27: 3, 28: 4, 31: 5, 32: 6, 33: 7}
    values = [v for v in np.unique(stored).tolist() if v in counted or v // 1000 in counted]
    target = data.instances(index)
    assert target.crowd is not None
    assert any(target.crowd.tolist())
    assert target.labels.tolist() == [counted[v if v < 1000 else v // 1000] for v in values]
    assert target.crowd.tolist() == [v < 1000 for v in values]
    for box, mask, value in zip(target.boxes, target.masks.numpy(), values, strict=True):
        here = stored == value
        ys = np.flatnonzero(here.any(1))
        xs = np.flatnonzero(here.any(0))
        assert (mask == here).all()
        assert box.tolist() == [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
