"""The table old -> new: what stored configs and checkpoints call by names that have changed since.

A run stored before evaluates to the numbers it had. So whoever moves a part, renames a setting or a
parameter, changes a default or adds an argument writes a row here. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Modules of `_target_`: old -> new.
MODULES = {
    "segtrain.datasets.transforms": "segtrain.data.transforms",
    "segtrain.datasets.edges": "segtrain.data.shorter_edge",
    "segtrain.datasets.crops": "segtrain.datasets.voc_crops",
    "segtrain.optim": "segtrain.optim.optimizers",
    "segtrain.schedule": "segtrain.optim.schedules",
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
