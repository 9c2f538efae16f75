"""What any other program predicted, brought into the form that the evaluators take. No network, no images needed.

Label maps: one PNG per image id, in the benchmark's own ids or in train ids. Instances: a COCO results file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtrain import rle
from segtrain.contracts import Segments
from segtrain.datasets.io import read_mask
from segtrain.errors import DataError, did_you_mean
from segtrain.submission import read_results


def label_maps(folder: Path, images: Any, ids: str, split: str) -> Iterator[tuple[str, torch.Tensor]]:
    """(image id, label map (H, W) uint8 in train ids) of every image, in the data set's order. Errors: DataError."""
    files = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    encode = getattr(images, "encode_prediction", images.labels.encode)
    encode = images.labels.contiguous().encode if ids == "train" else encode
    for sample_id in images.ids:
        path = find(folder, files, sample_id)
        if path is None:
            raise DataError(f"{folder / sample_id}.png: no prediction for this image of {split} ({len(images)} images)")
        yield sample_id, torch.from_numpy(encode(read_mask(path), str(path)))


def find(folder: Path, files: dict[str, Path], sample_id: str) -> Path | None:
    """<id>.png, below sub-folders too, or a longer name that begins with the id, as Cityscapes' tools write them."""
    exact = folder / f"{sample_id}.png"
    name = Path(sample_id).name
    if exact.is_file() or name in files:
        return exact if exact.is_file() else files[name]
    longer = [path for stem, path in files.items() if stem.startswith(f"{name}_")]
    if len(longer) > 1:
        raise DataError(f"{longer[0]}: and {longer[1]} are both predictions of {name}; keep one")
    return longer[0] if longer else None


def detections(path: Path, images: Any) -> Iterator[tuple[str, Segments]]:
    """(image id, its detections) of every image of the data set; images without any get none.

    As pycocotools reads a results file: where entries have a `bbox`, its width times height is the object's size for the
    small, medium and large numbers, also of masks; else boxes and sizes are those of the masks. Errors: DataError naming
    the entry.
    """
    entries = read_results(path)
    masked = any("segmentation" in entry for entry in entries)
    by_image: dict[str, list[dict[str, Any]]] = {sample_id: [] for sample_id in images.ids}
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        check_entry(entry, where, masked)
        if str(entry["image_id"]) not in by_image:
            hint = did_you_mean(str(entry["image_id"]), by_image) if len(by_image) < 10_000 else ""
            raise DataError(f"{where}: image {entry['image_id']} is not in this data set.{hint}")
        if entry["category_id"] not in images.labels.raw:
            raise DataError(
                f"{where}: category {entry['category_id']} is not in this data set: {images.labels.legal()}"
            )
        by_image[str(entry["image_id"])].append(entry)
    for index, sample_id in enumerate(images.ids):
        yield sample_id, segments(by_image[sample_id], images.segments(index).size, images.labels.raw, masked, path)


def check_entry(entry: dict[str, Any], where: str, masked: bool) -> None:
    """Errors: DataError for an entry that lacks something or holds a value of a wrong kind."""
    for key in ("image_id", "category_id", "score"):
        if key not in entry:
            raise DataError(f"{where}: has no `{key}`")
    if not isinstance(entry["score"], int | float) or not math.isfinite(entry["score"]):
        raise DataError(f"{where}: score {entry['score']!r} is not a finite number")
    if masked and not isinstance(entry.get("segmentation"), dict):
        raise DataError(f"{where}: `segmentation` must be a run-length mask {{size, counts}}, as in the other entries")
    box = entry.get("bbox")
    if (not masked or box is not None) and (not isinstance(box, list) or len(box) != 4):
        raise DataError(f"{where}: needs `segmentation`, or `bbox` as [x, y, width, height]")


def segments(
    entries: list[dict[str, Any]], size: tuple[int, int], category: dict[int, int], masked: bool, path: Path
) -> Segments:
    """The entries of one image. Errors: DataError for a mask of another size."""
    masks = [entry["segmentation"] for entry in entries] if masked else None
    for entry in entries if masked else ():
        if list(entry["segmentation"].get("size", [])) != list(size):
            mine = entry["segmentation"].get("size")
            raise DataError(f"{path}: a mask of image {entry['image_id']} has size {mine}, the image {list(size)}")
    boxed = masks is None or all(entry.get("bbox") for entry in entries)
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4) if boxed else rle.boxes(masks)
    return Segments(
        size=size,
        labels=np.array([category[entry["category_id"]] for entry in entries], np.int64),
        boxes=boxes,
        masks=masks,
        areas=boxes[:, 2] * boxes[:, 3] if boxed else rle.areas(masks).astype(np.float64),
        scores=np.array([entry["score"] for entry in entries], np.float64),
    )
