"""What any other program predicted, brought into the form that the evaluators take.

Label maps: one PNG per image id, in the benchmark's own ids or in train ids. Instances: a COCO
results file. Neither a network nor the images are needed.
"""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtrain.benchmarks.coco_results import read_results
from segtrain.contracts import Dataset
from segtrain.data.images import read_mask
from segtrain.data.pairing import hints_of
from segtrain.errors import DataError, InternalError, did_you_mean
from segtrain.structures import run_lengths
from segtrain.structures.instances import Segments
from segtrain.structures.samples import IGNORE

# Finding a near id compares with every one of them: with more, the answer would take seconds.
MAX_IDS_FOR_A_HINT = 10_000


def label_maps(
    folder: Path, images: Dataset, ids: str, split: str, voids: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (image id, label map (H, W) uint8 in train ids) of every image, in their order.

    `ids` is "train", or the files hold the data set's own ids. `voids`: whether the metric takes
    pixels that are predicted as no class. Errors: DataError.
    """
    encode = images.encode_prediction
    if ids == "train":
        encode = images.labels.contiguous().encode
    for sample_id, path in find_all(folder, images.ids, split).items():
        raw = read_mask(path)
        train = encode(raw, str(path))
        strange = train >= images.labels.num_classes
        if not voids and strange.any():
            y, x = np.unravel_index(int(strange.argmax()), train.shape)
            raise DataError(
                f"{path}: value {raw[y, x]} at (x={x}, y={y}) is no class: "
                f"{images.labels.name} has {images.labels.legal()}; "
                "every pixel of a prediction is of a class"
            )
        yield sample_id, torch.from_numpy(train)


def find_all(folder: Path, ids: Sequence[str], split: str) -> dict[str, Path]:
    """Return the PNG of every image id, found anywhere below `folder`.

    Either form of Unicode is the same name: a Mac writes another one than ids have. Errors:
    DataError that names the first image without a file and counts the others, or the first with
    two.
    """
    names = Counter(Path(_composed(sample_id)).name for sample_id in ids)
    # File name of an image id -> the PNGs that may be its prediction.
    files: dict[str, list[Path]] = {}
    others: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        stem = _composed(path.stem)
        if name := _image_name(stem, names):
            files.setdefault(name, []).append(path)
        else:
            others[stem] = path
    paths = {sample_id: _find(folder, files, sample_id, names) for sample_id in ids}
    missing = [sample_id for sample_id, path in paths.items() if path is None]
    if missing:
        count = f"{len(missing)} of the {len(ids)} images of {split} have none"
        hint = hints_of([Path(sample_id).name for sample_id in missing], folder, others)
        what = "".join(f"; {each.text()}" for each in list(hint.values())[:1])
        raise DataError(f"{folder / missing[0]}.png: no prediction for this image; {count}{what}")
    return {sample_id: path for sample_id, path in paths.items() if path is not None}


def _image_name(stem: str, names: Mapping[str, int]) -> str | None:
    """Return the longest of `names` that a file's name begins with, up to an underscore.

    Cityscapes' tools write such names. Overlays that segpredict wrote beside its maps belong to no
    image.
    """
    parts = stem.split("_")
    starts = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    name = next((start for start in starts if start in names), None)
    return None if name != stem and stem.endswith("_overlay") else name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _find(
    folder: Path, files: Mapping[str, list[Path]], sample_id: str, names: Mapping[str, int]
) -> Path | None:
    """Find <id>.png; else, below any sub-folder, a file named as the last part of the id.

    Without such a file one with a longer name is taken. `names` tells how many images have this
    last part of their id, for no file may stand for two of them.
    """
    exact = folder / f"{sample_id}.png"
    if exact.is_file():
        return exact
    place = _composed(f"{sample_id}.png")
    name = Path(place.removesuffix(".png")).name
    chosen = files.get(name, [])
    if names[name] > 1:
        chosen = [p for p in chosen if _composed(p.relative_to(folder).as_posix()) == place]
    elif same := [path for path in chosen if _composed(path.stem) == name]:
        chosen = same
    if len(chosen) > 1:
        raise DataError(f"{chosen[0]}: and {chosen[1]} are both predictions of {name}; keep one")
    return chosen[0] if chosen else None


def detections(path: Path, images: Dataset) -> Iterator[tuple[str, Segments]]:
    """Yield (image id, its detections) of every image of the data set; images without any get none.

    The file is read as pycocotools reads it: where entries have a `bbox`, its width times height is
    the object's size for the small, medium and large numbers, also of masks; else boxes and sizes
    are those of the masks. Errors: DataError naming the entry.
    """
    entries = read_results(path)
    needed = [key for key in ("segmentation", "bbox") if any(entry.get(key) for entry in entries)]
    by_image: dict[str, list[dict[str, Any]]] = {sample_id: [] for sample_id in images.ids}
    # By the text of its id, for tools write 7 and "7".
    train_ids = {str(raw): train for raw, train in images.labels.raw.items()}
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        _check_entry(entry, where, needed)
        image_id = str(entry["image_id"])
        if image_id not in by_image:
            few = len(by_image) < MAX_IDS_FOR_A_HINT
            hint = did_you_mean(image_id, by_image) if few else ""
            raise DataError(f"{where}: image {image_id} is not in this data set.{hint}")
        if train_ids.get(str(entry["category_id"]), IGNORE) == IGNORE:
            raise DataError(
                f"{where}: category {entry['category_id']} is not in this data set: "
                f"{images.labels.legal()}"
            )
        by_image[image_id].append(entry)
    sizes = images.sizes()
    if sizes is None:
        raise InternalError(f"{type(images).__name__}: instances, but of images of unknown sizes")
    for sample_id, (height, width) in zip(images.ids, sizes.tolist(), strict=True):
        size = (height, width)
        yield sample_id, _segments(by_image[sample_id], size, train_ids, needed, path)


def corners_note(path: Path, boxes: int, corners: int) -> str:
    """Say that most boxes of a results file are corners beside their masks; "" where they are not.

    Scores of boxes, and what counts as small, medium and large, would be wrong.
    """
    if 2 * corners <= boxes:
        return ""
    return (
        f"{path}: {corners:,} of {boxes:,} boxes fit their masks only as corners (x1, y1, x2, y2), "
        "but `bbox` is [x, y, width, height]: scores of boxes, and by size, are wrong"
    )


def _check_entry(entry: dict[str, Any], where: str, needed: Sequence[str]) -> None:
    """Check one entry.

    Errors: DataError where it lacks something or holds a value of a wrong kind.
    """
    for key in ("image_id", "category_id", "score"):
        if key not in entry:
            raise DataError(f"{where}: has no `{key}`")
    if type(entry["image_id"]) not in (int, str) or type(entry["category_id"]) not in (int, str):
        raise DataError(f"{where}: `image_id` and `category_id` must be integers, or text")
    if not _is_finite(entry["score"]):
        raise DataError(f"{where}: score {str(entry['score'])[:40]} is not a finite number")
    # pycocotools takes an empty box or mask for none.
    box = entry.get("bbox") or None
    mask = entry.get("segmentation") or None
    if not needed:
        raise DataError(f"{where}: has neither `segmentation` nor `bbox`")
    if not all(entry.get(key) for key in needed):
        keys = " and ".join(f"`{key}`" for key in needed)
        raise DataError(f"{where}: needs {keys}, as the other entries have")
    if box is not None and not _is_box(box):
        raise DataError(f"{where}: `bbox` must be [x, y, width, height], four finite numbers")
    if mask is not None and not _is_run_lengths(mask):
        raise DataError(
            f"{where}: `segmentation` must be a run-length mask {{size, counts}} "
            "as pycocotools encodes it"
        )


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value))


def _is_run_lengths(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("size"), list)
        and all(type(side) is int for side in value["size"])
        and isinstance(value.get("counts"), str)
    )


def _is_finite(value: Any) -> bool:
    """Return whether it is a number that can be counted with; nan compares as false."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _segments(
    entries: list[dict[str, Any]],
    size: tuple[int, int],
    train_ids: Mapping[str, int],
    needed: Sequence[str],
    path: Path,
) -> Segments:
    """Return the detections of one image.

    Errors: DataError for a mask of another size, or a damaged one.
    """
    masks = [entry["segmentation"] for entry in entries] if "segmentation" in needed else None
    for mask, entry in zip(masks or (), entries, strict=False):
        if mask["size"] != list(size):
            raise DataError(
                f"{path}: a mask of image {entry['image_id']} has size {mask['size']}, "
                f"the image {list(size)} (height, width)"
            )
    try:
        areas = run_lengths.areas(masks or []).astype(np.float64)
        boxes = run_lengths.boxes(masks or [])
    except ValueError as error:
        image_id = entries[0]["image_id"]
        raise DataError(f"{path}: image {image_id} has a damaged mask: {error}") from None
    if masks is None or "bbox" in needed:
        boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
        areas = boxes[:, 2] * boxes[:, 3]
    return Segments(
        size=size,
        labels=np.array([train_ids[str(entry["category_id"])] for entry in entries], np.int64),
        boxes=boxes,
        masks=masks,
        areas=areas,
        scores=np.array([entry["score"] for entry in entries], np.float64),
    )
