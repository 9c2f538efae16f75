"""Weight files written by hand, from what the formats say: whole ones, and what is inside them."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtrain.weights.crc32c import masked_crc32c

TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
# TensorFlow's numbers of dtypes.
TENSORFLOW = {"float32": 1, "float64": 2, "int32": 3, "int64": 9}


def arrays() -> dict[str, np.ndarray]:
    """Some weights, with a scalar, a large one and one without elements."""
    random = np.random.default_rng(0)
    return {
        "conv.weight": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "conv.bias": random.standard_normal(4),
        "steps": np.array(7, np.int64),
        "large": random.standard_normal((40, 50)).astype(np.float32),
        "none": np.empty((0, 2), np.float32),
    }


def same(values: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> bool:
    """Whether both have the same names, dtypes, shapes and values, to the last bit."""
    if list(values) != list(expected):
        return False
    pairs = [(value, torch.as_tensor(expected[name])) for name, value in values.items()]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def torch_file(content: Any, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays().items()}


def safetensors(content: Mapping[str, np.ndarray], **changes: Any) -> bytes:
    """A safetensors file; `changes` replace entries of its table."""
    letters = {"float32": "F32", "float64": "F64", "int64": "I64"}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in content.items():
        offsets = [len(data), len(data) + array.nbytes]
        dtype = letters[str(array.dtype)]
        table[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    header = json.dumps(table | changes).encode()
    return struct.pack("<Q", len(header)) + header + data


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes | str) -> bytes:
    """A protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(shape: Sequence[int], data: bytes, form: int = 5) -> bytes:
    """Caffe's BlobProto; `form` 5 holds floats, 8 doubles."""
    return field(7, field(1, b"".join(map(varint, shape)))) + field(form, data)


def caffemodel(content: Mapping[str, Sequence[bytes]]) -> bytes:
    """A `.caffemodel` of layers with blobs."""
    layers = [
        field(100, field(1, name) + field(2, "Convolution") + b"".join(field(7, b) for b in blobs))
        for name, blobs in content.items()
    ]
    return field(1, "net") + b"".join(layers)


def constant(name: str, dtype: int, shape: Sequence[int], values: bytes) -> bytes:
    """A node "Const" of a GraphDef; `values` are the fields of its TensorProto that hold them."""
    dims = b"".join(field(2, field(1, n)) for n in shape)
    proto = field(1, dtype) + field(2, dims) + values
    attribute = field(1, "value") + field(2, field(8, proto))
    return field(1, field(1, name) + field(2, "Const") + field(5, attribute))


def graph(content: Mapping[str, np.ndarray]) -> bytes:
    """A frozen graph of constants, and a node that is none."""
    nodes = [
        constant(name, TENSORFLOW[str(array.dtype)], array.shape, field(4, array.tobytes()))
        for name, array in content.items()
    ]
    return b"".join(nodes) + field(1, field(1, "logits") + field(2, "Conv2D") + field(3, "x"))


def block(entries: Sequence[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    """A block of a table with its trailer; no key shares bytes with the one before."""
    rows = [varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in entries]
    content = b"".join(rows) + struct.pack("<II", 0, 1) + bytes([compression])
    return content + struct.pack("<I", masked_crc32c(content))


def table(data: bytes, handle: bytes | None = None) -> bytes:
    """A table of one block (with its trailer), and `handle` to say where it stands."""
    handle = varint(0) + varint(len(data) - 5) if handle is None else handle
    index = block([(b"z", handle)])
    footer = varint(len(data)) + varint(len(index) - 5)
    return data + index + (footer * 2).ljust(40, b"\0") + TABLE_MAGIC


def entry(dtype: int, shape: Sequence[int], offset: int, data: bytes, **changes: int) -> bytes:
    """A BundleEntryProto for some bytes; `changes`: size, shard."""
    dims = b"".join(field(2, field(1, n)) for n in shape)
    start = field(1, dtype) + field(2, dims) + field(3, changes.get("shard", 0))
    size = changes.get("size", len(data))
    checksum = varint(6 << 3 | 5) + struct.pack("<I", masked_crc32c(data))
    return start + field(4, offset) + field(5, size) + checksum


def checkpoint(folder: Path, content: Mapping[str, np.ndarray]) -> Path:
    """Write a TensorFlow checkpoint of one shard, and return its table."""
    shard: list[bytes] = []
    offset = 0
    rows = [(b"", field(1, 1))]
    for name in sorted(content):
        array = content[name]
        bytes_ = array.tobytes()
        rows.append(
            (name.encode(), entry(TENSORFLOW[str(array.dtype)], array.shape, offset, bytes_))
        )
        shard.append(bytes_)
        offset += len(bytes_)
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(b"".join(shard))
    index = folder / "model.ckpt.index"
    index.write_bytes(table(block(rows)))
    return index


class Opens:
    """An object whose pickle opens a file for writing when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def pickled(content: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(content, protocol)
