"""Read Caffe's `.caffemodel`: the message NetParameter, written by protobuf.

    NetParameter      1 name, 2 layers (form of 2014, "V1"), 100 layer
    LayerParameter    1 name, 2 type, 7 blobs
    V1LayerParameter  4 name, 5 type, 6 blobs
    BlobProto         5 data (floats), 7 shape, 8 double_data
                      1 num, 2 channels, 3 height, 4 width: the shape in files of 2014
    BlobShape         1 dim

The blobs of a layer are given as they are, as NAME/0, NAME/1, ...; what they mean depends on the
layer's type and is the business of the families. Source: src/caffe/proto/caffe.proto of BVLC Caffe.
"""

from __future__ import annotations

import itertools
from typing import BinaryIO

import torch
from torch import Tensor

from segtrain.weights.content import MAX_DIMS, Damaged, Weights, check_number, elements, tensor
from segtrain.weights.protobuf import fields, fields_of_file, inner, numbers, text

LAYERS_V1 = 2
LAYER = 100
# Form of a layer -> the numbers of its fields name and blobs.
NAME_AND_BLOBS = {LAYERS_V1: (4, 6), LAYER: (1, 7)}
DATA = 5
SHAPE = 7
DOUBLE_DATA = 8
LEGACY_SHAPE = (1, 2, 3, 4)


def read_caffemodel(file: BinaryIO) -> Weights:
    """Return every blob of an open file. Errors: Damaged."""
    values: dict[str, Tensor] = {}
    for form, value in fields_of_file(file):
        if form not in NAME_AND_BLOBS:
            continue
        layer = inner(value)
        name_field, blobs_field = NAME_AND_BLOBS[form]
        name = next((text(v) for number, v in fields(layer) if number == name_field), "")
        blobs = (inner(v) for number, v in fields(layer) if number == blobs_field)
        for i, blob in enumerate(blobs):
            key = f"{name}/{i}"
            if key in values:
                raise Damaged(f"two layers are named {name[:80]!r}")
            values[key] = _blob(blob, key)
            check_number(len(values))
    return Weights("Caffe", values, {})


def _blob(blob: memoryview, key: str) -> Tensor:
    """Return a blob's values in the shape that it says."""
    data = bytearray()
    doubles = bytearray()
    shape: list[int] | None = None
    legacy: dict[int, int] = {}
    for number, value in fields(blob):
        if number == DATA:  # packed; one by one they have four bytes each, which joins to the same
            data += inner(value)
        elif number == DOUBLE_DATA:
            doubles += inner(value)
        elif number == SHAPE:
            dims = (n for f, row in fields(inner(value)) if f == 1 for n in numbers(row))
            shape = list(itertools.islice(dims, MAX_DIMS + 1))
        elif number in LEGACY_SHAPE and isinstance(value, int):
            legacy[number] = value
    if data and doubles:
        raise Damaged(f"the blob {key[:80]!r} has floats and doubles")
    if shape is None:  # a field that is not written is 0; a blob without any is a single number
        shape = [legacy.get(n, 0) for n in LEGACY_SHAPE] if legacy else []
    dtype = torch.float64 if doubles else torch.float32
    values = doubles or data
    if elements(shape) * dtype.itemsize != len(values):
        raise Damaged(f"the blob {key[:80]!r} has {len(values)} bytes, which its shape does not")
    return tensor(values, dtype, shape)
