"""The fast cache of one split: decoded images, and label masks as train ids.

Training reads only windows of them.

    FOLDER/index.json    what it holds, and size and time of every source file: a cache of other
                         files is refused
           images.bin    see tiles.py
           masks.bin     where every image has a file with its label mask; other annotations come
                         from the data set itself

It pays where decoding is slow (PNG) and takes the disk of the pixels: 8.4 MB for a frame of
Cityscapes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from segtrain.contracts import Dataset
from segtrain.data.images import image_size, shown
from segtrain.data.tiles import AGAIN, TileFile, offsets, tiled
from segtrain.errors import DataError, DiskError, InternalError, UserError
from segtrain.runtime.files import sync, sync_folder, write_synced
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Files, Sample, Target, Truth

FORMAT = 1  # of the files; a cache of another format is made anew
INDEX = "index.json"
IMAGES = "images.bin"
MASKS = "masks.bin"
# Images handed to the threads at a time. Otherwise `map` would make a future for each of 118,287.
IMAGES_AHEAD = 1024
Progress = Callable[[int, int], None]  # (done, total)
T = TypeVar("T")


@dataclass(frozen=True)
class CacheReport:
    """What `build_cache` made: how many images, bytes of the two data files, seconds it took."""

    folder: Path
    count: int
    image_bytes: int
    mask_bytes: int
    seconds: float


class Cached:
    """A data set whose images and label masks come from the cache in `folder`.

    Everything else is the data set's own. Source files are looked at (size and time of change),
    once and here, but not opened. Errors: UserError where there is no cache; DataError where it is
    damaged, or was made from other files or with other labels.
    """

    def __init__(self, dataset: Dataset, folder: str | Path) -> None:
        path = Path(folder).expanduser()
        index = _read_index(path)
        self.dataset = dataset
        self.folder = path
        self.labels = dataset.labels
        self.ids = dataset.ids
        self.labelled = dataset.labelled
        self.labelled_with = dataset.labelled_with
        self.problems = dataset.problems
        self.notes = dataset.notes
        try:
            _check_current(index, dataset, path)
            self._sizes = sizes = np.array(index["sizes"], np.int64).reshape(len(self.ids), 2)
            self._images = TileFile(path / IMAGES, sizes, 3, index["image_checksums"])
            masks = index["mask_checksums"]
            self._masks = None if masks is None else TileFile(path / MASKS, sizes, 0, masks)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{shown(path / INDEX)}: damaged cache ({error!r}); {AGAIN}") from error

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return the data set's own sample, byte for byte."""
        target = self.target(index)
        image = self._images[index].whole()
        return Sample(self.ids[index], image, target.mask, target.instances)

    def lazy(self, index: int) -> Sample:
        """Return the sample with image and mask as `Tiles`, read when a window is taken."""
        image = cast(Any, self._images[index])
        if self._masks is not None:
            return Sample(self.ids[index], image, mask=cast(Any, self._masks[index]))
        target = self.target(index)
        return Sample(self.ids[index], image, target.mask, target.instances)

    def scored(self, index: int) -> Sample:
        """Return the data set's own sample with what the metric compares with."""
        return self.dataset.scored(index)

    def target(self, index: int) -> Target:
        """Return what the sample is labelled with, without reading its image."""
        if self._masks is None:
            return self.dataset.target(index)
        return Target(mask=self._masks[index].whole())

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with, without reading the image."""
        return self.dataset.truth(index)

    def files(self, index: int) -> Files | None:
        """Return the files that the cached sample was read from."""
        return self.dataset.files(index)

    def extra_files(self) -> Mapping[str, Path]:
        """Return what is read beside `files`."""
        return self.dataset.extra_files()

    def doubts(self, index: int) -> Sequence[str]:
        """Return what is odd about the labels of a sample, though it may be meant."""
        return self.dataset.doubts(index)

    def sizes(self) -> np.ndarray:
        """Return (N, 2) height and width of every image."""
        return self._sizes.copy()

    def encode_prediction(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Return the train ids of a label map that another program predicted."""
        return self.dataset.encode_prediction(raw, where)


# ---------------------------------------------------------------------- what a cache was made of


def _label_record(labels: LabelMap) -> dict[str, list]:
    return {"names": list(labels.names), "raw": [[raw, train] for raw, train in labels.raw.items()]}


def _fingerprint(path: Path) -> list[int]:
    """Return [bytes, nanoseconds of the last change] of a file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    return [status.st_size, status.st_mtime_ns]


def _sources(dataset: Dataset, index: int, masked: bool) -> list[Path]:
    """Return the files that the cached part of a sample is read from."""
    files = dataset.files(index)
    if files is None:
        raise InternalError(f"{dataset.ids[index]}: has no files, but others of its set have")
    if masked and files.annotation is not None:
        return [files.image, files.annotation]
    return [files.image]


def _read_index(folder: Path) -> Mapping[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"dataset.cache: no cache in {shown(folder)}; "
            "make it with segdata prepare, or set it to null"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{shown(path)}: damaged cache ({error}); {AGAIN}") from error
    if version != FORMAT:
        raise DataError(
            f"{shown(path)}: a cache of format {version}, but this version reads {FORMAT}; {AGAIN}"
        )
    return index


def _check_current(index: Mapping[str, Any], dataset: Dataset, folder: Path) -> None:
    """Refuse a cache that was made of another data set, or of files that changed. DataError."""
    old = f"{shown(folder)}: an old cache"
    if index["ids"] != dataset.ids:
        other = next(
            (b for a, b in zip(index["ids"], dataset.ids, strict=False) if a != b),
            "the number of images",
        )
        raise DataError(
            f"{old}: it holds other images than the data set ({other} differs); {AGAIN}"
        )
    masked = index["mask_checksums"] is not None
    if masked and index["labels"] != _label_record(dataset.labels):
        raise DataError(f"{old}: its masks were made with other labels; {AGAIN}")
    for number, known in zip(range(len(dataset)), index["sources"], strict=True):
        paths = _sources(dataset, number, masked)
        for path, before in zip(paths, known, strict=True):
            if _fingerprint(path) != before:
                raise DataError(f"{old}: {shown(path)} was changed after it was made; {AGAIN}")


# ---------------------------------------------------------------------- building


def build_cache(
    dataset: Dataset, folder: str | Path, workers: int = 8, progress: Progress | None = None
) -> CacheReport:
    """Write the cache of `dataset` to `folder`, whole or not at all.

    The bytes are the same for any number of threads; 8 are chosen by hand. An older cache there
    gives way at the end.
    Errors: DataError for the first bad sample, DiskError, UserError.
    """
    started = time.perf_counter()
    path = Path(folder).expanduser()
    total = len(dataset)
    first = dataset.files(0) if total else None
    if total and first is None:
        raise UserError(
            "dataset.cache: these images are not read from files, so a cache makes nothing faster"
        )
    _check_own(path)
    has_mask_files = first is not None and first.annotation is not None
    masked = has_mask_files and dataset.labelled_with == "masks"

    def look(number: int) -> tuple[list[list[int]], tuple[int, int]]:
        paths = _sources(dataset, number, masked)
        return [_fingerprint(p) for p in paths], image_size(paths[0])

    looked = list(_in_order(look, total, workers))
    sizes = np.array([size for _, size in looked], np.int64).reshape(total, 2)
    starts = {IMAGES: offsets(sizes, 3)}
    if masked:
        starts[MASKS] = offsets(sizes, 1)
    need = sum(int(start[-1]) for start in starts.values())
    with _refusals(path, need), _workplace(path) as temporary:
        if need > (free := shutil.disk_usage(temporary).free):
            raise DiskError(_no_room(path, need, free))
        checksums = _write_tiles(dataset, temporary, sizes, starts, workers, progress)
        index = {
            "format": FORMAT,
            "labels": _label_record(dataset.labels) if masked else None,
            "ids": list(dataset.ids),
            "sizes": sizes.tolist(),
            "image_checksums": checksums[IMAGES],
            "mask_checksums": checksums.get(MASKS),
            "sources": [sources for sources, _ in looked],
        }
        write_synced(temporary / INDEX, lambda file: file.write(json.dumps(index).encode()))
        _put_in_place(temporary, path)
    lengths = {name: int(start[-1]) for name, start in starts.items()}
    return CacheReport(
        path, total, lengths[IMAGES], lengths.get(MASKS, 0), time.perf_counter() - started
    )


def _in_order(work: Callable[[int], T], total: int, workers: int) -> Iterator[T]:
    """Yield `work(i)` of every i in order.

    It is done by threads, as decoding releases the GIL, or, with 0 workers, here.
    """
    if workers < 1:
        yield from map(work, range(total))
        return
    pool = ThreadPoolExecutor(workers)
    try:
        for start in range(0, total, IMAGES_AHEAD):
            yield from pool.map(work, range(start, min(total, start + IMAGES_AHEAD)))
    finally:
        # A bad sample does not wait for the rest, a signal not even for what is being read.
        pool.shutdown(wait=not _stopped(), cancel_futures=True)


def _stopped() -> bool:
    """Tell whether a signal is the reason for cleaning up."""
    return isinstance(sys.exception(), KeyboardInterrupt)


def _write_tiles(
    dataset: Dataset,
    folder: Path,
    sizes: np.ndarray,
    starts: Mapping[str, np.ndarray],
    workers: int,
    progress: Progress | None,
) -> dict[str, list[int]]:
    """Write the data files to the disk; return for each the crc32 of every image's bytes.

    Errors: UserError for a sample that is not of its file's size, of `sizes` (N, 2), as windows are
    not.
    """
    files = {name: os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o666) for name in starts}

    def store(number: int) -> dict[str, int]:
        sample = dataset[number]
        parts = {IMAGES: sample.image, MASKS: sample.mask}
        checksums = {}
        for name in files:
            pixels = np.asarray(parts[name])
            tiles = tiled(pixels)
            if list(pixels.shape[:2]) != sizes[number].tolist():
                raise UserError(
                    f"dataset.cache: {sample.id}: its size {pixels.shape[:2]} is not that in its "
                    "file's header; only whole images can be cached, set it to null"
                )
            _write_at(files[name], tiles, int(starts[name][number]))
            checksums[name] = zlib.crc32(tiles.data)
        return checksums

    checksums: dict[str, list[int]] = {name: [] for name in files}
    try:
        for done, stored in enumerate(_in_order(store, len(dataset), workers), 1):
            for name, checksum in stored.items():
                checksums[name].append(checksum)
            if progress:
                progress(done, len(dataset))
        for descriptor in files.values():
            sync(descriptor)
    finally:
        # After a signal a thread may still be writing, and the number of a file that is closed may
        # be given to another one.
        if not _stopped():
            for descriptor in files.values():
                os.close(descriptor)
    return checksums


def _write_at(descriptor: int, data: np.ndarray, offset: int) -> None:
    rest = data.data.cast("B")
    while rest:  # a disk that fills up may take a part
        count = os.pwrite(descriptor, rest, offset)
        rest = rest[count:]
        offset += count


def _check_own(folder: Path) -> None:
    """Refuse a `folder` that holds anything else than an older cache: it would be deleted.

    Errors: UserError.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"dataset.cache={shown(folder)}: is a file; name a folder")
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if foreign := [name for name in names if name not in (INDEX, IMAGES, MASKS)]:
        raise UserError(
            f"dataset.cache={shown(folder)}: holds other files ({foreign[0]}); "
            "name a folder of its own"
        )


@contextmanager
def _workplace(folder: Path) -> Generator[Path]:
    """Give an empty folder beside `folder` that is this process's alone, and gone at the end.

    What a killed build left there is deleted too.
    """
    temporary = folder.with_name(f".{folder.name}.building")
    temporary.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(temporary / IMAGES, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, temporary / IMAGES)
        try:
            os.truncate(descriptor, 0)
            for name in (INDEX, MASKS):
                (temporary / name).unlink(missing_ok=True)
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """Lock the file. UserError where another process builds, or has just moved what it built."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        mine = False
    if not mine:
        raise UserError(f"{shown(path.parent)}: another process is making this cache; wait for it")


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`; an older cache moves aside first, then goes."""
    sync_folder(temporary)
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    temporary.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _refusals(folder: Path, need: int) -> Generator[None]:
    """Turn what the disk refuses into a DiskError."""
    try:
        yield
    except OSError as error:
        try:
            free = shutil.disk_usage(folder.parent).free
        except OSError:
            free = 0
        raise DiskError(f"{_no_room(folder, need, free)} ({error.strerror or error})") from error


def _no_room(folder: Path, need: int, free: int) -> str:
    sizes = f"it needs {need:,} bytes, {free:,} are free"
    return (
        f"{shown(folder)}: the cache was not made: {sizes}; "
        "make room or set dataset.cache to another disk"
    )
