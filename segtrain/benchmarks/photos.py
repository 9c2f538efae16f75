"""Write what a network sees in a user's photos: label maps or objects, and pictures of them.

Of each photo NAME it writes NAME.png, a palette image of the data set's own class ids, or NAME.json
in the form of COCO's results, and NAME_overlay.png.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from segtrain.benchmarks.coco_results import category_ids_of, name_number, result_entries
from segtrain.benchmarks.submission import raw_colors, submission, whole, write_text
from segtrain.config.schema import RunConf, dataset_keys
from segtrain.contracts import Prediction
from segtrain.data.coco_names import ImageNames
from segtrain.data.images import read_image
from segtrain.data.listing import SUFFIXES, images_below, in_words
from segtrain.errors import DataError, DiskError, UserError, check_name, check_names, words_of
from segtrain.logs.progress import Progress
from segtrain.runtime.distributed import World
from segtrain.runtime.files import open_to_append, write_file
from segtrain.structures.labels import LabelMap
from segtrain.visualization import overlays, panels, picture_files
from segtrain.visualization.text import captioned

LISTING = ".segpredict"  # in the output: the names of what we wrote there, which we may replace
WRITTEN = (".png", ".json", ".npy", "_overlay.png")  # ends of the names of what an image may give
Written = np.ndarray | list[dict[str, Any]]  # what a file of one image holds
Predict = Callable[[np.ndarray, str], Prediction]  # of an image and its id


@dataclass(frozen=True)
class Predicted:
    """What became of a user's photos."""

    files: dict[Path, Path]  # of each photo its label map, or its objects
    unread: dict[Path, DataError]  # photos that could not be read, and why
    undrawn: dict[Path, str]  # photos whose overlay could not be made, and why
    left_out: str  # what else lies there, in words; "" for nothing
    packed: str  # what was packed for a server, in words; "" for nothing

    def complain(self, where: str = "") -> None:
        """Raise DataError where photos could not be read: the first, or `where` they are named."""
        if self.unread:
            count = f"{len(self.unread)} of {len(self.unread) + len(self.files)} images"
            first = next(iter(self.unread.values()))
            raise DataError(f"{count} could not be read; {where or f'the first: {first}'}")


def predict_photos(
    source: Path,
    output: Path,
    labels: LabelMap,
    conf: RunConf,
    predict: Predict,
    *,
    probabilities: Callable[[np.ndarray, str], Tensor] | None = None,
    annotations: Path | None = None,
) -> Predicted:
    """Predict a photo, or all in a folder and below, and write to `output`.

    `probabilities` of an image (K, H, W), where they are written too; the label map is then the
    class of the largest. `annotations` is a COCO file that gives images their ids by name. Of
    several photos one that cannot be read costs none of the others; a submission
    (`conf.eval.submission`) takes all or none.

    Errors: UserError for input and output, DataError, DiskError.
    """
    photos, left_out = input_images(source)
    done = Predicted({}, {}, {}, left_out, "")
    if len(photos) > 1:
        done.unread.update(_badly_named(photos))
        photos = {path: name for path, name in photos.items() if path not in done.unread}
    check_output(output, source, list(photos.values()))
    names = [name.as_posix() for name in photos.values()]
    check_own(output, names)
    ids = image_ids(photos, annotations, conf)
    upload = None
    if conf.eval.submission:
        keys = dataset_keys(conf.dataset)
        inputs = Inputs(labels, list(photos), names)
        folder = Path(conf.eval.submission)
        upload = submission(keys.submission, folder, inputs, keys.split or "test")
    bar = Progress(len(photos), "predicting", enabled=conf.log.progress)
    with whole(conf.eval.submission), bar:
        for count, (path, name) in enumerate(zip(photos, names, strict=True), 1):
            try:
                image = read_image(path)
            except DataError as error:
                if upload or len(photos) + len(done.unread) == 1:
                    raise
                done.unread[path] = error
                bar.to(count)
                continue
            found = probabilities(image, name) if probabilities else None
            prediction = predict(image, name) if found is None else found.argmax(0).byte()
            if upload:
                upload.add(name, prediction)
            note(output, name)
            done.files[path] = write_prediction(output / name, prediction, labels, ids[path])
            try:
                draw_overlay(output / f"{name}_overlay.png", image, prediction, labels)
            except Exception as error:  # a picture only describes what is written
                done.undrawn[path] = words_of(error)
            if found is not None:
                write_probabilities(output / f"{name}.npy", found)
            bar.to(count)
        packed = upload.finish(World()) if upload else ""
    return replace(done, packed=packed)


@dataclass(frozen=True)
class Inputs:
    """Images without annotations, as much of a data set as a submission needs."""

    labels: LabelMap
    paths: list[Path]
    ids: list[str]

    def files(self, index: int) -> tuple[Path, None]:
        """Return the image's path and, in place of a mask's, None."""
        return self.paths[index], None


def input_images(source: Path) -> tuple[dict[Path, Path], str]:
    """Return {image: relative name without suffix} of a file, or of a folder and all below it.

    And in words what else lies in the folder. Where two images would be written to one file, as
    those that differ in their suffix only, all names keep theirs. Errors: UserError.
    """
    if source.is_file():
        return {source: Path(source.stem)}, ""
    if not source.is_dir():
        raise UserError(f"input={source}: no such file or folder")
    found = images_below(source)
    images = found.images
    if not images:
        beside = f"; there are {in_words(found.left_out)}" if found.left_out else ""
        raise UserError(f"input={source}: no images ({', '.join(SUFFIXES)}) in it{beside}")
    names = {path: path.relative_to(source).with_suffix("") for path in images}
    if max(_written(names.values()).values()) > 1:
        names = {path: path.relative_to(source) for path in images}
    return names, in_words(found.left_out)


def _written(names: Iterable[Path]) -> Counter[Path]:
    """Return the pictures that photos of these names give, and how often each is written."""
    return Counter(
        name.with_name(name.name + end) for name in names for end in (".png", "_overlay.png")
    )


def _badly_named(photos: Mapping[Path, Path]) -> dict[Path, DataError]:
    """Return the photos whose names can be no names of files here, and why."""
    bad = {}
    for path, name in photos.items():
        try:
            check_name("input", name)
        except UserError as error:
            bad[path] = DataError(str(error))
    return bad


def image_ids(
    paths: Mapping[Path, Path], annotations: Path | None, conf: RunConf
) -> dict[Path, int | str]:
    """Return the id of every image in a COCO results file.

    It is what a COCO file gives the image of this name; without a file the name itself, and on COCO
    its number where it is twelve digits (`name_number`). Errors: DataError for an image that the
    file lacks or has twice, and for two images of one id.
    """
    if annotations is None:
        numbered = dataset_keys(conf.dataset).submission == "coco"
        names = {path: name.as_posix() for path, name in paths.items()}
        return {path: name_number(name) if numbered else name for path, name in names.items()}
    named = ImageNames(annotations)
    ids: dict[Path, int | str] = {}
    owner: dict[int | str, Path] = {}
    for path, name in paths.items():
        ids[path] = named.id_of(path, name.with_name(path.name).as_posix())
        first = owner.setdefault(ids[path], path)
        if first != path:
            raise DataError(
                f"{first} and {path}: both are image {ids[path]} by their names in "
                f"annotations={annotations}; predict one of them"
            )
    return ids


def check_output(output: Path, source: Path, names: Sequence[Path]) -> None:
    """Refuse an output that replaces an input, or becomes one later. Errors: UserError."""
    if source.is_dir():
        among_images = output.resolve().is_relative_to(source.resolve())
    else:
        among_images = source.resolve() in {(output / path).resolve() for path in _written(names)}
    if among_images:
        raise UserError(
            f"output={output}: pictures would lie among the images; "
            f"choose a folder outside of input={source}"
        )


def check_own(output: Path, ids: Sequence[str]) -> None:
    """Refuse an output where pictures would replace what segpredict did not write.

    Errors: UserError.
    """
    check_name("output", output)
    check_names("input", ids)
    known = predicted_before(output)
    for name in (f"{sample_id}{end}" for sample_id in ids for end in WRITTEN):
        path = output / name
        if os.path.lexists(path) and (name not in known or path.is_symlink()):
            raise UserError(
                f"{path}: was not written by segpredict; choose another output, or move it away"
            )


def predicted_before(output: Path) -> set[str]:
    """Return the names of the files that segpredict wrote in a folder."""
    listing = output / LISTING
    if not os.path.lexists(listing):
        return set()
    if listing.is_symlink() or not listing.is_file():
        raise UserError(f"{listing}: is no plain file; choose another output")
    return set(listing.read_text().splitlines())


def note(output: Path, sample_id: str) -> None:
    """Write down that the files of one image are ours, before they are written. DiskError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with open_to_append(output / LISTING) as listing:
            listing.write("".join(f"{sample_id}{end}\n" for end in WRITTEN).encode())
    except OSError as error:
        raise DiskError(
            f"{output}: cannot be written ({error.strerror}); choose another output"
        ) from error


def write_prediction(
    stem: Path, prediction: Prediction, labels: LabelMap, image_id: int | str
) -> Path:
    """Write <stem>.png, a palette image of the data set's own ids, or <stem>.json, COCO results.

    Returns which. Errors: DiskError.
    """
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"{stem.parent}: cannot be made ({error.strerror}); choose another output"
        ) from error
    written = as_written(prediction, labels, image_id)
    if isinstance(written, np.ndarray):
        path = stem.parent / f"{stem.name}.png"
        picture_files.save_labels(path, written, raw_colors(labels))
    else:
        path = stem.parent / f"{stem.name}.json"
        write_text(path, json.dumps(written))
    return path


def as_written(prediction: Prediction, labels: LabelMap, image_id: int | str) -> Written:
    """Return a prediction in the data set's own ids, as the file of one image holds it.

    It is a label map (H, W), or objects in the form of COCO's results.
    """
    if isinstance(prediction, Tensor):
        return labels.decode(prediction.cpu().numpy())
    return result_entries(image_id, prediction, category_ids_of(labels))


def draw_overlay(path: Path, image: np.ndarray, prediction: Prediction, labels: LabelMap) -> None:
    """Draw a prediction over its photo, with a key of the classes of a label map.

    The file of a prediction has every object, the picture the best ones (`overlays.overlay`), and
    says above how many. Errors: DiskError.
    """
    names = list(labels.names)
    colors = list(labels.colors)
    picture = overlays.overlay(image, prediction, names, colors)
    if isinstance(prediction, Tensor):
        present = set(prediction.unique().tolist())
        key = panels.legend(names, colors, present, width=picture.shape[1])
        picture = np.concatenate([picture, key])
    elif caption := panels.counted(prediction):
        picture = captioned(picture, caption)
    picture_files.save(path, picture)


def write_probabilities(path: Path, found: Tensor) -> None:
    """Write probabilities (K, H, W) as a NumPy file of 16-bit floats. Errors: DiskError."""
    buffer = io.BytesIO()
    np.save(buffer, found.cpu().numpy().astype(np.float16))
    try:
        write_file(path, buffer.getvalue())
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror}); choose another output"
        ) from error
