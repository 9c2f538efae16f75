"""Open every image and annotation once, before a GPU is used.

Everything that is wrong is said at once, and everything there is is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segtrain.contracts import Dataset
from segtrain.data.agreement import Agreement, compare
from segtrain.data.images import shown, turn_of
from segtrain.data.splits import listed
from segtrain.data.threads import READER_THREADS, in_threads
from segtrain.errors import SegtrainError, complain, first_of
from segtrain.structures.labels import LabelMap, binary_hint
from segtrain.structures.samples import IGNORE, Fault, Files, Sample

# Before "all are binary" is said of a part of the data set. Chosen by hand: fewer may be chance.
MIN_AGREEING_MASKS = 16
NAMES_SHOWN = 8  # of absent classes: as many as a line shows at a glance
# What differs between two problems of one cause: names in backticks, paths and numbers.
_PARTICULARS = re.compile(r"`[^`]*`|\S*[/\\]\S*|\d[\d.,]*")
TRAIN_IDS = 256  # values of a byte: classes, and IGNORE
Progress = Callable[[int, int], None]  # (done, total)


def _zeros() -> np.ndarray:
    return np.zeros(TRAIN_IDS, np.int64)


@dataclass
class Report:
    """What one pass over samples found. Arrays are (256,) int64 per train id.

    Samples with a problem count in nothing but `checked`.
    """

    checked: int = 0  # samples opened
    problems: list[str] = field(default_factory=list)  # one line for each
    bad: list[Fault] = field(default_factory=list)  # the samples that these are of
    pixels: np.ndarray = field(default_factory=_zeros)
    objects: np.ndarray = field(default_factory=_zeros)  # crowds too
    crowds: int = 0  # regions of many objects, which are neither learned nor counted
    dropped: int = 0  # objects without a pixel or a box
    agreement: Agreement = field(default_factory=Agreement)  # of boxes and areas with masks
    turned: list[str] = field(default_factory=list)  # photos whose tag the labels cannot tell
    # (what is odd about the labels of a sample, its name): see `Dataset.doubts`
    doubts: list[tuple[str, str]] = field(default_factory=list)
    empty: int = 0  # samples without a labelled pixel, or without an object

    def add(self, counts: Counts) -> None:
        """Add what one sample holds."""
        self.pixels += counts.pixels
        self.objects += counts.objects
        self.crowds += counts.crowds
        self.dropped += counts.dropped
        self.agreement += counts.agreement
        self.turned += [counts.turned] if counts.turned else []
        self.doubts += counts.doubts
        self.empty += not (counts.pixels[:IGNORE].any() or counts.objects.any())


class Counts(NamedTuple):
    """What one image holds."""

    size: tuple[int, int]  # height, width
    pixels: np.ndarray  # (256,) per train id
    objects: np.ndarray  # (256,) per train id
    crowds: int = 0
    dropped: int = 0
    agreement: Agreement = Agreement()
    turned: str = ""
    doubts: tuple[tuple[str, str], ...] = ()


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
    spare: int = 0,
) -> Report:
    """Read the samples at `indices` (all) in threads: decoding, equal sizes, legal values.

    `scored`: also the files that only the metric reads. `spare`: samples that may be bad without
    hiding what the others have in common. Raises nothing.
    """
    chosen = list(range(len(dataset))) if indices is None else list(indices)
    report = Report(len(chosen))
    results = _results(dataset, chosen, workers, scored)
    for done, (index, (problem, counts)) in enumerate(zip(chosen, results, strict=True), 1):
        if counts is None:
            report.problems.append(problem)
            report.bad.append(Fault(index, problem))
        else:
            report.add(counts)
        if progress:
            progress(done, len(chosen))
    binary = _binary_masks(dataset.labels, report.pixels)
    enough = len(chosen) >= min(len(dataset), MIN_AGREEING_MASKS)
    if binary and enough and len(report.problems) <= spare:
        report.problems.append(f"{_mask_name(dataset, chosen[0])}: {binary}")
    return report


def merged(reports: Iterable[Report]) -> Report:
    """Return what several passes, each over its share of the samples, found together."""
    total = Report()
    for report in reports:
        for each in fields(Report):
            mine = getattr(total, each.name)
            setattr(total, each.name, mine + getattr(report, each.name))
    return total


def nothing_in(dataset: Dataset, report: Report) -> str:
    """Say that a split holds nothing to learn from or to measure; "" where it holds something.

    `report` is that of the whole split.
    """
    if not report.checked:
        return "has no images"
    if dataset.labelled_with == "masks":
        if report.pixels[:IGNORE].any():
            return ""
        return f"holds no labelled pixel: {_number(report.checked, 'mask')}, all ignored"
    if int(report.objects.sum()) > report.crowds:
        return ""
    return (
        f"holds no object to learn from or to find: {_number(report.checked, 'image')}, "
        f"{_number(report.crowds, 'crowd')}, {report.dropped} without a pixel or a box"
    )


def only_class(dataset: Dataset, report: Report) -> str:
    """Say that all labelled pixels of a split are of one class; "" where there are more, or none.

    Constant labels are learned without looking at an image: the loss nears 0 and the IoU is 1. To
    train on they are nothing; a validation split of them measures little. `report` is that of the
    whole split, of label maps of several classes (see `one_class` for the others).
    """
    labels = dataset.labels
    present = np.flatnonzero(report.pixels[: labels.num_classes]).tolist()
    if dataset.labelled_with != "masks" or labels.num_classes < 2 or len(present) != 1:
        return ""
    name = labels.names[present[0]]
    said = (
        f"every labelled pixel of its {_number(report.checked, 'image')} is `{name}`, which "
        "teaches and measures nothing"
    )
    if "background" not in name.lower():
        return said
    return (
        f"{said}. No object is marked: are the labels where the settings of the data set say, and "
        "in the form that it reads?"
    )


def notes(dataset: Dataset, report: Report) -> list[str]:
    """Return a line for each thing about a whole split that is allowed, but good to know."""
    masks = dataset.labelled_with == "masks"
    what = "a labelled pixel" if masks else "an object"
    held = report.pixels if masks else report.objects
    absent = [name for name, count in zip(dataset.labels.names, held, strict=False) if not count]
    lines = list(dataset.notes)
    if absent and report.checked:
        shown = first_of([f"`{name}`" for name in absent], NAMES_SHOWN)
        lines.append(f"no {'pixel' if masks else 'object'} of {shown}")
    if report.empty:
        lines.append(f"{report.empty} of {_number(report.checked, 'image')} without {what}")
    if report.crowds:
        lines.append(f"{_number(report.crowds, 'crowd')}, neither learned nor counted as missed")
    if report.dropped:
        lines.append(f"{_number(report.dropped, 'object')} without a pixel or a box, left out")
    if report.turned:
        first = listed(report.turned)
        lines.append(
            f"{_number(len(report.turned), 'photo')} turned by the orientation tag within the same "
            f"size ({first}): the labels must be those of the turned photo, which no size tells"
        )
    odd: dict[str, list[str]] = {}
    for doubt, name in report.doubts:
        odd.setdefault(doubt, []).append(name)
    lines += [
        f"{doubt}: {len(names):,} of {_number(report.checked, 'image')} ({listed(names)})"
        for doubt, names in odd.items()
    ]
    return lines + report.agreement.notes()


def one_class(dataset: Dataset) -> str:
    """Say that label maps of one class teach nothing; "" where there are more.

    A softmax over one class is 1 everywhere: the loss is 0 and the IoU 1 from the first step on.
    """
    labels = dataset.labels
    if dataset.labelled_with != "masks" or labels.num_classes > 1:
        return ""
    return (
        f"the data set {labels.name} has one class, `{labels.names[0]}`, so that every pixel is "
        "that class whatever is learned; list what is not it as a class too: "
        "'dataset.labels=[{id: 0, name: background}, {id: 1, name: object}]'"
    )


def by_cause(problems: Iterable[str]) -> list[list[str]]:
    """Group the problems that say the same of different files, in the order of their first."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(_cause(problem), []).append(problem)
    return list(groups.values())


def _cause(problem: str) -> str:
    """Return what a problem says, without the file it says it of and without names and numbers."""
    where, _, what = problem.partition(": ")
    name = Path(where).stem
    if " " in name:  # in a path that stands in the text it would be several words
        what = what.replace(name, "")
    return _PARTICULARS.sub("#", what)


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


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
    """Return for each sample its problem, "" for none, and its counts, None with a problem."""
    read = dataset.scored if scored else dataset.__getitem__

    def look(index: int) -> tuple[str, Counts | None]:
        try:
            counts = _count(read(index))
            files = dataset.files(index)
            name = _mask_name(dataset, index)
            return "", counts._replace(
                turned=_turned(files, counts.size),
                doubts=tuple((doubt, name) for doubt in dataset.doubts(index)),
            )
        except SegtrainError as error:
            return str(error), None

    return in_threads(look, indices, workers)


def _count(sample: Sample) -> Counts:
    size = (sample.image.shape[0], sample.image.shape[1])
    agreement = compare(sample)
    if sample.instances is None:
        assert sample.mask is not None
        pixels = np.bincount(sample.mask.ravel(), minlength=TRAIN_IDS)
        return Counts(size, pixels, _zeros(), agreement=agreement)
    labels = sample.instances.labels.numpy()
    areas = sample.instances.masks.flatten(1).sum(1).numpy()
    pixels = np.bincount(labels, weights=areas, minlength=TRAIN_IDS).astype(np.int64)
    objects = np.bincount(labels, minlength=TRAIN_IDS)
    crowd = sample.instances.crowd
    crowds = 0 if crowd is None else int(crowd.sum())
    return Counts(size, pixels, objects, crowds, sample.instances.dropped, agreement)


def _turned(files: Files | None, size: tuple[int, int]) -> str:
    """Name what an orientation tag turns within its size; "" where the labels can tell.

    They can where the tag of one swaps two sides, as sizes are compared, and where photo and mask
    have the same tag.
    """
    if files is None:
        return ""
    photo = turn_of(files.image)
    mask = 1 if files.annotation is None else turn_of(files.annotation)
    swapped = size[0] != size[1] and min(photo, mask) == 1 and max(photo, mask) >= 5
    if photo == mask or swapped:
        return ""
    return f"{shown(files.image)}: tag {photo}" + (f", its mask: tag {mask}" if mask > 1 else "")


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
