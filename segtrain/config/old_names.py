"""The table old -> new: what stored configs, checkpoints and commands call by names that changed.

A run stored before evaluates to the numbers it had. So whoever moves a part, renames a setting or
a parameter, changes a default or adds an argument raises `VERSION` and writes a row for the version
before. Configs carry their version; those without it are of version 1.

Imports no torch: configs are checked before it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segtrain.config.bounds import refuse_endless
from segtrain.errors import UserError

VERSION = 4  # of the configs that this segtrain writes

Plain = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """What one version of configs and checkpoints names otherwise than the version before it.

    `modules` and `targets` are applied first: every other row names a `_target_` as it stands
    after them, so a row holds for each place where the part can stand.
    """

    # Modules of `_target_`: old -> new.
    modules: Mapping[str, str] = field(default_factory=dict)
    # Classes and functions, in full: old -> new.
    targets: Mapping[str, str] = field(default_factory=dict)
    # Target -> {old argument: new argument}.
    arguments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # Target -> {argument: value}. Where a stored config lacks the argument, it gets the value that
    # was in force then: the old default of one that changed, or what the code did before a new
    # argument could say so.
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Moves the keys of the run that are no arguments of a part; changes its own copy.
    move_keys: Callable[[Plain], None] = field(default=lambda run: None)


def _metric_and_writer_become_groups(run: Plain) -> None:
    dataset = run.get("dataset")
    log = run.get("log")
    if isinstance(dataset, dict) and "metric" in dataset:
        run.setdefault("metric", dataset.pop("metric"))
    if isinstance(log, dict) and "tensorboard" in log:
        run.setdefault("writer", _writers(log.pop("tensorboard")))


def _writers(tensorboard: object) -> Plain:
    return {"tensorboard": {"_target_": "segtrain.logs.writers.TensorBoard"}} if tensorboard else {}


def _masks_of_legacy_were_pasted_into_their_boxes(run: Plain) -> None:
    model = run.get("model")
    inference = run.get("inference")
    target = "segtrain.inference.instances.InstanceSegmentation"
    if not isinstance(model, dict) or model.get("roi") != "legacy":
        return
    if isinstance(inference, dict) and inference.get("_target_") == target:
        inference["paste"] = "box"


# What weight decay acted on, by `decay_norm_and_bias`.
_DECAY = {
    False: ["weight", "depthwise"],
    True: ["weight", "depthwise", "bias", "norm_scale", "norm_shift"],
}
_OPTIMIZERS = ("segtrain.optim.optimizers.sgd", "segtrain.optim.optimizers.adamw")
_OF_OPTIMIZERS = {"decay": _DECAY[False], "norm_shift_factor": 1.0, "freeze": []}


def _decay_becomes_a_list_of_kinds(run: Plain) -> None:
    optimizer = run.get("optimizer")
    if not isinstance(optimizer, dict) or optimizer.get("_target_") not in _OPTIMIZERS:
        return
    if type(optimizer.get("decay_norm_and_bias")) is bool:
        optimizer["decay"] = list(_DECAY[optimizer.pop("decay_norm_and_bias")])


def _recipes_are_named(run: Plain) -> None:
    """A run stored before has no recipe below it, and nothing was scaled."""
    _decay_becomes_a_list_of_kinds(run)
    if isinstance(run.get("train"), dict):
        run.setdefault("recipe", None)
        run["train"].setdefault("scale_recipe", False)
        run["train"].setdefault("begin", 0)
        run["train"].setdefault("bad_samples", "raise")
        run["train"].setdefault("non_finite", "raise")
        run["train"].setdefault("watchdog", None)
        run["train"].setdefault("keep_best", 1)


# Version -> what it changed.
CHANGES: dict[int, Change] = {
    2: Change(
        modules={
            "segtrain.datasets.transforms": "segtrain.data.transforms",
            "segtrain.datasets.edges": "segtrain.data.shorter_edge",
            "segtrain.datasets.crops": "segtrain.datasets.voc_crops",
            "segtrain.optim": "segtrain.optim.optimizers",
            "segtrain.schedule": "segtrain.optim.schedules",
        },
        arguments={
            "segtrain.models.deeplab.DeepLab": {"rates": "dilations"},
            "segtrain.models.deeplabv3.DeepLabV3": {"rates": "dilations"},
        },
        values={
            "segtrain.metrics.confusion.SemanticEvaluator": {"leave_out": None},
            "segtrain.metrics.boundary.BoundaryEvaluator": {"leave_out": None, "ratio": 0.02},
            "segtrain.metrics.coco.CocoEvaluator": {"kinds": None},
            "segtrain.metrics.coco.ProposalEvaluator": {"kind": "segm"},
        },
        move_keys=_metric_and_writer_become_groups,
    ),
    3: Change(
        # `input` None is what the code did before: what goes with the weights. `input_before_3`
        # names it for checkpoints that do not tell it.
        values={
            "segtrain.models.deeplab.DeepLab": {"input": None, "align_corners": True},
            "segtrain.models.deeplabv3.DeepLabV3": {
                "input": None,
                "relu6": False,
                "pattern": None,
                "style": "torchvision",
                "align_corners": None,
                "aspp_width": 256,
                "project_kernel": 1,
            },
            "segtrain.models.deeplabv3plus.DeepLabV3Plus": {
                "input": None,
                "pattern": "uniform",
                "style": "torchvision",
                "aspp_width": 256,
                "project_kernel": 1,
            },
            "segtrain.models.pspnet.PSPNet": {
                "input": None,
                "pattern": "uniform",
                "align_corners": True,
            },
            "segtrain.models.mask_rcnn.MaskRCNN": {
                "input": None,
                "style": "torchvision",
                "anchor_corners": "rounded",
                "roi_samples": 2,
                "inclusive_boxes": False,
                "box_head": "two_fc",
                "rpn_convs": 1,
            },
            "segtrain.models.panet.PANet": {
                "input": None,
                "style": "torchvision",
                "anchor_corners": "rounded",
                "roi": "align",
                "roi_samples": 2,
                "inclusive_boxes": False,
            },
            "segtrain.models.box_rpn.BoxRPN": {
                "input": None,
                "style": "torchvision",
                "anchor_corners": "rounded",
                "inclusive_boxes": False,
            },
            "segtrain.inference.instances.InstanceSegmentation": {"paste": "aligned"},
            "segtrain.inference.crf.DenseCRF": {"wrap": None},
            "segtrain.inference.semantic.Semantic": {
                "resize": "bytes",
                "padding": "training",
                "overhang": False,
                "base_side": "long",
                "sides": "half_up",
                "score_stride": None,
            },
            "segtrain.models.deconvnet.DeconvNet": {"input": None},
            "segtrain.models.encnet.EncNet": {"input": None},
            "segtrain.models.fcn.FCN": {"input": None},
            "segtrain.models.fpn.FPN": {"input": None},
            "segtrain.models.parsenet.ParseNet": {"input": None},
            "segtrain.models.semantic_fpn.SemanticFPN": {"input": None},
            "segtrain.models.unet.UNet": {"input": None},
        },
        move_keys=_masks_of_legacy_were_pasted_into_their_boxes,
    ),
    4: Change(
        targets={"segtrain.models.fpn.Sampling": "segtrain.models.fpn.DeepMaskSampling"},
        values={
            "segtrain.models.deconvnet.DeconvNet": {"bn_eps": 1e-5},
            "segtrain.models.deeplabv3.DeepLabV3": {"backbone_momentum": None},
            "segtrain.models.deeplabv3plus.DeepLabV3Plus": {"backbone_momentum": None},
            "segtrain.models.fpn.FPN": {
                "levels": 7,
                "geometry": "cells",
                "sampling": {"_target_": "segtrain.models.fpn.DeepMaskSampling"},
            },
            "segtrain.models.mask_rcnn.MaskRCNN": {"candidates": None, "mask_targets": None},
            "segtrain.models.panet.PANet": {"candidates": None, "mask_targets": None},
            "segtrain.optim.optimizers.adamw": _OF_OPTIMIZERS,
            "segtrain.optim.optimizers.sgd": _OF_OPTIMIZERS,
            "segtrain.models.pspnet.PSPNet": {"dropout": "element", "head_init": "small"},
            "segtrain.models.encnet.EncNet": {"dropout": "element", "head_init": "small"},
            "segtrain.losses.pixel.PixelCrossEntropy": {
                "hard_of": "valid",
                "hard_threshold": None,
                "min_kept": 100_000,
                "nearest": False,
            },
            "segtrain.data.transforms.Augment": {
                "short_side": None,
                "blur_sigma": [0.5, 2.0],
                "blur_kernel": 0,
                "padding": "mirrored",
                "padding_label": None,
                "rotate_share": 0.5,
                "extra": None,
                "blank": False,
            },
            "segtrain.data.shorter_edge.ShorterEdge": {"extra": None},
            "segtrain.optim.schedules.Poly": {"hold": 1},
            "segtrain.datasets.instance_maps.InstanceMaps": {"void": None},
            "segtrain.datasets.instance_maps.InstanceMapsSemantic": {"void": None},
            "segtrain.datasets.folder.Folder": {"image_suffix": ""},
            "segtrain.datasets.labelme.Labelme": {"unmarked": "background"},
            "segtrain.datasets.yolo.Yolo": {"unmarked": "background"},
        },
        move_keys=_recipes_are_named,
    ),
}


# Names of a model's tensors, by its `_target_`: how they began -> how they begin now. A row never
# changes the order of the parameters, by which torch's optimizers number their state.
PARAMETERS = {
    "segtrain.models.box_rpn.BoxRPN": {"trunk.": "backbone."},
    "segtrain.models.fcn.FCN": {"net.backbone.": "backbone.", "net.": "head."},
    "segtrain.models.mask_rcnn.MaskRCNN": {"trunk.": "backbone."},
    "segtrain.models.panet.PANet": {"trunk.": "backbone."},
    "segtrain.models.unet.UNet": {"encoder.": "backbone."},
}


def modern(stored: Any, where: str = "config") -> Plain:
    """Return a stored config under today's names, with the values in force when it was stored.

    All are plain types. A config of today comes back equal. `where` names the config in messages.
    Errors: UserError for a config of a newer segtrain, and for what is no config that a run could
    have written.
    """
    if not isinstance(stored, Mapping):
        raise UserError(f"{where}: holds no configuration (a mapping)")
    refuse_endless(stored, where)
    version = version_of(stored, where)
    run: Plain = {key: _copy(value) for key, value in stored.items() if key != "version"}
    for number in range(version + 1, VERSION + 1):
        change = CHANGES[number]
        run = _renamed(run, change)
        change.move_keys(run)
    return {"version": VERSION, **run}


def version_of(stored: Mapping[str, Any], where: str = "config") -> int:
    """Return the version of a stored config; without one it is 1. Errors: UserError."""
    version = stored.get("version", 1)
    if type(version) is not int or version < 1:
        raise UserError(f"{where}: version={version!r:.40}: a version is a whole number from 1 on")
    if version > VERSION:
        raise UserError(
            f"{where}: version {version} is of a newer segtrain; this one reads up to {VERSION}. "
            "Install that one, or a newer one"
        )
    return version


def input_before_3(stored: Any, where: str = "config") -> str | None:
    """Name the input that a run was trained on whose checkpoints do not tell it.

    Before version 3 it followed from the weights that the network started from, and was derived
    again, without them, at loading: so VGG's "features" and torchvision's GoogLeNet were measured
    on another input than their own. None for a later config, and for a model that is not ours.
    Errors: UserError.
    """
    if not isinstance(stored, Mapping) or version_of(stored, where) >= 3:
        return None
    model = modern(stored, where).get("model")
    if not isinstance(model, dict):
        return None
    if "input" not in CHANGES[3].values.get(str(model.get("_target_")), {}):
        return None
    backbone = str(model.get("backbone"))
    weights = model.get("weights")
    if model.get("in_channels") == 1:
        return "grey"
    if model.get("style") == "caffe":
        return "deeplab_caffe"
    if weights == "features":
        return "features"
    if backbone.startswith("xception") or (backbone.startswith("googlenet") and weights):
        return "tensorflow"
    return "imagenet"


def modern_parameters(target: str, names: Iterable[str]) -> dict[str, str]:
    """Return each of the stored tensor `names` of the model `target`, with the name it has today.

    A row applies where names begin in the old way and none in the new way, so names of today stay
    as they are.
    """
    names = list(names)
    rows = {
        old: new
        for old, new in PARAMETERS.get(target, {}).items()
        if not any(name.startswith(new) for name in names)
    }
    return {name: _modern_name(name, rows) for name in names}


def modern_overrides(overrides: Sequence[str]) -> list[str]:
    """Return settings of a command line with today's keys; what follows `=` stays as it is.

    Errors: UserError where a setting became another kind of thing, naming what to write.
    """
    return [_modern_override(override) for override in overrides]


# Metrics that `dataset.metric._target_=` chose, by their names in conf/metric.
_METRICS = {
    "segtrain.metrics.confusion.SemanticEvaluator": "semantic",
    "segtrain.metrics.boundary.BoundaryEvaluator": "boundary",
    "segtrain.metrics.cityscapes.CityscapesEvaluator": "cityscapes",
    "segtrain.metrics.coco.CocoEvaluator": "coco",
    "segtrain.metrics.coco.ProposalEvaluator": "proposals",
}
_TRUTH = {"true": True, "false": False}
_TENSORBOARD = {"true": "writer=[tensorboard]", "false": "writer=[]"}


def _modern_override(override: str) -> str:
    key, equals, value = override.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    key = key[len(sign) :]
    if key == "dataset.metric._target_" and value in _METRICS:
        return f"metric={_METRICS[value]}"
    if key.startswith("dataset.metric."):
        # Their settings had to be added with a `+`; now they stand in conf/metric, null or not.
        return f"{'++' if sign == '+' else sign}{key.removeprefix('dataset.')}{equals}{value}"
    if key == "dataset.metric":
        raise UserError(
            f"{override}: a metric is a group of its own; write metric=NAME, one of "
            f"{', '.join(_METRICS.values())}"
        )
    if key == "log.tensorboard" and value.strip().lower() in _TENSORBOARD:
        return _TENSORBOARD[value.strip().lower()]
    if key == "optimizer.decay_norm_and_bias" and value.strip().lower() in _TRUTH:
        return f"optimizer.decay=[{','.join(_DECAY[_TRUTH[value.strip().lower()]])}]"
    if key == "log.tensorboard":
        raise UserError(
            f"{override}: what else writes a run down is a list now, "
            "writer=[tensorboard] or writer=[]"
        )
    return override


def _modern_name(name: str, rows: Mapping[str, str]) -> str:
    """Return `name` after the first of the `rows` whose old beginning it has."""
    for old, new in rows.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _renamed(node: Any, change: Change) -> Any:
    """A config, or a part of one, with the targets and arguments of one change."""
    if isinstance(node, list):
        return [_renamed(value, change) for value in node]
    if not isinstance(node, dict):
        return node
    node = {key: _renamed(value, change) for key, value in node.items()}
    target = node.get("_target_")
    if not isinstance(target, str):
        return node
    module, _, name = target.rpartition(".")
    target = f"{change.modules.get(module, module)}.{name}" if module else target
    target = node["_target_"] = change.targets.get(target, target)
    names = change.arguments.get(target, {})
    node = {names.get(key, key): value for key, value in node.items()}
    missing = {k: v for k, v in change.values.get(target, {}).items() if k not in node}
    return node | _copy(missing)


def _copy(node: Any) -> Any:
    """A copy of plain types that shares no mapping and no list with the original."""
    if isinstance(node, Mapping):
        return {key: _copy(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_copy(value) for value in node]
    return node
