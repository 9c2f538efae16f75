"""Real instance systems through the real commands.

Killed and resumed, on several processes, submitted and scored (slow).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segtrain.checkpoints import reading

DATA = os.environ.get("SEGTRAIN_DATA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA, reason="needs SEGTRAIN_DATA, the folder of sample data sets"),
]
STEPS = 4
SMALL = [
    "augment.shorter=[96]",
    "augment.longest=160",
    "inference.shorter=96",
    "inference.longest=160",
    "model.width=32",
    "train.device=cpu",
    "train.batch_size=2",
    f"train.steps={STEPS}",
    "train.save_every=1",
    "train.eval_every=4",
    "train.threads=1",
    "log.every=1",
    "log.progress=false",
    "writer=[]",
    "log.images=0",
]
SYSTEMS = {
    "mask_rcnn_r18": ["model.proposals=[60,40]", "model.regions=32"],
    "panet_r18": ["model.proposals=[60,40]", "model.regions=32"],
    "fpn_r18": [
        "model.hidden=32",
        "inference.count=50",
        "metric=proposals",
        "dataset.monitor=segm/AR@1000",
    ],
}


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file of 7 images: one without objects, one whose objects are all crowd regions."""
    whole = json.loads((Path(str(DATA)) / "coco/annotations/instances_train2017.json").read_text())
    owners = {entry["image_id"] for entry in whole["annotations"]}
    empty = [image for image in whole["images"] if image["id"] not in owners][:1]
    images = [image for image in whole["images"] if image["id"] in owners][:6] + empty
    kept = {image["id"] for image in images}
    annotations = [entry for entry in whole["annotations"] if entry["image_id"] in kept]
    crowded = next(e["image_id"] for e in whole["annotations"] if e["iscrowd"])
    picture = next(image for image in whole["images"] if image["id"] == crowded)
    if crowded not in kept:
        images[5] = picture
        annotations = [e for e in annotations if e["image_id"] in {image["id"] for image in images}]
        annotations += [
            e for e in whole["annotations"] if e["image_id"] == crowded and e["iscrowd"]
        ]
    path = tmp_path_factory.mktemp("seven") / "seven.json"
    path.write_text(
        json.dumps(
            {"images": images, "annotations": annotations, "categories": whole["categories"]}
        )
    )
    return path


def start(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "segtrain", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(*words: str) -> str:
    process = start(*words)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def arguments(system: str, seven: Path, folder: Path) -> list[str]:
    data = [
        "dataset=coco_json",
        f"dataset.annotations={seven}",
        f"dataset.images={DATA}/coco/train2017",
    ]
    return [f"model={system}", *data, *SYSTEMS[system], *SMALL, f"hydra.run.dir={folder}"]


def bits(folder: Path) -> tuple:
    last = reading.find(folder, "latest")
    assert last.step == STEPS
    state = last.read("model")
    return {name: value.numpy().tobytes() for name, value in state.items()}, (
        folder / "metrics.jsonl"
    ).read_text()


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_a_killed_run_ends_in_the_bits_of_an_unbroken_one(
    system: str, seven: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    broken = tmp_path / "broken"
    finished(*arguments(system, seven, whole))
    process = start(*arguments(system, seven, broken))
    while not (broken / "checkpoints" / "step_00000002").exists():
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished(f"resume={broken}")
    assert bits(broken) == bits(whole)
    losses = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(
        value == value for row in losses for value in row.values() if isinstance(value, float)
    )


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_any_number_of_processes_measures_the_same(
    system: str, seven: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finished(*arguments(system, seven, run))
    found = []
    for processes in (1, 2, 3):
        place = tmp_path / f"eval{processes}"
        words = [
            f"eval.processes={processes}",
            f"eval.output={place}",
            "eval.loss=false",
            "inference.score=0.0",
        ]
        finished("segeval", f"checkpoint={run}", *(words if system != "fpn_r18" else words[:-1]))
        numbers = json.loads((place / "metrics.json").read_text())
        assert numbers["protocol"]["images"] == 7
        found.append({key: value for key, value in numbers.items() if key != "protocol"})
    assert found[0] == found[1] == found[2]
    assert found[0]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """COCO in its official layout with the same 7 images with objects in both splits, and a run
    that has learned some.
    """
    root = tmp_path_factory.mktemp("coco")
    run = tmp_path_factory.mktemp("learned") / "run"
    table = json.loads((Path(str(DATA)) / "coco/annotations/instances_train2017.json").read_text())
    large = {
        entry["image_id"]
        for entry in table["annotations"]
        if entry["area"] > 96**2 and not entry["iscrowd"]
    }
    table["images"] = [image for image in table["images"] if image["id"] in large][:7]
    kept = {image["id"] for image in table["images"]}
    table["annotations"] = [entry for entry in table["annotations"] if entry["image_id"] in kept]
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
        (root / split).symlink_to(f"{DATA}/coco/train2017")
    settings = [
        *SMALL,
        "train.steps=150",
        "train.eval_every=150",
        "train.save_every=150",
        "augment.flip=0",
    ]
    words = [
        "dataset=coco_instance",
        f"dataset.root={root}",
        "model.proposals=[60,40]",
        "model.regions=32",
        *settings,
    ]
    finished("model=mask_rcnn_r18", *words, "inference.score=0.02", f"hydra.run.dir={run}")
    return root, run


def test_a_trained_network_measures_the_same_on_any_number_of_processes(
    learned: tuple[Path, Path], tmp_path: Path
) -> None:
    found = []
    for processes in (1, 2, 3):
        place = tmp_path / f"eval{processes}"
        words = [f"eval.processes={processes}", f"eval.output={place}", "eval.loss=false"]
        finished("segeval", f"checkpoint={learned[1]}", *words)
        numbers = json.loads((place / "metrics.json").read_text())
        found.append({key: value for key, value in numbers.items() if key != "protocol"})
    assert found[0] == found[1] == found[2]
    assert found[0]["segm/AP"] > 0.02


def test_a_submission_scores_in_pycocotools_as_segeval_said(
    learned: tuple[Path, Path], tmp_path: Path
) -> None:
    place = tmp_path / "eval"
    upload = tmp_path / "upload"
    words = [f"eval.output={place}", f"eval.submission={upload}", "eval.loss=false"]
    printed = finished("segeval", f"checkpoint={learned[1]}", *words)
    assert "AP50" in printed
    numbers = json.loads((place / "metrics.json").read_text())
    truth = COCO(str(learned[0] / "annotations/instances_val2017.json"))
    evaluation = COCOeval(
        truth, truth.loadRes(str(upload / "detections_val2017_segtrain_results.json")), "segm"
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = (
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR@1",
        "AR@10",
        "AR@100",
        "ARs",
        "ARm",
        "ARl",
    )
    expected = {
        f"segm/{name}": value
        for name, value in zip(names, evaluation.stats.tolist(), strict=True)
        if value >= 0
    }
    assert {name: numbers[name] for name in expected} == expected
    assert numbers["segm/AP"] > 0.02


def test_two_processes_train_on_an_image_without_objects_each(seven: Path, tmp_path: Path) -> None:
    """A rank whose image holds nothing takes part in every sum, and no parameter is looked for."""
    run = tmp_path / "run"
    finished(*arguments("mask_rcnn_r18", seven, run), "train.processes=2")
    state = reading.find(run, "latest").read("model")
    assert all(torch.isfinite(value).all() for value in state.values())
