"""What any other program predicted, brought into the form that the evaluators take. No network, no images needed.

Label maps: one PNG per image id, in the benchmark's own ids or in train ids. Instances: a COCO results file.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtrain.benchmarks.submission import read_results
from segtrain.data.images import read_mask
from segtrain.errors import DataError, did_you_mean
from segtrain.structures import run_lengths
from segtrain.structures.instances import Segments
from segtrain.structures.samples import IGNORE

FLOAT_MAX = sys.float_info.max


def label_maps(
    folder: Path, images: Any, ids: str, split: str, voids: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """(image id, label map (H, W) uint8 in train ids) of every image, in the data set's order. Errors: DataError.

    `voids`: whether the metric takes pixels that are predicted as no class.
    """
    encode = getattr(images, "encode_prediction", images.labels.encode)
    encode = images.labels.contiguous().encode if ids == "train" else encode
    for sample_id, path in find_all(folder, images.ids, split).items():
        raw = read_mask(path)
        train = encode(raw, str(path))
        strange = train >= images.labels.num_classes
        if not voids and strange.any():
            y, x = np.unravel_index(int(strange.argmax()), train.shape)
            said = f"value {raw[y, x]} at (x={x}, y={y}) is no class: {images.labels.name} has {images.labels.legal()}"
            raise DataError(f"{path}: {said}; every pixel of a prediction is of a class")
        yield sample_id, torch.from_numpy(train)


def find_all(folder: Path, ids: Sequence[str], split: str) -> dict[str, Path]:
    """The prediction of every image. Errors: DataError for the first image without one, or with several."""
    names = Counter(Path(sample_id).name for sample_id in ids)
    files: dict[str, list[Path]] = {}  # by the last part of the id that they are predictions of
    for path in sorted(folder.rglob("*.png")):
        if name := owner(path.stem, names):
            files.setdefault(name, []).append(path)
    found = {sample_id: find(folder, files, sample_id, names) for sample_id in ids}
    missing = [sample_id for sample_id, path in found.items() if path is None]
    if missing:
        count = f"{len(missing)} of the {len(ids)} images of {split} have none"
        raise DataError(f"{folder / missing[0]}.png: no prediction for this image; {count}")
    return {sample_id: path for sample_id, path in found.items() if path is not None}


def owner(stem: str, names: Mapping[str, int]) -> str | None:
    """The longest of `names` that a file's name begins with, up to an underscore: so Cityscapes' tools write them."""
    parts = stem.split("_")
    starts = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    name = next((start for start in starts if start in names), None)
    return None if name != stem and stem.endswith("_overlay") else name  # pictures of segpredict


def find(
    folder: Path, files: Mapping[str, list[Path]], sample_id: str, names: Mapping[str, int]
) -> Path | None:
    """<id>.png; else, below any sub-folder, a file named as the last part of the id, or one with a longer name.

    `names`: how many images have this last part of their id, for no file may stand for two of them.
    """
    exact, name = folder / f"{sample_id}.png", Path(sample_id).name
    if exact.is_file() or names[name] > 1:
        return exact if exact.is_file() else None
    candidates = files.get(name, [])
    found = [path for path in candidates if path.stem == name] or candidates
    if len(found) > 1:
        raise DataError(f"{found[0]}: and {found[1]} are both predictions of {name}; keep one")
    return found[0] if found else None


def detections(path: Path, images: Any) -> Iterator[tuple[str, Segments]]:
    """(image id, its detections) of every image of the data set; images without any get none.

    As pycocotools reads a results file: where entries have a `bbox`, its width times height is the object's size for the
    small, medium and large numbers, also of masks; else boxes and sizes are those of the masks. Errors: DataError naming
    the entry.
    """
    entries = read_results(path)
    needed = [key for key in ("segmentation", "bbox") if any(entry.get(key) for entry in entries)]
    by_image: dict[str, list[dict[str, Any]]] = {sample_id: [] for sample_id in images.ids}
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        check_entry(entry, where, needed)
        if str(entry["image_id"]) not in by_image:
            hint = did_you_mean(str(entry["image_id"]), by_image) if len(by_image) < 10_000 else ""
            raise DataError(f"{where}: image {entry['image_id']} is not in this data set.{hint}")
        if images.labels.raw.get(entry["category_id"], IGNORE) == IGNORE:
            raise DataError(
                f"{where}: category {entry['category_id']} is not in this data set: {images.labels.legal()}"
            )
        by_image[str(entry["image_id"])].append(entry)
    for index, sample_id in enumerate(images.ids):
        yield (
            sample_id,
            segments(
                by_image[sample_id], images.segments(index).size, images.labels.raw, needed, path
            ),
        )


def check_entry(entry: dict[str, Any], where: str, needed: Sequence[str]) -> None:
    """Errors: DataError for an entry that lacks something or holds a value of a wrong kind."""
    for key in ("image_id", "category_id", "score"):
        if key not in entry:
            raise DataError(f"{where}: has no `{key}`")
    if type(entry["image_id"]) not in (int, str) or type(entry["category_id"]) is not int:
        raise DataError(f"{where}: `image_id` and `category_id` must be integers")
    if not finite(entry["score"]):
        raise DataError(f"{where}: score {str(entry['score'])[:40]} is not a finite number")
    box, mask = (
        entry.get("bbox") or None,
        entry.get("segmentation") or None,
    )  # pycocotools takes empty ones for none
    if not needed:
        raise DataError(f"{where}: has neither `segmentation` nor `bbox`")
    if not all(entry.get(key) for key in needed):
        raise DataError(
            f"{where}: needs {' and '.join(f'`{key}`' for key in needed)}, as the other entries have"
        )
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(finite, box))):
        raise DataError(f"{where}: `bbox` must be [x, y, width, height], four finite numbers")
    if mask is not None and not (
        isinstance(mask, dict)
        and isinstance(mask.get("size"), list)
        and all(type(side) is int for side in mask["size"])
        and isinstance(mask.get("counts"), str)
    ):
        raise DataError(
            f"{where}: `segmentation` must be a run-length mask {{size, counts}} as pycocotools encodes it"
        )


def finite(value: Any) -> bool:
    """Whether it is a number, and one that can be counted with."""
    return type(value) in (int, float) and abs(value) <= FLOAT_MAX  # so written, nan is none


def segments(
    entries: list[dict[str, Any]],
    size: tuple[int, int],
    category: dict[int, int],
    needed: Sequence[str],
    path: Path,
) -> Segments:
    """The entries of one image. Errors: DataError for a mask of another size, or a damaged one."""
    masks = [entry["segmentation"] for entry in entries] if "segmentation" in needed else None
    for mask, entry in zip(masks or (), entries, strict=False):
        if mask["size"] != list(size):
            of = f"a mask of image {entry['image_id']} has size {mask['size']}"
            raise DataError(f"{path}: {of}, the image {list(size)} (height, width)")
    try:
        areas, boxes = (
            run_lengths.areas(masks or []).astype(np.float64),
            run_lengths.boxes(masks or []),
        )
    except ValueError as error:
        raise DataError(
            f"{path}: image {entries[0]['image_id']} has a damaged mask: {error}"
        ) from None
    if masks is None or "bbox" in needed:
        boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
        areas = boxes[:, 2] * boxes[:, 3]
    return Segments(
        size=size,
        labels=np.array([category[entry["category_id"]] for entry in entries], np.int64),
        boxes=boxes,
        masks=masks,
        areas=areas,
        scores=np.array([entry["score"] for entry in entries], np.float64),
    )
