"""Images in one file, read by windows: image after image, each as tiles of 64 x 64 pixels, tile row after tile row, uint8.

Nothing is compressed: a tile of a Cityscapes photo shrinks by 1.9 with zlib, but a crop needs a hundred of them at 0.09 ms
each; its label masks shrink by 50, which would save a quarter of the disk and cost 1 ms a crop. Each tile row of a window
is read with one `pread`, all of them announced before: from a cold disk the same windows took five times as long through
mapped memory (which also kills the process where a file is cut short), and whole rows of pixels instead of tiles would be
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

TILE = 64
AGAIN = "run segdata prepare again"


def tiled(pixels: np.ndarray) -> np.ndarray:
    """(H, W[, C]) -> (tile rows, tile columns, TILE, TILE, C), zeros to the right and below."""
    height, width, channels = *pixels.shape[:2], pixels.shape[2] if pixels.ndim > 2 else 1
    rows, columns = -(-height // TILE), -(-width // TILE)
    whole = np.zeros((rows * TILE, columns * TILE, channels), np.uint8)
    whole[:height, :width] = pixels.reshape(height, width, channels)
    return np.ascontiguousarray(whole.reshape(rows, TILE, columns, TILE, channels).swapaxes(1, 2))


def offsets(sizes: np.ndarray, channels: int) -> np.ndarray:
    """(N + 1,) where each of N images of `sizes` (N, 2) begins in the file, and the length of the file, in bytes."""
    tiles = np.prod(-(-sizes // TILE), axis=1, dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(tiles * TILE * TILE * channels)])


class DataFile:
    """A file open for reading. Threads and forked processes may share it; pickled, it is its path and expected size."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size, self.descriptor = path, size, -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(self.descriptor).st_size
        except OSError as error:
            raise DataError(
                f"{shown(path)}: damaged cache: cannot be read ({error.strerror}); {AGAIN}"
            ) from error
        if found != size:
            raise DataError(
                f"{shown(path)}: damaged cache: holds {found} bytes instead of {size}; {AGAIN}"
            )

    def __reduce__(self) -> tuple:
        return DataFile, (self.path, self.size)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def announce(self, offset: int, size: int) -> None:
        """These bytes are read soon: the disk may fetch them while others are waited for."""
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
            rest, offset = rest[count:], offset + count


@dataclass(frozen=True)
class Tiles:
    """An image (H, W, 3) or mask (H, W) in a file: `tiles[top:bottom, left:right]` reads the tiles below that window."""

    file: DataFile
    offset: int
    shape: tuple[int, ...]
    checksum: int  # crc32 of its bytes in the file

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """The pixels of a window, uint8. Errors: DataError."""
        (top, bottom, _), (left, right, _) = (
            w.indices(side) for w, side in zip(window, self.shape, strict=False)
        )
        row, column = top // TILE, left // TILE
        pixels = self._read(row, -(-bottom // TILE), column, -(-right // TILE))[0]
        return pixels[
            top - row * TILE : bottom - row * TILE, left - column * TILE : right - column * TILE
        ]

    def whole(self) -> np.ndarray:
        """All pixels. Unlike in a window, a changed byte is found. Errors: DataError."""
        height, width = self.shape[:2]
        pixels, checksum = self._read(0, -(-height // TILE), 0, -(-width // TILE), check=True)
        if checksum != self.checksum:
            raise DataError(
                f"{shown(self.file.path)}: damaged cache: bytes after {self.offset} are wrong; {AGAIN}"
            )
        return np.ascontiguousarray(pixels[:height, :width])

    def _read(
        self, top: int, bottom: int, left: int, right: int, check: bool = False
    ) -> tuple[np.ndarray, int]:
        """These rows and columns of tiles side by side, and the crc32 of their bytes where asked for."""
        channels = self.shape[2] if len(self.shape) > 2 else 1
        columns = -(-self.shape[1] // TILE)
        tiles = np.empty((bottom - top, right - left, TILE, TILE, channels), np.uint8)
        places = [
            self.offset + (row * columns + left) * TILE * TILE * channels
            for row in range(top, bottom)
        ]
        for place in places:
            self.file.announce(place, tiles[0].nbytes)
        for place, run in zip(places, tiles, strict=True):
            self.file.read(run, place)
        pixels = tiles.swapaxes(1, 2).reshape(
            len(tiles) * TILE, (right - left) * TILE, *self.shape[2:]
        )
        return pixels, zlib.crc32(tiles.data) if check else 0


class TileFile:
    """N images, or masks, in one file. `channels` is 3, or 0 for masks (H, W)."""

    def __init__(
        self, path: Path, sizes: np.ndarray, channels: int, checksums: Sequence[int]
    ) -> None:
        self.sizes, self.channels, self.checksums = sizes, channels, np.array(checksums, np.uint32)
        self.offsets = offsets(sizes, max(1, channels))
        if len(self.checksums) != len(sizes):
            raise ValueError(f"{len(self.checksums)} checksums for {len(sizes)} images")
        self.file = DataFile(path, int(self.offsets[-1]))

    def __getitem__(self, index: int) -> Tiles:
        height, width = self.sizes[index].tolist()
        shape = (height, width, self.channels) if self.channels else (height, width)
        return Tiles(self.file, int(self.offsets[index]), shape, int(self.checksums[index]))
