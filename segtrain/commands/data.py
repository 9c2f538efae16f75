"""`segdata`: look at a data set before a GPU is used: verify, stats, browse, manifest, prepare."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.commands.arguments import take
from segtrain.commands.flags import take_config_dirs
from segtrain.config import parts
from segtrain.config.compose import check, compose_config
from segtrain.config.schema import RunConf, dataset_keys
from segtrain.errors import DataError, UserError, did_you_mean
from segtrain.logs.progress import Progress
from segtrain.runtime import console
from segtrain.runtime.files import write_file

if TYPE_CHECKING:
    import numpy as np

    from segtrain.data.verify import Report
    from segtrain.structures.samples import Sample

HELP = """segdata looks at a data set before a GPU is used.

  segdata verify dataset=camvid dataset.root=DIR  opens every file, checks sizes, labels, boxes
  segdata stats dataset=camvid dataset.root=DIR   pixels, images, objects per class, class weights
  segdata browse dataset=camvid dataset.root=DIR output=browse.png
                                                  samples before and after augmentation (or .html)
  segdata manifest dataset=camvid dataset.root=DIR output=FILE
                                                  SHA-256 of every file, for dataset.manifest=FILE
  segdata prepare dataset=voc dataset.root=DIR    downloads what may be, else says what to fetch
  segdata prepare dataset=cityscapes dataset.root=DIR dataset.cache=DIR
                                                  a cache that training reads by windows

dataset.split=NAME chooses one split; without it, those of training.
output=FILE keeps the report."""

SHOWN = 3  # problems of one kind
MAX_BROWSED = 6  # samples on a browse picture: both views of each, four to a row, fill one screen


def run(arguments: list[str]) -> None:
    """Do what `segdata ACTION dataset=NAME [output=FILE] [...]` asks for."""
    actions = {
        "verify": verify,
        "stats": stats,
        "browse": browse,
        "manifest": manifest,
        "prepare": prepare,
    }
    config_dirs, words = take_config_dirs("segdata", arguments)
    if not words:
        raise UserError(f"say what to do: segdata {'|'.join(actions)} dataset=NAME")
    action, *rest = words
    if action not in actions:
        raise UserError(
            f"segdata {action}: no such action; there are {', '.join(actions)}."
            f"{did_you_mean(action, actions)}"
        )
    taken, overrides = take(rest, "output")
    cfg, _ = compose_config(overrides, config_dirs)
    actions[action](check(cfg), Path(taken["output"]) if "output" in taken else None)


def splits(conf: RunConf) -> list[str]:
    """Return the split asked for, or those that training uses."""
    keys = dataset_keys(conf.dataset)
    if keys.split:
        return [keys.split]
    return list(dict.fromkeys([keys.train_split, keys.val_split]))


def trained_on(conf: RunConf, split: str) -> bool:
    """Tell whether a split is the one that training learns from."""
    return split == dataset_keys(conf.dataset).train_split


def filled_split(conf: RunConf, split: str) -> Any:
    """Return the data set of a split. Errors: DataError also where it has no images."""
    images = parts.dataset(conf.dataset, split)
    if not len(images):
        raise DataError(f"{conf.dataset['_target_']}: the split {split} has no images")
    return images


# ---------------------------------------------------------------------- verify


def verify(conf: RunConf, output: Path | None) -> None:
    """Report everything that is wrong with lists, files, sizes, labels and boxes.

    Errors: DataError after the whole report.
    """
    from segtrain.benchmarks.submission import write_text
    from segtrain.data import fingerprint, sums
    from segtrain.data import splits as between
    from segtrain.data import verify as checks

    problems: list[str] = []
    opened = {}
    for split in splits(conf):
        try:
            images = parts.dataset(conf.dataset, split, tolerant=True)
        except DataError as error:  # the other split is still looked at
            problems.append(str(error))
            continue
        if len(images):
            images.files(0)  # a setting that is missing is no fault of every file
        opened[split] = images
        with Progress(len(images), f"verifying {split}", enabled=conf.log.progress) as bar:
            report = checks.verify_labels(
                images, progress=lambda done, total, bar=bar: bar.to(done), scored=True
            )
        of_split = [*images.problems, *report.problems]
        if not of_split:  # else what is left of the split may hold nothing
            reasons = (
                checks.one_class(images),
                checks.nothing_in(images, report),
                report.agreement.fault(),
                checks.only_class(images, report) if trained_on(conf, split) else "",
            )
            of_split += [f"split {split}: {reason}" for reason in reasons if reason]
        problems += of_split
        print(f"{split}: {report.checked} images, {len(of_split)} problems")
        if report.checked:
            print(class_shares(images.labels.names, report))
        lines = [*checks.notes(images, report), *between.left_out(images)]
        if not trained_on(conf, split) and (constant := checks.only_class(images, report)):
            lines.insert(0, constant)
        for line in lines:
            print(f"  note: {line}")
    if len(opened) == 2:
        for line in (between.shared(*opened.values()), between.in_no_split(opened.values())):
            if line:
                print(f"note: {line}")
    if listed := dataset_keys(conf.dataset).manifest:
        paths = [p for images in opened.values() for p in fingerprint.named_files(images).values()]
        problems += sums.wrong(Path(listed), conf.dataset.get("root"), paths)
    problems = list(dict.fromkeys(problems))  # two splits may share a file
    groups = checks.by_cause(problems)
    for group in groups:
        for problem in group[:SHOWN]:
            print(problem, file=sys.stderr)
        if len(group) > SHOWN:
            print(f"  and {len(group) - SHOWN:,} more of this kind", file=sys.stderr)
    if output is not None:
        write_text(output, "".join(f"{problem}\n" for problem in problems))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        listed = "listed above"
        if any(len(group) > SHOWN for group in groups):
            listed = "the first of each kind above; "
            listed += f"all stand in {output}" if output else "output=FILE keeps all"
        raise DataError(f"{count} in {', '.join(splits(conf))}, {listed}")


def class_shares(names: Sequence[str], report: Report) -> str:
    """Return a line per class: its share of the labelled pixels, or its number of objects."""
    if report.objects.any():
        counts = zip(names, report.objects, strict=False)
        return "\n".join(f"  {name:<24} {count:8,} objects" for name, count in counts)
    total = max(1, int(report.pixels[: len(names)].sum()))
    percent = 100 * report.pixels[: len(names)] / total
    return "\n".join(
        f"  {name:<24} {share:6.2f} % of labelled pixels"
        for name, share in zip(names, percent, strict=True)
    )


# ---------------------------------------------------------------------- stats


def stats(conf: RunConf, output: Path | None) -> None:
    """Print pixels, images and objects per class, image sizes, and class weights to paste."""
    import numpy as np

    from segtrain.benchmarks.submission import write_text
    from segtrain.data.verify import class_weights, survey

    opened = {split: filled_split(conf, split) for split in splits(conf)}
    paragraphs = []
    for split, images in opened.items():
        with Progress(len(images), f"counting {split}", enabled=conf.log.progress) as bar:
            counted = survey(images, progress=lambda done, total, bar=bar: bar.to(done))
        paragraphs.append(
            f"{split}: {len(images)} images\n{size_range(counted.sizes)}\n"
            f"{class_table(images.labels.names, counted)}"
        )
        if split == dataset_keys(conf.dataset).train_split and not counted.objects.any():
            weights = class_weights(counted, images.labels.num_classes)
            paragraphs.append(
                f"median-frequency weights of {split} (1 for a class that does not occur), "
                "and their milder square roots:\n"
                f"{as_override(weights)}\n{as_override(np.sqrt(weights))}"
            )
    print("\n\n".join(paragraphs))
    if output is None:
        console.require_output()  # nobody would have the numbers
    else:
        write_text(output, "\n\n".join(paragraphs) + "\n")


def as_override(weights: Sequence[float] | np.ndarray) -> str:
    """Return class weights as one pastes them into the command line."""
    return f"  loss.class_weights=[{','.join(f'{weight:.4g}' for weight in weights)}]"


def size_range(sizes: Sequence[tuple[int, int]]) -> str:
    """Describe the smallest, median and largest of (height, width), and how many there are."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    low, middle, high = (
        f"{width} x {height}"
        for height, width in (ordered[0], ordered[len(ordered) // 2], ordered[-1])
    )
    return (
        f"  sizes (width x height): smallest {low}, median {middle}, largest {high}; "
        f"{len(set(sizes))} different"
    )


def class_table(names: Sequence[str], counted: Any) -> str:
    """Return a line per class with its pixels, share, images and, where there are any, objects."""
    total = max(1, int(counted.pixels[: len(names)].sum()))
    has_objects = counted.objects.any()
    head = f"  {'class':<24}{'pixels':>16}{'share %':>10}{'images':>10}"
    lines = [head + (f"{'objects':>10}" if has_objects else "")]
    for index, name in enumerate(names):
        pixels = int(counted.pixels[index])
        share = 100 * pixels / total
        line = f"  {name:<24}{pixels:>16,}{share:>10.3f}{int(counted.images[index]):>10,}"
        lines.append(line + (f"{int(counted.objects[index]):>10,}" if has_objects else ""))
    return "\n".join([*lines, f"  {'ignored':<24}{int(counted.pixels[255]):>16,}"])


# ---------------------------------------------------------------------- browse


def browse(conf: RunConf, output: Path | None) -> None:
    """Draw samples before and after augmentation with their labels, as a PNG or an HTML page."""
    import numpy as np

    from segtrain.benchmarks.submission import write_text
    from segtrain.engine.parts import check_new_labels
    from segtrain.visualization import overlays, panels, picture_files

    output = output or Path("browse.png")
    if output.suffix not in (".png", ".html"):
        raise UserError(f"output={output}: a picture ends in .png, a page in .html")
    split = splits(conf)[0]
    images = filled_split(conf, split)
    augment = parts.augment(conf.augment)
    check_new_labels(augment, images)
    rows = []
    for index in range(min(MAX_BROWSED, len(images))):
        stored = images[index]
        rows.append((stored, augment(stored, index)))
    names = list(images.labels.names)
    colors = list(images.labels.colors)
    if output.suffix == ".png":
        tiles = [
            overlays.overlay(sample.image, sample.annotation, names, colors)
            for row in rows
            for sample in row
        ]
        picture = panels.grid(tiles, columns=4)
        present = set().union(*(classes_of(sample) for row in rows for sample in row))
        key = panels.legend(names, colors, present, width=picture.shape[1])
        picture_files.save(output, np.concatenate([picture, key]))
    else:
        write_text(output, page(rows, names, colors, f"{conf.dataset['_target_']} {split}"))
    dropped = [
        augmented.instances.dropped for _, augmented in rows if augmented.instances is not None
    ]
    lost = f"; {sum(dropped)} objects dropped" if dropped else ""
    print(
        f"{output}: {len(rows)} samples of {split}, "
        f"each as stored and as augmented for training{lost}"
    )


def classes_of(sample: Sample) -> set[int]:
    """Return the train ids that a sample holds."""
    import numpy as np

    if sample.instances is not None:
        return set(sample.instances.labels.tolist())
    assert sample.mask is not None
    return set(np.unique(sample.mask).tolist())


def page(
    rows: Sequence[tuple[Sample, Sample]], names: Sequence[str], colors: Sequence[Any], title: str
) -> str:
    """Return one self-contained HTML page: each sample as stored and as augmented."""
    from segtrain.visualization import overlays, panels, picture_files

    def embedded(picture: np.ndarray, style: str = "") -> str:
        encoded = base64.b64encode(picture_files.png(picture)).decode()
        return f'<img src="data:image/png;base64,{encoded}"{style}>'

    blocks = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head><body>"
    ]
    for stored, augmented in rows:
        blocks.append(f"<h3>{html.escape(stored.id)}</h3>")
        for sample in (stored, augmented):
            overlay = overlays.overlay(sample.image, sample.annotation, names, colors)
            blocks += [
                embedded(picture, ' style="max-width:24%"') for picture in (sample.image, overlay)
            ]
        key = panels.legend(names, colors, classes_of(stored) | classes_of(augmented))
        blocks.append(f"<br>{embedded(key)}")
    return "\n".join([*blocks, "</body></html>\n"])


# ---------------------------------------------------------------------- manifest


def manifest(conf: RunConf, output: Path | None) -> None:
    """Write the SHA-256 of every file that the splits are read from, as `sha256sum` does.

    Paths start from `dataset.root`. Errors: DataError for a file that cannot be read.
    """
    from segtrain.data import fingerprint, sums

    if output is None:
        raise UserError("output=FILE: name the file for the sums")
    opened = [filled_split(conf, split) for split in splits(conf)]
    files = [path for images in opened for path in fingerprint.named_files(images).values()]
    if not files:
        raise UserError(f"{conf.dataset['_target_']}: is generated, so there are no files to sum")
    root = sums.root_of(conf.dataset.get("root"), files)
    with Progress(len(files), "summing", enabled=conf.log.progress) as bar:
        content = sums.sums_of(files, root, lambda done, total: bar.to(done))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, content)
    count = content.count(b"\n")
    print(f"{output}: {count:,} files; name it by dataset.manifest={output}")


# ---------------------------------------------------------------------- prepare


def prepare(conf: RunConf, output: Path | None) -> None:
    """Fetch what may be fetched, convert, and make the fast cache that `dataset.cache` names."""
    from segtrain.benchmarks.prepare import prepare as prepare_files
    from segtrain.data.cache import build_cache

    complete = prepare_files(conf)
    cache = dataset_keys(conf.dataset).cache
    uncached = {**conf.dataset, "cache": None}
    # All splits are opened before the first is cached: a fault in one of them costs no work.
    opened = []
    if cache:
        opened = [(s, Path(cache) / s, parts.dataset(uncached, s)) for s in splits(conf)]
    for split, folder, images in opened:
        with Progress(len(images), f"caching {split}", enabled=conf.log.progress) as bar:
            made = build_cache(
                images,
                folder,
                progress=lambda done, total, bar=bar: bar.to(done),
            )
        gigabytes = (made.image_bytes + made.mask_bytes) / 1e9
        speed = made.count / max(made.seconds, 1e-9)
        print(f"{made.folder}: {made.count} images, {gigabytes:.2f} GB, {speed:.0f} images/s")
    if not complete and not opened:  # what a cache was asked of is there
        raise DataError(
            f"{conf.dataset['_target_']}: files are still missing; what to fetch is said above"
        )
