"""Open every image and annotation once, before a GPU is used.

Everything that is wrong is said at once, and everything there is is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from segtrain.contracts import Dataset
from segtrain.data.images import shown
from segtrain.errors import SegtrainError, complain
from segtrain.structures.labels import LabelMap, binary_hint
from segtrain.structures.samples import IGNORE, Sample

# Before "all are binary" is said of a part of the data set. Chosen by hand: fewer may be chance.
MIN_AGREEING_MASKS = 16
# Decoding releases the GIL, and files may lie on another machine. Chosen by hand.
READER_THREADS = 8
TRAIN_IDS = 256  # values of a byte: classes, and IGNORE
Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class Report:
    """What one pass over samples found."""

    checked: int  # samples opened
    problems: list[str]  # one line for each
    pixels: np.ndarray  # (256,) int64 per train id, of the samples without a problem


class Counts(NamedTuple):
    """What one image holds."""

    size: tuple[int, int]  # height, width
    pixels: np.ndarray  # (256,) per train id
    objects: np.ndarray  # (256,) per train id


def _zeros() -> np.ndarray:
    return np.zeros(TRAIN_IDS, np.int64)


@dataclass
class Survey:
    """What a whole split holds. Arrays are (256,) int64 per train id."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # height, width of every image
    pixels: np.ndarray = field(default_factory=_zeros)
    objects: np.ndarray = field(default_factory=_zeros)
    images: np.ndarray = field(default_factory=_zeros)  # that hold the class
    context: np.ndarray = field(default_factory=_zeros)  # labelled pixels of those images


def verify_labels(
    dataset: Dataset,
    indices: Sequence[int] | None = None,
    workers: int = READER_THREADS,
    progress: Progress | None = None,
    scored: bool = False,
) -> Report:
    """Read the samples at `indices` (all) in threads: decoding, equal sizes, legal values.

    `scored`: also the files that only the metric reads. Raises nothing.
    """
    chosen = list(range(len(dataset))) if indices is None else list(indices)
    pixels = _zeros()
    problems = []
    for done, (problem, counts) in enumerate(_results(dataset, chosen, workers, scored), 1):
        if counts is None:
            problems.append(problem)
        else:
            pixels += counts.pixels
        if progress:
            progress(done, len(chosen))
    binary = _binary_masks(dataset.labels, pixels)
    enough = len(chosen) >= min(len(dataset), MIN_AGREEING_MASKS)
    if binary and enough and not problems:
        problems.append(f"{_mask_name(dataset, chosen[0])}: {binary}")
    return Report(len(chosen), problems, pixels)


def verify(
    dataset: Dataset,
    limit: int | None = None,
    workers: int = READER_THREADS,
    progress: Progress | None = None,
) -> Report:
    """Do as `verify_labels` on at most `limit` evenly spread samples.

    Errors: DataError that lists the problems, see `complain`.
    """
    total = len(dataset)
    spread = None
    if limit is not None and limit < total:
        spread = np.linspace(0, total - 1, limit).astype(int).tolist()
    report = verify_labels(dataset, spread, workers, progress)
    complain(report.problems)
    return report


def survey(
    dataset: Dataset, workers: int = READER_THREADS, progress: Progress | None = None
) -> Survey:
    """Count over the whole split. Errors: DataError for a file that cannot be used."""
    total = Survey()
    results = _results(dataset, list(range(len(dataset))), workers)
    for done, (problem, counts) in enumerate(results, 1):
        if counts is None:
            complain([problem])
            continue
        present = (counts.pixels > 0) | (counts.objects > 0)
        total.sizes.append(counts.size)
        total.pixels += counts.pixels
        total.objects += counts.objects
        total.images += present
        total.context += present * int(counts.pixels[:IGNORE].sum())
        if progress:
            progress(done, len(dataset))
    return total


def class_weights(counted: Survey, num_classes: int) -> list[float]:
    """Return median(f) / f of each class: median-frequency balancing.

    f is a class's share of the labelled pixels of the images that hold it; a class that never
    occurs gets 1 (Eigen and Fergus, ICCV 2015, section 4.3; SegNet).
    """
    pixels = counted.pixels[:num_classes]
    context = counted.context[:num_classes]
    occurs = pixels > 0
    frequency = pixels[occurs] / context[occurs]
    weights = np.ones(num_classes)
    weights[occurs] = np.median(frequency) / frequency
    return weights.tolist()


def _results(
    dataset: Dataset, indices: list[int], workers: int, scored: bool = False
) -> Iterator[tuple[str, Counts | None]]:
    """Yield for each sample its problem, "" for none, and its counts, None with a problem."""
    read = dataset.scored if scored else dataset.__getitem__

    def look(index: int) -> tuple[str, Counts | None]:
        try:
            return "", _count(read(index))
        except SegtrainError as error:
            return str(error), None

    pool = ThreadPoolExecutor(max(1, workers))
    try:
        yield from pool.map(look, indices)
    finally:
        # A signal waits neither for the whole data set nor for the images that are being read.
        pool.shutdown(wait=False, cancel_futures=True)


def _count(sample: Sample) -> Counts:
    size = (sample.image.shape[0], sample.image.shape[1])
    if sample.instances is None:
        assert sample.mask is not None
        return Counts(size, np.bincount(sample.mask.ravel(), minlength=TRAIN_IDS), _zeros())
    labels = sample.instances.labels.numpy()
    areas = sample.instances.masks.flatten(1).sum(1).numpy()
    pixels = np.bincount(labels, weights=areas, minlength=TRAIN_IDS).astype(np.int64)
    return Counts(size, pixels, np.bincount(labels, minlength=TRAIN_IDS))


def _mask_name(dataset: Dataset, index: int) -> str:
    """Return the path of the sample's mask; the id of one that is not read from files."""
    files = dataset.files(index)
    return dataset.ids[index] if files is None else shown(files.annotation or files.image)


def _binary_masks(labels: LabelMap, pixels: np.ndarray) -> str:
    """Return what to say of masks that hold 0 and 255 only; "" where they do not, or may.

    They are legal where 255 means ignored, and then no class, or nothing but class 0, is ever
    learned.
    """
    zero = labels.raw.get(0)
    ignored = {raw for raw, train in labels.raw.items() if train == IGNORE}
    legal = 255 in ignored and (zero == 0 or ignored == {0, 255})
    present = set(np.flatnonzero(pixels).tolist())
    if labels.num_classes < 2 or not legal or present != {zero, IGNORE}:
        return ""
    held = f"`{labels.names[0]}` and ignored pixels" if zero == 0 else "ignored pixels"
    return f"this and every other checked mask holds only {held}. {binary_hint()}"
