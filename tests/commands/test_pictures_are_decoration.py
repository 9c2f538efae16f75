"""A picture that cannot be drawn or written costs no number and no prediction.

Members: the confusion picture that cannot be drawn, or written; an overlay that cannot be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import SMALL_RUN, save, trained, typed

from segtrain.errors import DiskError
from segtrain.metrics.confusion import SemanticEvaluator
from segtrain.visualization import overlays, picture_files


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shapes = ("dataset.train=2", "dataset.val=2", "dataset.size=[32,32]")
    return trained(folder, *shapes, *SMALL_RUN, "train.steps=1", "log.images=0")


def refuses(*_: Any, **__: Any) -> None:
    raise ValueError("no such font")


@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_segeval_keeps_the_numbers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    def full(path: Path, picture: np.ndarray) -> None:
        raise DiskError(f"{path}: no space")

    if drawn:
        monkeypatch.setattr(picture_files, "save", full)
    else:
        monkeypatch.setattr(SemanticEvaluator, "pictures", refuses)
    folder = tmp_path / "eval"
    ended = typed("segeval", f"checkpoint={run}", f"eval.output={folder}", "eval.worst=0")
    assert ended.code == 0
    why = f"confusion.png was not drawn ({folder / 'confusion.png'}: no space)"
    assert ended.err == f"segeval: {why if drawn else 'pictures were not drawn (no such font)'}\n"
    assert json.loads((folder / "metrics.json").read_text())["mIoU"] > 0
    assert (folder / "confusion.json").is_file()
    assert not (folder / "confusion.png").exists()
    assert not (folder / ".segeval").exists()  # the measurement is whole


def test_segpredict_keeps_the_maps(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / f"photos/{name}.png", np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(overlays, "overlay", refuses)
    ended = typed(
        "segpredict", f"checkpoint={run}", f"input={tmp_path / 'photos'}", f"output={tmp_path}/o"
    )
    assert ended.code == 0
    assert ended.out == f"3 images; predictions and overlays in {tmp_path}/o\n"
    assert ended.err == (
        f"segpredict: 3 overlays not drawn ({tmp_path}/photos/a.png: no such font)\n"
    )
    assert sorted(path.name for path in (tmp_path / "o").glob("*.png")) == [
        "a.png",
        "b.png",
        "c.png",
    ]
