"""COCO's results files, which list the detections of many images.

An entry is {image_id, category_id, score, bbox, segmentation}.
Boxes are x, y, width, height in pixels; masks are run lengths {size, counts}, as pycocotools
encodes them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtrain.errors import DataError, InternalError
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap, RawId

OWN_NAME = re.compile(r"[0-9]{12}")


def result_entries(
    image_id: int | str, prediction: Instances | Segments, category_ids: Mapping[int, RawId]
) -> list[dict[str, Any]]:
    """Return the detections of one image as entries; run lengths stay as they are.

    `category_ids` maps train ids to the data set's. Entries of a prediction without masks have no
    `segmentation`.
    """
    objects = run_lengths.as_segments(prediction)
    if objects.scores is None:
        raise InternalError(f"{image_id}: a prediction without scores")
    rows = zip(
        objects.labels.tolist(), objects.boxes.tolist(), objects.scores.tolist(), strict=True
    )
    entries = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in rows
    ]
    if objects.masks is not None:
        for entry, mask in zip(entries, objects.masks, strict=True):
            entry["segmentation"] = mask
    return entries


def image_number(sample_id: str) -> int | str:
    """Return the number of one of COCO's own images, whose files are named by it.

    It is 139 for "139" and for "val2017/000000000139". An id that is no number is returned as it
    is.
    """
    name = Path(sample_id).name
    return int(name) if name.isascii() and name.isdecimal() else sample_id


def name_number(name: str) -> int | str:
    """Return the number of one of COCO's own images by the name of its file, twelve digits.

    It is 139 for "val2017/000000000139". Any other name, "0001" too, is the image's id itself: a
    number in it may be anything.
    """
    last = name.rpartition("/")[2]
    return int(last) if OWN_NAME.fullmatch(last) else name


def category_ids_of(labels: LabelMap) -> dict[int, RawId]:
    """Map each train id to the data set's own category id, the first listed one."""
    return {train: raw for raw, train in reversed(labels.raw.items()) if train < labels.num_classes}


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read a results file. Errors: DataError when it is not one; the entries are not checked."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            f"{path}: not a COCO results file, "
            "which is a list of {image_id, category_id, score, ...}"
        )
    return entries


def check_results(path: Path, labels: LabelMap, sizes: Mapping[int | str, tuple[int, int]]) -> None:
    """Read a file of our own back; `sizes` maps image numbers to (height, width).

    Errors: DataError naming the entry that the server would refuse.
    """
    legal_ids = set(category_ids_of(labels).values())
    for number, entry in enumerate(read_results(path)):
        where = f"{path}, entry {number}"
        image_id = entry["image_id"]
        category_id = entry["category_id"]
        if image_id not in sizes or category_id not in legal_ids:
            raise DataError(
                f"{where}: image {image_id}, category {category_id}: one of them is unknown"
            )
        size = list(sizes[image_id])
        if "segmentation" in entry and entry["segmentation"]["size"] != size:
            raise DataError(f"{where}: mask of {entry['segmentation']['size']}, image of {size}")
        if not math.isfinite(entry["score"]):
            raise DataError(f"{where}: score {entry['score']}")
