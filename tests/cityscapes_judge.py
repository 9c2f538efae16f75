"""cityscapesScripts as the judge of Cityscapes numbers, and wrong predictions for it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest


def judged(pairs: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the numbers of cityscapesScripts for (prediction, truth) files, under our names."""
    if not hasattr(np, "in1d"):
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # the judge wants an older numpy
    judge = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.setattr(judge.args, "quiet", True)
    monkeypatch.setattr(judge.args, "JSONOutput", False)
    result = judge.evaluateImgLists(
        [str(p) for p, _ in pairs], [str(t) for _, t in pairs], judge.args
    )
    numbers = {"mIoU": result["averageScoreClasses"], "iIoU": result["averageScoreInstClasses"]}
    numbers |= {"category_IoU": result["averageScoreCategories"]}
    numbers |= {"category_iIoU": result["averageScoreInstCategories"]}
    for ours, theirs in (("IoU", "classScores"), ("iIoU", "classInstScores")):
        numbers |= {f"{ours}/{name}": value for name, value in result[theirs].items()}
    for ours, theirs in (
        ("category_IoU", "categoryScores"),
        ("category_iIoU", "categoryInstScores"),
    ):
        numbers |= {f"{ours}/{name}": value for name, value in result[theirs].items()}
    return {name: value for name, value in numbers.items() if not math.isnan(value)}


def corrupted(labels: np.ndarray, instances: np.ndarray, kind: int, seed: int) -> np.ndarray:
    """A wrong prediction in label ids (H, W) uint8, made from the truth in one of six ways."""
    rng = np.random.default_rng(seed)
    wrong = labels.copy()
    height, width = labels.shape
    if kind == 1:
        return wrong[:, ::-1].copy()
    if kind == 2:
        # within categories, and to caravans
        confused = {24: 25, 25: 24, 26: 27, 28: 29, 33: 32, 7: 8, 11: 29, 23: 30}
        for old, new in confused.items():
            wrong[(labels == old) & (rng.random(labels.shape) < 0.5)] = new
    if kind in (3, 5):
        found = np.unique(instances[instances > 1000])
        for number in rng.choice(found, size=(len(found) + 1) // 2, replace=False):
            wrong[instances == number] = rng.choice([0, 7, 11, 24, 26, 27, 29, 30, 31])
    if kind in (4, 5):
        for value in (*rng.integers(0, 34, 30), 0, 29, 30, 24, 26, 26, 33):
            y = rng.integers(0, height)
            x = rng.integers(0, width)
            wrong[y : y + rng.integers(4, height // 3), x : x + rng.integers(4, width // 3)] = value
    if kind == 5:
        noisy = rng.random(labels.shape) < 0.02
        wrong[noisy] = rng.integers(0, 34, int(noisy.sum()))
    return wrong
