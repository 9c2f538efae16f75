"""PASCAL VOC 2012: every kind of split, SBD's own files, and objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from segtrain.datasets.voc import VOC, VOCInstance
from segtrain.errors import DataError, UserError
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap

MASK = np.array([[0, 5, 255], [5, 5, 0]], np.uint8)
OBJECTS = np.array([[0, 0, 255, 2, 2], [7, 7, 255, 2, 0]], np.uint8)
CLASSES = np.array([[0, 0, 255, 1, 1], [20, 20, 255, 1, 0]], np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def save_sbd(path: Path, plane: np.ndarray) -> None:
    """A cls file in SBD's field layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = np.zeros((1, 1))
    fields = {
        "Boundaries": boundaries,
        "Segmentation": plane,
        "CategoriesPresent": np.array([[1]], np.uint8),
    }
    savemat(path, {"GTcls": fields}, do_compression=True)


def tree(
    root: Path,
    lists: dict[str, str],
    masks: str = "SegmentationClass",
    size: tuple[int, int] = (2, 3),
) -> Path:
    """Images of all listed ids ("a b"), and masks of those that are in train or val."""
    base = root / "VOCdevkit" / "VOC2012"
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    for split, ids in lists.items():
        (base / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids.split()) + "\n")
        for name in ids.split():
            save(base / f"JPEGImages/{name}.jpg", np.zeros((*size, 3), np.uint8))
            if split in ("train", "val"):
                save(base / masks / f"{name}.png", MASK)
    return base


def sbd_tree(root: Path) -> tuple[Path, Path]:
    """VOC: train a, val v. SBD: train v b, val a c; v and a are in both."""
    base = tree(root, {"train": "a", "val": "v"})
    sbd = root / "benchmark_RELEASE/dataset"
    for name, value in (("a", 1), ("v", 2), ("b", 3), ("c", 4)):
        save(base / f"JPEGImages/{name}.jpg", np.zeros((2, 3, 3), np.uint8))
        save_sbd(sbd / f"cls/{name}.mat", np.full((2, 3), value, np.uint8))
    (sbd / "train.txt").write_text("v\nb\n")
    (sbd / "val.txt").write_text("a\nc\n")
    return base, sbd


def test_train_aug_is_all_of_sbd_and_vocs_train_without_vocs_val(tmp_path: Path) -> None:
    base, sbd = sbd_tree(tmp_path)
    for folder in (sbd, sbd.parent):
        data = VOC(str(base), "train_aug", sbd=str(folder))
        assert (data.ids, data.problems) == (["a", "b", "c"], [])
        assert data[0].mask.tolist() == MASK.tolist()  # VOC's own mask, with void
        assert data[1].mask.tolist() == [[3] * 3] * 2
        assert [data.files(i)[1].name for i in range(3)] == ["a.png", "b.mat", "c.mat"]


def test_trainval_aug_adds_vocs_val_with_vocs_own_masks(tmp_path: Path) -> None:
    base, sbd = sbd_tree(tmp_path)
    data = VOC(str(base), "trainval_aug", sbd=str(sbd))
    assert data.ids == ["a", "b", "c", "v"]
    assert data.mask(3).tolist() == MASK.tolist()
    assert VOC(str(base), "val", sbd="nowhere").ids == ["v"]  # SBD is looked at where it is needed


def test_the_published_lists_give_the_published_counts(data_root: Path, tmp_path: Path) -> None:
    full = data_root / "voc2012/VOCdevkit/VOC2012/ImageSets/Segmentation_full"
    lists = {
        name: (full / f"{name}.txt").read_text().split() for name in ("train", "val", "train_aug")
    }
    base = tree(tmp_path, {"train": " ", "val": " "})
    sbd = tmp_path / "dataset"
    for folder in (base / "JPEGImages", base / "SegmentationClass", sbd / "cls"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        (base / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(lists[name]))
    others = sorted(set(lists["train_aug"]) - set(lists["train"]))
    (sbd / "train.txt").write_text(
        "\n".join(others[:5000] + lists["val"][:900] + lists["train"][:900])
    )
    (sbd / "val.txt").write_text("\n".join(others[5000:]))
    for split, count in (("train_aug", 10_582), ("trainval_aug", 12_031)):
        missing = [
            line for line in VOC(str(base), split, sbd=str(sbd)).problems if "JPEGImages" in line
        ]
        assert len(missing) == len(set(missing)) == count


def test_sbd_train_is_sbds_train_with_sbds_own_masks(tmp_path: Path) -> None:
    base, sbd = sbd_tree(tmp_path)
    data = VOC(str(base), "sbd_train", sbd=str(sbd))
    assert data.ids == ["v", "b"]  # FCN measures on the images that are not among them
    assert [data.files(i)[1] for i in range(2)] == [sbd / "cls/v.mat", sbd / "cls/b.mat"]
    with pytest.raises(UserError, match=r"sbd_train: its masks are SBD's; set dataset.sbd="):
        VOC(str(base), "sbd_train")


def test_sbd_trainval_is_all_of_sbd_with_sbds_own_masks(tmp_path: Path) -> None:
    base, sbd = sbd_tree(tmp_path)
    data = VOC(str(base), "sbd_trainval", sbd=str(sbd))
    assert data.ids == ["v", "b", *(sbd / "val.txt").read_text().split()]
    assert {data.files(i)[1].parent for i in range(len(data))} == {sbd / "cls"}
    with pytest.raises(UserError, match="split sbd_trainval: its masks are SBD's"):
        VOC(str(base), "sbd_trainval")


def test_a_missing_sbd_folder_names_its_key(tmp_path: Path) -> None:
    base, _ = sbd_tree(tmp_path)
    with pytest.raises(
        UserError, match=r"nowhere/cls: no such folder; set dataset.sbd= to SBD's benchmark_RELEASE"
    ):
        VOC(str(base), "train_aug", sbd=str(tmp_path / "nowhere"))


def test_what_is_wrong_in_sbd_is_named(tmp_path: Path) -> None:
    base, sbd = sbd_tree(tmp_path)
    (sbd / "cls/b.mat").write_bytes(b"not a .mat file")
    save_sbd(sbd / "cls/c.mat", np.full((2, 3), 21, np.uint8))
    data = VOC(str(base), "train_aug", sbd=str(sbd))
    with pytest.raises(
        DataError, match=r"cls/b.mat: cannot be read as a .mat file: it is empty, damaged"
    ):
        data[1]
    with pytest.raises(
        DataError, match=r"cls/c.mat: mask value 21 at \(x=0, y=0\), but voc has classes 0-20"
    ):
        data[2]
    save_sbd(sbd / "cls/c.mat", np.zeros((3, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"cls/c.mat: mask of 3 x 3 pixels, but its image .*c.jpg has 3 x 2"
    ):
        data[2]
    (sbd / "cls/c.mat").unlink()
    data = VOC(str(base), "train_aug", sbd=str(sbd))
    assert data.ids == ["a", "b"]
    assert [line.removeprefix(f"{sbd}/") for line in data.problems] == [
        "cls/c.*: listed, but not there"
    ]


def test_sbds_masks_as_png_are_used_for_all_but_vocs_val(tmp_path: Path) -> None:
    base = tree(tmp_path, {"train": "a", "val": "v", "train_aug": "a b"})
    for name in ("a", "b"):
        save(base / f"SegmentationClassAug/{name}.png", np.full((2, 3), 6, np.uint8))
    data = VOC(str(base), "train_aug")
    assert (data.ids, data.problems) == (["a", "b"], [])
    assert data.mask(0).tolist() == [[6] * 3] * 2
    data = VOC(str(base), "trainval_aug")  # no such list: train_aug and then val
    assert data.ids == ["a", "b", "v"]
    assert data.mask(2).tolist() == MASK.tolist()
    (base / "ImageSets/Segmentation/trainval_aug.txt").write_text("v\nb\n")
    assert VOC(str(base), "trainval_aug").ids == ["v", "b"]


def test_a_validation_image_in_train_aug_is_a_problem(tmp_path: Path) -> None:
    base = tree(tmp_path, {"train": "a", "val": "v w", "train_aug": "a w"})
    save(base / "SegmentationClassAug/a.png", MASK)
    (problem,) = VOC(str(base), "train_aug").problems
    assert problem.endswith("train_aug.txt: lists `w`, which is in val.txt too; take it out")


def test_a_test_split_has_images_and_no_labels(tmp_path: Path) -> None:
    base = tree(tmp_path, {"train": "a", "test": "t u"}, size=(4, 6))
    data = VOC(str(base), "test")
    assert (data.ids, data.labelled, data.problems) == (["t", "u"], False, [])
    assert data.files(1) == (base / "JPEGImages/u.jpg", None)
    assert data[1].image.shape == (4, 6, 3)
    assert data.mask(1).shape == (4, 6)
    assert (data[1].mask == 255).all()
    assert VOC(str(base), "train").labelled
    (base / "JPEGImages/u.jpg").unlink()
    (problem,) = VOC(str(base), "test").problems
    assert problem == f"{base}/JPEGImages/u.*: listed, but not there"
    (base / "ImageSets/Segmentation/test.txt").unlink()
    with pytest.raises(
        DataError, match=r"test.txt: missing; the test images are an archive of their own"
    ):
        VOC(str(base), "test")


def test_any_list_in_the_folder_is_a_split(tmp_path: Path) -> None:
    base = tree(tmp_path, {"train": "a b"})
    (base / "ImageSets/Segmentation/seg11valid.txt").write_text("b\n")
    assert VOC(str(base), "seg11valid").ids == ["b"]
    with pytest.raises(UserError, match=r"no split `seg11vali`.*Did you mean `seg11valid`"):
        VOC(str(base), "seg11vali")


@pytest.mark.parametrize("split", ["train", "val", "train_aug"])
def test_every_real_mask_is_the_index_plane_of_its_file(data_root: Path, split: str) -> None:
    data = VOC(str(data_root / "voc2012/VOCdevkit"), split)
    folder = "SegmentationClassAug" if split == "train_aug" else "SegmentationClass"
    present = set()
    for index, name in enumerate(data.ids):
        with Image.open(data_root / f"voc2012/VOCdevkit/VOC2012/{folder}/{name}.png") as file:
            assert file.mode == "P"
            raw = np.array(file)
        target = data.mask(index)
        for value in np.unique(raw).tolist():
            assert (target[raw == value] == (255 if value == 255 else value)).all()
            present.add(value)
    assert present <= {*range(21), 255}
    assert len(present) > 15
    sample = data[0]
    assert (sample.mask == data.mask(0)).all()
    assert sample.image.shape[:2] == sample.mask.shape


def test_the_map_survives_a_record_and_writes_the_servers_indices() -> None:
    for labels in (LabelMap.load("voc"), LabelMap.load("voc").without("background")):
        assert LabelMap.from_record(labels.record(), "run") == labels
    every = np.arange(21, dtype=np.uint8)[None]
    assert (LabelMap.load("voc").decode(every) == every).all()


# Objects


def object_tree(root: Path, objects: np.ndarray = OBJECTS, classes: np.ndarray = CLASSES) -> Path:
    base = tree(root, {"train": "a", "test": "t"}, size=(2, 5))
    save(base / "SegmentationObject/a.png", objects)
    save(base / "SegmentationClass/a.png", classes)
    return base


def test_objects_have_the_class_of_their_pixels_and_the_tightest_boxes(tmp_path: Path) -> None:
    data = VOCInstance(str(object_tree(tmp_path)), "train")
    assert len(data.labels.names) == 20
    assert data.labels.names[0] == "aeroplane"
    target = data[0].instances
    assert isinstance(target, Instances)
    assert target.crowd is not None
    assert target.labels.tolist() == [0, 19]  # object 2, an aeroplane; object 7, a tvmonitor
    assert target.masks.tolist() == [
        [[False, False, False, True, True], [False, False, False, True, False]],
        [[False, False, False, False, False], [True, True, False, False, False]],
    ]
    assert target.boxes.tolist() == [[3, 0, 5, 2], [0, 1, 2, 2]]
    assert target.crowd.tolist() == [False, False]
    segments = data.segments(0)
    assert segments.boxes.tolist() == [[3, 0, 2, 2], [0, 1, 2, 1]]
    assert (segments.size, segments.areas.tolist(), segments.labels.tolist()) == (
        (2, 5),
        [3, 2],
        [0, 19],
    )


def test_what_either_file_calls_void_belongs_to_no_object(tmp_path: Path) -> None:
    classes = CLASSES.copy()
    classes[0, 3] = 255
    target = VOCInstance(str(object_tree(tmp_path, classes=classes)), "train").instances(0)
    assert target.masks.sum((1, 2)).tolist() == [2, 2]
    assert target.boxes[0].tolist() == [3, 0, 5, 2]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            (0, 3),
            4,
            "object 2 is aeroplane and boat in .*SegmentationClass/a.png, "
            "but an object has one class",
        ),
        ((0, 3), 0, "object 2 is aeroplane and background in"),
        ((1, slice(0, 2)), 0, "object 7 is background in"),
        ((1, slice(0, 2)), 255, "object 7 is nothing but void in"),
    ],
)
def test_an_object_of_no_class_or_of_two_is_named(
    tmp_path: Path, place: tuple, value: int, message: str
) -> None:
    classes = CLASSES.copy()
    classes[place] = value
    data = VOCInstance(str(object_tree(tmp_path, classes=classes)), "train")
    with pytest.raises(DataError, match=f"SegmentationObject/a.png: {message}"):
        data[0]


def test_object_and_class_masks_must_fit_each_other_and_the_image(tmp_path: Path) -> None:
    base = object_tree(tmp_path, objects=OBJECTS[:, :4])
    with pytest.raises(
        DataError,
        match=r"SegmentationObject/a.png: mask of 4 x 2 pixels, but its .*Class/a.png has 5 x 2",
    ):
        VOCInstance(str(base), "train")[0]
    save(base / "SegmentationClass/a.png", CLASSES[:, :4])
    with pytest.raises(
        DataError,
        match=r"SegmentationObject/a.png: mask of 4 x 2 pixels, but its image .* has 5 x 2",
    ):
        VOCInstance(str(base), "train")[0]


def test_missing_masks_are_noted_once(tmp_path: Path) -> None:
    base = object_tree(tmp_path)
    (base / "SegmentationClass/a.png").unlink()
    data = VOCInstance(str(base), "train")
    assert (data.ids, data.problems) == (
        [],
        [f"{base}/SegmentationClass/a.*: listed, but not there"],
    )
    save(base / "SegmentationClass/a.png", CLASSES)
    (base / "SegmentationObject/a.png").unlink()
    assert VOCInstance(str(base), "train").problems == [
        f"{base}/SegmentationObject/a.*: listed, but not there"
    ]


def test_an_image_without_objects_and_a_test_image_have_empty_instances(tmp_path: Path) -> None:
    base = object_tree(tmp_path, np.zeros((2, 5), np.uint8), np.zeros((2, 5), np.uint8))
    for data in (VOCInstance(str(base), "train"), VOCInstance(str(base), "test")):
        target = data[0].instances
        assert isinstance(target, Instances)
        assert (target.boxes.shape, target.labels.shape, target.masks.shape) == (
            (0, 4),
            (0,),
            (0, 2, 5),
        )
        assert len(data.segments(0)) == 0
    assert not data.labelled


@pytest.mark.parametrize(
    ("split", "images", "objects"), [("train_instances", 24, 67), ("val_instances", 20, 48)]
)
def test_the_real_objects_agree_with_a_count_over_the_files(
    data_root: Path, split: str, images: int, objects: int
) -> None:
    base = data_root / "voc2012/VOCdevkit/VOC2012"
    data = VOCInstance(str(base), split)
    assert (len(data), data.problems) == (images, [])
    seen = 0
    for index, name in enumerate(data.ids):
        numbers = np.array(Image.open(base / f"SegmentationObject/{name}.png"))
        classes = np.array(Image.open(base / f"SegmentationClass/{name}.png"))
        target = data.instances(index)
        expected = [n for n in range(1, 255) if (numbers == n).any()]
        assert len(target.labels) == len(expected)
        for label, box, mask, n in zip(
            target.labels, target.boxes, target.masks.numpy(), expected, strict=True
        ):
            ys, xs = np.nonzero(numbers == n)
            assert set(classes[numbers == n].tolist()) == {int(label) + 1}
            assert (mask == (numbers == n)).all()
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert data.segments(index).areas.tolist() == [(numbers == n).sum() for n in expected]
        seen += len(expected)
    assert seen == objects


def test_the_official_list_notes_the_images_whose_object_masks_the_sample_lacks(
    data_root: Path,
) -> None:
    data = VOCInstance(str(data_root / "voc2012/VOCdevkit"), "train")
    assert (len(data), len(data.problems)) == (24, 22)
