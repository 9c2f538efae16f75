"""Read images, all in one file, by windows.

The file holds image after image, each as tiles of 64 x 64 pixels, tile row after tile row, uint8.

Nothing is compressed: a tile of a Cityscapes photo shrinks by 1.9 with zlib, but a crop needs a
hundred of them at 0.09 ms each; its label masks shrink by 50, which would save a quarter of the
disk and cost 1 ms a crop. Each tile row of a window is read with one `pread`, all of them announced
before: from a cold disk the same windows took five times as long through mapped memory (which also
kills the process where a file is cut short), and whole rows of pixels instead of tiles would be
twice the bytes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segtrain.data.images import shown
from segtrain.errors import DataError

# Pixels of a tile's side. Chosen by hand: a row of tiles lies together in the file, and a crop
# reads few pixels beyond its borders.
TILE = 64
AGAIN = "run segdata prepare again"


def tiled(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W[, C]) as (tile rows, tile columns, TILE, TILE, C).

    To the right and below it is filled up with zeros.
    """
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim > 2 else 1
    rows = -(-height // TILE)
    columns = -(-width // TILE)
    whole = np.zeros((rows * TILE, columns * TILE, channels), np.uint8)
    whole[:height, :width] = pixels.reshape(height, width, channels)
    return np.ascontiguousarray(whole.reshape(rows, TILE, columns, TILE, channels).swapaxes(1, 2))


def offsets(sizes: np.ndarray, channels: int) -> np.ndarray:
    """Return (N + 1,) bytes: where each of N images begins in the file, and the file's length.

    `sizes` (N, 2) are their heights and widths.
    """
    tiles = np.prod(-(-sizes // TILE), axis=1, dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(tiles * TILE * TILE * channels)])


class DataFile:
    """Hold a file open for reading. Threads and forked processes may share it.

    Pickled, it is its path and expected size.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            held = os.fstat(self.descriptor).st_size
        except OSError as error:
            raise DataError(
                f"{shown(path)}: damaged cache: cannot be read ({error.strerror}); {AGAIN}"
            ) from error
        if held != size:
            raise DataError(
                f"{shown(path)}: damaged cache: holds {held} bytes instead of {size}; {AGAIN}"
            )

    def __reduce__(self) -> tuple:
        return DataFile, (self.path, self.size)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def announce(self, offset: int, size: int) -> None:
        """Announce bytes that are read soon: the disk may fetch them meanwhile."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self.descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, into: np.ndarray, offset: int) -> None:
        """Fill `into` (contiguous, uint8) from byte `offset` on. Errors: DataError."""
        rest = into.data.cast("B")
        while rest:
            try:
                count = os.preadv(self.descriptor, [rest], offset)
            except OSError as error:
                raise DataError(f"{shown(self.path)}: cannot be read ({error.strerror})") from error
            if not count:
                raise DataError(
                    f"{shown(self.path)}: damaged cache: cut short before byte {offset}; {AGAIN}"
                )
            rest = rest[count:]
            offset += count


@dataclass(frozen=True)
class Tiles:
    """Read windows of an image (H, W, 3) or mask (H, W) in a file.

    `tiles[top:bottom, left:right]` reads the tiles below that window.
    """

    file: DataFile
    offset: int
    shape: tuple[int, ...]
    checksum: int  # crc32 of its bytes in the file

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Return the pixels of a window, uint8. Errors: DataError, TypeError."""
        parts = window if isinstance(window, tuple) else (window,)
        if len(parts) != 2 or any(type(p) is not slice or p.step not in (None, 1) for p in parts):
            raise TypeError(
                "a cached image is read by two slices without a step; [:, :] is all of it"
            )
        (top, bottom, _), (left, right, _) = (
            part.indices(side) for part, side in zip(parts, self.shape, strict=False)
        )
        row = top // TILE
        column = left // TILE
        pixels = self._read(row, -(-bottom // TILE), column, -(-right // TILE))[0]
        first_y = row * TILE
        first_x = column * TILE
        return pixels[top - first_y : bottom - first_y, left - first_x : right - first_x]

    def whole(self) -> np.ndarray:
        """Return all pixels. Unlike in a window, a changed byte is noticed. Errors: DataError."""
        height, width = self.shape[:2]
        pixels, checksum = self._read(0, -(-height // TILE), 0, -(-width // TILE), check=True)
        if checksum != self.checksum:
            raise DataError(
                f"{shown(self.file.path)}: damaged cache: "
                f"bytes after {self.offset} are wrong; {AGAIN}"
            )
        return np.ascontiguousarray(pixels[:height, :width])

    def _read(
        self, top: int, bottom: int, left: int, right: int, check: bool = False
    ) -> tuple[np.ndarray, int]:
        """Return these rows and columns of tiles side by side.

        With `check` also the crc32 of their bytes, else 0.
        """
        channels = self.shape[2] if len(self.shape) > 2 else 1
        columns = -(-self.shape[1] // TILE)
        tiles = np.empty((bottom - top, right - left, TILE, TILE, channels), np.uint8)
        offsets_of_rows = [
            self.offset + (row * columns + left) * TILE * TILE * channels
            for row in range(top, bottom)
        ]
        for offset in offsets_of_rows:
            self.file.announce(offset, tiles[0].nbytes)
        for offset, run in zip(offsets_of_rows, tiles, strict=True):
            self.file.read(run, offset)
        pixels = tiles.swapaxes(1, 2).reshape(
            len(tiles) * TILE, (right - left) * TILE, *self.shape[2:]
        )
        return pixels, zlib.crc32(tiles.data) if check else 0


class TileFile:
    """Hold N images, or masks, in one file. `channels` is 3, or 0 for masks (H, W)."""

    def __init__(
        self, path: Path, sizes: np.ndarray, channels: int, checksums: Sequence[int]
    ) -> None:
        self.sizes = sizes
        self.channels = channels
        self.checksums = np.array(checksums, np.uint32)
        self.offsets = offsets(sizes, max(1, channels))
        if len(self.checksums) != len(sizes):
            raise ValueError(f"{len(self.checksums)} checksums for {len(sizes)} images")
        self.file = DataFile(path, int(self.offsets[-1]))

    def __getitem__(self, index: int) -> Tiles:
        height, width = self.sizes[index].tolist()
        shape = (height, width, self.channels) if self.channels else (height, width)
        return Tiles(self.file, int(self.offsets[index]), shape, int(self.checksums[index]))
