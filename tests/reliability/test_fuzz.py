"""Whatever stands in an input, it is read, or refused by an error of ours (row R36).

No other error, no hang, no gigabytes: for settings of a command line, configs, manifests of
checkpoints, images and masks (PNG, JPEG, TIFF, BMP, WebP), files of COCO, labelme and YOLO, lists
of files and classes, foreign weights and metrics.jsonl. The inputs are whole ones that were
damaged at random, by a seed.
"""

from __future__ import annotations

import io
import json
import random
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
import weight_files
import yaml
from fuzzing import mutated, mutated_json, mutated_text, mutated_tree
from PIL import Image
from rows import Tally, amount

from segtrain.checkpoints import manifest, reading, writing
from segtrain.commands import flags
from segtrain.config.compose import check, compose_config
from segtrain.config.files import load_run, load_yaml, masked_container, to_yaml
from segtrain.data import images
from segtrain.data.listing import read_ids
from segtrain.datasets.coco import CocoJson, CocoJsonMasks
from segtrain.datasets.labelme import Labelme
from segtrain.datasets.yolo import Yolo
from segtrain.logs import metrics_file
from segtrain.structures.labels import LabelMap
from segtrain.weights.formats import read_weights

# What each case does with its folder, its dice, and one reading of it.
Case = Callable[[Path, random.Random], None]


# ---------------------------------------------------------------------- settings and configs

WORDS = (
    *("train.steps=10", "train.precision=fp32", "model=unet_32", "model.width=8", "dataset=shapes"),
    *(
        "dataset.size=[32,32]",
        "+dataset.x=1",
        "~augment.extra",
        "optimizer=sgd",
        "optimizer.lr=0.1",
    ),
    *("eval.scales=[0.5,1]", "loss.weights={seg: 1}", "writer=[tensorboard]", "hydra.run.dir=/x/y"),
    *("dataset=folder", "dataset.root=/data", "dataset.labels=[a,b]", "train.init=null"),
    *("augment.extra=[{CLAHE: {p: 0.2}}]", "experiment=null", "schedule=poly", "train.seed=7"),
    *(
        "train.monitor=mIoU",
        "train.ema=0.9",
        "loss.weights={seg: 1}",
        "hydra.run.dir=x",
        "log.every=1",
    ),
    *("hydra.searchpath=[x]", "ablation=null", "metric=semantic", "log.images=2", "inference=tile"),
)


def overrides(folder: Path, dice: random.Random) -> None:
    words = [dice.choice(WORDS) for _ in range(dice.randint(1, 3))]
    at = dice.randrange(len(words))
    key, equals, value = words[at].partition("=")
    anywhere = not equals or dice.random() < 0.3
    words[at] = mutated_text(words[at], dice) if anywhere else f"{key}={mutated_text(value, dice)}"
    _, rest = flags.split_flags(words)
    cfg, _ = compose_config(rest)
    check(cfg)


@cache
def stored() -> dict[str, Any]:
    """The config of a run."""
    return masked_container(compose_config(["model=unet_32", "dataset=shapes"])[0])


def configs(folder: Path, dice: random.Random) -> None:
    path = folder / "config.yaml"
    text = to_yaml(stored())
    if dice.random() < 0.5:
        path.write_text(yaml.safe_dump(mutated_tree(stored(), dice), allow_unicode=True))
    else:
        path.write_bytes(mutated_text(text, dice).encode(errors="surrogatepass"))
    load_yaml(path)
    load_run(path)


# ---------------------------------------------------------------------- checkpoints, metrics


@cache
def checkpoint() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest of a small checkpoint, and all of its files."""
    import tempfile

    import torch

    with tempfile.TemporaryDirectory() as folder:
        meta = {"score": 0.5, "config": stored(), "class_names": ["a", "b"], "input": None}
        payload = {"model": {"w": torch.zeros(3)}, "optimizer": {"m": [torch.ones(2), 1]}}
        path = writing.save(Path(folder), 100, payload, meta)
        files = {file.name: file.read_bytes() for file in path.iterdir()}
    return json.loads(files[manifest.MANIFEST]), files


def checkpoints(folder: Path, dice: random.Random) -> None:
    body, files = checkpoint()
    path = folder / "checkpoints" / "step_00000100"
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    kind = dice.randrange(3)
    plain = {key: value for key, value in body.items() if key != "seal"}
    if kind == 0:  # sealed by somebody who knows how
        changed = mutated_tree(plain, dice)
        sealed = manifest.encode(changed) if isinstance(changed, dict) else b"7"
        (path / manifest.MANIFEST).write_bytes(sealed)
    elif kind == 1:
        (path / manifest.MANIFEST).write_bytes(mutated(files[manifest.MANIFEST], dice))
    else:
        name = dice.choice(["model.pt", "optimizer.pt"])
        (path / name).write_bytes(mutated(files[name], dice))
    reading.best(folder / "checkpoints")
    found = reading.find(folder if dice.random() < 0.5 else path)
    for name in found.files:
        found.read(name.removesuffix(".pt"))
    reading.weights_of(path)


def metrics(folder: Path, dice: random.Random) -> None:
    lines = [{"step": step, "phase": "train", "loss": 0.1, "lr": None} for step in range(1, 5)]
    content = b"".join(json.dumps(mutated_tree(line, dice)).encode() + b"\n" for line in lines)
    (folder / metrics_file.METRICS).write_bytes(mutated(content, dice))
    metrics_file.read_metrics(folder)
    metrics_file.rewind(folder, 2)


# ---------------------------------------------------------------------- images


@cache
def pictures() -> dict[str, bytes]:
    """Small images and masks of every format, by the arguments that they were written with."""
    draw = np.random.default_rng(0)
    color = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    mask = Image.fromarray(draw.integers(0, 3, (9, 12), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (color, "PNG", {}),
        (mask, "PNG", {"exif": exif}),
        (mask.convert("P"), "PNG", {"transparency": 1}),
        (color.convert("RGBA"), "PNG", {}),
        (mask.convert("1"), "PNG", {}),
        (color, "JPEG", {"exif": exif}),
        (color, "JPEG", {"progressive": True}),
        (color.convert("CMYK"), "JPEG", {}),
        (color, "TIFF", {"compression": "tiff_lzw"}),
        (mask, "TIFF", {}),
        (color, "BMP", {}),
        (mask.convert("P"), "BMP", {}),
        (color, "WEBP", {"lossless": True}),
    ]
    made = {}
    for number, (picture, form, options) in enumerate(forms):
        file = io.BytesIO()
        picture.save(file, form, **options)
        made[f"{form} {number}"] = file.getvalue()
    return made


def picture(form: str) -> Case:
    def case(folder: Path, dice: random.Random) -> None:
        path = folder / "picture"
        kinds = [name for name in pictures() if name.partition(" ")[0] in form.split()]
        path.write_bytes(mutated(pictures()[dice.choice(kinds)], dice))
        reads = (
            *(images.read_image, images.read_mask, images.read_colors),
            *(images.image_size, images.orientation),
        )
        dice.choice(reads)(path)

    return case


# ---------------------------------------------------------------------- annotations and lists


def photo(path: Path, size: tuple[int, int] = (12, 9)) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)


COCO = {
    "info": {"year": 2020},
    "images": [
        {"id": 1, "file_name": "a.png", "height": 9, "width": 12},
        {"id": 2, "file_name": "b.png", "height": 9, "width": 12},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [[1, 1, 8, 1, 8, 6, 1, 6]],
            "bbox": [1, 1, 7, 5],
            "area": 35,
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 3,
            "segmentation": {"size": [9, 12], "counts": [20, 5, 83]},
            "bbox": [2, 2, 1, 5],
            "area": 5,
            "iscrowd": 1,
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 3,
            "segmentation": {"size": [9, 12], "counts": "d05_2"},
            "bbox": [2, 2, 1, 5],
            "area": 5,
            "iscrowd": 1,
        },
    ],
    "categories": [{"id": 1, "name": "cat", "supercategory": "x"}, {"id": 3, "name": "dog"}],
}


def coco(folder: Path, dice: random.Random) -> None:
    for name in ("a.png", "b.png"):
        photo(folder / "images" / name)
    path = folder / "coco.json"
    path.write_bytes(mutated_json(COCO, dice))
    kind = dice.choice([CocoJson, CocoJsonMasks])
    every_sample(kind(str(path), "train", str(folder / "images")))


def every_sample(dataset: Any) -> None:
    for index in range(len(dataset)):
        dataset[index]
        dataset.scored(index)


SHAPES = {
    "version": "5.0.1",
    "flags": {},
    "shapes": [
        {
            "label": "cat",
            "points": [[1, 1], [8, 1], [8, 6]],
            "group_id": None,
            "shape_type": "polygon",
            "flags": {},
        },
        {"label": "dog", "points": [[2, 2], [5, 7]], "shape_type": "rectangle"},
    ],
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": 9,
    "imageWidth": 12,
}


def labelme(folder: Path, dice: random.Random) -> None:
    photo(folder / "train" / "a.png")
    (folder / "train" / "a.json").write_bytes(mutated_json(SHAPES, dice))
    every_sample(Labelme(str(folder), "train"))


def yolo(folder: Path, dice: random.Random) -> None:
    photo(folder / "images" / "train" / "a.png")
    (folder / "labels" / "train").mkdir(parents=True, exist_ok=True)
    lines = "0 0.1 0.1 0.8 0.1 0.8 0.7\n1 0.2 0.2 0.5 0.2 0.5 0.5 0.2 0.5\n"
    names = "names:\n  0: cat\n  1: dog\nnc: 2\ntrain: images/train\n"
    if dice.random() < 0.5:
        lines = mutated_text(lines, dice)
    else:
        names = mutated_text(names, dice)
    (folder / "labels" / "train" / "a.txt").write_bytes(lines.encode(errors="surrogatepass"))
    (folder / "data.yaml").write_bytes(names.encode(errors="surrogatepass"))
    every_sample(Yolo(str(folder), "train"))


def lists(folder: Path, dice: random.Random) -> None:
    kind = dice.choice(["ids", "txt", "json"])
    if kind == "ids":
        (folder / "list.txt").write_bytes(mutated(b"a\nb\nfolder/c.png\n# d\n'e',\n", dice))
        read_ids(folder / "list.txt", [])
        return
    path = folder / f"classes.{kind}"
    table = [
        {"id": 0, "name": "road", "color": [1, 2, 3]},
        {"id": 7, "name": "car", "color": [4, 5, 6]},
        {"id": 255, "name": None},
    ]
    text = mutated_text("0: road\n7: car\n255: void\n", dice).encode(errors="surrogatepass")
    path.write_bytes(mutated_json(table, dice) if kind == "json" else text)
    LabelMap.load(str(path))


# ---------------------------------------------------------------------- weights


@cache
def weights() -> dict[str, bytes]:
    """Whole weight files of every format that is one file."""
    arrays = weight_files.arrays()
    layers = {
        name: [weight_files.blob(array.shape, array.tobytes())]
        for name, array in arrays.items()
        if array.dtype == np.float32 and array.size
    }
    tensors = weight_files.tensors()
    return {
        "zip": weight_files.torch_file({"state_dict": tensors, "epoch": 3}),
        "legacy": weight_files.torch_file({"model": tensors, "epoch": 3}, legacy=True),
        "safetensors": weight_files.safetensors(arrays),
        "caffe": weight_files.caffemodel(layers),
        "graph": weight_files.graph(arrays),
        "pickle": weight_files.pickled({"blobs": arrays}),
    }


def foreign(folder: Path, dice: random.Random) -> None:
    form = dice.choice([*weights(), "checkpoint"])
    if form == "checkpoint":
        path = weight_files.checkpoint(folder, weight_files.arrays())
        damaged = dice.choice([path, folder / "model.ckpt.data-00000-of-00001"])
        damaged.write_bytes(mutated(damaged.read_bytes(), dice))
    else:
        path = folder / "weights"
        path.write_bytes(mutated(weights()[form], dice))
    read_weights(path)


# ---------------------------------------------------------------------- the test

# (case, inputs of the fast form, of the long form)
CASES: dict[str, tuple[Case, int, int]] = {
    "overrides": (overrides, 60, 2_000),
    "configs": (configs, 40, 2_000),
    "checkpoints": (checkpoints, 60, 6_000),
    "metrics": (metrics, 60, 6_000),
    "png": (picture("PNG"), 60, 8_000),
    "jpeg": (picture("JPEG"), 60, 6_000),
    "other images": (picture("TIFF BMP WEBP"), 60, 6_000),
    "coco": (coco, 60, 5_000),
    "labelme": (labelme, 40, 3_000),
    "yolo": (yolo, 40, 2_000),
    "lists": (lists, 40, 4_000),
    "weights": (foreign, 60, 6_000),
}


@pytest.mark.row("R36")
@pytest.mark.parametrize("kind", CASES)
def test_a_fuzzed_input_is_read_or_refused_by_an_error_of_ours(
    kind: str, tmp_path: Path, tally: Tally
) -> None:
    case, fast, long = CASES[kind]
    count = amount(5, fast, long)
    found: Counter[str] = Counter()
    wrong = []
    for seed in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dice = random.Random(f"{kind} {seed}")
            result = fuzzing.outcome(lambda dice=dice: case(tmp_path, dice))
        found[result if result in ("read", "refused") else "wrong"] += 1
        if result not in ("read", "refused"):
            wrong.append(f"{kind} {seed}: {result}")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:20])
    if count > 20:  # both do happen: the damage is neither nothing nor everything
        assert found["refused"] > 0, found
        assert found["read"] > 0, found
    tally(count, seed=0, note=str(dict(found)))
