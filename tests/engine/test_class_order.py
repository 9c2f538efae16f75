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

pytestmark = pytest.mark.slow

IDS = {"road": 0, "car": 1, "sky": 2}
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
        {"id": IDS[name], "train": train, "name": name, "color": COLORS[name]}
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


def test_a_resume_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "summary.json").unlink()  # a complete run would be left alone
    ended = typed("segtrain", f"resume={run}")
    assert ended.code == 2
    assert "in another order: class 0 was `road`, the data set has `sky` there" in ended.err
