"""segtrain trains, evaluates and compares image segmentation systems.

    cfg = segtrain.compose(["model=deeplabv3plus", "dataset=voc"])
    model = segtrain.create_model("deeplabv3plus", num_classes=21, backbone="resnet50")
    summary = segtrain.fit(cfg, "outputs/mine")
    predictor = segtrain.load("outputs/voc/deeplabv3plus/2026-11-22_10-00-00")
    files = segtrain.predict(predictor, "photos", "seen")
    result = segtrain.evaluate(predictor, dataset="voc", root="data/VOCdevkit")

Importing this package imports neither torch nor Hydra; using one of its functions does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segtrain.api import compose, create_model, evaluate, fit, load, predict

__version__ = "0.1.0"
__all__ = ["compose", "create_model", "evaluate", "fit", "load", "predict"]


def __getattr__(name: str) -> Any:
    """Import `segtrain.api` with the first of its functions that is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'segtrain' has no attribute {name!r}")
    from segtrain import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """Name the functions too that are not imported yet, for tab completion."""
    return sorted({*globals(), *__all__})
