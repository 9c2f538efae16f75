"""The commands around a real run on real images.

Every number is counted again from the files that were written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commandline import typed
from PIL import Image
from rows import amount
from samples import voc_part

from segtrain.commands.evaluate import made_by
from segtrain.runtime.distributed import World

VOC_CLASSES = 21
# One thread: sums over another number of threads end in other last bits, and a pixel where two
# classes tie may flip.
TRAIN = [
    "train.steps=2",
    "train.threads=1",
    "train.batch_size=2",
    "train.precision=fp32",
    "train.verify=false",
    "train.eval_every=2",
    "writer=[]",
    "log.progress=false",
    "log.images=0",
]
SHAPES = [
    "dataset=shapes",
    "dataset.train=16",
    "dataset.val=7",
    "dataset.size=[64,80]",
    "dataset.crop=[64,64]",
]
VIEWS = {
    "plain": [],
    "multi": ["eval.flip=true", "eval.scales=[0.5,1.0]"],
    "slide": ["inference=slide", "inference.window=[97,113]"],
}


def said(name: str, *arguments: str, code: int = 0) -> str:
    """What a command prints in this process, which is quicker. It must end with `code`."""
    ended = typed(name, *arguments)
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    return ended.out + ended.err


def call(*arguments: str, code: int = 0) -> str:
    """What `python -m segtrain ARGUMENTS` prints.

    It must end with `code`, and never with a traceback.
    """
    start = [sys.executable, "-m", "segtrain", *arguments]
    done = subprocess.run(start, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_settings_of_the_inference_stand_in_metrics_json() -> None:
    predictor = SimpleNamespace(settings=lambda: {"flip": True, "scales": [1.0]})
    run = SimpleNamespace(train=SimpleNamespace(precision="fp32"))
    loaded: Any = SimpleNamespace(predictor=predictor, averaged=False, run=run)
    source: Any = SimpleNamespace(path=Path("run/checkpoints/step_1"), step=1)
    assert made_by(loaded, source, World())["inference"] == {"flip": True, "scales": [1.0]}


@pytest.fixture(scope="module")
def voc(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train on, seven to measure: an odd number, so that shares are uneven."""
    return voc_part(
        data_root / "voc2012" / "VOCdevkit", tmp_path_factory.mktemp("voc") / "VOC2012", 4, 7
    )


@pytest.fixture(scope="module")
def trained(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on VOC."""
    run = tmp_path_factory.mktemp("trained") / "run"
    call(
        "dataset=voc", f"dataset.root={voc}", "dataset.crop=[97,97]", f"hydra.run.dir={run}", *TRAIN
    )
    return run


def predict(run: Path, voc: Path, output: Path, *overrides: str) -> Path:
    """Label maps and overlays of the validation images."""
    said(
        "segpredict", f"checkpoint={run}", f"input={voc / 'input'}", f"output={output}", *overrides
    )
    return output


def measure(run: Path, output: Path, *overrides: str) -> tuple[dict, np.ndarray]:
    """(metrics.json without its protocol, confusion table) of `segeval`."""
    call("segeval", f"checkpoint={run}", f"eval.output={output}", "eval.worst=0", *overrides)
    return read(output)


def read(output: Path) -> tuple[dict, np.ndarray]:
    metrics = json.loads((output / "metrics.json").read_text())
    del metrics["protocol"]
    return metrics, np.array(json.loads((output / "confusion.json").read_text())["counts"])


def count_slowly(predictions: Path, voc: Path) -> np.ndarray:
    """(21, 21) pixels with truth t and prediction p, compared pair by pair from the PNG files
    alone.
    """
    table = np.zeros((VOC_CLASSES, VOC_CLASSES), np.int64)
    for name in (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split():
        truth = np.array(Image.open(voc / "SegmentationClass" / f"{name}.png"))
        predicted = np.array(Image.open(predictions / f"{name}.png"))
        assert truth.shape == predicted.shape
        assert predicted.max() < VOC_CLASSES
        for t in range(VOC_CLASSES):
            for p in range(VOC_CLASSES):
                table[t, p] += int(((truth == t) & (predicted == p)).sum())
    return table


def numbers_of(table: np.ndarray) -> dict[str, float]:
    """mIoU and pixAcc by the definitions (Long et al., FCN, section 5)."""
    seen = [k for k in range(len(table)) if table[k].sum() + table[:, k].sum()]
    ious = [table[k, k] / (table[k].sum() + table[:, k].sum() - table[k, k]) for k in seen]
    return {"mIoU": sum(ious) / len(ious), "pixAcc": table.trace() / table.sum()}


def test_the_table_of_segeval_is_the_count_of_the_maps_of_segpredict(voc, trained, tmp_path):
    metrics, table = measure(trained, tmp_path / "eval")
    maps = predict(trained, voc, tmp_path / "maps")
    slow = count_slowly(maps, voc)
    assert (table == slow).all()
    assert table.sum() == 1_163_649  # every pixel of the seven masks that is not void
    assert (table.sum(0) > 0).sum() >= 3  # the network says more than one thing
    assert metrics["mIoU"] == pytest.approx(numbers_of(slow)["mIoU"], rel=1e-12)
    assert metrics["pixAcc"] == pytest.approx(numbers_of(slow)["pixAcc"], rel=1e-12)
    assert_a_palette_png_and_an_overlay(maps, voc)

    scored = tmp_path / "scored"
    said(
        "segeval",
        f"predictions={maps}",
        "dataset=voc",
        f"dataset.root={voc}",
        f"eval.output={scored}",
    )
    again, table_again = read(scored)
    assert (table_again == table).all()
    assert again == {key: value for key, value in metrics.items() if not key.startswith("loss")}


def assert_a_palette_png_and_an_overlay(maps: Path, voc: Path) -> None:
    """The palette is VOC's own, and the overlay is as wide as the image, with a legend below."""
    truths = sorted((voc / "input").iterdir())
    assert len(list(maps.glob("*.png"))) == 2 * len(truths)
    for path in truths:
        label_map = Image.open(maps / f"{path.stem}.png")
        truth = Image.open(voc / f"SegmentationClass/{path.stem}.png")
        image = Image.open(path)
        overlay = Image.open(maps / f"{path.stem}_overlay.png")
        assert label_map.mode == "P"
        assert label_map.size == image.size == truth.size
        assert label_map.getpalette()[: 3 * VOC_CLASSES] == truth.getpalette()[: 3 * VOC_CLASSES]
        assert overlay.mode == "RGB"
        assert overlay.width == image.width
        assert overlay.height > image.height
        assert (np.array(overlay)[: image.height] != np.array(image)).any()


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_one_two_and_three_processes_count_the_same_table(voc, trained, tmp_path, view):
    results = [
        measure(trained, tmp_path / str(n), f"eval.processes={n}", *VIEWS[view]) for n in (1, 2, 3)
    ]
    slow = count_slowly(predict(trained, voc, tmp_path / "maps", *VIEWS[view]), voc)
    for metrics, table in results:
        assert (table == slow).all()
        assert metrics == results[0][0]


@pytest.mark.slow
def test_the_views_are_different_measurements(voc, trained, tmp_path):
    tables = [measure(trained, tmp_path / view, *overrides)[1] for view, overrides in VIEWS.items()]
    assert len({table.tobytes() for table in tables}) == len(VIEWS)
    alone = measure(trained, tmp_path / "no_loss", "eval.loss=false")[1]
    assert (alone == tables[0]).all()  # whether the loss is asked for does not change a label


def logged(run: Path) -> dict:
    """The last validation in metrics.jsonl."""
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["phase"] == "val"
    return {key: value for key, value in last.items() if key not in ("phase", "step")}


AVERAGED_BY_TWO = ["train.ema=0.9", "train.processes=2", "train.batch_size=4"]
SETTINGS = [
    ["train.ema=0.9"],
    [],
    ["train.ema=null", "train.processes=2", "train.batch_size=4"],
    AVERAGED_BY_TWO,
]


@pytest.mark.row("R32")
@pytest.mark.parametrize("settings", amount(SETTINGS, [AVERAGED_BY_TWO], SETTINGS))
@pytest.mark.slow  # the quick case is tests/test_api.py's
def test_segeval_gives_the_numbers_training_logged_to_the_last_bit(tmp_path, settings):
    run = tmp_path / "run"
    call(*SHAPES, *TRAIN, "train.steps=6", "train.eval_every=3", f"hydra.run.dir={run}", *settings)
    final = json.loads((run / "summary.json").read_text())["final"]
    measured, _ = measure(run, tmp_path / "eval", "eval.weights=latest")
    assert measured == final == logged(run)
    assert {"mIoU", "pixAcc", "mAcc", "fwIoU", "loss", "loss/seg"} <= set(measured)
    if settings == ["train.ema=0.9"]:
        protocol = json.loads((tmp_path / "eval" / "metrics.json").read_text())["protocol"]
        assert protocol["moving_average"] is True
        assert protocol["step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["train.ema=0.9"], ["train.precision=bf16"]])
def test_segeval_gives_the_numbers_training_logged_on_voc(voc, tmp_path, settings):
    run = tmp_path / "run"
    call(
        "dataset=voc",
        f"dataset.root={voc}",
        "dataset.crop=[97,97]",
        f"hydra.run.dir={run}",
        *TRAIN,
        *settings,
    )
    for processes in (1, 2):
        options = ("eval.weights=latest", f"eval.processes={processes}")
        assert measure(run, tmp_path / f"eval{processes}", *options)[0] == logged(run)


def test_predictions_that_are_missing_or_of_another_size_are_named(voc, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    ids = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    ask = ("segeval", f"predictions={maps}", "dataset=voc", f"dataset.root={voc}")
    assert f"{ids[0]}.png: no prediction" in said(*ask, code=65)
    Image.new("L", (5, 4)).save(maps / f"{ids[0]}.png")
    assert (
        f"{ids[1]}.png: no prediction for this image; 6 of the 7 images of val have none"
        in said(*ask, code=65)
    )
    for name in ids[1:]:
        Image.new("L", (5, 4)).save(maps / f"{name}.png")
    message = said(*ask, code=65)
    assert ids[0] in message
    assert "(4, 5)" in message
    assert not (tmp_path / "maps-scores").exists()


def test_a_checkpoint_refuses_a_data_set_with_other_classes(voc, trained, tmp_path):
    message = said(
        "segeval",
        f"checkpoint={trained}",
        "dataset=shapes",
        f"eval.output={tmp_path / 'e'}",
        code=2,
    )
    assert "21 classes" in message
    assert not (tmp_path / "e").exists()
    assert "eval.flip" in said("segeval", f"checkpoint={trained}", "eval.flop=true", code=2)


def test_segdata_counts_verifies_and_shows_real_samples(voc, tmp_path):
    printed = said("segdata", "verify", "dataset=voc", f"dataset.root={voc}")
    assert "train: 4 images, 0 problems" in printed
    assert "val: 7 images, 0 problems" in printed
    picture = tmp_path / "browse.png"
    said(
        "segdata",
        "browse",
        "dataset=voc",
        f"dataset.root={voc}",
        "dataset.crop=[97,113]",
        f"output={picture}",
    )
    shown = np.array(Image.open(picture))
    assert shown.ndim == 3
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 1000


@pytest.mark.slow
def test_segdata_names_a_mask_that_does_not_fit(voc, data_root, tmp_path):
    broken = voc_part(data_root / "voc2012" / "VOCdevkit", tmp_path / "VOC2012", 2, 2)
    name = (broken / "ImageSets" / "Segmentation" / "train.txt").read_text().split()[1]
    mask = broken / "SegmentationClass" / f"{name}.png"
    with Image.open(mask) as stored:
        size = stored.size
    mask.unlink()
    Image.new("L", size, 77).save(mask)
    message = said("segdata", "verify", "dataset=voc", f"dataset.root={broken}", code=65)
    assert f"{name}.png" in message
    assert "77" in message
    assert "1 problems" in message


@pytest.mark.slow
def test_segdata_accepts_the_camvid_sample(data_root, tmp_path):
    printed = said(
        "segdata",
        "verify",
        "dataset=camvid",
        f"dataset.root={data_root / 'camvid'}",
    )
    count = len(list((data_root / "camvid" / "train").iterdir()))
    assert f"train: {count} images, 0 problems" in printed


def test_segreport_sets_two_runs_side_by_side(tmp_path):
    for name in ("a", "b"):
        seed = {"a": 3, "b": 4}[name]
        said(
            "segtrain",
            *SHAPES,
            *TRAIN,
            "dataset.val=2",
            f"train.seed={seed}",
            f"hydra.run.dir={tmp_path / 'runs' / name}",
        )
    printed = call("segreport", str(tmp_path / "runs"), f"output={tmp_path / 'report'}")
    header, *rows = [
        line.split(",") for line in (tmp_path / "report" / "report.csv").read_text().splitlines()
    ]
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert set(table) == {"a", "b"}
    for name, seed in (("a", "3"), ("b", "4")):
        summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        assert table[name]["train.seed"] == seed
        assert table[name]["status"] == "complete"
        assert float(table[name]["final"]) == summary["final"]["mIoU"]
        assert table[name]["step"] == "2"
    assert "dataset.val" not in header  # equal in both
    assert "a (+ 1 seed)" in printed  # a line of the mean of both
    assert (tmp_path / "report" / "report.html").is_file()
