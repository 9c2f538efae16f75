"""From config nodes to the parts of a run: which arguments the code adds, and which keys are not arguments.

Importing this module, and `check`, need no torch; building does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segtrain.config import instantiate
from segtrain.config.schema import DATASET_RUN_KEYS, PARTS, RunConf
from segtrain.errors import UserError, complain

# What the code gives to each part when it builds it.
GIVEN: dict[str, tuple[str, ...]] = {
    "dataset": ("split",),
    "model": ("num_classes",),
    "loss": (),
    "optimizer": ("model",),
    "schedule": ("steps",),
    "augment": (),
    "inference": ("model",),
}


def check(run: RunConf) -> None:
    """Every `_target_`, argument name and type of a run. Nothing is imported. Errors: UserError."""
    for part in PARTS:
        check_part(part, getattr(run, part))


def check_part(part: str, node: Any) -> None:
    """One part of a run. Errors: UserError."""
    if not isinstance(node, Mapping):
        raise UserError(f"{part}: holds no part (a mapping with _target_), but {node!r}")
    skip = DATASET_RUN_KEYS if part == "dataset" else ()
    instantiate.check(node, part, skip=skip, given=GIVEN[part])
    if part == "dataset":
        instantiate.check(node.get("metric", {}), "dataset.metric", given=("class_names",))


def dataset(node: Mapping[str, Any], split: str, tolerant: bool = False) -> Any:
    """The data set of a `dataset` node for one split.

    `tolerant` leaves it to the caller to look at the set's `problems` (missing files, wrong entries); the samples that
    remain can be read, and no cache is used. Errors: UserError; DataError, also for the first problem.
    """
    images = instantiate.build(node, "dataset", skip=DATASET_RUN_KEYS, split=split)
    if tolerant:
        return images
    complain(getattr(images, "problems", []))  # generated sets have none
    folder = Path(node["cache"]) / split if node.get("cache") else None
    if folder is None or (split != node["train_split"] and not folder.exists()):
        return images  # only training needs the cache's speed
    from segtrain.data.cache import Cached

    return Cached(images, folder)


def evaluator(node: Mapping[str, Any], class_names: list[str]) -> Any:
    """The evaluator that a `dataset` node names as its metric."""
    return instantiate.build(node["metric"], "dataset.metric", class_names=class_names)


def model(node: Mapping[str, Any], num_classes: int) -> Any:
    """The network of a `model` node."""
    return instantiate.build(node, "model", num_classes=num_classes)


def predictor(run: RunConf, network: Any) -> Any:
    """The inference protocol of a run, with what `eval` overrides."""
    node = dict(run.inference)
    for key in ("scales", "flip"):
        if (value := asdict(run.eval)[key]) is not None:
            node[key] = value
    if run.eval.crf:
        node["crf"] = node.get("crf") or {"_target_": "segtrain.inference.crf.DenseCRF"}
    elif run.eval.crf is False and "crf" in node:
        node["crf"] = None
    return instantiate.build(node, "inference", model=network)


def criterion(node: Mapping[str, Any]) -> Any:
    """The loss of a `loss` node."""
    return instantiate.build(node, "loss")


def augment(node: Mapping[str, Any]) -> Any:
    """The augmentation of an `augment` node."""
    return instantiate.build(node, "augment")
