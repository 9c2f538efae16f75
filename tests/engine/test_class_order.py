"""The same classes in another order: every command knows them by name.

The data set is one folder whose classes.json lists three classes in one order, then in another.
Masks hold the same ids all the time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import commandline
import numpy as np
import pytest
from commandline import typed
from PIL import Image

import segtrain
from segtrain.config import parts
from segtrain.contracts import Dataset
from segtrain.engine.parts import build_parts
from segtrain.errors import UserError
from segtrain.models.base import SegmentationModel
from segtrain.models.unet import UNet
from segtrain.runtime.distributed import World

pytestmark = pytest.mark.slow

IDS = {"road": 0, "car": 1, "sky": 2, "tree": 2}
COLORS = {"road": (200, 30, 30), "car": (30, 200, 30), "sky": (30, 30, 200)}
BEFORE = ("road", "car", "sky")
AFTER = ("sky", "road", "car")
TRAIN = [
    "dataset=folder",
    "model=unet",
    "model.width=8",
    "model.norm=group",
    "model.dropout=0",
    "dataset.crop=[32,32]",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.threads=1",
    "train.verify=false",
    "train.ema=0.9",
    "writer=[]",
    "log.progress=false",
    "log.images=0",
]


def list_classes(root: Path, names: tuple[str, ...]) -> None:
    """Let the data set list its classes in this order."""
    classes = [
        {"id": IDS[name], "train": train, "name": name, "color": COLORS.get(name)}
        for train, name in enumerate(names)
    ]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignored": [255]}))


def numbers_of(path: Path) -> dict[str, float]:
    """Return the numbers of a measurement without how they were made."""
    numbers = json.loads(path.read_text())
    return {name: value for name, value in numbers.items() if name != "protocol"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of a class's colour, with noise."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            mask = np.repeat(np.repeat(rng.integers(0, 3, (4, 4)), 8, 0), 8, 1).astype(np.uint8)
            image = np.array(list(COLORS.values()))[mask] + rng.integers(-30, 30, (32, 32, 3))
            mask[:2] = 255
            image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            image.save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that learned the classes in the order BEFORE; from then on it is AFTER."""
    run = tmp_path_factory.mktemp("runs") / "before"
    list_classes(root, BEFORE)
    settings = ["train.steps=40", "train.eval_every=40", "optimizer=adamw", "optimizer.lr=0.01"]
    commandline.trained(run, *TRAIN, *settings, f"dataset.root={root}")
    commandline.done("segeval", f"checkpoint={run}", f"eval.output={run}/before", "eval.loss=true")
    list_classes(root, AFTER)
    return run


def test_a_run_started_from_it_predicts_each_class_as_before(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    """A rate of 1e-30 changes nothing, so its first validation is that of the run before."""
    before = json.loads((trained / "summary.json").read_text())["final"]
    assert before["mIoU"] > 0.6
    settings = ["train.steps=1", "train.eval_every=1", "optimizer=adamw", "optimizer.lr=1e-30"]
    ended = typed(
        "segtrain",
        *TRAIN,
        *settings,
        "optimizer.weight_decay=0",
        f"dataset.root={root}",
        f"train.init={trained}",
        f"hydra.run.dir={tmp_path / 'after'}",
    )
    assert ended.code == 0, ended
    assert "classifier.weight: 3 of 3 classes found by name" in ended.out
    assert "classifier.bias: 3 of 3 classes found by name" in ended.out
    after = json.loads((tmp_path / "after" / "summary.json").read_text())["final"]
    for name in ("mIoU", "pixAcc", "IoU/road", "IoU/car", "IoU/sky", "loss"):
        assert after[name] == pytest.approx(before[name], abs=1e-6)


def test_a_model_that_does_not_say_is_warned_for_and_goes_by_place(
    root: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(UNet, "class_rows", SegmentationModel.class_rows)
    settings = ["train.steps=1", "train.eval_every=1", "optimizer=adamw", "optimizer.lr=1e-30"]
    run = tmp_path / "run"
    places = [f"dataset.root={root}", f"train.init={trained}", f"hydra.run.dir={run}"]
    ended = typed("segtrain", *TRAIN, *settings, *places)
    assert ended.code == 0, ended
    assert "the model does not say which of its tensors have rows for them" in caplog.text
    assert "classifier.weight, classifier.bias have as many rows" in caplog.text
    assert json.loads((run / "summary.json").read_text())["final"]["mIoU"] < 0.3


def test_segeval_and_evaluate_give_the_numbers_of_before_to_the_last_bit(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    before = numbers_of(trained / "before" / "metrics.json")
    asked = [f"checkpoint={trained}", f"eval.output={tmp_path}", "eval.loss=true", "eval.worst=2"]
    commandline.done("segeval", *asked)
    assert numbers_of(tmp_path / "metrics.json") == before
    counts = json.loads((tmp_path / "confusion.json").read_text())
    assert counts == json.loads((trained / "before" / "confusion.json").read_text())
    assert counts["classes"] == list(BEFORE)
    network = segtrain.load(trained)
    measured = segtrain.evaluate(network, "folder", root=str(root))
    assert measured == {name: before[name] for name in measured}


def test_a_validation_split_may_list_the_classes_in_another_order(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(root, tmp_path / "data")
    real = parts.dataset
    of_val = AFTER

    def by_split(node: parts.Node, split: str) -> Dataset:
        list_classes(data, BEFORE if split == "train" else of_val)
        return real(node, split)

    monkeypatch.setattr(parts, "dataset", by_split)
    run = segtrain.compose([*TRAIN, f"dataset.root={data}"])
    built = build_parts(run, World())
    assert built.class_names == list(BEFORE)
    assert built.val_set.labels.names == BEFORE
    raw = np.array(Image.open(data / "masks" / "val" / "0.png"))
    truth = built.val_set.truth(0)
    assert isinstance(truth, np.ndarray)
    assert truth.tolist() == raw.tolist()  # in the order BEFORE, train ids are the raw ones
    of_val = ("road", "car", "tree")
    with pytest.raises(
        UserError, match="3 classes, the one to train on 3; only one of them has `s"
    ):
        build_parts(run, World())


def test_a_resume_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "summary.json").unlink()  # a complete run would be left alone
    ended = typed("segtrain", f"resume={run}")
    assert ended.code == 2
    assert "in another order: class 0 was `road`, the data set has `sky` there" in ended.err


# Objects: categories of a COCO file are in the order of their ids.

DETECTOR = [
    "model=mask_rcnn_r18",
    "dataset=coco_json",
    "model.norm=group",
    "model.width=16",
    "model.proposals=[40,40]",
    "model.regions=32",
    "augment.shorter=[64]",
    "augment.longest=64",
    "inference.shorter=64",
    "inference.longest=64",
    "inference.score=0",
    "train.batch_size=2",
    "train.threads=1",
    "train.precision=fp32",
    "train.verify=false",
    "writer=[]",
    "log.progress=false",
    "log.images=0",
]


def coco_file(folder: Path, names: tuple[str, ...]) -> Path:
    """Write four images with a square each, and their annotation file with ids in this order."""
    rng = np.random.default_rng(0)
    ids = {name: number for number, name in enumerate(names, 1)}
    images = []
    annotations = []
    for number in range(4):
        name = BEFORE[number % 3]
        x, y, side = (int(value) for value in rng.integers(8, 24, 3))
        pixels = rng.integers(0, 40, (64, 64, 3)).astype(np.uint8)
        pixels[y : y + side, x : x + side] = COLORS[name]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": 64, "width": 64})
        corners = [x, y, x + side, y, x + side, y + side, x, y + side]
        annotations.append(
            {
                "id": number + 1,
                "image_id": number + 1,
                "category_id": ids[name],
                "bbox": [x, y, side, side],
                "area": side * side,
                "iscrowd": 0,
                "segmentation": [corners],
            }
        )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    path = folder / f"{'_'.join(names)}.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def test_objects_keep_their_classes_in_segeval_and_train_init(tmp_path: Path) -> None:
    files = {names: coco_file(tmp_path, names) for names in (BEFORE, AFTER)}
    run = tmp_path / "run"
    settings = ["train.steps=6", "train.eval_every=6", f"dataset.images={tmp_path}"]
    commandline.trained(run, *DETECTOR, *settings, f"dataset.annotations={files[BEFORE]}")
    measured = {}
    for names, file in files.items():
        output = tmp_path / f"of_{names[0]}"
        asked = [f"dataset.annotations={file}", f"eval.output={output}", "eval.worst=0"]
        commandline.done("segeval", f"checkpoint={run}", *asked)
        measured[names] = numbers_of(output / "metrics.json")
    assert measured[AFTER] == measured[BEFORE]
    assert measured[BEFORE]["bbox/AR@100"] > 0

    after = tmp_path / "after"
    settings = ["train.steps=1", "train.eval_every=1", "optimizer.lr=1e-30"]
    places = [f"dataset.images={tmp_path}", f"dataset.annotations={files[AFTER]}"]
    start = [f"train.init={run}", f"hydra.run.dir={after}"]
    ended = typed("segtrain", *DETECTOR, *settings, *places, *start)
    assert ended.code == 0, ended
    for layer in ("box_head.predict.score", "box_head.predict.box", "mask_head.predict.2"):
        assert f"stages.{layer}.weight: 3 of 3 classes found by name" in ended.out
    final = json.loads((after / "summary.json").read_text())["final"]
    for name, value in measured[BEFORE].items():
        assert final[name] == pytest.approx(value, abs=1e-3), name
