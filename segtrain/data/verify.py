"""Opens every image and annotation once, before a GPU is used: says everything that is wrong, counts everything there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from segtrain.data.images import shown
from segtrain.errors import SegtrainError, complain
from segtrain.structures.labels import LabelMap, binary_hint
from segtrain.structures.samples import IGNORE, Sample

ENOUGH = 16  # masks that must agree before "all are binary" is said of a part of the data set
Progress = Callable[[int, int], None]  # (done, total)


class Labelled(Protocol):
    """What is needed of a data set."""

    labels: LabelMap
    ids: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Report:
    """Of one pass: samples opened, one line per problem, and pixels per train id (256,) int64 of the good ones."""

    checked: int
    problems: list[str]
    pixels: np.ndarray


class Counts(NamedTuple):
    """Of one image: (height, width), pixels and objects per train id (256,); None where it could not be read."""

    size: tuple[int, int]
    pixels: np.ndarray
    objects: np.ndarray


@dataclass
class Survey:
    """Of a whole split, per train id (256,) int64: pixels, objects, images that hold the class, labelled pixels of those
    images; and the (height, width) of every image."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    objects: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    context: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))


def verify_labels(
    dataset: Labelled,
    indices: Sequence[int] | None = None,
    workers: int = 8,
    progress: Progress | None = None,
    scored: bool = False,
) -> Report:
    """Reads the samples at `indices` (all) in threads: decoding, equal sizes, legal values. Raises nothing.

    `scored`: also the files that only the metric reads.
    """
    chosen = list(range(len(dataset))) if indices is None else list(indices)
    pixels, problems = np.zeros(256, np.int64), []
    for done, (problem, counts) in enumerate(_results(dataset, chosen, workers, scored), 1):
        if counts is None:
            problems.append(problem)
        else:
            pixels += counts.pixels
        if progress:
            progress(done, len(chosen))
    binary = _binary_masks(dataset.labels, pixels)
    enough = len(chosen) >= min(len(dataset), ENOUGH)
    if binary and enough and not problems:
        problems.append(f"{_mask_name(dataset, chosen[0])}: {binary}")
    return Report(len(chosen), problems, pixels)


def verify(
    dataset: Labelled, limit: int | None = None, workers: int = 8, progress: Progress | None = None
) -> Report:
    """As `verify_labels` on at most `limit` evenly spread samples. Errors: DataError, see `complain`."""
    total = len(dataset)
    some = (
        None
        if limit is None or limit >= total
        else np.linspace(0, total - 1, limit).astype(int).tolist()
    )
    report = verify_labels(dataset, some, workers, progress)
    complain(report.problems)
    return report


def survey(dataset: Labelled, workers: int = 8, progress: Progress | None = None) -> Survey:
    """Counts over the whole split. Errors: DataError for a file that cannot be used."""
    found = Survey()
    for done, (problem, counts) in enumerate(
        _results(dataset, list(range(len(dataset))), workers), 1
    ):
        if counts is None:
            complain([problem])
            continue
        present = (counts.pixels > 0) | (counts.objects > 0)
        found.sizes.append(counts.size)
        found.pixels += counts.pixels
        found.objects += counts.objects
        found.images += present
        found.context += present * int(counts.pixels[:IGNORE].sum())
        if progress:
            progress(done, len(dataset))
    return found


def class_weights(counted: Survey, num_classes: int) -> list[float]:
    """Median-frequency balancing (Eigen and Fergus, ICCV 2015, section 4.3; SegNet): median(f) / f of each class.

    f is a class's share of the labelled pixels of the images that hold it; a class that never occurs gets 1.
    """
    pixels, context = counted.pixels[:num_classes], counted.context[:num_classes]
    occurs = pixels > 0
    frequency = pixels[occurs] / context[occurs]
    weights = np.ones(num_classes)
    weights[occurs] = np.median(frequency) / frequency
    return weights.tolist()


def _results(
    dataset: Labelled, indices: list[int], workers: int, scored: bool = False
) -> Iterator[tuple[str, Counts | None]]:
    read = getattr(dataset, "scored", dataset.__getitem__) if scored else dataset.__getitem__

    def look(index: int) -> tuple[str, Counts | None]:
        try:
            return "", _count(read(index))
        except SegtrainError as error:
            return str(error), None

    pool = ThreadPoolExecutor(max(1, workers))  # decoding releases the GIL
    try:
        yield from pool.map(look, indices)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the whole data set


def _count(sample: Sample) -> Counts:
    size = (sample.image.shape[0], sample.image.shape[1])
    if sample.instances is None:
        assert sample.mask is not None
        pixels = np.bincount(sample.mask.ravel(), minlength=256)
        return Counts(size, pixels, np.zeros(256, np.int64))
    labels = sample.instances.labels.numpy()
    areas = sample.instances.masks.flatten(1).sum(1).numpy()
    pixels = np.bincount(labels, weights=areas, minlength=256).astype(np.int64)
    return Counts(size, pixels, np.bincount(labels, minlength=256))


def _mask_name(dataset: Labelled, index: int) -> str:
    """The sample's mask file, or its id where a data set knows no files."""
    files = getattr(dataset, "files", None)
    return shown(files(index)[1] or files(index)[0]) if files else dataset.ids[index]


def _binary_masks(labels: LabelMap, pixels: np.ndarray) -> str:
    """0/255 masks are legal where 255 means ignored, and then no class, or nothing but class 0, is ever learned."""
    zero, ignored = labels.raw.get(0), {raw for raw, train in labels.raw.items() if train == IGNORE}
    legal = 255 in ignored and (zero == 0 or ignored == {0, 255})
    if (
        labels.num_classes < 2
        or not legal
        or set(np.flatnonzero(pixels).tolist()) != {zero, IGNORE}
    ):
        return ""
    held = f"`{labels.names[0]}` and ignored pixels" if zero == 0 else "ignored pixels"
    return f"this and every other checked mask holds only {held}. {binary_hint()}"
