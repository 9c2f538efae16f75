"""An archive for a benchmark's server holds what it takes, and scores as its model does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commandline import done, load, numbers, refused, save, scored
from context_masks import ID_459, other_masks
from PIL import Image
from samples import voc_part
from scipy import ndimage
from stubs import InstanceLoss, TinyDetector, TinyNet

from segtrain.benchmarks.coco_results import result_entries
from segtrain.benchmarks.submission import submission
from segtrain.config import parts as parts_module
from segtrain.data.images import image_size
from segtrain.datasets.voc import VOC
from segtrain.errors import DataError, UserError
from segtrain.inference.base import BasePredictor
from segtrain.runtime.distributed import World
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Batch

TRAIN = [
    "train.steps=2",
    "train.batch_size=2",
    "train.precision=fp32",
    "train.verify=false",
    "train.eval_every=2",
    "writer=[]",
    "log.images=0",
    "train.device=cpu",
    "model=deeplabv3plus_r18",
]
# It stands for the two convolutions of tests/stubs.py (`stub_for_resnet50`).
STUB = "model.backbone=resnet50"
# Rows and columns of real images that are kept: 96 x 128 pixels.
SMALL = (slice(60, 156), slice(100, 228))
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
COCO = LabelMap.load("coco")


@pytest.fixture(scope="module", autouse=True)
def stub_for_resnet50() -> Iterator[None]:
    """Most of these tests need any network at all; this one takes milliseconds."""
    real = parts_module.model

    def model(node: Any, num_classes: int, *where: Any) -> torch.nn.Module:
        if node["backbone"] == "resnet50":
            return TinyNet(num_classes)
        return real(node, num_classes, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "model", model)
        yield


def trained(run: Path, *arguments: str) -> Path:
    done("segtrain", *TRAIN, f"hydra.run.dir={run}", *arguments)
    return run


def members(archive: Path) -> list[str]:
    """The files of an archive, sorted."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            return sorted(file.namelist())
    with tarfile.open(archive) as file:
        assert all(member.isfile() for member in file.getmembers())
        return sorted(file.getnames())


def unpacked(archive: Path, folder: Path) -> Path:
    """What the server sees."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            # since 3.11.4
            file.extractall(folder, **{"filter": "data"} if hasattr(tarfile, "data_filter") else {})
    return folder


def submitted(run: Path, target: Path, *arguments: str) -> tuple[str, dict[str, float]]:
    """(what `segeval checkpoint=` with a submission prints, its numbers)."""
    said = done(
        "segeval",
        f"checkpoint={run}",
        f"eval.submission={target}",
        f"eval.output={target}-eval",
        "eval.worst=0",
        *arguments,
    )
    return said, numbers(target.with_name(f"{target.name}-eval"))


def assert_palette_png(path: Path, size: tuple[int, int], legal: list[int]) -> set[int]:
    """Check an 8-bit palette PNG of `size` (width, height); return its indices, all `legal`."""
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "P", size)
        held = set(np.unique(np.array(image)).tolist())
    assert held <= set(legal)
    return held


# ---------------------------------------------------------------------- VOC


@pytest.fixture(scope="module")
def voc(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of real images: 2 to train on, 3 of val, links to them in `input`.

    A test split has 2 whole images without masks.
    """
    source = data_root / "voc2012/VOCdevkit/VOC2012"
    root = tmp_path_factory.mktemp("voc") / "VOC2012"
    listed = (source / "ImageSets/Segmentation/val.txt").read_text().split()
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "input").mkdir()
    for split, names in (("train", listed[:2]), ("val", listed[2:5]), ("test", listed[5:7])):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image = f"JPEGImages/{name}.jpg"
            mask = f"SegmentationClass/{name}.png"
            if split == "test":
                os.symlink(source / image, root / image)
                continue
            save(root / image, load(source / image)[SMALL])
            save(root / mask, load(source / mask)[SMALL])
            if split == "val":
                os.symlink(root / image, root / f"input/{name}.jpg")
    return root


@pytest.fixture(scope="module")
def voc_run(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("voc_run") / "run"
    return trained(run, "dataset=voc", f"dataset.root={voc}", "dataset.crop=[65,65]", STUB)


def names_of(voc: Path, split: str) -> list[str]:
    return sorted((voc / f"ImageSets/Segmentation/{split}.txt").read_text().split())


def test_a_voc_submission_is_a_tarball_that_scores_as_its_model(
    voc: Path, voc_run: Path, tmp_path: Path
) -> None:
    said, measured = submitted(voc_run, tmp_path / "sub")
    archive = tmp_path / "sub/results.tgz"
    folder = "results/VOC2012/Segmentation/comp6_val_cls"
    assert members(archive) == [f"{folder}/{name}.png" for name in names_of(voc, "val")]
    assert (
        f"{archive}: 3 label maps, read back; every image is there, in its size, with legal ids"
        in said
    )
    seen = unpacked(archive, tmp_path / "server")
    held = set()
    for name in names_of(voc, "val"):
        held |= assert_palette_png(seen / folder / f"{name}.png", (128, 96), list(range(21)))
    assert len(held) > 2  # the network says more than one thing
    arguments = ["dataset=voc", f"dataset.root={voc}"]
    assert scored(tmp_path / "a", seen, *arguments) == measured
    assert scored(tmp_path / "b", tmp_path / "sub", *arguments) == measured
    written = json.loads((tmp_path / "a/confusion.json").read_text())
    assert written == json.loads((tmp_path / "sub-eval/confusion.json").read_text())


def test_segpredict_writes_the_same_maps_for_the_server(
    voc: Path, voc_run: Path, tmp_path: Path
) -> None:
    submitted(voc_run, tmp_path / "sub")
    arguments = [f"checkpoint={voc_run}", f"input={voc / 'input'}", f"output={tmp_path / 'out'}"]
    said = done("segpredict", *arguments, f"eval.submission={tmp_path / 'more'}")
    assert f"{tmp_path / 'more/results.tgz'}: 3 label maps, read back" in said
    folder = "results/VOC2012/Segmentation"
    assert members(tmp_path / "more/results.tgz") == [
        f"{folder}/comp6_test_cls/{n}.png" for n in names_of(voc, "val")
    ]
    for name in names_of(voc, "val"):
        one = (tmp_path / f"more/{folder}/comp6_test_cls/{name}.png").read_bytes()
        assert one == (tmp_path / f"sub/{folder}/comp6_val_cls/{name}.png").read_bytes()
        assert (
            load(tmp_path / f"out/{name}.png")
            == load(tmp_path / f"sub/{folder}/comp6_val_cls/{name}.png")
        ).all()
    measured = numbers(tmp_path / "sub-eval")
    assert (
        scored(tmp_path / "scores", tmp_path / "out", "dataset=voc", f"dataset.root={voc}")
        == measured
    )


def test_the_images_of_vocs_test_make_an_archive_and_no_numbers(
    voc: Path, voc_run: Path, tmp_path: Path
) -> None:
    before = sorted(voc_run.rglob("*"))
    refused(
        2,
        ["dataset.split=test", "no labels to compare with", "eval.submission=DIR"],
        "segeval",
        f"checkpoint={voc_run}",
        "dataset.split=test",
    )
    said = done(
        "segeval",
        f"checkpoint={voc_run}",
        "dataset.split=test",
        f"eval.submission={tmp_path / 'sub'}",
    )
    assert said == (
        f"{tmp_path / 'sub/results.tgz'}: 2 label maps, read back; "
        "every image is there, in its size, with legal ids\n"
    )
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    assert members(tmp_path / "sub/results.tgz") == [
        f"{folder}/{name}.png" for name in names_of(voc, "test")
    ]
    assert sorted(voc_run.rglob("*")) == before
    assert not list(tmp_path.rglob("metrics.json"))
    refused(
        2,
        ["dataset.split=test", "no labels to compare with"],
        "segeval",
        f"predictions={tmp_path / 'sub'}",
        "dataset=voc",
        f"dataset.root={voc}",
        "dataset.split=test",
    )


@pytest.mark.slow
def test_a_real_network_in_processes_writes_the_same_archive(
    data_root: Path, tmp_path: Path
) -> None:
    root = voc_part(data_root / "voc2012/VOCdevkit", tmp_path / "VOC2012", 4, 3)
    run = trained(tmp_path / "run", "dataset=voc", f"dataset.root={root}", "dataset.crop=[97,97]")
    results = []
    for count in (1, 2):
        target = tmp_path / str(count)
        start = [
            sys.executable,
            "-m",
            "segtrain",
            "segeval",
            f"checkpoint={run}",
            f"eval.processes={count}",
        ]
        start += [f"eval.submission={target}", f"eval.output={target}-eval", "eval.worst=0"]
        ended = subprocess.run(start, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended
        assert ended.stdout.count("3 label maps, read back") == 1, ended
        results.append((members(target / "results.tgz"), numbers(tmp_path / f"{count}-eval")))
        seen = unpacked(target / "results.tgz", tmp_path / f"{count}-seen")
        assert (
            scored(tmp_path / f"{count}-scores", seen, "dataset=voc", f"dataset.root={root}")
            == results[-1][1]
        )
    assert results[0] == results[1]
    for path in (tmp_path / "1").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()


# ---------------------------------------------------------------------- Cityscapes


@pytest.fixture(scope="module")
def city(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of real frames: two in train, three in val, and images alone in test, of two cities."""
    root = tmp_path_factory.mktemp("city")
    sample = data_root / "cityscapes"
    images = sorted((sample / "leftImg8bit/train/aachen").glob("*.png"))
    for number, image in enumerate(images):
        split = ("train", "val")[number > 1]
        stem = image.name.removesuffix("_leftImg8bit.png")
        if number == 5:
            split = "test"
        files = [(image, "leftImg8bit")]
        files += [
            (sample / f"gtFine/train/aachen/{stem}_gtFine_{k}.png", "gtFine")
            for k in ("labelIds", "instanceIds")
        ]
        for file, subfolder in files[: 1 if split == "test" else 3]:
            save(root / subfolder / split / "aachen" / file.name, load(file)[300:428, 600:856])
    (root / "leftImg8bit/test/bonn").mkdir()
    os.symlink(
        root / f"leftImg8bit/val/aachen/{images[2].name}",
        root / "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png",
    )
    return root


@pytest.fixture(scope="module")
def city_run(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("city_run") / "run"
    return trained(run, "dataset=cityscapes", f"dataset.root={city}", "dataset.crop=[65,65]", STUB)


def frames(city: Path, split: str) -> list[str]:
    return sorted(
        path.name.removesuffix("_leftImg8bit.png")
        for path in (city / "leftImg8bit" / split).rglob("*.png")
    )


def test_a_cityscapes_submission_holds_label_ids_and_scores_as_its_model(
    city: Path, city_run: Path, tmp_path: Path
) -> None:
    said, measured = submitted(city_run, tmp_path / "sub")
    archive = tmp_path / "sub/cityscapes_val.zip"
    assert members(archive) == [f"{name}.png" for name in frames(city, "val")]
    assert f"{archive}: 3 label maps, read back; every image is there" in said
    seen = unpacked(archive, tmp_path / "server")
    held = set.union(
        *(
            assert_palette_png(seen / f"{name}.png", (256, 128), CITYSCAPES_IDS)
            for name in frames(city, "val")
        )
    )
    assert len(held) > 2
    assert not held <= set(range(19))
    rescored = scored(tmp_path / "scores", seen, "dataset=cityscapes", f"dataset.root={city}")
    assert rescored == measured
    assert {"category_IoU", "iIoU", "category_iIoU/vehicle"} <= rescored.keys()


def test_the_images_of_cityscapes_test_make_an_archive_and_no_numbers(
    city: Path, city_run: Path, tmp_path: Path
) -> None:
    arguments = [f"checkpoint={city_run}", f"eval.submission={tmp_path / 'sub'}"]
    said = done("segeval", *arguments, "dataset.split=test")
    assert said.startswith(f"{tmp_path / 'sub/cityscapes_test.zip'}: 2 label maps, read back")
    assert said.count("\n") == 1
    assert members(tmp_path / "sub/cityscapes_test.zip") == [
        f"{name}.png" for name in frames(city, "test")
    ]
    assert [name.split("_")[0] for name in frames(city, "test")] == ["aachen", "bonn"]
    arguments = [
        f"checkpoint={city_run}",
        f"input={city / 'leftImg8bit/test'}",
        f"output={tmp_path / 'out'}",
    ]
    done("segpredict", *arguments, f"eval.submission={tmp_path / 'more'}")
    assert members(tmp_path / "more/cityscapes_test.zip") == [
        f"{name}.png" for name in frames(city, "test")
    ]
    for name in frames(city, "test"):
        assert (tmp_path / f"more/{name}.png").read_bytes() == (
            tmp_path / f"sub/{name}.png"
        ).read_bytes()


def test_what_segpredict_writes_of_cityscapes_can_be_scored(
    city: Path, city_run: Path, tmp_path: Path
) -> None:
    done(
        "segpredict",
        f"checkpoint={city_run}",
        f"input={city / 'leftImg8bit/val'}",
        f"output={tmp_path / 'out'}",
    )
    rescored = scored(
        tmp_path / "scores", tmp_path / "out", "dataset=cityscapes", f"dataset.root={city}"
    )
    assert rescored == submitted(city_run, tmp_path / "sub")[1]


# ---------------------------------------------------------------------- Context


@pytest.fixture(scope="module")
def scenes(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The sample in its three numberings: the arguments that name it."""
    results = {}
    sample = data_root / "pascal_context"
    small = tmp_path_factory.mktemp("small")
    (small / "val.txt").write_text((sample / "val.txt").read_text())
    for file in (*sample.glob("JPEGImages/*.jpg"), *sample.glob("59_context_labels/*.png")):
        save(small / file.parent.name / file.name, load(file)[SMALL])
    for ids in ("official", "sorted", "459"):
        root = tmp_path_factory.mktemp(ids) / "VOC2010"
        other_masks(small, root, 459 if ids == "459" else ids)  # ty: ignore
        (root / "train.txt").write_text((root / "val.txt").read_text())
        if ids == "official":
            for path in (small / "59_context_labels").glob("*.png"):
                save(root / "masks" / path.name, load(path))
        results[ids] = [
            "dataset=context",
            f"dataset.root={root}",
            "dataset.masks=masks",
            f"dataset.ids={ids}",
        ]
    return results


@pytest.fixture(scope="module")
def scene_run(scenes: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("scene_run") / "run",
        *scenes["official"],
        "dataset.crop=[97,97]",
        STUB,
    )


@pytest.mark.parametrize(
    "ids",
    ["official", *(pytest.param(ids, marks=pytest.mark.slow) for ids in ("sorted", "459"))],
)
def test_a_context_submission_keeps_the_index_order_and_scores_as_its_model(
    scenes: dict[str, list[str]], scene_run: Path, tmp_path: Path, ids: str
) -> None:
    said, measured = submitted(scene_run, tmp_path / "sub", *scenes[ids])
    archive = tmp_path / "sub/context_val.zip"
    root = Path(scenes[ids][1].partition("=")[2])
    names = sorted((root / "val.txt").read_text().split())
    assert members(archive) == [f"{name}.png" for name in names]
    assert f"{archive}: 4 label maps, read back" in said
    seen = unpacked(archive, tmp_path / "server")
    for name in names:
        size = image_size(root / f"JPEGImages/{name}.jpg")[::-1]
        if ids != "459":
            assert_palette_png(seen / f"{name}.png", size, list(range(1, 60)))
            continue
        with Image.open(seen / f"{name}.png") as image:
            assert (image.mode, image.size) == ("I;16", size)
            assert set(np.unique(np.array(image)).tolist()) <= set(ID_459)
    assert scored(tmp_path / "scores", seen, *scenes[ids]) == measured
    assert measured == submitted(scene_run, tmp_path / "official")[1]


def test_segpredict_of_a_model_trained_on_the_459_labels_writes_their_ids(
    scenes: dict[str, list[str]], tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", *scenes["459"], "dataset.crop=[65,65]", STUB)
    root = Path(scenes["459"][1].partition("=")[2])
    done(
        "segpredict",
        f"checkpoint={run}",
        f"input={root / 'JPEGImages'}",
        f"output={tmp_path / 'out'}",
    )
    assert (
        scored(tmp_path / "scores", tmp_path / "out", *scenes["459"])
        == submitted(run, tmp_path / "sub")[1]
    )


# ---------------------------------------------------------------------- COCO, with an instance stub


class Blobs(BasePredictor):
    """Every bright region of an image as an object: its colour is its class.

    Its brightness is its score.
    As our own predictors do it, in run lengths.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __call__(self, image: torch.Tensor, sample_id: str = "") -> Segments:
        height, width = image.shape[1:]
        self.model(Batch(image[None], torch.tensor([[height, width]]), [""]))
        pixels = image.numpy().astype(int)
        regions, count = ndimage.label(pixels.max(0) > 120)
        masks = torch.from_numpy(regions[None] == np.arange(1, count + 1)[:, None, None])
        # boxes half a pixel too large, so that they score otherwise than the masks
        places = [
            [s[1].start - 0.5, s[0].start - 0.5, s[1].stop + 0.5, s[0].stop + 0.5]
            for s in ndimage.find_objects(regions)
        ]
        labels = [int(pixels[:, m].mean(1).argmax()) * 30 for m in masks.numpy()]
        scores = [float(pixels[:, m].mean()) / 255 for m in masks.numpy()]
        boxes = torch.tensor(places, dtype=torch.float32).reshape(-1, 4)
        return run_lengths.segments(
            Instances(boxes, torch.tensor(labels).long(), masks, scores=torch.tensor(scores))
        )


def put_stub(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(parts_module, "model", lambda node, num_classes, *where: TinyDetector(1))
    patch.setattr(parts_module, "augment", lambda node: lambda sample, seed: sample)
    patch.setattr(parts_module, "loss", lambda node, *where: InstanceLoss())
    patch.setattr(parts_module, "predictor", lambda run, network: Blobs(network))


@pytest.fixture
def instance_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    put_stub(monkeypatch)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's layout: boxes in three colours on dark images, annotated a little wrong.

    A test-dev split has no truth.
    """
    root = tmp_path_factory.mktemp("coco")
    raw = {train: number for number, train in COCO.raw.items() if train < 80}
    categories = [{"id": raw[t], "name": COCO.names[t]} for t in range(80)]
    for split, folder, count, first in (
        ("train2017", "train2017", 3, 40),
        ("val2017", "val2017", 7, 9),
        ("test-dev2017", "test2017", 2, 120),
    ):
        images = []
        annotations = []
        for number in range(first, first + count):
            rng = np.random.default_rng(number)
            pixels = rng.integers(0, 100, (90, 120, 3)).astype(np.uint8)
            images.append(
                {"id": number, "file_name": f"{number:012d}.png", "height": 90, "width": 120}
            )
            for column in range(0 if number == 11 else 4):  # one image is empty
                x = 4 + 28 * column
                y = int(rng.integers(2, 40))
                w, h = (int(v) for v in rng.integers(8, 24, 2))
                color = int(rng.integers(3))
                pixels[y : y + h, x : x + w, color] = 150 + rng.integers(0, 100)
                box = [x, y, w, h + int(rng.integers(0, 6))]
                polygon = [x, y, x + w, y, x + w, y + box[3], x, y + box[3]]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": raw[30 * color],
                        "bbox": box,
                        "segmentation": [polygon],
                        "area": w * box[3],
                        "iscrowd": 0,
                    }
                )
            save(root / folder / f"{number:012d}.png", pixels)
        content: dict[str, Any] = {"images": images, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        if split == "test-dev2017":
            (root / f"annotations/image_info_{split}.json").write_text(json.dumps(content))
        else:
            content["annotations"] = annotations
            (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def coco_run(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = ["dataset=coco_instance", f"dataset.root={coco}", "dataset.crop=[90,120]"]
    with pytest.MonkeyPatch.context() as patch:
        put_stub(patch)
        return trained(tmp_path_factory.mktemp("coco_run") / "run", *data)


@pytest.mark.usefixtures("instance_stub")
def test_a_coco_submission_is_a_results_file_that_scores_as_its_model(
    coco: Path, coco_run: Path, tmp_path: Path
) -> None:
    said, measured = submitted(coco_run, tmp_path / "sub")
    name = "detections_val2017_segtrain_results"
    assert members(tmp_path / f"sub/{name}.zip") == [f"{name}.json"]
    file = unpacked(tmp_path / f"sub/{name}.zip", tmp_path / "server") / f"{name}.json"
    entries = json.loads(file.read_text())
    assert (
        f"{name}.zip: {len(entries)} detections of 7 images, read back; "
        "ids, sizes and scores are legal" in said
    )
    assert len(entries) >= 24
    assert [e["image_id"] for e in entries] == sorted(e["image_id"] for e in entries)
    for entry in entries:
        assert entry.keys() == {"image_id", "category_id", "segmentation", "score"}
        assert type(entry["image_id"]) is int
        assert 9 <= entry["image_id"] < 16
        assert entry["image_id"] != 11
        assert entry["category_id"] in (1, 35, 67)  # the official ids of classes 0, 30 and 60
        assert entry["segmentation"]["size"] == [90, 120]
        assert 0 < entry["score"] < 1
    rescored = scored(tmp_path / "scores", file, "dataset=coco_instance", f"dataset.root={coco}")
    assert rescored == {key: value for key, value in measured.items() if key.startswith("segm/")}
    assert 0.1 < rescored["segm/AP"] < 0.95
    assert measured["bbox/AP"] != rescored["segm/AP"]


@pytest.mark.usefixtures("instance_stub")
def test_coco_test_images_make_an_archive_and_no_numbers(
    coco: Path, coco_run: Path, tmp_path: Path
) -> None:
    arguments = [
        f"checkpoint={coco_run}",
        f"eval.submission={tmp_path / 'sub'}",
        "dataset.split=test-dev2017",
    ]
    said = done("segeval", *arguments)
    archive = tmp_path / "sub/detections_test-dev2017_segtrain_results.zip"
    assert (
        said == f"{archive}: 8 detections of 2 images, read back; ids, sizes and scores are legal\n"
    )
    arguments = [
        f"checkpoint={coco_run}",
        f"input={coco / 'test2017'}",
        f"output={tmp_path / 'out'}",
    ]
    said = done(
        "segpredict",
        *arguments,
        f"eval.submission={tmp_path / 'more'}",
        "dataset.split=test-dev2017",
    )
    assert "8 detections of 2 images, read back" in said
    assert (tmp_path / f"more/{archive.stem}.json").read_text() == archive.with_suffix(
        ".json"
    ).read_text()
    words = ["dataset.split=test-dev2017", "no labels to compare with"]
    arguments = ["dataset=coco_instance", f"dataset.root={coco}", "dataset.split=test-dev2017"]
    refused(2, words, "segeval", f"predictions={archive.with_suffix('.json')}", *arguments)


@pytest.mark.usefixtures("instance_stub")
def test_images_without_a_number_are_no_coco_images(
    coco: Path, coco_run: Path, tmp_path: Path
) -> None:
    for name in ("photo", "000000000140"):
        save(tmp_path / f"in/{name}.png", np.zeros((90, 120, 3), np.uint8))
    arguments = [f"checkpoint={coco_run}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    refused(
        2,
        ["this server knows images by number, `photo` has none"],
        "segpredict",
        *arguments,
        f"eval.submission={tmp_path / 'sub'}",
    )
    (tmp_path / "in/photo.png").rename(tmp_path / "in/140.png")
    refused(
        2,
        ["two of these images have the same number"],
        "segpredict",
        *arguments,
        f"eval.submission={tmp_path / 'sub'}",
    )
    assert not (tmp_path / "sub").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("instance_stub")
def test_instances_do_not_go_to_a_server_of_label_maps(
    coco: Path, coco_run: Path, tmp_path: Path
) -> None:
    arguments = [
        f"checkpoint={coco_run}",
        f"eval.submission={tmp_path / 'sub'}",
        "dataset.submission=voc",
    ]
    refused(
        2,
        ["eval.submission=", "takes label maps, the model gives instances"],
        "segeval",
        *arguments,
    )
    assert not (tmp_path / "sub").exists()
    assert not list(tmp_path.rglob("metrics.json"))


# ---------------------------------------------------------------------- refusals


def test_a_folder_in_use_is_refused_and_keeps_what_it_holds(
    voc_run: Path, voc: Path, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/results.tgz").write_text("last year's")
    (tmp_path / "file").write_text("mine")
    predict = [
        "segpredict",
        f"checkpoint={voc_run}",
        f"input={voc / 'input'}",
        f"output={tmp_path / 'out'}",
    ]
    measure = ["segeval", f"checkpoint={voc_run}", f"eval.output={tmp_path / 'eval'}"]
    for command in (predict, measure):
        refused(
            2,
            ["sub: is not empty; name a new folder"],
            *command,
            f"eval.submission={tmp_path / 'sub'}",
        )
        refused(
            2,
            ["file: is a file; name a new folder"],
            *command,
            f"eval.submission={tmp_path / 'file'}",
        )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "results.tgz", "sub"]
    assert (tmp_path / "sub/results.tgz").read_text() == "last year's"


def test_a_data_set_without_a_server_is_refused(tmp_path: Path) -> None:
    shapes = [
        "dataset=shapes",
        "dataset.train=4",
        "dataset.val=2",
        "dataset.size=[64,64]",
        "dataset.crop=[64,64]",
    ]
    run = trained(tmp_path / "run", *shapes, STUB)
    words = [
        "eval.submission=",
        "this data set has no server; there are voc, cityscapes, context, coco",
    ]
    refused(2, words, "segeval", f"checkpoint={run}", f"eval.submission={tmp_path / 'sub'}")
    save(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    arguments = [f"checkpoint={run}", f"input={tmp_path / 'a.png'}", f"output={tmp_path / 'out'}"]
    refused(2, words, "segpredict", *arguments, f"eval.submission={tmp_path / 'sub'}")
    assert not (tmp_path / "sub").exists()
    assert not (tmp_path / "out").exists()
    assert not (run / "eval").exists()


@pytest.fixture
def coco_maps_run(coco: Path, tmp_path: Path) -> Path:
    """A model of label maps with COCO's 80 classes."""
    table = {
        "name": "coco",
        "classes": [{"id": t, "name": name} for t, name in enumerate(COCO.names)],
    }
    root = tmp_path / "maps"
    for split in ("train", "val"):
        for name in ("a", "b"):
            save(root / f"images/{split}/{name}.png", np.zeros((64, 64, 3), np.uint8))
            save(root / f"masks/{split}/{name}.png", np.full((64, 64), 3, np.uint8))
    (root / "classes.json").write_text(json.dumps(table))
    return trained(
        tmp_path / "run", "dataset=folder", f"dataset.root={root}", "dataset.crop=[64,64]", STUB
    )


def test_label_maps_do_not_go_to_cocos_server(
    coco: Path, coco_maps_run: Path, tmp_path: Path
) -> None:
    words = ["eval.submission=", "this server takes instances, the model gives label maps"]
    data = ["dataset=coco_instance", f"dataset.root={coco}", f"eval.submission={tmp_path / 'sub'}"]
    for setting in ("eval.loss=false", "dataset.split=test-dev2017"):
        refused(2, words, "segeval", f"checkpoint={coco_maps_run}", *data, setting)
    words_of_loss = ["a pixel loss needs label maps, but this data set gives instances"]
    refused(2, words_of_loss, "segeval", f"checkpoint={coco_maps_run}", *data)
    arguments = [
        f"checkpoint={coco_maps_run}",
        f"input={coco / 'val2017'}",
        f"output={tmp_path / 'out'}",
    ]
    refused(2, words, "segpredict", *arguments, *data)
    assert not (tmp_path / "sub").exists()
    assert not (tmp_path / "out").exists()
    assert not (coco_maps_run / "eval").exists()


# ---------------------------------------------------------------------- the check after writing


@pytest.fixture
def photos(voc: Path) -> VOC:
    return VOC(str(voc), "val")


def maps_of(photos: VOC) -> Iterator[tuple[str, torch.Tensor]]:
    for index, name in enumerate(photos.ids):
        yield name, torch.full(image_size(photos.files(index)[0]), index, dtype=torch.uint8)


def test_a_submission_that_lacks_an_image_is_named(photos: VOC, tmp_path: Path) -> None:
    upload = submission("voc", tmp_path / "sub", photos, "val")
    for name, prediction in list(maps_of(photos))[1:]:
        upload.add(name, prediction)
    with pytest.raises(
        DataError, match=rf"{photos.ids[0]}.png: no prediction for this image \(1 of 3 missing\)"
    ):
        upload.finish(World())


def test_a_submission_of_another_size_is_named(photos: VOC, tmp_path: Path) -> None:
    upload = submission("voc", tmp_path / "sub", photos, "val")
    for name, prediction in maps_of(photos):
        upload.add(name, prediction[:, 1:] if name == photos.ids[1] else prediction)
    with pytest.raises(
        DataError, match=rf"{photos.ids[1]}.png: is \(\d+, \d+\), its image \(\d+, \d+\)"
    ):
        upload.finish(World())


def test_a_submission_with_an_id_that_is_none_is_named(photos: VOC, tmp_path: Path) -> None:
    upload = submission("voc", tmp_path / "sub", photos, "val")
    for name, prediction in maps_of(photos):
        prediction[0, 0] = 255
        upload.add(name, prediction)
    with pytest.raises(
        DataError, match=rf"{photos.ids[0]}.png: holds 255, which the server does not know"
    ):
        upload.finish(World())
    with pytest.raises(UserError, match="class 21 predicted, but voc has classes 0-20"):
        upload.add(photos.ids[0], torch.full((2, 2), 21, dtype=torch.uint8))


def test_two_images_of_one_file_name_are_refused_before_any_work(tmp_path: Path) -> None:
    images = SimpleNamespace(labels=LabelMap.load("voc"), ids=["a/1", "b/1"])
    with pytest.raises(UserError, match="sub: two of these images have the same file name"):
        submission("voc", tmp_path / "sub", images, "test")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": torch.tensor([float("nan")])}, "entry 0: score nan"),
        (
            {"masks": torch.ones(1, 90, 121, dtype=torch.bool)},
            r"entry 0: mask of \[90, 121\], image of \[90, 120\]",
        ),
    ],
)
def test_a_detection_that_the_server_would_refuse_is_named(
    coco: Path, tmp_path: Path, change: dict, said: str
) -> None:
    path = coco / "val2017/000000000009.png"
    images = SimpleNamespace(labels=COCO, ids=["9"], files=lambda index: (path, None))
    parts: dict[str, Any] = {
        "boxes": torch.zeros(1, 4),
        "labels": torch.zeros(1).long(),
        "masks": torch.ones(1, 90, 120, dtype=torch.bool),
    }
    upload = submission("coco", tmp_path / "sub", images, "val2017")
    upload.add("9", Instances(**{**parts, "scores": torch.ones(1), **change}))
    with pytest.raises(DataError, match=f"detections_val2017_segtrain_results.json, {said}"):
        upload.finish(World())


def test_entries_of_a_results_file_carry_the_run_lengths_as_they_are() -> None:
    masks = [run_lengths.from_counts([3, 2, 7], (3, 4)), run_lengths.from_counts([0, 12], (3, 4))]
    boxes = np.array([[0.25, 1, 2, 2], [0, 0, 4, 3]])
    scores = np.array([0.9, 0.01])
    objects = Segments((3, 4), np.array([1, 0]), boxes, masks, np.array([2.0, 12.0]), scores=scores)
    first, second = result_entries(139, objects, {0: 1, 1: 2})
    assert first == {
        "image_id": 139,
        "category_id": 2,
        "bbox": [0.25, 1, 2, 2],
        "score": 0.9,
        "segmentation": masks[0],
    }
    assert second["segmentation"] is masks[1]
    assert second["score"] == 0.01
    assert json.loads(json.dumps(second)) == second
    corners = torch.tensor([[0.25, 1, 2.25, 3], [0, 0, 4, 3]])
    dense = Instances(
        corners,
        torch.tensor([1, 0]),
        torch.from_numpy(run_lengths.decode(masks, (3, 4))),
        scores=torch.ones(2),
    )
    same = [{**entry, "score": 1.0} for entry in (first, second)]
    assert result_entries(139, dense, {0: 1, 1: 2}) == same


def test_boxes_without_masks_go_to_the_server_as_boxes(coco: Path, tmp_path: Path) -> None:
    images = SimpleNamespace(
        labels=COCO, ids=["9"], files=lambda index: (coco / "val2017/000000000009.png", None)
    )
    boxes = Segments(
        (90, 120),
        np.zeros(1, int),
        np.array([[1.0, 2, 3, 4]]),
        None,
        np.full(1, 12.0),
        scores=np.ones(1),
    )
    upload = submission("coco", tmp_path / "sub", images, "val2017")
    upload.add("9", boxes)
    assert "1 detections of 1 images, read back" in upload.finish(World())
    (entry,) = json.loads((tmp_path / "sub/detections_val2017_segtrain_results.json").read_text())
    assert entry == {"image_id": 9, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}
