"""Recipes of conf/experiment composed once, and their models built on the meta device."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

import segtrain
from segtrain.config import parts
from segtrain.config.schema import RunConf
from segtrain.structures.labels import LabelMap

BUILT_IN = {
    "VOC": "voc",
    "VOCCrops": "voc",
    "CocoVOC": "voc",
    "Cityscapes": "cityscapes",
    "CamVid": "camvid",
}
# How many classes of objects a data set has.
OBJECTS = {
    "CocoInstances": 80,
    "CocoProposals": 1,
    "CocoJson": 80,
    "CityscapesInstance": 8,
}

# One or two of a system, for `make test`.
SAMPLE = (
    "fcn8s_voc",
    "parsenet_voc",
    "deconvnet_voc",
    "unet_em",
    "pspnet50_voc",
    "deeplab_r101_voc",
    "deeplab_r101_cityscapes",
    "deeplabv3_r101_voc",
    "deeplabv3plus_voc",
    "encnet_r50_context",
    "encnet_r101_context_paper",
    "mask_rcnn_r50_c4_coco_1x",
    "panet_r50_coco",
    "fpn_r50_coco",
)


def sampled(names: list[str]) -> list[Any]:
    """One or two of a system in `make test`, the others in `make test-all`."""
    return [
        name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


@cache
def composed(*overrides: str) -> RunConf:
    """Compose a run once for all tests: it takes a tenth of a second."""
    return segtrain.compose(list(overrides))


def classes_of(node: dict[str, Any]) -> int:
    """Count the classes of a data set, without its files."""
    name = node["_target_"].rpartition(".")[2]
    if name in OBJECTS:
        return OBJECTS[name]
    if name == "CocoThings":
        return 91
    if name == "Folder":
        return LabelMap.from_table(node["labels"], "labels").num_classes
    return LabelMap.load(BUILT_IN[name]).num_classes if name in BUILT_IN else node["classes"]


@cache
def network(node: str, classes: int) -> Any:
    """Build the model of a node given as JSON, on the meta device."""
    with torch.device("meta"):
        return parts.model(json.loads(node), classes)


def model_of(run: RunConf) -> Any:
    """Build the model of a run on the meta device, without weights, once for all tests.

    What a detector holds of its backbone follows from its weights, so it is said here.
    """
    node = {key: None if key == "weights" else value for key, value in run.model.items()}
    if "freeze" in node and node["freeze"] is None and run.model["weights"]:
        node["freeze"] = 2
    return network(json.dumps(node, sort_keys=True), classes_of(run.dataset))
