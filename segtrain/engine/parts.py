"""The parts of a run: built, then checked once, before anything is written."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from segtrain.config import parts as config_parts
from segtrain.config.schema import DatasetKeys, RunConf, TrainConf, check_batch, dataset_keys
from segtrain.contracts import Augment, Dataset, Evaluator, Loss, Model, NamesLabels, Predictor
from segtrain.data.loader import WORKER_TIMEOUT, train_loader
from segtrain.data.reordered import in_order
from segtrain.data.sampler import StreamSampler, aspect_groups
from segtrain.data.verify import one_class
from segtrain.engine.objective import mask_map_of
from segtrain.errors import DataError, UserError, did_you_mean, first_of
from segtrain.logs.summary import forget_peak_memory
from segtrain.optim.precision import Precision
from segtrain.rng import seed_for
from segtrain.runtime.distributed import World, use_threads
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Batch
from segtrain.weights.backbone_file import unread

# Loader processes per GPU: decoding and augmenting must keep pace with a GPU, and on machines with
# several the processes of all ranks share the cores. Four is where to start from, `train.workers`
# says otherwise. On a CPU every core computes, so samples are loaded between the steps.
GPU_WORKERS = 4
ASKED_OF_MODELS = (
    "preprocess",
    "learns_from",
    "min_train_batch",
    "outputs",
    "class_rows",
    "backbone_parameters",
)
NAMES_SHOWN = 16  # as many names as a line of an error still shows at a glance


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Of these only the weights, the optimizer's state and the loss scale change while it trains; see
    `state.TrainState`.
    """

    train_set: Dataset
    val_set: Dataset
    class_names: list[str]
    groups: np.ndarray | None  # (images,) bool, wide or tall, where batches hold one kind only
    augment: Augment
    network: nn.Module
    loss: Loss
    optimizer: Optimizer
    # Updates since the schedule began -> factor on every learning rate.
    schedule: Callable[[int], float]
    precision: Precision
    workers: int  # loader processes of this process


def build_parts(run: RunConf, world: World, resumed: bool = False) -> Parts:
    """Build every part of `run` on this rank, and check that they fit.

    Weights are a function of the seed. A `resumed` network is built from scratch: a checkpoint
    fills it, so that what `model.weights` names is not needed any more. It also sets threads,
    determinism and torch's seed of this process. Errors: UserError naming the setting; DataError.
    """
    forget_peak_memory()  # from here on it is this run's
    train = run.train
    check_batch(train, world.size)
    use_threads(train.threads, world.size)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    keys = dataset_keys(run.dataset)
    train_set = config_parts.dataset(run.dataset, keys.train_split)
    val_set = config_parts.dataset(run.dataset, keys.measured_split)
    class_names = list(train_set.labels.names)
    val_set = _by_classes_of(train_set.labels, val_set)

    torch.manual_seed(seed_for(train.seed, "init"))
    with unread() if resumed else nullcontext():
        network = build_network(run, len(class_names), world)
    default_workers = GPU_WORKERS if world.device.type == "cuda" else 0
    parts = Parts(
        train_set=train_set,
        val_set=val_set,
        class_names=class_names,
        groups=aspect_groups(train_set) if train.aspect_groups else None,
        augment=config_parts.augment(run.augment),
        network=network,
        loss=config_parts.loss(run.loss, world.device, class_names),
        optimizer=config_parts.optimizer(run.optimizer, network),
        schedule=config_parts.schedule(run.schedule, train.steps - train.begin),
        precision=Precision(train.precision, world.device.type),
        workers=default_workers if train.workers is None else train.workers,
    )
    check_parts(run, parts, world)
    return parts


def _by_classes_of(trained: LabelMap, val_set: Dataset) -> Dataset:
    """Return the validation split with its classes in the order of the training's, by name.

    Errors: UserError for other classes.
    """
    same = in_order(val_set, trained.names)
    if same is None:
        other = {*trained.names} ^ {*val_set.labels.names}
        raise UserError(
            f"dataset: the split to validate on has {val_set.labels.num_classes} classes, the one "
            f"to train on {trained.num_classes}; only one of them has `{min(other)}`"
        )
    return same


def build_network(run: RunConf, num_classes: int, world: World) -> nn.Module:
    """Build the network on its device and in its memory layout; with batch norm over all GPUs."""
    layout = torch.channels_last if run.train.channels_last else torch.contiguous_format
    network = config_parts.model(run.model, num_classes, world.device, layout)
    if run.train.sync_bn and world.size > 1 and world.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network


def check_parts(run: RunConf, parts: Parts, world: World) -> None:
    """Refuse parts that do not fit each other, in the user's words.

    Errors: UserError; DataError for a data set that can teach nothing.
    """
    check_labelled(dataset_keys(run.dataset), parts.train_set, parts.val_set)
    model = check_model(parts.network)
    check_task(model, parts.train_set)
    check_new_labels(parts.augment, parts.train_set)
    if reason := one_class(parts.train_set):
        raise DataError(f"dataset: {reason}")
    check_outputs(run.model, model, parts.loss)
    check_batch_share(run, model, world)
    check_accumulate(run.train, world)
    evaluator = config_parts.evaluator(run.metric, parts.class_names)
    check_judged(config_parts.predictor(run, parts.network), evaluator)
    check_monitor(run.train.monitor, evaluator.names(), list(parts.loss.weights))


def check_labelled(keys: DatasetKeys, train_set: Dataset, val_set: Dataset) -> None:
    """Refuse a split whose labels are not published: nothing is learned from or measured on it.

    Errors: UserError; DataError where there are no images to train on.
    """
    if not len(train_set):
        raise DataError(f"dataset.train_split={keys.train_split}: has no images to train on")
    if not train_set.labelled:
        raise UserError(
            f"dataset.train_split={keys.train_split}: has no labels to train on; "
            "choose another split"
        )
    if not val_set.labelled:
        key = "split" if keys.split else "val_split"
        raise UserError(
            f"dataset.{key}={keys.measured_split}: has no labels to validate with; "
            "choose another split"
        )


def check_model(network: nn.Module) -> Model:
    """Refuse a network of somebody's package that does not say what is asked of a model."""
    for name in ASKED_OF_MODELS:
        if not hasattr(network, name):
            raise UserError(
                f"model: {type(network).__name__} has no `{name}`; let it subclass "
                "segtrain.models.base.SegmentationModel"
            )
    return cast(Model, network)


def check_task(model: Model, train_set: Dataset) -> None:
    """Refuse a model for objects on label maps, and a semantic model on objects."""
    if model.learns_from == train_set.labelled_with:
        return
    name = type(model).__name__
    if model.learns_from == "instances":
        raise UserError(
            f"model: {name} learns from objects, but this data set gives label maps; take one of "
            "objects such as dataset=coco_instance, coco_json or instance_maps, or a semantic "
            "model such as model=deeplabv3plus"
        )
    raise UserError(
        f"model: {name} learns from label maps, but this data set gives objects; take one of label "
        "maps such as dataset=voc, coco_json_semantic or instance_maps_semantic, or a model of "
        "objects such as model=mask_rcnn"
    )


def check_new_labels(augment: Augment, train_set: Dataset) -> None:
    """Refuse an augmentation that makes labels which the data set does not have."""
    if isinstance(augment, NamesLabels):
        augment.check_labels(train_set.labels.num_classes, train_set.labelled_with)


def check_outputs(node: Mapping[str, Any], model: Model, loss: Loss) -> None:
    """Refuse a loss that reads an output of the model that it does not make."""
    for name in sorted(loss.needs):
        if name not in model.outputs:
            way = f"set model.{name}=true, or " if node.get(name) is False else ""
            raise UserError(
                f"loss: reads the output `{name}`, but {type(model).__name__} makes "
                f"{', '.join(model.outputs)}; {way}leave loss= out: the model chooses one"
            )


def check_batch_share(run: RunConf, model: Model, world: World) -> None:
    """Refuse batch statistics over a single value: they are undefined."""
    train = run.train
    images = train.global_batch // (world.size * train.micro_batches)
    synced = train.sync_bn and world.device.type == "cuda"
    if (images * world.size if synced else images) < model.min_train_batch:
        ways = "raise batch_size or lower accumulate"
        if "norm" in run.model:
            ways += ", or take model.norm=group"
        if run.model.get("image_pooling"):
            ways += " or model.image_pooling=false"
        raise UserError(
            f"train.batch_size={train.batch_size} leaves {images} image per process and "
            f"micro-batch, but this model needs {model.min_train_batch} for its batch statistics; "
            f"{ways}"
        )


def check_accumulate(train: TrainConf, world: World) -> None:
    """Refuse to follow the memory where a rank that runs out of it leaves others waiting."""
    synced = train.sync_bn and world.device.type == "cuda"
    if train.fits_itself and world.size > 1 and synced:
        raise UserError(
            "train.accumulate=auto: with statistics over several GPUs all of them wait for one "
            "that runs out of memory; set train.sync_bn=false, or give a number"
        )


def check_judged(predictor: Predictor, evaluator: Evaluator | None) -> None:
    """Refuse to judge objects without a class, which proposals are, class by class."""
    if evaluator is None or not predictor.class_agnostic:
        return
    if not evaluator.class_agnostic:
        raise UserError(
            "metric: this model proposes objects without a class; take dataset=coco_proposal, or "
            "metric=proposals"
        )


def check_monitor(name: str, metrics: Sequence[str], terms: Sequence[str]) -> None:
    """Refuse a `train.monitor` that is no logged scalar, and name those there are."""
    losses = ["loss", *(f"loss/{term}" for term in terms)]
    known = [*metrics, *losses, *(f"train/{loss}" for loss in losses)]
    if name not in known:
        there = first_of(known, NAMES_SHOWN)
        raise UserError(
            f"train.monitor={name}: not logged.{did_you_mean(name, known)} There are {there}"
        )


def spare_samples(train: TrainConf, train_set: Dataset) -> int:
    """Return how many samples a run may leave out: 0 where `train.bad_samples` is to raise."""
    return max(1, len(train_set) // 1000) if train.bad_samples == "skip" else 0


def loader_timeout(train: TrainConf) -> float:
    """Return the seconds that a data worker may take for a batch.

    It is told a little before the watchdog would, as the step that was reached can then be saved.
    """
    return WORKER_TIMEOUT if train.watchdog is None else 0.75 * train.watchdog_floor


def train_batches(
    run: RunConf, parts: Parts, world: World, start: int, stop: int
) -> Iterator[list[Batch]]:
    """Yield this rank's micro-batches of each update from `start` to before `stop`.

    They are on its device, where they are copied to while the GPU computes.
    """
    train = run.train
    order = StreamSampler(
        len(parts.train_set),
        train.global_batch,
        train.seed,
        start,
        stop,
        world.rank,
        world.size,
        train.micro_batches,
        parts.groups,
    )
    pin = world.device.type == "cuda"
    loader = train_loader(
        parts.train_set,
        parts.augment,
        train.seed,
        order,
        parts.workers,
        pin,
        mask_map=mask_map_of(parts.loss),
        spare=spare_samples(train, parts.train_set),
        timeout=loader_timeout(train),
    )
    batches = (batch.to(world.device) for batch in loader)
    while micro_batches := list(itertools.islice(batches, train.micro_batches)):
        yield micro_batches
