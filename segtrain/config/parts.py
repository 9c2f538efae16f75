"""Parts: from config nodes to the objects of a run, one factory for each group.

A factory knows what the code adds to a node, and which of its keys are no arguments. Importing
this module, and `check`, need no torch; building does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.config import instantiate
from segtrain.config.bounds import check_arguments
from segtrain.config.schema import DATASET_RUN_KEYS, PARTS, RunConf, dataset_keys
from segtrain.errors import UserError, check_names, complain

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

    from segtrain.contracts import Augment, Dataset, Evaluator, Loss, Network, Predictor, Writer

Node = Mapping[str, Any]  # `_target_` and arguments

# What the code gives to each part when it builds it.
GIVEN: dict[str, tuple[str, ...]] = {
    "dataset": ("split",),
    "metric": ("class_names",),
    "model": ("num_classes",),
    "loss": (),
    "optimizer": ("model",),
    "schedule": ("steps",),
    "augment": (),
    "inference": ("model",),
    "writer": ("folder", "start"),
}


def check(run: RunConf) -> None:
    """Check every `_target_`, argument name and type of a run. Errors: UserError.

    The targets' source is read; nothing is imported.
    """
    for part in PARTS:
        check_part(part, getattr(run, part))
    for name, node in run.writer.items():
        instantiate.check(node, f"writer.{name}", given=GIVEN["writer"])


def check_part(part: str, node: Any) -> None:
    """Check one part of a run. Errors: UserError."""
    if not isinstance(node, Mapping):
        raise UserError(f"{part}: holds no part (a mapping with _target_), but {node!r}")
    if part == "dataset" and "metric" in node:
        raise UserError(
            "dataset.metric: a metric is a group of its own; a data set names its metric with "
            "`override /metric@_global_.metric: NAME` in its defaults list"
        )
    skip = DATASET_RUN_KEYS if part == "dataset" else ()
    instantiate.check(node, part, skip=skip, given=GIVEN[part])
    check_arguments(part, node)
    if part == "dataset":
        dataset_keys(node)


# What the contract asks of a data set; BaseDataset has all but reading.
ASKED_OF_DATASETS = (
    *("labels", "ids", "labelled", "labelled_with", "problems", "notes", "scored", "target"),
    *("truth", "files", "extra_files", "doubts", "sizes", "encode_prediction"),
    *("__len__", "__getitem__"),
)


def dataset(node: Node, split: str, tolerant: bool = False) -> Dataset:
    """Build the data set of a `dataset` node for one split.

    `tolerant` leaves it to the caller to look at the set's `problems` (missing files, wrong
    entries); the samples that remain can be read, and no cache is used. Errors: UserError, also for
    an id that can be no file name; DataError, also for the first problem.
    """
    images: Dataset = instantiate.build(node, "dataset", skip=DATASET_RUN_KEYS, split=split)
    for name in ASKED_OF_DATASETS:
        if not hasattr(images, name):
            raise UserError(
                f"dataset: {type(images).__name__} has no `{name}`; let it subclass "
                "segtrain.data.base.BaseDataset"
            )
    if tolerant:
        return images
    complain(images.problems)
    check_names("image id", images.ids)
    keys = dataset_keys(node)
    folder = Path(keys.cache) / split if keys.cache else None
    if folder is None or (split != keys.train_split and not folder.exists()):
        return images  # only training needs the cache's speed
    from segtrain.data.cache import Cached

    return Cached(images, folder)


def evaluator(node: Node, class_names: list[str]) -> Evaluator:
    """Build the evaluator of a `metric` node."""
    return instantiate.build(node, "metric", class_names=class_names)


def model(
    node: Node,
    num_classes: int,
    device: torch.device | str | None = None,
    layout: torch.memory_format | None = None,
) -> Network:
    """Build the network of a `model` node, on `device` and in a memory layout where they are given.

    Its weights are drawn where torch makes new tensors, on the CPU but for a context, and moved
    then: so they do not depend on the device.
    """
    network = instantiate.build(node, "model", num_classes=num_classes)
    return network if device is None else network.to(device, memory_format=layout)


def loss(
    node: Node, device: torch.device | str = "cpu", class_names: Sequence[str] | None = None
) -> Loss:
    """Build the loss of a `loss` node on a device, where it holds tensors.

    `class_names` are those of the data set; a loss whose arguments name classes needs them.
    """
    from torch import nn

    from segtrain.contracts import NamesClasses

    built = instantiate.build(node, "loss")
    if not isinstance(built, nn.Module):
        return built
    if class_names is not None:
        for part in built.modules():
            if isinstance(part, NamesClasses):
                part.name_classes(class_names)
    return built.to(device)


def optimizer(node: Node, network: nn.Module) -> Optimizer:
    """Build the optimiser of an `optimizer` node over the parameters of `network`."""
    return instantiate.build(node, "optimizer", model=network)


def schedule(node: Node, steps: int) -> Callable[[int], float]:
    """Build the schedule of a `schedule` node: the factor on the learning rate at each step."""
    return instantiate.build(node, "schedule", steps=steps)


def augment(node: Node) -> Augment:
    """Build the augmentation of an `augment` node."""
    return instantiate.build(node, "augment")


def predictor(run: RunConf, network: nn.Module) -> Predictor:
    """Build the inference protocol of a run, with what `eval` overrides."""
    node = dict(run.inference)
    for key in ("scales", "flip"):
        if (value := asdict(run.eval)[key]) is not None:
            node[key] = value
    if run.eval.crf:
        node["crf"] = node.get("crf") or {"_target_": "segtrain.inference.crf.DenseCRF"}
    elif run.eval.crf is False and "crf" in node:
        node["crf"] = None
    return instantiate.build(node, "inference", model=network)


def writer(run: RunConf, name: str, folder: Path, start: int) -> Writer:
    """Build a writer of a run, whose folder stands at `start` updates. It may make files."""
    return instantiate.build(run.writer[name], f"writer.{name}", folder=folder, start=start)
