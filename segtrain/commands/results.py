"""Write what `segeval` measured, over nothing but what it wrote there before."""

from __future__ import annotations

import csv
import io
import json
import re
import stat
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.errors import DiskError, UserError, check_name, printable, words_of
from segtrain.runtime.files import replace_file
from segtrain.runtime.run_folder import check_entries

if TYPE_CHECKING:
    import numpy as np

    from segtrain import api
    from segtrain.contracts import Dataset, Evaluator

# What segeval writes; an evaluator of somebody else may have other names.
OURS = (
    "metrics.json",
    "table.txt",
    "images.csv",
    "cost.json",
    "speed.json",
    "confusion.json",
    "matches.json",
    "confusion.png",
    "worst",
)
# Not every measurement writes these anew, and none is to be taken for another's.
NOT_ALWAYS = ("images.csv", "cost.json", "speed.json", "matches.json")
BEGUN = ".segeval"  # there from the first file of a measurement to the last
PICTURE = re.compile(r"\d{2,}_.*\.png")  # of the worst images


def check_output(folder: Path) -> None:
    """Refuse a folder where results would replace what is not of a measurement before.

    Errors: UserError.
    """
    check_name("eval.output", folder)
    check_entries(folder, (BEGUN, *OURS))
    empty = (folder / "worst").is_dir() and not any((folder / "worst").iterdir())
    there = [name for name in OURS if (folder / name).exists() and not (name == "worst" and empty)]
    if there and not is_measured(folder):
        raise UserError(
            f"{folder / there[0]}: was not written by segeval; move it away, or choose another "
            "eval.output"
        )


def is_measured(folder: Path) -> bool:
    """Tell whether `folder` holds a measurement: its metrics.json says by which protocol.

    One that was stopped while it wrote has left `BEGUN`.
    """
    if (folder / BEGUN).is_file():
        return True
    try:
        metrics = json.loads((folder / "metrics.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(metrics, dict) and isinstance(metrics.get("protocol"), dict)


def write_results(
    folder: Path, numbers: Mapping[str, Any], evaluator: Evaluator, protocol: Mapping[str, Any]
) -> None:
    """Write metrics.json, the evaluator's pictures and counts, and print its table.

    A picture that cannot be made is said, and costs no number. Errors: DiskError; UserError where
    a file that segeval did not write is in the way.
    """
    from segtrain.visualization import picture_files

    free = not is_measured(folder)
    counts = {f"{name}.json": counts for name, counts in evaluator.counts().items()}
    pictures = _pictures(evaluator)
    strange = [name for name in (*counts, *pictures) if free and (folder / name).exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / BEGUN, b"")
        for name in NOT_ALWAYS:
            (folder / name).unlink(missing_ok=True)
        for name, content in counts.items():
            if name not in strange:
                replace_file(folder / name, (json.dumps(content) + "\n").encode())
        if scores := evaluator.image_scores():
            replace_file(folder / "images.csv", _images_csv(scores).encode())
        replace_file(folder / "table.txt", (evaluator.table() + "\n").encode())
        for name, picture in pictures.items():
            if name not in strange:
                with said(f"{name} was not drawn"):
                    picture_files.save(folder / name, picture)
        text = json.dumps({**numbers, "protocol": protocol}, indent=2) + "\n"
        replace_file(folder / "metrics.json", text.encode())  # last: then all of them are there
        (folder / BEGUN).unlink()
    except OSError as error:
        raise DiskError(
            f"{folder}: cannot be written ({error.strerror}); choose another eval.output"
        ) from error
    print(evaluator.table())
    overall = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items() if "/" not in name)
    if overall:
        print(overall)
    print(f"{protocol['images']} images of {protocol['split']}; written to {folder}")
    if strange:
        raise UserError(
            f"{folder / strange[0]}: was not written by segeval and is left as it is; the numbers "
            "are in metrics.json. Choose another eval.output"
        )


def _images_csv(scores: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return a row per image with its own scores, an empty cell for none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(printable, ("image", *next(iter(scores.values())))))
    writer.writerows((printable(name), *own.values()) for name, own in scores.items())
    return buffer.getvalue()


@contextmanager
def said(what: str) -> Generator[None]:
    """Do what the scores do not depend on; if it fails, say `what` did not happen."""
    try:
        yield
    except Exception as error:
        warning = f"segeval: {what} ({words_of(error)})"
        print(printable(warning), file=sys.stderr)


def _pictures(evaluator: Evaluator) -> dict[str, np.ndarray]:
    with said("pictures were not drawn"):
        return {f"{name}.png": picture for name, picture in evaluator.pictures().items()}
    return {}


def write_cost(folder: Path, cost: Mapping[str, Any]) -> None:
    """Write cost.json and say what it holds. Errors: DiskError."""
    try:
        replace_file(folder / "cost.json", (json.dumps(cost, indent=2) + "\n").encode())
    except OSError as error:
        raise DiskError(
            f"{folder}: cannot be written ({error.strerror}); choose another eval.output"
        ) from error
    print(
        f"{cost['flops'] / 1e9:.3g} GFLOPs for {cost['image']} of "
        f"{cost['height']} x {cost['width']} pixels, {cost['parameters']:,} parameters"
    )


def draw_worst(
    folder: Path, evaluator: Evaluator, images: Dataset, loaded: api.Loaded, count: int
) -> None:
    """List and draw the images with the lowest score, in place of those of a measurement before."""
    from segtrain.visualization import panels, picture_files

    worst = evaluator.worst(count)
    _remove_pictures(folder / "worst")
    index_of = {sample_id: index for index, sample_id in enumerate(images.ids)}
    for rank, (sample_id, score) in enumerate(worst):
        sample = images[index_of[sample_id]]
        picture = panels.panel(
            sample.image,
            sample.annotation,
            loaded(sample.image, sample_id),
            list(images.labels.names),
            list(images.labels.colors),
            f"{sample_id}: {score:.3f}",
        )
        picture_files.save(folder / "worst" / f"{rank:02d}_{Path(sample_id).name}.png", picture)
    if worst:
        print(
            "worst images: " + ", ".join(f"{sample_id} {score:.3f}" for sample_id, score in worst)
        )


def _remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier measurement, and their folder where nothing else is left.

    Errors: DiskError.
    """
    try:
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            if PICTURE.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise DiskError(f"{folder}: cannot be emptied ({error.strerror})") from error
