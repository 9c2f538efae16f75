"""Opens every image and mask once, before a GPU is used, and says everything that is wrong in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..contracts import IGNORE, Sample
from ..errors import SegtrainError, complain
from .labels import LabelMap, binary_hint

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
    """Of one pass: samples opened, one line per problem, and pixels per train id (256,) int64 of the good masks."""

    checked: int
    problems: list[str]
    pixels: np.ndarray


def verify_labels(
    dataset: Labelled, indices: Sequence[int] | None = None, workers: int = 8, progress: Progress | None = None
) -> Report:
    """Reads the samples at `indices` (all) in threads: decoding, equal sizes, legal values. Raises nothing."""
    chosen = list(range(len(dataset))) if indices is None else list(indices)
    pixels, problems = np.zeros(256, np.int64), []
    for done, (problem, counts) in enumerate(_results(dataset, chosen, workers), 1):
        pixels += counts
        if problem:
            problems.append(problem)
        if progress:
            progress(done, len(chosen))
    binary = _binary_masks(dataset.labels, pixels)
    enough = len(chosen) >= min(len(dataset), ENOUGH)
    if binary and enough and not problems:
        problems.append(f"{dataset.ids[chosen[0]]}: {binary}")
    return Report(len(chosen), problems, pixels)


def verify(dataset: Labelled, limit: int | None = None, workers: int = 8, progress: Progress | None = None) -> Report:
    """As `verify_labels` on at most `limit` evenly spread samples. Errors: DataError, see `complain`."""
    total = len(dataset)
    some = None if limit is None or limit >= total else np.linspace(0, total - 1, limit).astype(int).tolist()
    report = verify_labels(dataset, some, workers, progress)
    complain(report.problems)
    return report


def _results(dataset: Labelled, indices: list[int], workers: int) -> Iterator[tuple[str, np.ndarray]]:
    def look(index: int) -> tuple[str, np.ndarray]:
        try:
            target = dataset[index].target
        except SegtrainError as error:
            return str(error), np.zeros(256, np.int64)
        flat = target.ravel() if isinstance(target, np.ndarray) else np.zeros(0, np.uint8)
        return "", np.bincount(flat, minlength=256)

    pool = ThreadPoolExecutor(max(1, workers))  # decoding releases the GIL
    try:
        yield from pool.map(look, indices)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the whole data set


def _binary_masks(labels: LabelMap, pixels: np.ndarray) -> str:
    """0/255 masks are legal where 255 means ignored, and then nothing but class 0 is ever learned."""
    stored = labels.raw.get(0) == 0 and labels.raw.get(255) == IGNORE
    if labels.num_classes < 2 or not stored or set(np.flatnonzero(pixels)) != {0, IGNORE}:
        return ""
    return f"this and every other checked mask holds only `{labels.names[0]}` and ignored pixels. {binary_hint()}"
