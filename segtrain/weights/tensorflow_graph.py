"""Read TensorFlow's frozen graphs: a GraphDef whose variables have become constants.

    GraphDef      1 node
    NodeDef       1 name, 2 op, 5 attr (a map: entries with 1 key, 2 value)
    AttrValue     8 tensor
    TensorProto   1 dtype, 2 tensor_shape, 4 tensor_content (the values' bytes), or typed values:
                  5 float, 6 double, 7 int, 10 int64, 11 bool, 13 half, 16 uint32, 17 uint64
    TensorShape   2 dim, each with 1 size

Every node "Const" of numbers is given under its name. Values keep TensorFlow's order: (H, W, in,
out). Source: tensorflow/core/framework/*.proto.
"""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from segtrain.weights.content import (
    MAX_DIMS,
    Damaged,
    Weights,
    check_number,
    elements,
    size_of,
    tensor,
)
from segtrain.weights.protobuf import fields, fields_of_file, inner, numbers, text

# DataType of tensorflow/core/framework/types.proto. References, text, quantised and complex numbers
# are no weights.
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    5: torch.int16,
    6: torch.int8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    17: torch.uint16,
    19: torch.float16,
    22: torch.uint32,
    23: torch.uint64,
}
CONTENT = 4
FLOATS = {5, 6}
VARINTS = {7, 10, 11, 13, 16, 17}  # bool and half, too, are written as varints
# A constant of one repeated value is written as that value alone, so its shape is not bounded by
# the file. 16 MiB are enough for every bias and batch norm of a network that was never trained.
MAX_REPEATED_BYTES = 16 << 20
NODE_FIELDS = range(1, 8)


@dataclass
class TensorProto:
    """A constant as it is written: the values' bytes as a whole, or as floats, or as integers."""

    dtype: int
    shape: list[int]
    content: bytearray
    floats: bytearray
    whole: array[int]


def is_node(message: memoryview) -> bool:
    """Tell whether a message reads as a NodeDef: name and op are text, and no field is foreign."""
    try:
        known = all(number in NODE_FIELDS for number, _ in fields(message))
        return known and bool(_text_of(message, 1) and _text_of(message, 2))
    except (Damaged, UnicodeDecodeError):
        return False


def read_frozen_graph(file: BinaryIO) -> Weights:
    """Return the constants of an open file. Errors: Damaged."""
    values: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    spare = MAX_REPEATED_BYTES + size_of(file)
    for number, node in fields_of_file(file):
        if number != 1:
            continue
        name, constant = _constant(inner(node))
        if constant is None:
            continue
        if name in values or name in dropped:
            raise Damaged(f"two nodes are named {name[:80]!r}")
        proto = _tensor_proto(constant)
        dtype = DTYPES.get(proto.dtype)
        if dtype is None:
            dropped[name] = "not numbers"
        else:
            needed = elements(proto.shape) * dtype.itemsize
            spare -= 0 if proto.content else needed
            if spare < 0:
                raise Damaged(f"the constant {name[:80]!r} claims {needed} bytes")
            values[name] = _value(proto, dtype)
        check_number(len(values) + len(dropped))
    return Weights("TensorFlow frozen graph", values, dropped)


def shape_of(message: memoryview) -> list[int]:
    """Return the sizes of a TensorShape."""
    dims = (inner(value) for number, value in fields(message) if number == 2)
    sizes = (next((n for f, n in fields(d) if f == 1 and isinstance(n, int)), 0) for d in dims)
    return list(itertools.islice(sizes, MAX_DIMS + 1))


def _text_of(message: memoryview, number: int) -> str:
    """Return the text of a field; "" if it is not there."""
    return next((text(value) for field, value in fields(message) if field == number), "")


def _constant(node: memoryview) -> tuple[str, memoryview | None]:
    """Return a node's name, and its tensor if it is a constant."""
    name = _text_of(node, 1)
    if _text_of(node, 2) != "Const":
        return name, None
    for number, attribute in fields(node):
        if number == 5 and _text_of(inner(attribute), 1) == "value":
            for field, value in fields(inner(attribute)):
                if field == 2:
                    return name, next((inner(v) for f, v in fields(inner(value)) if f == 8), None)
    raise Damaged(f"the constant {name[:80]!r} has no value")


def _tensor_proto(message: memoryview) -> TensorProto:
    """Return the parts of a TensorProto."""
    proto = TensorProto(0, [], bytearray(), bytearray(), array("q"))
    for number, value in fields(message):
        if number == 1 and isinstance(value, int):
            proto.dtype = value
        elif number == 2:
            proto.shape = shape_of(inner(value))
        elif number == CONTENT:
            proto.content = bytearray(inner(value))
        elif number in FLOATS:  # packed; one by one they join to the same
            proto.floats += inner(value)
        elif number in VARINTS:
            proto.whole.extend(n - 2**64 if n >= 2**63 else n for n in numbers(value))
    return proto


def _value(proto: TensorProto, dtype: torch.dtype) -> Tensor:
    """Return a constant's values; typed ones that are too few repeat the last one."""
    whole = torch.from_numpy(np.array(proto.whole, np.int64))
    if proto.content:
        return tensor(proto.content, dtype, proto.shape)
    if proto.floats:
        if dtype not in (torch.float32, torch.float64):
            raise Damaged(f"a constant of {dtype} is written as floats")
        given = tensor(proto.floats, dtype, [len(proto.floats) // dtype.itemsize])
    elif dtype in (torch.float16, torch.bfloat16):  # their 16 bits, written as a number
        given = whole.to(torch.int16).view(dtype)
    else:
        given = whole.to(dtype)
    missing = elements(proto.shape) - len(given)
    if missing < 0:
        raise Damaged(f"{len(given)} values for a tensor of {elements(proto.shape)}")
    # Nothing written is zero, as everywhere in protobuf.
    last = given[-1:] if len(given) else torch.zeros(1, dtype=dtype)
    return torch.cat([given, last.expand(missing)]).reshape(proto.shape)
