"""The AP of any choice of a set's images, from the matches that `segeval` keeps.

hotcoco has matched every detection when it was measured. How a ranking of some of the images, some
of them twice, comes out follows from that, without masks and boxes: so an interval over images is
drawn in seconds. With every image once it is the AP that was measured. Of an image that is drawn
twice, equal detections rank side by side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

THRESHOLDS = 10  # IoU 0.50:0.05:0.95
RECALLS = np.linspace(0, 1, 101)  # pycocotools' own numbers, to the last bit
MAX_BYTES = 1 << 28  # of matches.json, which may be a stranger's
CHUNK = 2_000_000  # weights of detections that are ranked at once: 16 MB


@dataclass(frozen=True)
class Matches:
    """Which detections hit an object: D of them on N images of K classes.

    `truths` (N, K) counts objects. `image`, `label`, `score`, `hits` and `ignored` are (D,), sorted
    by score, the best first; bit t of the last two is for IoU threshold t.
    """

    images: list[str]
    kind: str
    truths: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray

    def at(self, images: Sequence[str]) -> Matches:
        """Return those of these images, in this order."""
        place_of = {name: place for place, name in enumerate(images)}
        places = np.array([place_of.get(name, -1) for name in self.images])
        kept = places[self.image] >= 0
        index_of = {name: index for index, name in enumerate(self.images)}
        truths = self.truths[[index_of[name] for name in images]]
        columns = (self.image, self.label, self.score, self.hits, self.ignored)
        image, label, score, hits, ignored = (column[kept] for column in columns)
        return Matches(list(images), self.kind, truths, places[image], label, score, hits, ignored)


def read_matches(folder: Path) -> Matches | None:
    """Return the matches of an evaluation; None where it has none that can be read."""
    path = folder / "matches.json"
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        return _checked(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _checked(record: dict[str, Any]) -> Matches:
    """Return what a file holds. Errors: ValueError, TypeError, KeyError, OverflowError."""
    images = [str(name) for name in record["images"]]
    count = len(images)
    classes = len(record["classes"])
    image, label, hits, ignored = (
        np.array(record[name], np.int64).reshape(-1)
        for name in ("image", "label", "hits", "ignored")
    )
    score = np.array(record["score"], np.float64).reshape(-1)
    cells = np.array(record["truths"], np.int64).reshape(-1, 3)
    whole = (
        len({len(column) for column in (image, label, score, hits, ignored)}) == 1
        and len(set(images)) == count
        and _within(image, count)
        and _within(label, classes)
        and _within(hits, 1 << THRESHOLDS)
        and _within(ignored, 1 << THRESHOLDS)
        and _within(cells[:, 0], count)
        and _within(cells[:, 1], classes)
        and bool((cells[:, 2] > 0).all())
        and bool(np.isfinite(score).all())
    )
    if not whole:
        raise ValueError("columns that do not fit together")
    truths = np.zeros((count, classes))
    np.add.at(truths, (cells[:, 0], cells[:, 1]), cells[:, 2])
    for _, hit in _by_threshold(hits, ignored):
        found = np.zeros(truths.shape)
        np.add.at(found, (image[hit], label[hit]), 1)
        if (found > truths).any():
            raise ValueError("more hits than objects")
    order = np.lexsort((image, -score))  # equal scores rank by image, then as they come
    columns = (image, label, score, hits, ignored)
    image, label, score, hits, ignored = (column[order] for column in columns)
    return Matches(images, str(record["kind"]), truths, image, label, score, hits, ignored)


def _within(values: np.ndarray, end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Return the AP (B,) of the set for weights (B, N): how often each image is in it.

    It is the mean over classes that the images hold, IoU thresholds and recall points; nan without
    any object.
    """
    truths = weights @ matches.truths
    total = np.zeros(len(weights))
    for label in np.flatnonzero(matches.truths.any(axis=0)):
        chosen = np.flatnonzero(matches.label == label)
        step = max(1, CHUNK // max(1, len(chosen)))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            drawn = weights[rows][:, matches.image[chosen]]
            total[rows] += _of_class(matches, chosen, drawn, truths[rows, label])
    known = (truths > 0).sum(axis=1)
    return np.divide(total, known, out=np.full(len(total), np.nan), where=known > 0)


def _of_class(
    matches: Matches, chosen: np.ndarray, weights: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Return the AP (B,) of one class; 0 where there are no `objects` (B,).

    `weights` (B, D) say how often each of the `chosen` detections is there.
    """
    total = np.zeros(len(weights))
    sums: dict[bytes, np.ndarray] = {}  # mostly the same detections count at every threshold
    for counted, hit in _by_threshold(matches.hits[chosen], matches.ignored[chosen]):
        every = sums.get(counted.tobytes())
        if every is None:
            every = sums[counted.tobytes()] = np.cumsum(weights * counted, axis=1)
        places = np.flatnonzero(hit)
        true = np.cumsum(weights[:, places], axis=1)
        precision = true / np.maximum(every[:, places], 1)  # below one there is none at all
        # The best precision at this recall or a higher one.
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # Each hit reaches the recall points up to its own recall that no hit before it reached.
        reached = _recall_points(true / np.maximum(objects, 1)[:, None])
        points = np.diff(reached, axis=1, prepend=0)
        total += np.einsum("bd,bd->b", envelope, points) / len(RECALLS)
    return np.where(objects > 0, total, 0) / THRESHOLDS


def _recall_points(recall: np.ndarray) -> np.ndarray:
    """Return how many of `RECALLS` are reached; 0 of no recall at all."""
    last = (100 * recall + 1e-9).astype(np.int64)
    last -= RECALLS[last] > recall  # 0.57 of them is a bit above 57 / 100
    return np.where(recall > 0, last + 1, 0)


def _by_threshold(hits: np.ndarray, ignored: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each IoU threshold which detections count, and which of these hit an object."""
    for threshold in range(THRESHOLDS):
        bit = 1 << threshold
        counted = ignored & bit == 0
        yield counted, (hits & bit != 0) & counted
