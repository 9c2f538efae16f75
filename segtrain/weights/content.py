"""Take from a stranger's file what is there, and not a byte more.

What a file claims (a length, a shape) is compared with what it has before anything is allocated for
it. Readers raise `Damaged` with a reason; `segtrain/weights/formats.py` makes it one line.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

READ_BYTES = 1 << 22  # read at once, so that a large tensor is never in memory twice
MAX_DIMS = 16  # weights have at most 5; torch itself is limited to 64
MAX_TENSORS = 100_000  # the largest published files of these families have some thousands
# numpy's letters for what a tensor can hold, little-endian. bfloat16 is unknown to numpy.
DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
    "c8": torch.complex64,
    "c16": torch.complex128,
}


class Damaged(Exception):
    """A file that is not what it should be: why, and what to do."""

    def __init__(self, reason: str, way_out: str = "get it again from where it came") -> None:
        super().__init__(f"{reason}; {way_out}")


@dataclass(frozen=True)
class Weights:
    """Other people's tensors by their own names, in their own order of dimensions, on the CPU.

    `dropped` says of what else the file holds why it is left out. `not_run` are the classes and
    functions that a pickle asks for; nothing of them was imported or called.
    """

    format: str
    values: dict[str, Tensor]
    dropped: dict[str, str]
    not_run: tuple[str, ...] = ()


def open_regular(path: Path) -> BinaryIO:
    """Open a file, links followed. A pipe or folder is refused, not waited for. Errors: Damaged."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise Damaged(error.strerror or str(error), "is the path right?") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged("it is a folder, a pipe or a device", "is the path right?")
    return os.fdopen(descriptor, "rb")


def size_of(file: BinaryIO) -> int:
    """Return the bytes of an open file; where it is read next does not change."""
    here = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(here)
    return size


def take(file: BinaryIO, count: int) -> bytearray:
    """Read `count` bytes from where the file stands. Errors: Damaged when it has fewer."""
    left = size_of(file) - file.tell()
    if not 0 <= count <= left:
        raise Damaged(f"it claims {count} bytes where {left} are left")
    buffer = bytearray(count)
    view = memoryview(buffer)
    done = 0
    while done < count:
        piece = file.read(min(READ_BYTES, count - done))
        if not piece:
            raise Damaged("it became shorter while it was read")
        view[done : done + len(piece)] = piece
        done += len(piece)
    return buffer


def elements(shape: Sequence[int]) -> int:
    """Return how many values a shape has. Errors: Damaged for what is no shape."""
    if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise Damaged("a shape that no tensor has")
    return math.prod(shape)


def tensor(buffer: bytearray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Return the values of a buffer, which is not copied, as (*shape). Errors: Damaged."""
    count = elements(shape)
    if count * dtype.itemsize != len(buffer):
        raise Damaged(f"{len(buffer)} bytes for a tensor of {count * dtype.itemsize}")
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).reshape(tuple(shape))


def check_number(count: int) -> None:
    """Refuse more tensors than a network has: each costs memory beyond its bytes."""
    if count > MAX_TENSORS:
        raise Damaged(f"more than {MAX_TENSORS} tensors")
