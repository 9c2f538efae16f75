"""Compare two settings image by image, with an interval from a paired bootstrap.

Images are drawn with replacement, the same ones for both settings, so that hard images are hard for
both and their difference alone is seen. The interval is over images: what other seeds would give is
not in it, and stands in the deviation over seeds.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segtrain.commands.report_ap import Matches, average_precision, read_matches
from segtrain.commands.report_runs import Evaluation, Run
from segtrain.commands.report_settings import Setting, evaluations
from segtrain.logs.progress import Progress

DRAWS = 10_000
SEED = 0  # the same runs give the same interval
CONFIDENCE = 0.95
# Detections that are ranked in all draws together: 10 s of a core. Of large sets fewer draws are as
# exact, as their AP varies less; 500 leave an interval's ends a tenth of its width.
RANKED = 100_000_000
LEAST_DRAWS = 500
CHUNK = 2_000_000  # indices that are drawn at once: 16 MB
MAX_BYTES = 1 << 28  # of images.csv, which may be a stranger's
MAX_COLUMNS = 2_000
LISTED = 12  # images that are named, those that changed most


@dataclass(frozen=True)
class ImageScores:
    """What each image of an evaluation scores by itself.

    `values` is (N,) with nan for none. `intersections` and `unions` are (N, K) pixels by class, of
    label maps only: their sums give the mIoU of the set.
    """

    images: list[str]
    score: str
    values: np.ndarray
    intersections: np.ndarray | None
    unions: np.ndarray | None

    def at(self, images: Sequence[str]) -> ImageScores:
        """Return the scores of these images, in this order."""
        index_of = {name: index for index, name in enumerate(self.images)}
        chosen = [index_of[name] for name in images]
        both, unions = (
            None if part is None else part[chosen] for part in (self.intersections, self.unions)
        )
        return ImageScores(list(images), self.score, self.values[chosen], both, unions)


class Difference(NamedTuple):
    """A difference, first minus second, and the interval that holds it by the bootstrap."""

    of: str
    value: float
    low: float
    high: float
    draws: int = DRAWS

    @property
    def holds_zero(self) -> bool:
        """Whether no difference is among what the interval allows."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        zero = "holds 0" if self.holds_zero else "does not hold 0"
        fewer = f" ({self.draws:,} draws)" if self.draws != DRAWS else ""
        return (
            f"{self.of} {self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]{fewer}, which {zero}"
        )


class Comparison(NamedTuple):
    """Two settings on the images of one evaluation that both have scored."""

    evaluation: str
    first: Setting
    second: Setting
    differences: list[Difference]
    images: list[str]
    scores: tuple[np.ndarray, np.ndarray]  # each image's own, mean over seeds
    left_out: int  # images that only one of the two has scored

    @property
    def changes(self) -> np.ndarray:
        """Return first minus second of every image (N,)."""
        return self.scores[0] - self.scores[1]

    def most_changed(self) -> list[int]:
        """Return the indices of the images that changed most, the largest change first."""
        order = np.argsort(-np.abs(self.changes), kind="stable")
        return [int(index) for index in order[:LISTED] if self.changes[index] != 0]

    def in_words(self) -> str:
        """Return the comparison as a line."""
        changes = self.changes
        better = int((changes > 0).sum())
        worse = int((changes < 0).sum())
        others = f", {self.left_out} images are not in both" if self.left_out else ""
        return (
            f"{len(self.images)} images, better on {better}, worse on {worse}{others}; "
            f"{100 * CONFIDENCE:.0f} % intervals over images: "
            + "; ".join(str(difference) for difference in self.differences)
        )


def read_scores(evaluation: Evaluation) -> ImageScores | None:
    """Return the image scores of an evaluation, None where it has none that can be read."""
    path = evaluation.folder / "images.csv"
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error):
        return None
    if head[:1] != ["image"] or not 2 <= len(head) <= MAX_COLUMNS or not rows:
        return None
    images = [row[0] if row else "" for row in rows]
    if len(set(images)) != len(images) or any(len(row) != len(head) for row in rows):
        return None
    try:
        numbers = np.array([[float(cell or "nan") for cell in row[1:]] for row in rows])
    except ValueError:
        return None
    numbers[~np.isfinite(numbers)] = math.nan
    columns = head[1:]
    both = [i for i, name in enumerate(columns) if name.startswith("intersection/")]
    unions = [i for i, name in enumerate(columns) if name.startswith("union/")]
    classes = [[columns[i].partition("/")[2] for i in part] for part in (both, unions)]
    whole = classes[0] == classes[1] != [] and not np.isnan(numbers[:, both + unions]).any()
    return ImageScores(
        images,
        columns[0],
        numbers[:, 0],
        numbers[:, both] if whole else None,
        numbers[:, unions] if whole else None,
    )


def compare(first: Setting, second: Setting, evaluation: str) -> Comparison | None:
    """Compare two settings on one evaluation; None where the two have no scores of an image."""
    sides = [_scores_of(setting.counted, evaluation) for setting in (first, second)]
    every = [scores for side in sides for scores in side]
    if not all(sides) or len({scores.score for scores in every}) != 1:
        return None
    # Only images that every run of both has scored.
    known = [
        {name for name, value in zip(s.images, s.values, strict=True) if not math.isnan(value)}
        for s in every
    ]
    images = [name for name in every[0].images if all(name in names for names in known)]
    if not images:
        return None
    left_out = len(set.union(*known)) - len(images)
    paired = [[scores.at(images) for scores in side] for side in sides]
    own = [np.mean([scores.values for scores in side], axis=0) for side in paired]
    score = every[0].score
    low, high = interval(own[0] - own[1])
    mean = Difference(
        f"mean of the images' own {score}", float((own[0] - own[1]).mean()), low, high
    )
    differences = [mean]
    if all(s.intersections is not None for side in paired for s in side):
        differences.insert(0, _of_the_set(paired, score))
    elif (ap := _ap_of_the_set(first.counted, second.counted, evaluation)) is not None:
        differences.insert(0, ap)
    return Comparison(evaluation, first, second, differences, images, (own[0], own[1]), left_out)


def _scores_of(runs: Sequence[Run], evaluation: str) -> list[ImageScores]:
    """Return the image scores of the runs that have them."""
    chosen = [e for run in runs for e in run.evaluations if e.name == evaluation]
    return [scores for e in chosen if (scores := read_scores(e)) is not None]


def _of_the_set(paired: Sequence[Sequence[ImageScores]], score: str) -> Difference:
    """Return the difference of the mIoU of the whole set, its interval from the same draws."""
    count = len(paired[0][0].images)
    whole = np.ones((1, count))
    value = _mean_iou(paired[0], whole) - _mean_iou(paired[1], whole)
    drawn = [
        _mean_iou(paired[0], weights) - _mean_iou(paired[1], weights) for weights in _weights(count)
    ]
    low, high = _quantiles(np.concatenate(drawn))
    return Difference(f"{score} of the set", float(value[0]), low, high)


def _ap_of_the_set(
    first: Sequence[Run], second: Sequence[Run], evaluation: str
) -> Difference | None:
    """Return the difference of the AP of the whole set; None where a run has no matches.

    The set is all images that every run was measured on, also those without objects.
    """
    chosen = [
        [e for run in side for e in run.evaluations if e.name == evaluation]
        for side in (first, second)
    ]
    known = [_matches_in(e.folder) for side in chosen for e in side]
    every = [matches for matches in known if matches is not None]
    if not all(chosen) or len(every) < len(known) or len({m.kind for m in every}) != 1:
        return None
    shared = set.intersection(*(set(m.images) for m in every))
    images = tuple(name for name in every[0].images if name in shared)
    draws = max(LEAST_DRAWS, min(DRAWS, RANKED // max(1, *(len(m.score) for m in every))))
    aps = [np.mean([_aps(e.folder, images, draws) for e in side], axis=0) for side in chosen]
    differences = aps[0] - aps[1]
    if np.isnan(differences[0]):  # no image holds an object
        return None
    low, high = _quantiles(differences[1:][~np.isnan(differences[1:])])
    return Difference(f"{every[0].kind}/AP of the set", float(differences[0]), low, high, draws)


@cache
def _matches_in(folder: Path) -> Matches | None:
    """Read the matches of an evaluation once, whatever it is compared with."""
    return read_matches(folder)


@cache
def _aps(folder: Path, images: tuple[str, ...], draws: int) -> np.ndarray:
    """Return the AP (1 + draws,) of the images as they are, then of each draw."""
    matches = _matches_in(folder)
    assert matches is not None
    chosen = matches.at(images)
    whole = np.ones((1, len(images)))
    drawn = [whole, *_weights(len(images), draws)]
    return np.concatenate([average_precision(chosen, weights) for weights in drawn])


def _mean_iou(runs: Sequence[ImageScores], weights: np.ndarray) -> np.ndarray:
    """Return the mIoU (D,) of the set for weights (D, N) of its images, mean over runs."""
    values = []
    for scores in runs:
        assert scores.intersections is not None
        assert scores.unions is not None
        both = weights @ scores.intersections
        unions = weights @ scores.unions
        iou = np.divide(both, unions, out=np.full(both.shape, np.nan), where=unions > 0)
        known = ~np.isnan(iou)
        values.append(np.nansum(iou, axis=1) / np.maximum(known.sum(axis=1), 1))
    return np.mean(values, axis=0)


def interval(differences: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> tuple[float, float]:
    """Return the interval of the mean of differences (N,) by the percentile bootstrap."""
    means = [
        weights @ differences / len(differences)
        for weights in _weights(len(differences), draws, seed)
    ]
    return _quantiles(np.concatenate(means))


def _weights(count: int, draws: int = DRAWS, seed: int = SEED) -> Iterator[np.ndarray]:
    """Yield how often each of `count` images is drawn, (d, count), in all `draws` rows."""
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // count)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        drawn = generator.integers(0, count, (rows, count))
        drawn += np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def comparisons(settings: Sequence[Setting], most: int) -> list[Comparison]:
    """Compare the best setting with up to `most` that follow it, on every evaluation they share."""
    if len(settings) < 2:
        return []
    best = settings[0]
    rivals = [setting for setting in settings[1:] if setting.contest == best.contest][:most]
    pairs = [(rival, name) for name in evaluations([best]) for rival in rivals]
    found = []
    try:
        with Progress(len(pairs), "comparing image by image", unit="pair") as bar:
            for number, (rival, name) in enumerate(pairs, 1):
                if (comparison := compare(best, rival, name)) is not None:
                    found.append(comparison)
                bar.to(number)
    finally:  # the files may be others the next time
        _matches_in.cache_clear()
        _aps.cache_clear()
    return found
