"""Read safetensors: a JSON table of tensors, then their bytes.

    8 bytes    N, little-endian
    N bytes    {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [BEGIN, END]}, ...}
    the rest   the values; offsets count from here, and the tensors cover it without gap or overlap

`__metadata__` may stand among the names and holds text.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import torch

from segtrain.weights.content import (
    Damaged,
    Weights,
    check_number,
    elements,
    size_of,
    take,
    tensor,
)

# The format allows 100 MB. A tensor's entry takes some 100 bytes, and a text of brackets alone
# becomes 20 times its size in memory.
MAX_HEADER_BYTES = 8 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def starts_safetensors(head: bytes, size: int) -> bool:
    """Tell from a file's first bytes and its size whether it is in this format."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def read_safetensors(file: BinaryIO) -> Weights:
    """Return every tensor of an open file. Errors: Damaged."""
    length = int.from_bytes(take(file, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise Damaged(f"a header of {length} bytes")
    header = json.loads(take(file, length), object_pairs_hook=_without_twins)
    if not isinstance(header, dict):
        raise Damaged("its header is no table")
    metadata = header.pop("__metadata__", None)
    check_number(len(header))
    start = 8 + length
    entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda e: e[1:3])
    expected = 0
    for name, begin, end, dtype, shape in entries:
        if begin != expected or end - begin != elements(shape) * dtype.itemsize:
            raise Damaged(f"the offsets of {name[:80]!r} do not fit its neighbours or its shape")
        expected = end
    if start + expected != size_of(file):
        raise Damaged(
            f"{expected} bytes of values are announced, {size_of(file) - start} are there"
        )
    values = {}
    for name, begin, end, dtype, shape in entries:
        file.seek(start + begin)
        values[name] = tensor(take(file, end - begin), dtype, shape)
    dropped = {"__metadata__": "text about the file"} if metadata is not None else {}
    return Weights("safetensors", {name: values[name] for name in header}, dropped)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object a dict; two values of one name would hide one of them."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Damaged("one name stands twice in its header")
    return table


def _entry(name: str, value: Any) -> tuple[str, int, int, torch.dtype, list[int]]:
    """Return name, begin, end, dtype and shape of one line of the table."""
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if dtype not in DTYPES:
                raise Damaged(f"{name[:80]!r} has the unknown dtype {dtype[:20]!r}")
            elements(shape)
            return name, begin, end, DTYPES[dtype], shape
    raise Damaged(f"no dtype, shape and data_offsets for {name[:80]!r}")
