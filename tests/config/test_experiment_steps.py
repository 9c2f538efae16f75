"""One recipe of each system takes two real steps and measures itself, on real images, on a small
crop or edge.

Batch, crop and trunk's weights are what changes; loss, optimiser, schedule, augmentation and
protocol are the recipe's.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from commandline import trained

SMALL = [
    "train.steps=2",
    "train.eval_every=2",
    "train.batch_size=2",
    "train.accumulate=1",
    "train.threads=1",
    "train.precision=fp32",
    "train.device=cpu",
    "log.every=1",
    "log.images=0",
    "writer=[]",
]
VOC = ["dataset.root={voc}", "dataset.train_split=two", "dataset.val_split=one"]
# name: (settings, classes, crop); a window of the protocol is the crop, and half the size is one
# scale of several
RECIPES = {
    "fcn8s_voc": (VOC, 21, 97),
    "parsenet_voc": (VOC, 21, 97),
    "deconvnet_voc_stage1": (
        [*VOC, "inference.boxes.count=2", "train.bn_batches=1", "model.code=64"],
        21,
        224,
    ),
    "unet_em": (
        [
            "dataset.root={em}",
            "dataset.lists={lists}",
            "inference.views=1",
            "inference.tile=[212,212]",
        ],
        2,
        188,
    ),
    "pspnet50_voc": ([*VOC, "inference.base=128"], 21, 97),
    # frozen batch norm without weights is no normalisation at all, and 101 layers of that overflow
    "deeplab_r101_voc": ([*VOC, "model.norm=batch"], 21, 97),
    "deeplabv3_r101_voc": (VOC, 21, 97),
    "deeplabv3plus_x65_voc": (VOC, 21, 97),
    "encnet_r50_context": (
        [
            "dataset.root={context}",
            "dataset.lists={lists}",
            "inference.base=128",
            "eval.scales=[1.0]",
        ],
        59,
        97,
    ),
}

EDGES = [
    "augment.shorter=[96]",
    "augment.longest=160",
    "inference.shorter=96",
    "inference.longest=160",
]
# name: (settings, loss terms at the first step, metric)
LN2 = math.log(2)
TWO_STAGE = {"rpn_class": LN2, "class": math.log(81)}  # masks begin with scores that are not small
OBJECTS = {
    "mask_rcnn_r50_coco_1x": (
        ["model.regions=64", "model.proposals=[200,50]"],
        TWO_STAGE,
        "segm/AP",
    ),
    "mask_rcnn_r50_coco_detectron2_1x": (
        ["model.regions=64", "model.proposals=[200,50]"],
        TWO_STAGE,
        "segm/AP",
    ),
    "mask_rcnn_r50_c4_coco_1x": (
        ["model.regions=64", "model.proposals=[200,50]"],
        TWO_STAGE,
        "segm/AP",
    ),
    "panet_r50_coco": (["model.regions=64", "model.proposals=[200,50]"], TWO_STAGE, "segm/AP"),
    "fpn_r50_coco": (["inference.count=50"], {"object": LN2, "mask": LN2}, "segm/AR@1000"),
    "box_rpn_r50_coco": (["inference.count=50"], {"rpn_class": LN2}, "bbox/AR@1000"),
}


@pytest.fixture(scope="module")
def places(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """VOC with splits of two images and one, and lists of the same kind for the other sets."""
    folder = tmp_path_factory.mktemp("data")
    theirs = data_root / "voc2012" / "VOCdevkit" / "VOC2012"
    voc = folder / "VOC2012"
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (voc / name).symlink_to(theirs / name)
    ids = (theirs / "ImageSets" / "Segmentation" / "train_instances.txt").read_text().split()
    for split, some in {"two": ids[:2], "one": ids[2:3], "train": ids[:2], "val": ids[2:3]}.items():
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(some))
    lists = folder / "lists"
    lists.mkdir()
    context = (data_root / "pascal_context" / "val.txt").read_text().split()
    return {
        "voc": voc,
        "lists": lists,
        "em": data_root / "isbi_em",
        "context": data_root / "pascal_context",
        "ids": context,
    }


def write_lists(name: str, places: dict) -> None:
    """Two images to train on and one to validate with, for the sets that are read by lists."""
    for split, some in (("train", slice(0, 2)), ("val", slice(2, 3))):
        ids = places["ids"][some] if "context" in name else [str(n) for n in range(30)][some]
        (places["lists"] / f"{split}.txt").write_text("\n".join(ids))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_two_steps_and_measures_itself(
    name: str, places: dict, tmp_path: Path
) -> None:
    settings, classes, crop = RECIPES[name]
    write_lists(name, places)
    chosen = [setting.format(**places) for setting in settings]
    weights = ["model.weights=null"] if "unet" not in name else []
    run = trained(
        tmp_path / "run",
        f"experiment={name}",
        f"dataset.crop=[{crop},{crop}]",
        *chosen,
        *weights,
        *SMALL,
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/seg"] for line in lines if line["phase"] == "train"]
    (val,) = [line for line in lines if line["phase"] == "val"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    # FCN's scores start at zero: every valid pixel of both images costs ln 21, summed.
    if name == "fcn8s_voc":
        pixels = losses[0] / math.log(21)
        assert pixels == pytest.approx(round(pixels), abs=0.05)
        assert 0 < pixels <= 2 * crop * crop
    else:
        assert 0.3 * math.log(classes) < losses[0] < 3 * math.log(classes) + 1
    assert 0 <= val["mIoU"] <= 1
    assert 0 < val["pixAcc"] + 1e-9 <= 1


@pytest.fixture(scope="module")
def coco(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO with two images with objects to train on and one to validate with, under the splits'
    names of every recipe.
    """
    theirs = data_root / "coco"
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    for source, names, count in (
        ("train2017", ("train2017", "train2014"), 2),
        ("val2017", ("val2017", "val2014"), 1),
    ):
        table = json.loads((theirs / "annotations" / f"instances_{source}.json").read_text())
        held = {entry["image_id"] for entry in table["annotations"] if not entry["iscrowd"]}
        table["images"] = [image for image in table["images"] if image["id"] in held][:count]
        kept = {image["id"] for image in table["images"]}
        table["annotations"] = [
            entry for entry in table["annotations"] if entry["image_id"] in kept
        ]
        for name in names:
            (folder / name).symlink_to(theirs / source)
            (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(table))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTS)
def test_a_recipe_of_objects_takes_two_steps_and_measures_itself(
    name: str, coco: Path, tmp_path: Path
) -> None:
    settings, expected, metric = OBJECTS[name]
    run = trained(
        tmp_path / "run",
        f"experiment={name}",
        f"dataset.root={coco}",
        *EDGES,
        *settings,
        *SMALL,
        "model.weights=null",
        "model.norm=group",  # frozen batch norm without weights is no normalisation at all
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, second = (line for line in lines if line["phase"] == "train")
    (val,) = (line for line in lines if line["phase"] == "val")
    assert math.isfinite(first["loss"])
    assert math.isfinite(second["loss"])
    for term, value in expected.items():  # what a head says that knows nothing yet
        assert 0.5 * value < first[f"loss/{term}"] < 1.5 * value + 0.5, term
    assert 0 <= val[metric] <= 1


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_two_steps_at_full_size_on_a_gpu(
    name: str, places: dict, tmp_path: Path
) -> None:
    assert torch.cuda.is_available()
    settings, _, _ = RECIPES[name]
    write_lists(name, places)
    chosen = [s.format(**places) for s in settings if s.startswith("dataset.")]
    weights = ["model.weights=null"] if "unet" not in name else []
    run = trained(
        tmp_path / "run",
        f"experiment={name}",
        *chosen,
        *weights,
        "train.steps=2",
        "train.eval_every=2",
        "log.every=1",
        "train.bn_batches=null",
        "dataset.steps=2",
    )
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
