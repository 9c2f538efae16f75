"""Read label maps from MATLAB 5 to 7 files, the form of SBD and PASCAL-Context.

It follows MathWorks' "MAT-File Format". scipy's reader is not used: one changed byte in a file can
end the process there (segmentation fault, scipy 1.17). This one knows planes of numbers and
structs, steps over everything else, and runs nothing. Every unreadable file is a DataError.
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

HEADER_BYTES = 128  # text, version, byte order
# Types of an element.
MATRIX = 14
COMPRESSED = 15
NUMBER_TYPES = {
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
# Classes of an array.
STRUCT = 2
NUMERIC = range(6, 16)  # double, single, int8 .. uint64
# Bytes of an unpacked element; a small file can claim to unpack to terabytes. Chosen by hand: 256
# MiB are far more than a label map needs.
MAX_UNPACKED_BYTES = 2**28

Element = tuple[int, memoryview]  # type, bytes


class Array(NamedTuple):
    """An array of any class; `parts` are the elements behind its name."""

    kind: int
    size: list[int]
    name: str
    parts: Iterator[Element]


def read_mat(path: str | Path, variable: str, field: str | None = None) -> np.ndarray:
    """Return (H, W) whole numbers, integers as the file stores them. Errors: DataError.

    They are `variable`, or `field` of the struct that it is.
    """
    name = f"{variable}.{field}" if field else variable
    try:
        # Before open(): a named pipe would wait forever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{shown(path)}: is a folder or a device, not a .mat file")
        data = memoryview(Path(path).read_bytes())
        values = _find(data[HEADER_BYTES:], _byte_order(data), variable, field)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what a damaged file says of itself can be anything
        raise DataError(
            f"{shown(path)}: cannot be read as a .mat file: {' '.join(str(error).split())}"
        ) from error
    if values is None:
        raise DataError(
            f"{shown(path)}: holds no label map `{name}`; is it a file of this data set?"
        )
    return _whole(values, f"{shown(path)}: {name}")


def _byte_order(data: memoryview) -> str:
    if bytes(data[:10]) == b"MATLAB 7.3":
        raise ValueError("MATLAB 7.3 (HDF5) is not supported; save it again with -v7")
    orders = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
    order = orders.get(bytes(data[HEADER_BYTES - 4 : HEADER_BYTES]))
    if order is None:
        raise ValueError("it is empty, damaged or of another format (MATLAB 5 to 7 is expected)")
    return order


def _find(data: memoryview, order: str, variable: str, field: str | None) -> np.ndarray | None:
    """Return the plane of that name; None where there is none."""
    for kind, content in _elements(data, order):
        if kind == COMPRESSED:
            kind, content = _one(_elements(_unpacked(content), order))
        if kind != MATRIX:
            continue
        array = _array(content, order)
        if array.name == variable:
            return _plane(array, order) if field is None else _field(array, order, field)
    return None


def _field(array: Array, order: str, field: str) -> np.ndarray | None:
    """Return the field of a struct, of the first one where it is an array of structs."""
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
    """Yield type and bytes of each element, one after the other."""
    offset = 0
    while offset < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, offset)
        start = offset + 8
        # Elements fill up whole words of 8 bytes, but for compressed ones.
        step = 8 + (size if kind == COMPRESSED else -(-size // 8) * 8)
        if kind >> 16:  # type and size share one word, and up to four bytes follow
            size = kind >> 16
            kind &= 0xFFFF
            start = offset + 4
            step = 8
        if start + size > len(data):
            raise ValueError("it is truncated or damaged")
        yield kind, data[start : start + size]
        offset += step


def _one(elements: Iterator[Element]) -> Element:
    element = next(elements, None)
    if element is None:
        raise ValueError("it is truncated or damaged")
    return element


def _unpacked(packed: memoryview) -> memoryview:
    unpack = zlib.decompressobj()
    data = unpack.decompress(packed, MAX_UNPACKED_BYTES)
    if not unpack.eof:
        raise ValueError(f"it is truncated or unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
    return memoryview(data)


def _array(content: memoryview, order: str) -> Array:
    parts = _elements(content, order)
    flags = int(_numbers(_one(parts), order)[0])
    size = _numbers(_one(parts), order).tolist()
    name = bytes(_one(parts)[1]).decode("latin-1")
    return Array(flags & 0xFF, size, name, parts)


def _numbers(element: Element, order: str) -> np.ndarray:
    kind, data = element
    if kind not in NUMBER_TYPES:
        raise ValueError(f"it is damaged, or holds elements of the unknown type {kind}")
    return np.frombuffer(data, order + NUMBER_TYPES[kind])


def _plane(array: Array, order: str) -> np.ndarray:
    """Return (H, W) in this machine's byte order. Columns come first in the file, rows here."""
    size = array.size
    is_plane = len(size) == 2 and min(size) >= 1 and size[0] * size[1] <= MAX_PIXELS
    if array.kind not in NUMERIC or not is_plane:
        raise ValueError(
            f"the label map is of class {array.kind} and size {size}, "
            "but must be a plane of numbers"
        )
    values = _numbers(_one(array.parts), order)
    return np.ascontiguousarray(values.reshape(size, order="F"), values.dtype.newbyteorder("="))


def _whole(values: np.ndarray, what: str) -> np.ndarray:
    """Return integers as they are and whole floats as int64: MATLAB's own number is the float.

    Errors: DataError for fractions.
    """
    if values.dtype.kind != "f":
        return values
    if not (np.isfinite(values) & (values == np.floor(values))).all():
        raise DataError(f"{what} holds fractions, but labels are whole numbers")
    return values.astype(np.int64)
