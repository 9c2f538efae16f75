"""Read TensorFlow's V2 checkpoints: a sorted table of names, and the values in files beside it.

    NAME.index                  the table, in LevelDB's format
    NAME.data-00000-of-00001    the values ("shards"), without any structure

The table's last 48 bytes are its footer: where two blocks stand (offset and size, as varints) and a
magic number. The second of them, the index block, says where the data blocks stand. Behind each
block come a byte (0: not compressed) and a checksum. A block is a row of entries sorted by key,
then a list that only serves searching:

    varint    how many bytes of the key are those of the key before
    varint    how many follow        varint    length of the value
    the key's bytes                  the value

The value of the key "" is a BundleHeaderProto (1 number of shards, 2 endianness), every other a
BundleEntryProto (1 dtype, 2 shape, 3 shard, 4 offset, 5 size, 6 checksum, 7 slices).
Sources: tensorflow/core/lib/io/table_format.txt, tensorflow/core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from segtrain.weights.content import (
    Damaged,
    Weights,
    check_number,
    elements,
    open_regular,
    size_of,
    take,
    tensor,
)
from segtrain.weights.crc32c import masked_crc32c
from segtrain.weights.protobuf import fields, inner, varint
from segtrain.weights.tensorflow_graph import DTYPES, shape_of

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER_BYTES = 48
TRAILER_BYTES = 5  # behind a block: its compression and its checksum
SNAPPY = 1
SAVE_AGAIN = "save it again with tf.train.Saver"
MAX_INDEX_BYTES = 64 << 20  # an entry takes some 100 bytes
MAX_NAME_BYTES = 1024
MAX_SHARDS = 1000
# Of a variable's slots this one alone is a weight; it may even be the one that was measured.
AVERAGE = "ExponentialMovingAverage"


@dataclass(frozen=True)
class Entry:
    """A tensor's line of the table; a `dtype` of None is one that is no number."""

    name: str
    dtype: torch.dtype | None
    shape: list[int]
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


def read_checkpoint(file: BinaryIO, path: Path) -> Weights:
    """Return the variables whose table, at `path`, is an open file. Errors: Damaged.

    The slots of optimizers are left out.
    """
    table = dict(_table(file))
    header = table.pop("", b"")
    shards = _shards(memoryview(header))
    entries = [_entry(name, memoryview(value)) for name, value in table.items()]
    wanted, dropped = _variables(entries)
    _check_overlap(wanted)
    values: dict[str, Tensor] = {}
    for number in sorted({entry.shard for entry in wanted}):
        if number >= shards:
            raise Damaged(f"it names shard {number} of {shards}")
        beside = path.with_name(f"{path.stem}.data-{number:05d}-of-{shards:05d}")
        if not beside.exists():
            raise Damaged(f"{beside.name}, which has its values, is not beside it")
        with open_regular(beside) as data:
            values |= {e.name: _values(data, e) for e in wanted if e.shard == number}
    return Weights("TensorFlow checkpoint", {e.name: values[e.name] for e in wanted}, dropped)


def _table(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield the table's names and values, in order."""
    size = size_of(file)
    if not FOOTER_BYTES <= size <= MAX_INDEX_BYTES:
        raise Damaged(f"a table of {size} bytes")
    table = memoryview(take(file, size))
    footer = table[-FOOTER_BYTES:]
    _, _, after = _handle(footer, 0)
    offset, length, _ = _handle(footer, after)
    last = -1
    end = 0
    for _, handle in _block(table, offset, length):
        offset, length, _ = _handle(memoryview(handle), 0)
        if offset < end:  # blocks that overlap would be read again and again
            raise Damaged("its blocks are out of order")
        end = offset + length
        for key, value in _block(table, offset, length):
            last += 1
            check_number(last)
            yield key.decode(), value


def _handle(data: memoryview, offset: int) -> tuple[int, int, int]:
    """Return where a block stands, its length, and where the handle ends."""
    start, offset = varint(data, offset)
    length, offset = varint(data, offset)
    return start, length, offset


def _block(table: memoryview, start: int, length: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a block."""
    if start + length + TRAILER_BYTES > len(table):
        raise Damaged(f"it claims a block of {length} bytes at {start}, and has {len(table)}")
    block = table[start : start + length]
    compression = table[start + length]
    checksum = int.from_bytes(table[start + length + 1 :][:4], "little")
    if masked_crc32c(table[start : start + length + 1]) != checksum:
        raise Damaged("a block of its table does not have the checksum that was written")
    if compression:
        name = "snappy" if compression == SNAPPY else f"method {compression}"
        raise Damaged(f"its table is compressed ({name})", SAVE_AGAIN)
    restarts = int.from_bytes(block[-4:], "little")
    end = length - 4 * restarts - 4
    if end < 0:
        raise Damaged("a block of its table is too short")
    offset = 0
    key = b""
    first = True
    while offset < end:
        shared, offset = varint(block, offset)
        fresh, offset = varint(block, offset)
        size, offset = varint(block, offset)
        if shared > len(key) or offset + fresh + size > end or shared + fresh > MAX_NAME_BYTES:
            raise Damaged("an entry of its table does not fit")
        longer = key[:shared] + bytes(block[offset : offset + fresh])
        if longer <= key and not first:
            raise Damaged("the names of its table are out of order")
        key = longer
        first = False
        offset += fresh
        yield key, bytes(block[offset : offset + size])
        offset += size


def _shards(header: memoryview) -> int:
    """Return the number of files with values."""
    numbers = {number: value for number, value in fields(header) if isinstance(value, int)}
    shards = numbers.get(1, 0)
    if not header or not 1 <= shards <= MAX_SHARDS:
        raise Damaged("it is no checkpoint of version 2", SAVE_AGAIN)
    if numbers.get(2, 0) != 0:
        raise Damaged("it was written on a big-endian machine", SAVE_AGAIN)
    return shards


def _entry(name: str, value: memoryview) -> Entry:
    numbers: dict[int, int] = {}
    shape: list[int] = []
    checksum = 0
    sliced = False
    for number, part in fields(value):
        if number == 2:
            shape = shape_of(inner(part))
        elif number == 6:
            checksum = int.from_bytes(inner(part), "little")
        elif number == 7:
            sliced = True
        elif isinstance(part, int):
            numbers[number] = part
    dtype = DTYPES.get(numbers.get(1, 0))
    shard, offset, size = (numbers.get(n, 0) for n in (3, 4, 5))
    return Entry(name, dtype, shape, shard, offset, size, checksum, sliced)


def _variables(entries: list[Entry]) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries that are weights, and why the others are not.

    What an optimizer keeps of a variable is named VARIABLE/OPTIMIZER.
    """
    names = {entry.name for entry in entries}
    dropped = {}
    for entry in entries:
        variable, _, slot = entry.name.rpartition("/")
        if variable in names and slot != AVERAGE:
            dropped[entry.name] = f"the optimizer's, of {variable}"
        elif entry.dtype is None:
            dropped[entry.name] = "not numbers"
        elif entry.sliced:
            dropped[entry.name] = "saved in slices"
    return [entry for entry in entries if entry.name not in dropped], dropped


def _check_overlap(entries: list[Entry]) -> None:
    """Refuse tensors that share bytes: a small file would become any number of gigabytes."""
    end = {}
    for entry in sorted(entries, key=lambda e: (e.shard, e.offset, e.size)):
        if entry.offset < end.get(entry.shard, 0):
            raise Damaged(f"{entry.name[:80]!r} overlaps another tensor")
        end[entry.shard] = entry.offset + entry.size


def _values(data: BinaryIO, entry: Entry) -> Tensor:
    """Return a tensor from its shard. Errors: Damaged."""
    assert entry.dtype is not None
    if elements(entry.shape) * entry.dtype.itemsize != entry.size:
        raise Damaged(f"{entry.name[:80]!r} has {entry.size} bytes, which its shape does not")
    if entry.offset + entry.size > size_of(data):
        raise Damaged(f"{entry.name[:80]!r} lies behind its end")
    data.seek(entry.offset)
    content = take(data, entry.size)
    if masked_crc32c(content) != entry.checksum:
        raise Damaged(f"{entry.name[:80]!r} does not have the checksum that was written")
    return tensor(content, entry.dtype, entry.shape)
