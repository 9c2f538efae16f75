"""`segdata`: look at a data set before a GPU is used. verify, stats, browse, prepare."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.benchmarks.submission import write_text
from segtrain.config import parts as parts_module
from segtrain.config.compose import check, compose_config
from segtrain.config.schema import RunConf
from segtrain.data.verify import Report, class_weights, survey, verify_labels
from segtrain.errors import DataError, UserError, did_you_mean
from segtrain.logs.progress import Progress
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Sample
from segtrain.visualization import overlays, panels, picture_files

SHOWN = 6  # samples on a browse picture


def segdata(arguments: list[str]) -> None:
    """`segdata verify|stats|browse|prepare dataset=NAME [output=FILE] [overrides]`."""
    verbs = {"verify": verify, "stats": stats, "browse": browse, "prepare": prepare}
    verb, *rest = arguments
    if verb not in verbs:
        raise UserError(
            f"segdata {verb}: no such action; there are {', '.join(verbs)}.{did_you_mean(verb, verbs)}"
        )
    flags = [a for a in rest if "=" not in a or a.startswith("-")]
    if flags:
        raise UserError(f"{flags[0]}: not understood; arguments are written key=value")
    output = [a.partition("=")[2] for a in rest if a.startswith("output=")]
    cfg, _ = compose_config([a for a in rest if not a.startswith("output=")])
    verbs[verb](check(cfg), Path(output[-1]) if output else None)


def splits(run: RunConf) -> list[str]:
    """The split asked for, or those that training uses."""
    chosen = run.dataset["split"]
    return (
        [chosen]
        if chosen
        else list(dict.fromkeys([run.dataset["train_split"], run.dataset["val_split"]]))
    )


def filled(run: RunConf, split: str) -> Any:
    """The data set of a split. Errors: DataError also where it has no images."""
    images = parts_module.dataset(run.dataset, split)
    if not len(images):
        raise DataError(f"{run.dataset['_target_']}: the split {split} has no images")
    return images


# ---------------------------------------------------------------------- verify


def verify(run: RunConf, output: Path | None) -> None:
    """Lists, files, sizes, labels, boxes: everything that is wrong, in one report. Errors: DataError after it."""
    problems: list[str] = []
    for split in splits(run):
        try:
            images = parts_module.dataset(run.dataset, split, tolerant=True)
        except DataError as error:  # the other split is still looked at
            problems.append(str(error))
            continue
        if len(images) and hasattr(images, "files"):
            images.files(0)  # a setting that is missing is no fault of every file
        with Progress(len(images), f"verifying {split}", enabled=run.log.progress) as bar:
            report = verify_labels(
                images, progress=lambda done, total, bar=bar: bar.to(done), scored=True
            )
        found = [*getattr(images, "problems", []), *report.problems]
        problems += found
        print(f"{split}: {report.checked} images, {len(found)} problems\n{shares(images, report)}")
    problems = list(dict.fromkeys(problems))  # two splits may share a file
    for problem in problems:
        print(problem, file=sys.stderr)
    if output is not None:
        write_text(output, "".join(f"{problem}\n" for problem in problems))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DataError(f"{count} in {', '.join(splits(run))}, listed above")


def shares(images: Any, report: Report) -> str:
    """A line per class: its share of the labelled pixels."""
    names = images.labels.names
    total = max(1, int(report.pixels[: len(names)].sum()))
    percent = 100 * report.pixels[: len(names)] / total
    return "\n".join(
        f"  {name:<24} {p:6.2f} % of labelled pixels"
        for name, p in zip(names, percent, strict=True)
    )


# ---------------------------------------------------------------------- stats


def stats(run: RunConf, output: Path | None) -> None:
    """Pixels, images and objects per class, image sizes, and class weights ready to paste."""
    parts = []
    for split, images in {split: filled(run, split) for split in splits(run)}.items():
        with Progress(len(images), f"counting {split}", enabled=run.log.progress) as bar:
            counted = survey(images, progress=lambda done, total, bar=bar: bar.to(done))
        parts.append(
            f"{split}: {len(images)} images\n{sizes(counted.sizes)}\n{table(images.labels.names, counted)}"
        )
        if split == run.dataset["train_split"] and not counted.objects.any():
            weights = class_weights(counted, images.labels.num_classes)
            head = f"median-frequency weights of {split} (1 for a class that does not occur), and their milder square roots:"
            parts.append("\n".join([head, pasted(weights), pasted(np.sqrt(weights))]))
    print("\n\n".join(parts))
    if output is not None:
        write_text(output, "\n\n".join(parts) + "\n")


def pasted(weights: Sequence[float] | np.ndarray) -> str:
    """Weights as one takes them over to the command line."""
    return f"  loss.class_weights=[{','.join(f'{weight:.4g}' for weight in weights)}]"


def sizes(found: Sequence[tuple[int, int]]) -> str:
    """Smallest, median and largest image, and how many sizes there are."""
    ordered = sorted(found, key=lambda size: size[0] * size[1])
    low, middle, high = (
        f"{width} x {height}"
        for height, width in (ordered[0], ordered[len(ordered) // 2], ordered[-1])
    )
    return f"  sizes (width x height): smallest {low}, median {middle}, largest {high}; {len(set(found))} different"


def table(names: Sequence[str], counted: Any) -> str:
    """A line per class."""
    total = max(1, int(counted.pixels[: len(names)].sum()))
    head = f"  {'class':<24}{'pixels':>16}{'share %':>10}{'images':>10}" + (
        f"{'objects':>10}" if counted.objects.any() else ""
    )
    lines = [head]
    for train, name in enumerate(names):
        pixels, objects = int(counted.pixels[train]), int(counted.objects[train])
        line = f"  {name:<24}{pixels:>16,}{100 * pixels / total:>10.3f}{int(counted.images[train]):>10,}"
        lines.append(line + (f"{objects:>10,}" if counted.objects.any() else ""))
    return "\n".join([*lines, f"  {'ignored':<24}{int(counted.pixels[255]):>16,}"])


# ---------------------------------------------------------------------- browse


def browse(run: RunConf, output: Path | None) -> None:
    """Samples before and after augmentation with their labels: a PNG, or a page where `output` ends in .html."""
    output = output or Path("browse.png")
    if output.suffix not in (".png", ".html"):
        raise UserError(f"output={output}: a picture ends in .png, a page in .html")
    split = splits(run)[0]
    images = filled(run, split)
    augment = parts_module.augment(run.augment)
    rows = [
        (images[index], augment(images[index], index)) for index in range(min(SHOWN, len(images)))
    ]
    names, colors = list(images.labels.names), list(images.labels.colors)
    if output.suffix == ".png":
        tiles = [
            overlays.overlay(shown.image, shown.target, names, colors)
            for row in rows
            for shown in row
        ]
        picture = panels.grid(tiles, columns=4)
        present = set().union(*(classes(shown) for row in rows for shown in row))
        picture_files.save(
            output,
            np.concatenate(
                [picture, panels.legend(names, colors, present, width=picture.shape[1])]
            ),
        )
    else:
        write_text(output, page(rows, names, colors, f"{run.dataset['_target_']} {split}"))
    dropped = [shown.target.dropped for _, shown in rows if isinstance(shown.target, Instances)]
    lost = f"; {sum(dropped)} objects dropped" if dropped else ""
    print(
        f"{output}: {len(rows)} samples of {split}, each as stored and as augmented for training{lost}"
    )


def classes(sample: Sample) -> set[int]:
    """The train ids that a sample holds."""
    target = sample.target.labels.numpy() if isinstance(sample.target, Instances) else sample.target
    return set(np.unique(target).tolist())


def page(
    rows: Sequence[tuple[Sample, Sample]], names: Sequence[str], colors: Sequence[Any], title: str
) -> str:
    """One self-contained HTML page."""
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title></head><body>'
    ]
    for stored, augmented in rows:
        parts.append(f"<h3>{html.escape(stored.id)}</h3>")
        for shown in (stored, augmented):
            overlay = overlays.overlay(shown.image, shown.target, names, colors)
            for picture in (shown.image, overlay):
                encoded = base64.b64encode(picture_files.png(picture)).decode()
                parts.append(f'<img src="data:image/png;base64,{encoded}" style="max-width:24%">')
        encoded = base64.b64encode(
            picture_files.png(panels.legend(names, colors, classes(stored) | classes(augmented)))
        ).decode()
        parts.append(f'<br><img src="data:image/png;base64,{encoded}">')
    return "\n".join([*parts, "</body></html>\n"])


# ---------------------------------------------------------------------- prepare


def prepare(run: RunConf, output: Path | None) -> None:
    """Fetch what may be fetched, convert, and make the fast cache where `dataset.cache` names a folder."""
    from segtrain.benchmarks.prepare import prepare as prepare_files
    from segtrain.data.cache import build_cache

    complete, wanted = prepare_files(run), splits(run) if run.dataset["cache"] else []
    files = {**run.dataset, "cache": None}
    for split, images in {
        split: parts_module.dataset(files, split) for split in wanted
    }.items():  # all open, or none begins
        with Progress(len(images), f"caching {split}", enabled=run.log.progress) as bar:
            made = build_cache(
                images,
                Path(run.dataset["cache"]) / split,
                progress=lambda done, total, bar=bar: bar.to(done),
            )
        size, rate = (
            (made.image_bytes + made.mask_bytes) / 1e9,
            made.count / max(made.seconds, 1e-9),
        )
        print(f"{made.folder}: {made.count} images, {size:.2f} GB, {rate:.0f} images/s")
    if not complete and not wanted:  # what a cache was asked of is there
        raise DataError(
            f"{run.dataset['_target_']}: files are still missing; what to fetch is said above"
        )
