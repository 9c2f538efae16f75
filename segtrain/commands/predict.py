"""`segpredict`: write what a network sees in a user's images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segtrain import api
from segtrain.benchmarks.coco_results import category_ids_of, result_entries
from segtrain.benchmarks.submission import raw_colors, submission, write_text
from segtrain.commands.arguments import take
from segtrain.commands.evaluate import chosen
from segtrain.config.compose import with_overrides
from segtrain.data.images import read_image
from segtrain.errors import DiskError, UserError
from segtrain.logs.progress import Progress
from segtrain.runtime import distributed
from segtrain.runtime.distributed import World
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap
from segtrain.visualization import overlays, panels, picture_files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def segpredict(arguments: list[str]) -> None:
    """`segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR [overrides]`."""
    taken, overrides = take(arguments, "checkpoint", "input", "output")
    for name in ("checkpoint", "input", "output"):
        if name not in taken:
            raise UserError(
                f"{name}=... is missing; segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR"
            )
    source = chosen(taken["checkpoint"], overrides)
    run = with_overrides(api.stored_run(source), overrides)
    paths = input_images(Path(taken["input"]))
    output, place = Path(taken["output"]), run.eval.submission
    check_output(output, Path(taken["input"]), list(paths.values()))
    distributed.use_threads(run.train.threads, 1)
    loaded = api.load(taken["checkpoint"], device=run.train.device, run=run, source=source)
    inputs = Inputs(loaded.labels, list(paths), [name.as_posix() for name in paths.values()])
    split = run.dataset["split"] or "test"
    upload = (
        submission(run.dataset.get("submission"), Path(place), inputs, split) if place else None
    )
    with Progress(len(paths), "predicting", enabled=run.log.progress) as bar:
        for done, (path, sample_id) in enumerate(zip(paths, inputs.ids, strict=True), 1):
            image = read_image(path)
            prediction = loaded(image, sample_id)
            if upload:
                upload.add(sample_id, prediction)
            write_prediction(output / sample_id, image, prediction, loaded)
            bar.to(done)
    print(f"{len(paths)} images; predictions and overlays in {output}")
    if upload:
        print(upload.finish(World()))


@dataclass(frozen=True)
class Inputs:
    """Images without annotations, as much of a data set as a submission needs."""

    labels: LabelMap
    paths: list[Path]
    ids: list[str]

    def files(self, index: int) -> tuple[Path, None]:
        """(image path, no mask)."""
        return self.paths[index], None


def input_images(source: Path) -> dict[Path, Path]:
    """{image: relative name without suffix} of a file or of a folder and everything below it. Errors: UserError."""
    if source.is_file():
        return {source: Path(source.stem)}
    if not source.is_dir():
        raise UserError(f"input={source}: no such file or folder")
    found = sorted(
        p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )
    if not found:
        raise UserError(f"input={source}: no images ({', '.join(IMAGE_SUFFIXES)}) in it")
    names = {path: path.relative_to(source).with_suffix("") for path in found}
    if len(set(names.values())) < len(names):
        names = {path: path.relative_to(source) for path in found}  # a.jpg beside a.png
    return names


def check_output(output: Path, source: Path, names: Sequence[Path]) -> None:
    """Nothing that is written may replace an input, be taken for one later, or be written twice. Errors: UserError."""
    written = Counter(
        name.with_name(name.name + end) for name in names for end in (".png", "_overlay.png")
    )
    if source.is_dir():
        among = output.resolve().is_relative_to(source.resolve())
    else:
        among = source.resolve() in {(output / path).resolve() for path in written}
    if among:
        raise UserError(
            f"output={output}: pictures would lie among the images; choose a folder outside of input={source}"
        )
    if twice := [path for path, times in written.items() if times > 1]:
        raise UserError(
            f"input={source}: {output / twice[0]} would be written for two of its images; rename one"
        )


def write_prediction(stem: Path, image: np.ndarray, prediction: Any, loaded: api.Loaded) -> None:
    """<stem>.png, a palette PNG of the data set's own ids, or <stem>.json, a COCO results file; and <stem>_overlay.png.

    The file has every object, the picture the best ones (`overlays.overlay`).
    """
    names, colors = list(loaded.labels.names), list(loaded.labels.colors)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"{stem.parent}: cannot be made ({error.strerror}); choose another output"
        ) from error
    picture = overlays.overlay(image, prediction, names, colors)
    if isinstance(prediction, (Instances, Segments)):
        found = result_entries(stem.name, prediction, category_ids_of(loaded.labels))
        write_text(stem.parent / f"{stem.name}.json", json.dumps(found))
    else:
        mask = prediction.cpu().numpy()
        picture_files.save_labels(
            stem.parent / f"{stem.name}.png", loaded.labels.decode(mask), raw_colors(loaded.labels)
        )
        key = panels.legend(names, colors, set(np.unique(mask).tolist()), width=picture.shape[1])
        picture = np.concatenate([picture, key])
    picture_files.save(stem.parent / f"{stem.name}_overlay.png", picture)
