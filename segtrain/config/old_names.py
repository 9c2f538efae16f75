"""The table old -> new: what stored configs and checkpoints call by names that have changed since.

A run stored before evaluates to the numbers it had. So whoever moves a part, renames a setting or a
parameter, changes a default or adds an argument writes a row here. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Modules of `_target_`: old -> new.
MODULES = {
    "segtrain.datasets.transforms": "segtrain.data.transforms",
    "segtrain.datasets.edges": "segtrain.data.shorter_edge",
    "segtrain.datasets.crops": "segtrain.datasets.voc_crops",
    "segtrain.optim": "segtrain.optim.optimizers",
    "segtrain.schedule": "segtrain.optim.schedules",
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


def modern(stored: Any) -> Any:
    """A stored config, or a part of one, with today's names; plain types in, plain types out."""
    if isinstance(stored, Mapping):
        return {key: _modern_value(key, value) for key, value in stored.items()}
    if isinstance(stored, list):
        return [modern(value) for value in stored]
    return stored


def _modern_value(key: Any, value: Any) -> Any:
    if key == "_target_" and isinstance(value, str):
        module, _, name = value.rpartition(".")
        return f"{MODULES[module]}.{name}" if module in MODULES else value
    return modern(value)


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


def _modern_name(name: str, rows: Mapping[str, str]) -> str:
    """Return `name` after the first of the `rows` whose old beginning it has."""
    for old, new in rows.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
