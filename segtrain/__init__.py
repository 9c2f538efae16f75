"""segtrain trains, evaluates and compares image segmentation systems.

    cfg = segtrain.compose(["model=deeplabv3plus", "dataset=voc"])
    model = segtrain.create_model("deeplabv3plus", num_classes=21, backbone="resnet50")
    predictor = segtrain.load("outputs/voc/deeplabv3plus/2026-11-22_10-00-00")
    result = segtrain.evaluate(predictor, dataset="voc", root="data/VOCdevkit")

Importing this package imports neither torch nor Hydra; using one of its functions does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
__all__ = ["compose", "create_model", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("segtrain.api"), name)
    raise AttributeError(f"module 'segtrain' has no attribute {name!r}")


class _Package(ModuleType):
    """`segtrain.compose` and `segtrain.evaluate` stay the functions when the modules of these names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
