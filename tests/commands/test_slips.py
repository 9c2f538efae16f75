"""Slips that cost a user work or numbers without a word.

Each is refused, or does what was meant.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import faults
import numpy as np
import pytest
from commandline import done, refused, save, trained, typed

import segtrain
from segtrain.benchmarks.predictions import find_all
from segtrain.commands import evaluate
from segtrain.config.compose import with_overrides

SMALL = [
    "train.steps=2",
    "train.batch_size=2",
    "train.precision=fp32",
    "train.threads=1",
    "train.eval_every=2",
    "dataset.crop=[24,24]",
    "writer=[]",
    "log.images=0",
    "train.device=cpu",
]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images in train and val, one in test, which has no mask."""
    base = tmp_path_factory.mktemp("voc") / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in (("train", "ab"), ("val", "cd"), ("test", "e"), ("trainval", "abcd")):
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            save(base / "JPEGImages" / f"{name}.jpg", np.full((30, 40, 3), 90, np.uint8))
            if split != "test":
                save(base / "SegmentationClass" / f"{name}.png", np.eye(30, 40, dtype=np.uint8))
    return base


@pytest.fixture(scope="module")
def run(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    return trained(
        tmp_path_factory.mktemp("run") / "run", "dataset=voc", f"dataset.root={voc}", *SMALL
    )


@pytest.mark.parametrize("key", ["train_split", "val_split", "split"])
def test_a_split_without_labels_neither_trains_nor_validates(
    voc: Path, tmp_path: Path, key: str
) -> None:
    words = [f"dataset.{key}=test", "has no labels", "choose another split"]
    place = f"hydra.run.dir={tmp_path / 'run'}"
    refused(
        2,
        words,
        "segtrain",
        "dataset=voc",
        f"dataset.root={voc}",
        f"dataset.{key}=test",
        place,
        *SMALL,
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_file_that_only_the_metric_reads_is_checked_before_the_first_step(
    data_root: Path, tmp_path: Path
) -> None:
    made = faults.cityscapes(data_root, tmp_path / "data")
    line = faults.cut_instances(made, made.ids[0])
    settings = [
        *made.arguments,
        "dataset.val_split=train",
        f"hydra.run.dir={tmp_path / 'run'}",
        *SMALL,
    ]
    ended = typed("segtrain", *settings)
    assert ended.code == 65, ended.err
    assert line in ended.err.splitlines()[-1], ended.err
    assert "step 1/" not in ended.err


def test_predictions_never_lie_among_the_images(run: Path, tmp_path: Path) -> None:
    photo = save(tmp_path / "photos" / "a.png", np.full((30, 40, 3), 7, np.uint8))
    before = photo.read_bytes()
    for place in (photo.parent, photo.parent / "deeper"):
        words = [f"output={place}", "choose a folder outside of input="]
        refused(
            2, words, "segpredict", f"checkpoint={run}", f"input={photo.parent}", f"output={place}"
        )
    refused(
        2,
        ["would lie among"],
        "segpredict",
        f"checkpoint={run}",
        f"input={photo}",
        f"output={photo.parent}",
    )
    assert photo.read_bytes() == before
    assert [p.name for p in photo.parent.iterdir()] == ["a.png"]
    save(tmp_path / "two" / "a.jpg", np.zeros((30, 40, 3), np.uint8))
    save(tmp_path / "two" / "a_overlay.jpg", np.zeros((30, 40, 3), np.uint8))
    done(
        "segpredict", f"checkpoint={run}", f"input={tmp_path / 'two'}", f"output={tmp_path / 'out'}"
    )
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "a.jpg.png",
        "a.jpg_overlay.png",
        "a_overlay.jpg.png",
        "a_overlay.jpg_overlay.png",
    }


def test_segpredict_takes_the_checkpoint_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtrain.checkpoints.reading.find", lambda path, prefer: (path, prefer))
    assert evaluate.chosen("run", ["eval.flip=true", "eval.weights=latest"]) == ("run", "latest")
    assert evaluate.chosen("run", []) == ("run", "best")


@pytest.mark.slow
def test_measurements_by_other_protocols_lie_side_by_side(run: Path, voc: Path) -> None:
    for setting in ("eval.flip=false", "eval.flip=true", "eval.scales=[0.5,1]"):
        done("segeval", f"checkpoint={run}", setting, "eval.worst=1")
    done(
        "segeval",
        f"checkpoint={run}",
        "inference=slide",
        "inference.window=[24,24]",
        "eval.worst=0",
    )
    names = {path.name for path in (run / "eval").iterdir()}
    assert {"voc-val", "voc-val-flip", "voc-val-scales_0.5_1"} < names
    assert any("voc-val-slide" in n for n in names)
    done("segeval", f"checkpoint={run}", "inference.pad=[40,40]", "eval.worst=0")
    assert {path.name for path in (run / "eval").iterdir()} - names == {"voc-val-pad_40_40"}
    told = json.loads((run / "eval" / "voc-val-pad_40_40" / "metrics.json").read_text())["protocol"]
    assert told["changed"] == {"inference.pad": [40, 40]}
    assert len(list((run / "eval" / "voc-val" / "worst").iterdir())) == 1
    done("segeval", f"checkpoint={run}", "eval.worst=0")
    assert not (run / "eval" / "voc-val" / "worst").exists()  # of the measurement before


def test_one_file_stands_for_one_image(tmp_path: Path) -> None:
    file = save(tmp_path / "street_2_pred.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(
        Exception, match=r"street\.png: no prediction for this image; 1 of the 2 images"
    ):
        find_all(tmp_path, ["street", "street_2"], "val")
    other = save(tmp_path / "street_pred.png", np.zeros((2, 2), np.uint8))
    assert find_all(tmp_path, ["street", "street_2"], "val") == {"street": other, "street_2": file}


def test_odd_results_files_are_read_as_pycocotools_does_or_named(tmp_path: Path) -> None:
    truth = {
        "images": [{"id": 1, "height": 4, "width": 6, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "area": 24,
                "bbox": [0, 0, 6, 4],
                "segmentation": {"size": [4, 6], "counts": [0, 24]},
            }
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    ask = [
        "dataset=coco_json",
        f"dataset.annotations={tmp_path / 'truth.json'}",
        f"eval.output={tmp_path / 'out'}",
    ]
    entry = {
        "image_id": 1,
        "category_id": 1,
        "score": 0.5,
        "segmentation": {"size": [4, 6], "counts": "0h0"},
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps([entry | {"bbox": []}]))  # an empty box is none
    done("segeval", f"predictions={file}", *ask)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["segm/AP"] == pytest.approx(1, rel=1e-12)
    assert "bbox/AP" not in metrics
    file.write_text(json.dumps([entry | {"segmentation": {"size": [4.0, 6.0], "counts": "0h0"}}]))
    refused(65, ["entry 0", "run-length mask"], "segeval", f"predictions={file}", *ask)


@pytest.mark.parametrize(
    "words",
    [["hydra.run.dir=a${b"], ["-m", "hydra.sweep.dir=a${b"], ["-m", "hydra.sweep.subdir=a${b"]],
    ids=" ".join,
)
def test_an_interpolation_that_is_not_closed_is_named_in_a_folder_too(words: list[str]) -> None:
    ended = typed("segtrain", *words)
    assert ended.code == 2, ended
    (line,) = ended.err.splitlines()
    assert line.startswith(f"segtrain: {words[-1]}: ")


def test_preparing_what_stays_incomplete_is_no_success(tmp_path: Path) -> None:
    ended = typed("segdata", "prepare", "dataset=cityscapes", f"dataset.root={tmp_path}")
    assert ended.code == 65
    assert "files are still missing" in ended.err
    assert "leftImg8bit_trainvaltest.zip" in ended.out


def test_a_cache_of_the_training_split_alone_is_enough(voc: Path, tmp_path: Path) -> None:
    data = [f"dataset.cache={tmp_path / 'cache'}", "dataset=voc", f"dataset.root={voc}"]
    words = ["cache/train", "segdata prepare"]
    refused(2, words, "segtrain", *data, f"hydra.run.dir={tmp_path / 'run'}", *SMALL)
    done("segdata", "prepare", *data, "dataset.split=train")
    trained(tmp_path / "run", *data, *SMALL)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["train"]
    done("segeval", f"checkpoint={tmp_path / 'run'}", "eval.worst=0")


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]})
    )
    for verb in ("stats", "browse"):
        ended = typed(
            "segdata", verb, "dataset=coco_json", f"dataset.annotations={tmp_path / 'empty.json'}"
        )
        assert ended.code == 65, ended.err
        assert len(ended.err.splitlines()) == 1, ended.err


def test_the_folder_of_results_says_what_was_measured() -> None:
    source = SimpleNamespace(path=Path("run/checkpoints/step_1"))
    conf = SimpleNamespace(dataset={"_target_": "segtrain.datasets.voc.VOCInstance"})
    predictor = SimpleNamespace(tag="")
    assert evaluate.default_output(source, conf, "val", predictor, {}) == Path(
        "run/eval/vocinstance-val"
    )


def test_a_measurement_by_another_metric_lies_beside_the_plain_one() -> None:
    stored = segtrain.compose(["dataset=voc", "dataset.root=DIR"])
    boundary = with_overrides(stored, ["metric=boundary"])
    wide = with_overrides(boundary, ["metric.ratio=0.04"])
    assert evaluate.changes(stored, stored) == {}
    assert evaluate.changes(stored, boundary) == {"metric": "boundary"}
    assert evaluate.changes(boundary, wide) == {"metric.ratio": 0.04}
    source = SimpleNamespace(path=Path("run/checkpoints/step_1"))
    folders = [
        evaluate.default_output(source, conf, "val", SimpleNamespace(tag=""), changed).name
        for conf, changed in ((stored, {}), (boundary, {"metric": "boundary"}))
    ]
    assert folders == ["voc-val", "voc-val-boundary"]
