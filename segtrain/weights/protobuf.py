"""Take protobuf messages apart without their schema. Caffe and TensorFlow both write them.

A message is a row of fields, in any order, each any number of times:

    key      varint: number of the field * 8 + kind
    value    kind 0: a varint            kind 1: 8 bytes
             kind 2: varint N, N bytes (text, an inner message, or many numbers, "packed")
             kind 5: 4 bytes

A varint has 7 bits a byte, lowest first; the high bit says that another byte follows. Negative
numbers take all 64 bits, so ten bytes.
Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from segtrain.weights.content import Damaged, size_of, take

MAX_VARINT_BYTES = 10
VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5
MAX_FIELDS = 100_000  # of a message: a large graph has some ten thousand nodes
MAX_NUMBERS = 1_000_000  # of a repeated field; weights are written as bytes or floats
# How long a field's key and length can be together.
MAX_FRONT_BYTES = 2 * MAX_VARINT_BYTES

Field = tuple[int, int | memoryview]  # number; a varint as int, all else as its bytes


def varint(data: memoryview | bytes, offset: int) -> tuple[int, int]:
    """Return the number at `offset` and where it ends. Errors: Damaged."""
    number = 0
    for i, byte in enumerate(data[offset : offset + MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number & (2**64 - 1), offset + i + 1
    raise Damaged("a number that does not end")


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message in memory, none of them copied. Errors: Damaged."""
    offset = 0
    for _ in _limited():
        if offset >= len(message):
            return
        number, kind, offset, length = _front(message, offset)
        if kind == VARINT:
            yield number, length
            continue
        if length > len(message) - offset:
            raise Damaged(f"a field of {length} bytes where {len(message) - offset} are left")
        yield number, message[offset : offset + length]
        offset += length


def fields_of_file(file: BinaryIO) -> Iterator[Field]:
    """Yield the fields of the message that a file is, one at a time in memory. Errors: Damaged."""
    size = size_of(file)
    offset = 0
    for _ in _limited():
        if offset >= size:
            return
        file.seek(offset)
        number, kind, step, length = _front(file.read(MAX_FRONT_BYTES), 0)
        offset += step
        if kind == VARINT:
            yield number, length
            continue
        file.seek(offset)
        yield number, memoryview(take(file, length))
        offset += length


def numbers(value: int | memoryview) -> Iterator[int]:
    """Yield a repeated field's varints, packed or one by one. Errors: Damaged."""
    if isinstance(value, int):
        yield value
        return
    offset = 0
    for _ in range(MAX_NUMBERS):
        if offset >= len(value):
            return
        number, offset = varint(value, offset)
        yield number
    raise Damaged(f"more than {MAX_NUMBERS} numbers, one by one")


def inner(value: int | memoryview) -> memoryview:
    """Return the bytes of a field that must be a message, text or packed. Errors: Damaged."""
    if isinstance(value, int):
        raise Damaged("a number where a message should be")
    return value


def text(value: int | memoryview) -> str:
    """Return a field as text. Errors: Damaged."""
    return bytes(inner(value)).decode()


def _limited() -> Iterator[int]:
    """Count the fields of a message. Errors: Damaged where they are too many to be read soon."""
    yield from range(MAX_FIELDS)
    raise Damaged(f"a message of more than {MAX_FIELDS} fields")


def _front(data: memoryview | bytes, offset: int) -> tuple[int, int, int, int]:
    """Return a field's number, kind, where its value starts, and the value's length.

    Of a varint it is the value itself, and where it ends.
    """
    key, offset = varint(data, offset)
    number = key >> 3
    kind = key & 7
    if number == 0 or kind not in (VARINT, FIXED64, BYTES, FIXED32):
        raise Damaged("a field that no message has")
    if kind in (FIXED64, FIXED32):
        return number, kind, offset, 8 if kind == FIXED64 else 4
    value, offset = varint(data, offset)
    return number, kind, offset, value
