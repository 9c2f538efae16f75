"""Reads label maps from MATLAB 5 to 7 files, the form of SBD and PASCAL-Context, following MathWorks' "MAT-File Format".

Not scipy's reader: one changed byte in a file can end the process there (segmentation fault, scipy 1.17). This one knows
planes of numbers and structs, steps over everything else, and runs nothing. Every unreadable file is a DataError.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segtrain.data.images import MAX_PIXELS, shown
from segtrain.errors import DataError

HEADER = 128  # bytes: text, version, byte order
MATRIX, COMPRESSED = 14, 15  # element types; the others are numbers:
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
STRUCT, NUMERIC = 2, range(6, 16)  # array classes: double, single, int8 .. uint64
MAX_BYTES = 2**28  # of an unpacked element; a small file can claim to unpack to terabytes

Element = tuple[int, memoryview]  # type, bytes


class Array(NamedTuple):
    """An array of any class; `parts` are the elements behind its name."""

    kind: int
    size: list[int]
    name: str
    parts: Iterator[Element]


def read_mat(path: str | Path, variable: str, field: str | None = None) -> np.ndarray:
    """(H, W) whole numbers, integers as the file stores them: `variable`, or `field` of the struct that it is."""
    name = f"{variable}.{field}" if field else variable
    try:
        if not stat.S_ISREG(
            os.stat(path).st_mode
        ):  # before open(): a named pipe would wait forever
            raise DataError(f"{shown(path)}: is a folder or a device, not a .mat file")
        data = memoryview(Path(path).read_bytes())
        found = _find(data[HEADER:], _byte_order(data), variable, field)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what a damaged file says of itself can be anything
        raise DataError(
            f"{shown(path)}: cannot be read as a .mat file: {' '.join(str(error).split())}"
        ) from error
    if found is None:
        raise DataError(
            f"{shown(path)}: holds no label map `{name}`; is it a file of this data set?"
        )
    return _whole(found, f"{shown(path)}: {name}")


def _byte_order(data: memoryview) -> str:
    if bytes(data[:10]) == b"MATLAB 7.3":
        raise ValueError("MATLAB 7.3 (HDF5) is not supported; save it again with -v7")
    orders = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
    order = orders.get(bytes(data[HEADER - 4 : HEADER]))
    if order is None:
        raise ValueError("it is empty, damaged or of another format (MATLAB 5 to 7 is expected)")
    return order


def _find(data: memoryview, order: str, variable: str, field: str | None) -> np.ndarray | None:
    """The plane of that name; None where there is none."""
    for element in _elements(data, order):
        kind, content = (
            _one(_elements(_unpacked(element[1]), order)) if element[0] == COMPRESSED else element
        )
        if kind != MATRIX:
            continue
        array = _array(content, order)
        if array.name == variable:
            return _plane(array, order) if field is None else _field(array, order, field)
    return None


def _field(array: Array, order: str, field: str) -> np.ndarray | None:
    """The field of a struct, of the first one where it is an array of structs."""
    if array.kind != STRUCT:
        return None
    length = int(_numbers(_one(array.parts), order)[0])
    text = bytes(_one(array.parts)[1]).decode("latin-1")
    names = [text[i : i + length].split("\0")[0] for i in range(0, len(text), length)]
    for name, (_, content) in zip(names, array.parts, strict=False):
        if name == field:
            return _plane(_array(content, order), order)
    return None


def _elements(data: memoryview, order: str) -> Iterator[Element]:
    """Type and bytes of each element, one after the other."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, step = place + 8, 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)
        if kind >> 16:  # type and size share one word, and up to four bytes follow
            kind, size, start, step = kind & 0xFFFF, kind >> 16, place + 4, 8
        if start + size > len(data):
            raise ValueError("it is truncated or damaged")
        yield kind, data[start : start + size]
        place += step


def _one(elements: Iterator[Element]) -> Element:
    found = next(elements, None)
    if found is None:
        raise ValueError("it is truncated or damaged")
    return found


def _unpacked(packed: memoryview) -> memoryview:
    unpack = zlib.decompressobj()
    data = unpack.decompress(packed, MAX_BYTES)
    if not unpack.eof:
        raise ValueError(f"it is truncated or unpacks to more than {MAX_BYTES >> 20} MiB")
    return memoryview(data)


def _array(content: memoryview, order: str) -> Array:
    parts = _elements(content, order)
    flags, size = int(_numbers(_one(parts), order)[0]), _numbers(_one(parts), order).tolist()
    return Array(flags & 0xFF, size, bytes(_one(parts)[1]).decode("latin-1"), parts)


def _numbers(element: Element, order: str) -> np.ndarray:
    kind, data = element
    if kind not in NUMBERS:
        raise ValueError(f"it is damaged, or holds elements of the unknown type {kind}")
    return np.frombuffer(data, order + NUMBERS[kind])


def _plane(array: Array, order: str) -> np.ndarray:
    """(H, W) in this machine's byte order. Columns first in the file, rows first here."""
    size = array.size
    if (
        array.kind not in NUMERIC
        or len(size) != 2
        or min(size) < 1
        or size[0] * size[1] > MAX_PIXELS
    ):
        raise ValueError(
            f"the label map is of class {array.kind} and size {size}, but must be a plane of numbers"
        )
    values = _numbers(_one(array.parts), order)
    return np.ascontiguousarray(values.reshape(size, order="F"), values.dtype.newbyteorder("="))


def _whole(values: np.ndarray, what: str) -> np.ndarray:
    """Errors: DataError for fractions. MATLAB's own number type is the float."""
    if values.dtype.kind != "f":
        return values
    if not (np.isfinite(values) & (values == np.floor(values))).all():
        raise DataError(f"{what} holds fractions, but labels are whole numbers")
    return values.astype(np.int64)
