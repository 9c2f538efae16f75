"""`segpredict`: write what a network sees in a user's images."""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segtrain.commands.arguments import take
from segtrain.commands.evaluate import chosen
from segtrain.config.compose import with_overrides
from segtrain.config.schema import dataset_keys
from segtrain.errors import DataError, DiskError, UserError, check_name, check_names, printable
from segtrain.logs.progress import Progress
from segtrain.runtime.files import open_to_append, write_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from segtrain import api
    from segtrain.config.schema import RunConf
    from segtrain.structures.instances import Instances, Segments
    from segtrain.structures.labels import LabelMap

HELP = """segpredict writes a label map (palette PNG) or instances (COCO results JSON), and an \
overlay, for every image.

  segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR [eval.flip=true ...]
  segpredict checkpoint=RUN input=DIR output=DIR inference=slide
  segpredict checkpoint=RUN input=DIR output=DIR eval.submission=DIR
                                              also what the benchmark's server takes
  segpredict checkpoint=RUN input=DIR output=DIR probabilities=true
                                              also <image>.npy, the probabilities (K, H, W) of the
                                              classes as 16-bit floats
  segpredict checkpoint=RUN input=DIR output=DIR annotations=FILE.json
                                              instances under the ids that a COCO file gives the
                                              images by name; without one the id is the name, and
                                              its number on COCO itself"""

ARGUMENTS = ("checkpoint", "input", "output", "annotations", "probabilities")
LISTING = ".segpredict"  # in the output: the names of what we wrote there, which we may replace
WRITTEN = (".png", ".json", ".npy", "_overlay.png")  # ends of the names of what an image may give


def run(arguments: list[str]) -> None:
    """Predict every image of `input=FILE_OR_DIR` with `checkpoint=`, and write to `output=DIR`."""
    taken, overrides = take(
        arguments, "checkpoint", "input", "output", "annotations", "probabilities"
    )
    soft = taken.get("probabilities", "false")
    if soft not in ("true", "false"):
        raise UserError(f"probabilities={soft}: true, or false")
    for name in ("checkpoint", "input", "output"):
        if name not in taken:
            raise UserError(
                f"{name}=... is missing; "
                "segpredict checkpoint=RUN_OR_FILE input=FILE_OR_DIR output=DIR"
            )

    from segtrain import api
    from segtrain.benchmarks.submission import submission, whole
    from segtrain.data.images import read_image
    from segtrain.runtime import distributed
    from segtrain.runtime.distributed import World

    source = chosen(taken["checkpoint"], overrides)
    conf = with_overrides(api.stored_run(source), overrides)
    paths = input_images(Path(taken["input"]))
    output = Path(taken["output"])
    check_output(output, Path(taken["input"]), list(paths.values()))
    check_own(output, [name.as_posix() for name in paths.values()])
    distributed.use_threads(conf.train.threads, 1)
    loaded = api.load(taken["checkpoint"], device=conf.train.device, run=conf, source=source)
    ids = image_ids(paths, taken.get("annotations"), conf)
    inputs = Inputs(loaded.labels, list(paths), [name.as_posix() for name in paths.values()])
    upload = None
    if conf.eval.submission:
        keys = dataset_keys(conf.dataset)
        upload = submission(
            keys.submission,
            Path(conf.eval.submission),
            inputs,
            keys.split or "test",
        )
    bar = Progress(len(paths), "predicting", enabled=conf.log.progress)
    unread: list[DataError] = []
    with whole(conf.eval.submission), bar:
        for done, (path, sample_id) in enumerate(zip(paths, inputs.ids, strict=True), 1):
            try:
                image = read_image(path)
            except DataError as error:
                if upload or len(paths) == 1:  # a server takes all images or none
                    raise
                unread.append(error)
                bar.to(done)
                continue
            if soft == "true":
                found = loaded.probabilities(image, sample_id)
                prediction = found.argmax(0).byte()
            else:
                found = None
                prediction = loaded(image, sample_id)
            if upload:
                upload.add(sample_id, prediction)
            note(output, sample_id)
            write_prediction(output / sample_id, image, prediction, loaded, ids[path])
            if found is not None:
                write_probabilities(output / f"{sample_id}.npy", found)
            bar.to(done)
        packed = upload.finish(World()) if upload else ""
    print(f"{len(paths) - len(unread)} images; predictions and overlays in {output}")
    if packed:
        print(packed)
    if unread:
        for error in unread:
            print(printable(str(error)), file=sys.stderr)
        raise DataError(f"{len(unread)} of {len(paths)} images could not be read; they stand above")


@dataclass(frozen=True)
class Inputs:
    """Images without annotations, as much of a data set as a submission needs."""

    labels: LabelMap
    paths: list[Path]
    ids: list[str]

    def files(self, index: int) -> tuple[Path, None]:
        """Return the image's path and, in place of a mask's, None."""
        return self.paths[index], None


def input_images(source: Path) -> dict[Path, Path]:
    """Return {image: relative name without suffix} of a file, or of a folder and all below it.

    Where two images of a folder differ in their suffix only, all names keep theirs.
    Errors: UserError.
    """
    if source.is_file():
        return {source: Path(source.stem)}
    if not source.is_dir():
        raise UserError(f"input={source}: no such file or folder")
    from segtrain.data.listing import HEIC, SUFFIXES, images_below

    found = images_below(source)
    images = found.images
    if not images:
        beside = f"; there are {found.others}" if found.left_out else ""
        raise UserError(f"input={source}: no images ({', '.join(SUFFIXES)}) in it{beside}")
    if found.left_out:
        convert = " (convert HEIC to JPEG)" if found.left_out.keys() & {*HEIC} else ""
        print(f"left out: {found.others}{convert}")
    names = {path: path.relative_to(source).with_suffix("") for path in images}
    if len(set(names.values())) < len(names):
        names = {path: path.relative_to(source) for path in images}
    return names


def image_ids(
    paths: Mapping[Path, Path], annotations: str | None, conf: RunConf
) -> dict[Path, int | str]:
    """Return the id of every image in a COCO results file.

    It is what a COCO file gives the image of this name; without a file the name itself, which on
    COCO's own images is their number. Errors: DataError for an image that the file lacks or has
    twice.
    """
    from segtrain.benchmarks.coco_results import image_number
    from segtrain.data.coco_index import ids_by_name

    if annotations is None:
        numbered = dataset_keys(conf.dataset).submission == "coco"
        names = {path: name.as_posix() for path, name in paths.items()}
        return {path: image_number(name) if numbered else name for path, name in names.items()}
    known = ids_by_name(Path(annotations))
    by_last: dict[str, list[int]] = {}
    for name, number in known.items():
        by_last.setdefault(Path(name).name, []).append(number)
    ids: dict[Path, int | str] = {}
    for path, name in paths.items():
        whole = name.with_name(path.name).as_posix()
        found = [known[whole]] if whole in known else by_last.get(path.name, [])
        if len(found) != 1:
            what = f"is named by {len(found)} images" if found else "is not named"
            raise DataError(f"{path}: {what} in annotations={annotations}")
        ids[path] = found[0]
    return ids


def check_output(output: Path, source: Path, names: Sequence[Path]) -> None:
    """Refuse an output that replaces an input, becomes one later, or is written twice.

    Errors: UserError.
    """
    written = Counter(
        name.with_name(name.name + end) for name in names for end in (".png", "_overlay.png")
    )
    if source.is_dir():
        among_images = output.resolve().is_relative_to(source.resolve())
    else:
        among_images = source.resolve() in {(output / path).resolve() for path in written}
    if among_images:
        raise UserError(
            f"output={output}: pictures would lie among the images; "
            f"choose a folder outside of input={source}"
        )
    twice = [path for path, times in written.items() if times > 1]
    if twice:
        raise UserError(
            f"input={source}: {output / twice[0]} would be written for two of its images; "
            "rename one"
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
    stem: Path,
    image: np.ndarray,
    prediction: Tensor | Instances | Segments,
    loaded: api.Loaded,
    image_id: int | str,
) -> None:
    """Write <stem>.png or <stem>.json, and <stem>_overlay.png.

    The PNG is a palette image of the data set's own ids, the JSON a COCO results file. The file
    has every object, the picture the best ones (`overlays.overlay`). Errors: DiskError.
    """
    import numpy as np
    from torch import Tensor

    from segtrain.benchmarks.coco_results import category_ids_of, result_entries
    from segtrain.benchmarks.submission import raw_colors, write_text
    from segtrain.visualization import overlays, panels, picture_files

    names = list(loaded.labels.names)
    colors = list(loaded.labels.colors)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"{stem.parent}: cannot be made ({error.strerror}); choose another output"
        ) from error
    picture = overlays.overlay(image, prediction, names, colors)
    if isinstance(prediction, Tensor):
        mask = prediction.cpu().numpy()
        picture_files.save_labels(
            stem.parent / f"{stem.name}.png", loaded.labels.decode(mask), raw_colors(loaded.labels)
        )
        key = panels.legend(names, colors, set(np.unique(mask).tolist()), width=picture.shape[1])
        picture = np.concatenate([picture, key])
    else:
        objects = result_entries(image_id, prediction, category_ids_of(loaded.labels))
        write_text(stem.parent / f"{stem.name}.json", json.dumps(objects))
    picture_files.save(stem.parent / f"{stem.name}_overlay.png", picture)


def write_probabilities(path: Path, found: Tensor) -> None:
    """Write probabilities (K, H, W) as a NumPy file of 16-bit floats. Errors: DiskError."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, found.cpu().numpy().astype(np.float16))
    try:
        write_file(path, buffer.getvalue())
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror}); choose another output"
        ) from error
