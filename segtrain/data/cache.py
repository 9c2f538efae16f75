"""The fast cache of one split: decoded images, and label masks as train ids, of which training reads only windows.

    FOLDER/index.json    what it holds, and size and time of every source file: a cache of other files is refused
           images.bin    see tiles.py
           masks.bin     where every image has a file with its label mask; other targets come from the data set itself

It pays where decoding is slow (PNG) and takes the disk of the pixels: 8.4 MB for a frame of Cityscapes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from segtrain.data.images import image_size, shown
from segtrain.data.tiles import AGAIN, TileFile, offsets, tiled
from segtrain.errors import DataError, DiskError, InternalError, UserError
from segtrain.runtime.files import sync_folder, write_synced
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Sample

FORMAT = 1
INDEX, IMAGES, MASKS = "index.json", "images.bin", "masks.bin"
AHEAD = 1024  # images handed to the threads at a time
Progress = Callable[[int, int], None]  # (done, total)
T = TypeVar("T")


class Source(Protocol):
    """What is needed of a data set. It may have `target(i)`, the target without the image, and `scored(i)`."""

    labels: LabelMap
    ids: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def files(self, index: int) -> tuple[Path, Path | None]: ...


@dataclass(frozen=True)
class CacheReport:
    """What `build_cache` made: images, bytes of the two data files, seconds it took."""

    folder: Path
    count: int
    image_bytes: int
    mask_bytes: int
    seconds: float


class Cached:
    """A data set whose images and label masks come from the cache in `folder`. Everything else is the data set's own.

    Source files are looked at (size and time of change), once and here, but not opened. UserError where there is no cache;
    DataError where it is damaged, or was made from other files or with other labels.
    """

    def __init__(self, dataset: Source, folder: str | Path) -> None:
        path = Path(folder).expanduser()
        index = _read_index(path)
        self.dataset, self.folder, self.labels, self.ids = (
            dataset,
            path,
            dataset.labels,
            dataset.ids,
        )
        try:
            _check_current(index, dataset, path)
            self._sizes = sizes = np.array(index["sizes"], np.int64).reshape(len(self.ids), 2)
            self._images = TileFile(path / IMAGES, sizes, 3, index["image_checksums"])
            masks = index["mask_checksums"]
            self._masks = None if masks is None else TileFile(path / MASKS, sizes, 0, masks)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{shown(path / INDEX)}: damaged cache ({error!r}); {AGAIN}") from error

    def __getattr__(self, name: str) -> Any:
        """`problems`, `labelled`, `files`, `scored` and what else the data set has."""
        if name == "dataset" or name.startswith("__"):  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """The data set's own sample, byte for byte."""
        return self._sample(index, self._images[index].whole(), self.target(index))

    def sizes(self) -> np.ndarray:
        """(N, 2) height and width of every image."""
        return self._sizes.copy()

    def lazy(self, index: int) -> Sample:
        """The sample with image and mask as `Tiles`, which are read when a window is taken."""
        target = self.target(index) if self._masks is None else cast(Any, self._masks[index])
        return self._sample(index, cast(Any, self._images[index]), target)

    def _sample(self, index: int, image: np.ndarray, target: np.ndarray | Instances) -> Sample:
        if isinstance(target, Instances):
            return Sample(self.ids[index], image, instances=target)
        return Sample(self.ids[index], image, mask=target)

    def target(self, index: int) -> np.ndarray | Instances:
        """The target without its image."""
        return _target(self.dataset, index) if self._masks is None else self._masks[index].whole()


def _target(dataset: Source, index: int) -> np.ndarray | Instances:
    target = getattr(dataset, "target", None)
    return target(index) if target else dataset[index].annotation


# ---------------------------------------------------------------------- what a cache was made of


def _label_record(labels: LabelMap) -> dict[str, list]:
    return {"names": list(labels.names), "raw": [[raw, train] for raw, train in labels.raw.items()]}


def _fingerprint(path: Path) -> list[int]:
    """[bytes, nanoseconds of the last change]"""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    return [found.st_size, found.st_mtime_ns]


def _sources(dataset: Source, index: int, masked: bool) -> list[Path]:
    """The files that the cached part of a sample is read from."""
    image, mask = dataset.files(index)
    return [image, mask] if masked and mask is not None else [image]


def _read_index(folder: Path) -> Mapping[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"dataset.cache: no cache in {shown(folder)}; make it with segdata prepare, or set it to null"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found = index["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{shown(path)}: damaged cache ({error}); {AGAIN}") from error
    if found != FORMAT:
        raise DataError(
            f"{shown(path)}: a cache of format {found}, but this version reads {FORMAT}; {AGAIN}"
        )
    return index


def _check_current(index: Mapping[str, Any], dataset: Source, folder: Path) -> None:
    """DataError where the data set is not what the cache was made of."""
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
    dataset: Source, folder: str | Path, workers: int = 8, progress: Progress | None = None
) -> CacheReport:
    """Write the cache of `dataset` to `folder`, whole or not at all, with the same bytes for any number of threads.

    An older cache there gives way at the end. Errors: DataError for the first bad sample, DiskError, UserError.
    """
    started, path = time.perf_counter(), Path(folder).expanduser()
    if not hasattr(dataset, "files"):
        raise UserError(
            "dataset.cache: these images are not read from files, so a cache makes nothing faster"
        )
    _check_own(path)
    total = len(dataset)
    masked = (
        total > 0
        and dataset.files(0)[1] is not None
        and isinstance(_target(dataset, 0), np.ndarray)
    )

    def look(number: int) -> tuple[list[list[int]], tuple[int, int]]:
        paths = _sources(dataset, number, masked)
        return [_fingerprint(p) for p in paths], image_size(paths[0])

    looked = list(_in_order(look, total, workers))
    sizes = np.array([size for _, size in looked], np.int64).reshape(total, 2)
    starts = {IMAGES: offsets(sizes, 3), **({MASKS: offsets(sizes, 1)} if masked else {})}
    need = sum(int(start[-1]) for start in starts.values())
    with _refusals(path, need), _workplace(path) as temporary:
        if need > (free := shutil.disk_usage(temporary).free):
            raise DiskError(_no_room(path, need, free))
        checksums = _write_tiles(dataset, temporary, starts, workers, progress)
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
    """`work(i)` of every i in order, done by threads (decoding releases the GIL) or, with 0 workers, here."""
    if workers < 1:
        yield from map(work, range(total))
        return
    pool = ThreadPoolExecutor(workers)
    try:
        for start in range(0, total, AHEAD):
            yield from pool.map(work, range(start, min(total, start + AHEAD)))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C and a bad sample do not wait for the rest


def _write_tiles(
    dataset: Source,
    folder: Path,
    starts: Mapping[str, np.ndarray],
    workers: int,
    progress: Progress | None,
) -> dict[str, list[int]]:
    """The data files, on the disk; for each the crc32 of every image's bytes."""
    files = {name: os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o666) for name in starts}

    def store(number: int) -> dict[str, int]:
        sample, checksums = dataset[number], {}
        for name, part in zip(files, (sample.image, sample.mask), strict=False):
            tiles = tiled(pixels := np.asarray(part))
            begin, end = starts[name][number : number + 2].tolist()
            if tiles.nbytes != end - begin:
                raise InternalError(
                    f"{sample.id}: its size {pixels.shape[:2]} is not that in its file's header"
                )
            _write_at(files[name], tiles, begin)
            checksums[name] = zlib.crc32(tiles.data)
        return checksums

    checksums: dict[str, list[int]] = {name: [] for name in files}
    try:
        for done, found in enumerate(_in_order(store, len(dataset), workers), 1):
            for name, checksum in found.items():
                checksums[name].append(checksum)
            if progress:
                progress(done, len(dataset))
        for descriptor in files.values():
            os.fsync(descriptor)
    finally:
        for descriptor in files.values():
            os.close(descriptor)
    return checksums


def _write_at(descriptor: int, data: np.ndarray, offset: int) -> None:
    rest = data.data.cast("B")
    while rest:  # a disk that fills up may take a part
        count = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[count:], offset + count


def _check_own(folder: Path) -> None:
    """UserError unless there is nothing in `folder` that a new cache there would delete, but an older cache."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"dataset.cache={shown(folder)}: is a file; name a folder")
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    if foreign := [name for name in names if name not in (INDEX, IMAGES, MASKS)]:
        raise UserError(
            f"dataset.cache={shown(folder)}: holds other files ({foreign[0]}); name a folder of its own"
        )


@contextmanager
def _workplace(folder: Path) -> Generator[Path]:
    """An empty folder beside `folder`, of this process alone; gone at the end, also one that a killed build left."""
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
    """UserError where another process builds, or has just moved what it built from `path` to its place."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        mine = False
    if not mine:
        raise UserError(f"{shown(path.parent)}: another process is making this cache; wait for it")


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename to the final name, on the disk; an older cache moves aside first, then goes."""
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
    """What the disk refuses becomes a DiskError."""
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
    return f"{shown(folder)}: the cache was not made: {sizes}; make room or set dataset.cache to another disk"
