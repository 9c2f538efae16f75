"""pycocotools as the judge of COCO numbers, and made sets of truth and results for it."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest

from segtrain.structures import run_lengths

coco = pytest.importorskip("pycocotools.coco", reason="the dev extra installs pycocotools")
cocoeval = pytest.importorskip("pycocotools.cocoeval")
TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl"]
CLASSES = ["ant", "bee", "cat", "dog"]  # category ids 10, 20, 30, 40


def judge(
    truth: dict, results: list[dict], kind: str, class_agnostic: bool = False
) -> dict[str, float]:
    """pycocotools' numbers under our names; what it calls -1 is left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        real = coco.COCO()
        found = coco.COCO()
        real.dataset = found.dataset = copy.deepcopy(truth)
        real.createIndex()
        if results:
            found = real.loadRes(copy.deepcopy(results))
        else:  # loadRes([]) raises IndexError
            found.dataset = truth | {"annotations": []}
            found.createIndex()
        run = cocoeval.COCOeval(real, found, kind)
        if class_agnostic:
            run.params.useCats = 0
            run.params.maxDets = [10, 100, 1000]
        run.evaluate()
        run.accumulate()
        run.summarize()
    if class_agnostic:
        names = ["AR@10", "AR@100", "AR@1000", "ARs", "ARm", "ARl"]
        return {
            f"{kind}/{n}": v for n, v in zip(names, run.stats[6:].tolist(), strict=True) if v > -1
        }
    numbers = {f"{kind}/{n}": v for n, v in zip(TWELVE, run.stats.tolist(), strict=True) if v > -1}
    for index, category in enumerate(sorted(truth["categories"], key=lambda c: c["id"])):
        values = run.eval["precision"][:, :, index, 0, 2]
        if (values > -1).any():
            numbers[f"{kind}/AP/{category['name']}"] = float(np.mean(values[values > -1]))
    return numbers


def blob(
    rng: np.random.Generator, size: tuple[int, int], centre: np.ndarray, radius: np.ndarray
) -> np.ndarray:
    """Draw an ellipse with an edge of its own: (H, W) bool."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return ((rows - centre[0]) / radius[0]) ** 2 + (
        (columns - centre[1]) / radius[1]
    ) ** 2 <= 1 + 0.3 * rng.random()


def made(
    seed: int,
    images: int = 12,
    objects: int = 6,
    guesses: int = 20,
    decimals: int = 1,
    boxes: bool = False,
) -> tuple[dict, list[dict]]:
    """Make truth and results: all sizes, crowds, tied scores, missed and false ones.

    Some images have no objects or no results. The last class never occurs. Ids have one to four
    digits. `boxes`: results have boxes of their own.
    """
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.arange(1, 3000), images, replace=False).tolist()
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(CLASSES)]
    data: dict[str, Any] = {"images": [], "categories": categories, "annotations": []}
    results: list[dict] = []
    for place, image in enumerate(ids):
        size = (150, 200) if place % 2 else (170, 140)
        data["images"].append({"id": image, "height": size[0], "width": size[1]})
        shapes = [
            (rng.uniform(0, size), rng.uniform(3, rng.choice([8, 30, 90]), 2))
            for _ in range(objects)
        ]
        categories_of = rng.integers(1, 4, objects) * 10
        if place % 5 == 1:
            shapes = []
        for shape, category in zip(shapes, categories_of, strict=False):
            (code,) = run_lengths.encode(blob(rng, size, *shape)[None])
            crowd = int(rng.random() < 0.15)
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image,
                    "category_id": int(category),
                    "segmentation": code,
                    "bbox": run_lengths.boxes([code])[0].tolist(),
                    "area": float(run_lengths.areas([code])[0]) + 0.25,
                    "iscrowd": crowd,
                }
            )
        for _ in range(guesses if place % 4 else 0):
            near = bool(shapes) and rng.random() < 0.7
            index = int(rng.integers(len(shapes))) if near else 0
            centre, radius = (
                shapes[index] if near else (rng.uniform(0, size), rng.uniform(3, 60, 2))
            )
            shift = rng.normal(0, 0.1, 2) * radius
            (code,) = run_lengths.encode(blob(rng, size, centre + shift, radius)[None])
            category = (
                int(categories_of[index]) if rng.random() < 0.8 else 10 * int(rng.integers(1, 5))
            )
            entry = {"image_id": image, "category_id": category, "segmentation": code}
            if boxes:
                entry["bbox"] = (
                    (run_lengths.boxes([code])[0] + rng.uniform(0, 4, 4)).round(2).tolist()
                )
            results.append(entry | {"score": float(rng.random().__round__(decimals))})
    return data, results
