"""DeconvNet's training windows of VOC."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from segtrain.config.compose import compose_config
from segtrain.config.files import masked_container
from segtrain.config.schema import typed
from segtrain.data.cache import build_cache
from segtrain.data.loader import collate
from segtrain.data.verify import survey, verify_labels
from segtrain.datasets.voc import VOC, VOCInstance
from segtrain.datasets.voc_crops import VOCCrops
from segtrain.errors import DataError, UserError
from segtrain.structures.boxes import overlaps

# An aeroplane (class 1, object 1) and a bird (class 3, object 2) on 8 x 12 pixels, void between
# them.
CLASSES = np.zeros((8, 12), np.uint8)
OBJECTS = np.zeros((8, 12), np.uint8)
CLASSES[2:6, 2:6] = 1
OBJECTS[2:6, 2:6] = 1
CLASSES[0:3, 7:12] = 3
OBJECTS[0:3, 7:12] = 2
CLASSES[:, 6] = 255
OBJECTS[:, 6] = 255


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def tree(root: Path, classes: np.ndarray = CLASSES, objects: np.ndarray = OBJECTS) -> Path:
    """train: a; val: v."""
    base = root / "VOCdevkit/VOC2012"
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    for split, name in (("train", "a"), ("val", "v")):
        (base / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
        save(base / f"JPEGImages/{name}.jpg", np.full((8, 12, 3), 200, np.uint8))
        save(base / f"SegmentationClass/{name}.png", classes)
        save(base / f"SegmentationObject/{name}.png", objects)
    return base


def test_windows_are_not_cached_though_their_tiles_are_as_many_as_their_images(tmp_path):
    data = VOCCrops(str(tree(tmp_path)), "train", enlarge=1.5, size=6)
    with pytest.raises(UserError, match=r"^dataset.cache: a-1: its size \(6, 6\) is not that in"):
        build_cache(data, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# ---------------------------------------------------------------------- stage 1


def test_every_object_is_a_window_with_its_own_pixels_as_the_only_class(tmp_path):
    data = VOCCrops(str(tree(tmp_path)), "train", enlarge=1.5, size=6)
    assert (data.ids, data.problems, data.labelled) == (["a-1", "a-2"], [], True)
    first = data[0]
    second = data[1]
    assert first.id == "a-1"
    # 4 x 4 at (2, 2), 1.5 times: 6 x 6 from (1, 1), so nothing is resized; column 6 is void
    assert first.mask.tolist() == [
        [0, 0, 0, 0, 0, 255],
        [0, 1, 1, 1, 1, 255],
        [0, 1, 1, 1, 1, 255],
        [0, 1, 1, 1, 1, 255],
        [0, 1, 1, 1, 1, 255],
        [0, 0, 0, 0, 0, 255],
    ]
    assert set(np.unique(second.mask).tolist()) == {0, 3, 255}
    assert (data.mask(0) == first.mask).all()
    assert (data.truth(1) == second.mask).all()
    assert data.files(1)[0].name == "a.jpg"


def test_another_object_in_the_window_is_background(tmp_path):
    data = VOCCrops(str(tree(tmp_path)), "train", enlarge=3.0, size=12)
    # the bird is in the window of 12 x 12
    assert set(np.unique(data[0].mask).tolist()) == {
        0,
        1,
        255,
    }


def test_beyond_the_image_pixels_are_black_and_ignored(tmp_path):
    """Object 2 is 5 x 3 at (7, 0).

    Enlarged 3 times 15 x 9 from (2, -3): three rows above, five columns right of it.
    """
    data = VOCCrops(str(tree(tmp_path)), "train", enlarge=3.0, size=45)
    sample = data[1]
    assert sample.image.shape == (45, 45, 3)
    assert sample.mask.shape == (45, 45)
    beyond = np.zeros((45, 45), bool)
    # 5 and 3 pixels for one
    beyond[:15] = True
    beyond[:, 30:] = True
    assert (sample.image[beyond][:, 0] < 140).all()
    assert (sample.image[:10] == 0).all()
    assert (sample.mask[beyond] == 255).all()
    inside = sample.mask[~beyond].reshape(30, 30)[::5, ::3]
    assert inside.tolist() == np.where(CLASSES == 1, 0, CLASSES)[0:6, 2:12].tolist()


def test_windows_are_resized_by_nearest_labels_and_bilinear_colours(tmp_path):
    base = tree(tmp_path)
    ramp = np.repeat(np.repeat(np.arange(12, dtype=np.uint8)[None, :, None] * 20, 8, 0), 3, 2)
    Image.fromarray(ramp).save(base / "JPEGImages/a.jpg", quality=100)
    sample = VOCCrops(str(base), "train", enlarge=1.0, size=8)[0]
    assert (sample.mask == 1).all()
    # columns 2 to 5, twice as wide, half-pixel centres
    expected = [
        40,
        45,
        55,
        65,
        75,
        85,
        95,
        100,
    ]
    assert np.abs(sample.image[4, :, 0].astype(int) - expected).max() <= 2


def test_an_object_without_a_class_is_named(tmp_path):
    classes = CLASSES.copy()
    classes[OBJECTS == 2] = 255
    data = VOCCrops(str(tree(tmp_path, classes)), "train")
    assert (data[0].mask == 1).any()
    with pytest.raises(
        DataError,
        match=r"SegmentationObject/a.png: object 2 has no class in .*SegmentationClass/a.png",
    ):
        data[1]
    assert len(verify_labels(data).problems) == 1


def test_an_object_map_of_another_size_is_named(tmp_path):
    data = VOCCrops(str(tree(tmp_path, objects=OBJECTS[:, :11])), "train")
    with pytest.raises(
        DataError,
        match=r"SegmentationObject/a.png: mask of 11 x 8 pixels, but its image .* has 12 x 8",
    ):
        data[0]


def test_an_image_without_an_object_map_is_a_problem(tmp_path):
    base = tree(tmp_path)
    (base / "SegmentationObject/a.png").unlink()
    data = VOCCrops(str(base), "train")
    assert len(data) == 0
    assert data.problems == [
        f"{base}/SegmentationObject/a.png: listed, but its objects are not there"
    ]


def test_objects_of_sbds_images_are_sbds(tmp_path):
    base = tree(tmp_path)
    sbd = tmp_path / "dataset"
    save(base / "JPEGImages/b.jpg", np.zeros((8, 12, 3), np.uint8))
    for folder, key, plane in (
        ("cls", "GTcls", np.where(CLASSES == 255, 0, CLASSES)),
        ("inst", "GTinst", OBJECTS % 255),
    ):
        (sbd / folder).mkdir(parents=True)
        savemat(sbd / folder / "b.mat", {key: {"Segmentation": plane}})
    (sbd / "train.txt").write_text("b\n")
    (sbd / "val.txt").write_text("a\n")
    data = VOCCrops(str(base), "train_aug", str(sbd), crops_of="train_aug", enlarge=1.0, size=4)
    assert (data.ids, data.problems) == (["a-1", "a-2", "b-1", "b-2"], [])
    assert (data[2].mask == 1).all()
    assert (data[3].mask == 3).all()
    (sbd / "inst/b.mat").unlink()
    (problem,) = VOCCrops(str(base), "train_aug", str(sbd), crops_of="train_aug").problems
    assert problem == f"{sbd}/inst/b.mat: listed, but its objects are not there"


# ---------------------------------------------------------------------- stage 2


def listed(path: Path, *boxes: list[float]) -> str:
    path.write_text(
        json.dumps(
            [{"image_id": "a", "bbox": box, "score": 1 - n / 9} for n, box in enumerate(boxes)]
        )
    )
    return str(path)


def test_proposals_that_overlap_an_object_by_half_keep_the_labels_of_all_classes(tmp_path):
    # 4 x 4 at (2, 2): moved by one column 12 / 20, by two 8 / 24 shared; the third holds both
    # objects: 15 / 24 of the bird
    path = listed(tmp_path / "p.json", [3, 2, 4, 4], [4, 2, 4, 4], [4, 0, 8, 3], [2, 2, 4, 8])
    data = VOCCrops(
        str(tree(tmp_path)), "train", stage="proposals", proposals=path, enlarge=1.0, size=8
    )
    assert [w.box for w in data.windows] == [(3, 2, 7, 6), (4, 0, 12, 3), (2, 2, 6, 10)]
    assert data.ids == ["a-1", "a-2", "a-3"]
    assert set(np.unique(data[1].mask).tolist()) == {0, 1, 3, 255}
    assert data[1].mask[7].tolist() == [1, 1, 255, 3, 3, 3, 3, 3]
    assert ((data[2].mask == 255).all(1)).tolist() == [False] * 6 + [
        True
    ] * 2  # two of its rows lie below the image


def test_an_image_without_proposals_is_a_problem(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"image_id": "b", "bbox": [0, 0, 5, 5], "score": 1}]))
    (problem,) = VOCCrops(
        str(tree(tmp_path)), "train", stage="proposals", proposals=str(path)
    ).problems
    assert problem == f"{path}: holds no box for image `a`; its `image_id`s are such as `b`"


def test_without_a_file_the_windows_overlap_the_objects_and_are_always_the_same(tmp_path):
    base = str(tree(tmp_path))
    data, again = (VOCCrops(base, "train", stage="proposals", enlarge=1.0) for _ in range(2))
    assert data.windows == again.windows
    assert len(data) > 20
    boxes = np.array([w.box for w in data.windows], float)
    best = overlaps(boxes, np.array([[2.0, 2, 6, 6], [7, 0, 12, 3]])).max(1)
    assert best.min() > 0.4
    assert best.max() < 1.01
    assert len({w.box for w in data.windows}) > 10


# ---------------------------------------------------------------------- a data set like the others


def test_other_splits_are_whole_images(tmp_path):
    base = str(tree(tmp_path))
    data = VOCCrops(base, "val")
    voc = VOC(base, "val")
    assert (data.ids, len(data), data.windows) == (["v"], 1, None)
    assert (data[0].mask == voc[0].mask).all()
    assert (data[0].image == voc[0].image).all()
    assert data.files(0) == voc.files(0)
    assert (data.truth(0) == voc.truth(0)).all()
    assert len(VOCCrops(base, "val", crops_of="val")) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "all"}, "dataset.stage=all: use objects or proposals"),
        ({"enlarge": 0.5}, "dataset.enlarge=0.5, dataset.size=250: a factor from 1"),
        (
            {"proposals": "p.json"},
            "dataset.proposals=p.json: only dataset.stage=proposals reads it",
        ),
        (
            {"stage": "proposals", "proposals": "p.json"},
            "dataset.proposals=p.json: no such file; null makes windows",
        ),
    ],
)
def test_wrong_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        VOCCrops(str(tree(tmp_path)), "train", **changes)


def test_the_yaml_makes_windows_of_its_training_split():
    node = typed(
        masked_container(compose_config(["dataset=voc_crops", "dataset.train_split=trainval"])[0])
    ).dataset
    assert (node["crops_of"], node["stage"], node["enlarge"], node["size"]) == (
        "trainval",
        "objects",
        1.2,
        250,
    )
    assert (node["crop"], node["batch_size"], node["steps"]) == ([224, 224], 64, 20000)


def test_the_real_sample_has_a_window_for_each_of_its_67_objects(data_root):
    root = str(data_root / "voc2012/VOCdevkit")
    data = VOCCrops(root, "train_instances", crops_of="train_instances")
    objects = VOCInstance(root, "train_instances")
    assert (len(data), data.problems) == (67, [])
    expected = [
        (name, int(label) + 1)
        for i, name in enumerate(objects.ids)
        for label in objects.instances(i).labels
    ]
    for index, (name, label) in enumerate(expected):
        sample = data[index]
        assert sample.id.startswith(f"{name}-")
        assert sample.image.shape == (250, 250, 3)
        assert sample.image.dtype == np.uint8
        assert set(np.unique(sample.mask).tolist()) - {0, 255} == {label}
        assert 0.02 < (sample.mask == label).mean() < 0.75  # (1 / 1.2)^2 = 0.69 is a full box
    assert collate([data[0], data[1]]).images.shape == (2, 3, 250, 250)
    assert verify_labels(data).problems == []
    assert survey(data).pixels[0] > 0


def test_the_real_sample_has_proposals_of_every_image(data_root):
    root = str(data_root / "voc2012/VOCdevkit")
    data = VOCCrops(root, "train_instances", crops_of="train_instances", stage="proposals")
    assert data.problems == []
    assert len({w.index for w in data.windows}) == 24
    labels = [set(np.unique(data.mask(i)).tolist()) - {0, 255} for i in range(0, len(data), 25)]
    assert all(labels)
    assert any(len(found) > 1 for found in labels)
