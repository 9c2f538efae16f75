"""Nothing to learn is refused, nothing to measure is said, and a failed validation costs no step.

Members. Refused: every pixel ignored, no image, one class, labels of one of several classes, no
object, crowds only, coordinates from 0 to 1. Said: a class that is absent, masks without a labelled
pixel, crowds, objects without a pixel. Validations: without an image, all ignored, of one class,
damaged, damaged on one rank of two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import Ended, typed
from PIL import Image

from segtrain.contracts import Dataset
from segtrain.data.verify import notes, nothing_in, one_class, only_class, verify_labels
from segtrain.datasets.coco import CocoJson, CocoJsonMasks
from segtrain.datasets.folder import Folder
from segtrain.datasets.instance_maps import InstanceMapsSemantic
from segtrain.datasets.labelme import Labelme
from segtrain.datasets.yolo import Yolo

LABELS = [
    {"id": 0, "name": "ground"},
    {"id": 1, "name": "tree"},
    {"id": 2, "name": "car"},
    {"id": 255, "ignore": True},
]
TABLE = "[{id: 0, name: ground}, {id: 1, name: tree}, {id: 2, name: car}, {id: 255, ignore: true}]"
IGNORED = np.full((32, 32), 255, np.uint8)
SCENE = np.zeros((32, 32), np.uint8)
SCENE[:8, :4] = 1
SMALL = [
    "model=unet",
    "model.width=4",
    "train.steps=2",
    "train.batch_size=2",
    "train.eval_every=1",
    "train.precision=fp32",
    "train.device=cpu",
    "train.threads=1",
    "augment=none",
    "augment.crop=[32,32]",
]


def folder(root: Path, train: list[np.ndarray], val: list[np.ndarray]) -> Path:
    for split, masks in (("train", train), ("val", val)):
        (root / "images" / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
        for number, mask in enumerate(masks):
            Image.new("RGB", mask.shape[::-1], (9, 9, 9)).save(
                root / f"images/{split}/{number}.png"
            )
            Image.fromarray(mask).save(root / f"masks/{split}/{number}.png")
    return root


def segtrain(root: Path, run: Path, *more: str, labels: str = TABLE) -> Ended:
    data = ["dataset=folder", f"dataset.root={root}", f"dataset.labels={labels}"]
    return typed("segtrain", *data, *SMALL, f"hydra.run.dir={run}", *more)


def coco(root: Path, objects: list[dict[str, Any]], images: int = 2) -> CocoJson:
    root.mkdir(exist_ok=True)
    table = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 10, "width": 20} for i in range(images)
        ],
        "categories": [{"id": 1, "name": "tree"}, {"id": 7, "name": "car"}],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": 1, "area": 12, "iscrowd": 0, **each}
            for number, each in enumerate(objects, 1)
        ],
    }
    for i in range(images):
        Image.new("RGB", (20, 10)).save(root / f"{i}.png")
    (root / "a.json").write_text(json.dumps(table))
    return CocoJson(str(root / "a.json"), "train", str(root))


BOX = {"bbox": [2, 1, 4, 3], "segmentation": [[2, 1, 6, 1, 6, 4, 2, 4]]}  # 12 pixels
CROWD = {
    "iscrowd": 1,
    "bbox": [0, 0, 1, 10],
    "area": 10,
    "segmentation": {"size": [10, 20], "counts": [0, 10, 190]},
}
THIN = {"bbox": [2, 1, 4, 0.01], "segmentation": [[2, 1, 6, 1, 6, 1.01]], "area": 0.02}


def test_ignored_pixels_and_one_class_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", [IGNORED, IGNORED, IGNORED], [SCENE])
    data = Folder(str(root), "train", labels=LABELS)
    told = nothing_in(data, verify_labels(data))
    assert told == "holds no labelled pixel: 3 masks, all ignored"
    assert one_class(data) == ""
    one = Folder(
        str(root), "train", labels=[{"id": 0, "name": "road"}, {"id": 255, "ignore": True}]
    )
    assert "has one class, `road`, so that every pixel is that class" in one_class(one)


GROUND = np.zeros((32, 32), np.uint8)
TREES = np.full((32, 32), 1, np.uint8)
HINT = (
    ". No object is marked: are the labels where the settings of the data set say, and in the form "
    "that it reads?"
)


def constant(dataset: Dataset) -> str:
    report = verify_labels(dataset)
    assert (report.problems, nothing_in(dataset, report)) == ([], "")
    return only_class(dataset, report)


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ([GROUND, GROUND], "every labelled pixel of its 2 images is `ground`"),
        ([TREES, IGNORED], "every labelled pixel of its 2 images is `tree`"),
        ([GROUND, TREES], ""),
        ([SCENE, IGNORED], ""),
    ],
)
def test_labels_of_one_class_alone_are_named(
    tmp_path: Path, masks: list[np.ndarray], said: str
) -> None:
    data = Folder(str(folder(tmp_path, masks, [])), "train", labels=LABELS)
    assert constant(data) == (said and f"{said}, which teaches and measures nothing")


@pytest.mark.parametrize("form", ["coco", "labelme", "yolo", "no labels of yolo", "instance maps"])
def test_no_object_in_all_the_images_is_asked_for(tmp_path: Path, form: str) -> None:
    names = ["images/train/0.png", "train/0.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    data: Dataset
    if form == "coco":
        coco(tmp_path, [], images=1)
        data = CocoJsonMasks(str(tmp_path / "a.json"), "train", str(tmp_path))
    elif form == "labelme":
        (tmp_path / "train/0.json").write_text('{"shapes": []}')
        data = Labelme(str(tmp_path), "train", labels=["tree"])
    elif form == "instance maps":
        (tmp_path / "masks/train").mkdir(parents=True)
        Image.fromarray(GROUND).save(tmp_path / "masks/train/0.png")
        data = InstanceMapsSemantic(str(tmp_path), "train")
    else:
        if form == "yolo":
            (tmp_path / "labels/train").mkdir(parents=True)
            (tmp_path / "labels/train/0.txt").write_text("")
        data = Yolo(str(tmp_path), "train", labels=["tree"])
    said = "every labelled pixel of its 1 image is `background`, which teaches and measures nothing"
    assert constant(data) == said + HINT


@pytest.mark.slow
def test_labels_of_one_class_are_refused_to_train_on_and_noted_to_measure(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", [GROUND, GROUND], [SCENE])
    ended = segtrain(root, tmp_path / "run")
    said = "every labelled pixel of its 2 images is `ground`, which teaches and measures nothing"
    assert (ended.code, f"dataset.train_split=train: {said}" in ended.err) == (65, True)
    assert not (tmp_path / "run").exists()
    data = [f"dataset.labels={TABLE}", "dataset=folder"]
    ended = typed("segdata", "verify", f"dataset.root={root}", *data)
    assert (ended.code, f"split train: {said}" in ended.err) == (65, True)
    root = folder(tmp_path / "b", [SCENE, SCENE], [GROUND, GROUND])
    ended = segtrain(root, tmp_path / "run")
    assert (ended.code, f"note   split val: {said}" in ended.out + ended.err) == (0, True)
    ended = typed("segdata", "verify", f"dataset.root={root}", *data)
    assert (ended.code, f"  note: {said}" in ended.out) == (0, True)


@pytest.mark.slow
def test_ignored_pixels_and_one_class_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    root = folder(tmp_path / "data", [IGNORED, IGNORED, IGNORED], [SCENE])
    ended = segtrain(root, tmp_path / "run")
    assert ended.code == 65
    assert "dataset.train_split=train: holds no labelled pixel: 3 masks, all ignored" in ended.err
    one = segtrain(root, tmp_path / "run", labels="[{id: 0, name: road}, {id: 255, ignore: true}]")
    assert one.code == 65
    assert "has one class, `road`" in one.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_verify_refuses_the_same(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", [IGNORED], [SCENE])
    data = ["dataset=folder", f"dataset.root={root}", f"dataset.labels={TABLE}"]
    ended = typed("segdata", "verify", *data)
    assert ended.code == 65
    assert "split train: holds no labelled pixel: 1 mask, all ignored" in ended.err
    assert "  note: no pixel of `car`" in ended.out
    empty = folder(tmp_path / "empty", [], [SCENE])
    ended = segtrain(empty, tmp_path / "run")
    assert (ended.code, "has no images to train on" in ended.err) == (65, True)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([], "2 images, 0 crowds, 0 without a pixel or a box"),
        ([CROWD, CROWD], "2 images, 2 crowds, 0 without a pixel or a box"),
        ([CROWD, THIN], "2 images, 1 crowd, 1 without a pixel or a box"),
    ],
    ids=["no object", "crowds", "no pixel"],
)
def test_no_object_to_learn_from_is_said(
    tmp_path: Path, objects: list[dict[str, Any]], said: str
) -> None:
    data = coco(tmp_path, objects)
    report = verify_labels(data, workers=1)
    assert (data.problems, report.problems) == ([], [])
    assert nothing_in(data, report) == f"holds no object to learn from or to find: {said}"


def test_coordinates_from_0_to_1_are_refused(tmp_path: Path) -> None:
    share = {
        "bbox": [0.1, 0.1, 0.2, 0.3],
        "segmentation": [[0.1, 0.1, 0.3, 0.1, 0.3, 0.4]],
        "area": 0.03,
    }
    assert "coordinates from 0 to 1?" in coco(tmp_path, [share, share]).problems[0]
    assert coco(tmp_path, [share, BOX]).problems == []  # a tiny object among others


def test_what_is_unusual_in_a_split_is_noted_with_its_numbers(tmp_path: Path) -> None:
    data = coco(tmp_path, [BOX, BOX, CROWD, THIN], images=3)
    report = verify_labels(data, workers=1)
    assert nothing_in(data, report) == ""
    assert report.objects[:2].tolist() == [3, 0]
    assert report.pixels[:2].tolist() == [12 + 12 + 10, 0]
    assert notes(data, report) == [
        f"{tmp_path}/a.json: 1 of 4 annotations repeat another one of their image under a new id "
        "(as 1 and 2)",
        "no object of `car`",
        "2 of 3 images without an object",
        "1 crowd, neither learned nor counted as missed",
        "1 object without a pixel or a box, left out",
    ]
    root = folder(tmp_path / "data", [SCENE, IGNORED, SCENE * 2], [SCENE])
    masks = Folder(str(root), "train", labels=LABELS)
    assert notes(masks, verify_labels(masks)) == ["1 of 3 images without a labelled pixel"]
    masks = Folder(str(root), "val", labels=LABELS)
    assert notes(masks, verify_labels(masks)) == ["no pixel of `car`"]


@pytest.mark.parametrize(
    ("val", "said"),
    [([], "has no images"), ([IGNORED], "holds no labelled pixel: 1 mask, all ignored")],
    ids=["empty", "ignored"],
)
@pytest.mark.slow
def test_a_run_with_nothing_to_measure_trains_and_says_so(
    tmp_path: Path, val: list[np.ndarray], said: str
) -> None:
    root = folder(tmp_path / "data", [SCENE, SCENE], val)
    ended = segtrain(root, tmp_path / "run", "train.patience=1")
    assert ended.code == 0, ended
    log = (tmp_path / "run/train.log").read_text()
    assert f"warn   split val {said}: nothing is measured" in log
    assert log.count("nothing to compare with: nothing is measured") == 2
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["step"], summary["best"]) == ("complete", 2, None)
    assert "mIoU" not in summary["final"]
    assert "loss" not in summary["final"]
    ended = typed("segeval", f"checkpoint={tmp_path / 'run'}", "train.device=cpu")
    assert (ended.code, "no labelled pixel was counted" in ended.err) == (65, True)


def test_a_validation_that_fails_costs_no_step(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", [SCENE, SCENE], [SCENE])
    run = tmp_path / "run"
    good = (root / "masks/val/0.png").read_bytes()
    (root / "masks/val/0.png").write_bytes(b"")
    ended = segtrain(root, run, "train.verify=false")
    assert ended.code == 65
    assert "masks/val/0.png: is empty" in ended.err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000001"]
    assert "step 1: saved, but its validation failed" in (run / "train.log").read_text()
    (root / "masks/val/0.png").write_bytes(good)
    # What is repaired is other data than those that the run was begun with.
    assert typed("segtrain", f"resume={run}", "dataset.allow_change=true").code == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in lines if each["phase"] == "val"] == [1, 2]


@pytest.mark.slow
def test_of_two_ranks_both_save_where_one_fails(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", [SCENE, SCENE], [SCENE, SCENE])
    run = tmp_path / "run"
    (root / "masks/val/1.png").write_bytes(b"")  # of rank 1
    ended = segtrain(root, run, "train.verify=false", "train.processes=2")
    assert ended.code == 65, ended
    assert ended.err.count("masks/val/1.png: is empty") == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000001"]


@pytest.mark.slow
def test_two_ranks_count_together(tmp_path: Path) -> None:
    """What one of them alone would miss, or would call nothing, is judged over both."""
    root = folder(tmp_path / "data", [SCENE, SCENE * 2, IGNORED, IGNORED], [SCENE, IGNORED])
    ended = segtrain(root, tmp_path / "run", "train.processes=2")
    assert ended.code == 0, ended
    log = (tmp_path / "run/train.log").read_text()
    assert "note   split train: 2 of 4 images without a labelled pixel" in log
    assert "split train: no pixel" not in log
    assert "note   split val: no pixel of `car`" in log
