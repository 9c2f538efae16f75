"""Damaged and hostile weight files end in one line, soon, in little memory, and run nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import weight_files as files

from segtrain.errors import UserError
from segtrain.weights.formats import read_weights

HUGE = 2**60


def outcome(path: Path) -> dict[str, torch.Tensor] | str:
    """The values, or the line of the error: anything else fails the test."""
    try:
        return read_weights(path).values
    except UserError as error:
        line = str(error)
        assert line.startswith(f"{path}: no weights can be read from it: ")
        assert "\n" not in line
        assert len(line) < len(str(path)) + 300
        return line


FORMATS = ["torch", "legacy", "safetensors", "caffe", "checkpoint", "graph", "pickle"]
# Formats with checksums: what is damaged in their values is seen.
SEALED = {"torch", "checkpoint"}


def whole(folder: Path, form: str) -> tuple[Path, list[Path]]:
    """Write a file of a format; return what is read, and the files that can be damaged."""
    arrays = files.arrays()
    path = folder / "weights"
    if form == "checkpoint":
        index = files.checkpoint(folder, arrays)
        return index, [index, folder / "model.ckpt.data-00000-of-00001"]
    layers = {
        name: [files.blob(array.shape, array.tobytes())]
        for name, array in arrays.items()
        if array.dtype == np.float32 and array.size
    }
    content = {
        "torch": lambda: files.torch_file({"state_dict": files.tensors(), "epoch": 3}),
        "legacy": lambda: files.torch_file({"model": files.tensors(), "epoch": 3}, legacy=True),
        "safetensors": lambda: files.safetensors(arrays),
        "caffe": lambda: files.caffemodel(layers),
        "graph": lambda: files.graph(arrays),
        "pickle": lambda: files.pickled({"blobs": arrays}),
    }
    path.write_bytes(content[form]())
    return path, [path]


@pytest.mark.parametrize("count", [6, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_are_one_line_or_read(tmp_path: Path, form: str, count: int) -> None:
    draw = random.Random(form)
    path, parts = whole(tmp_path, form)
    expected = read_weights(path).values
    refused = 0
    for turn in range(count):
        part = draw.choice(parts)
        content = bytearray(part.read_bytes())
        before = bytes(content)
        if turn % 3 == 0:
            del content[draw.randrange(len(content)) :]
        else:
            # Half of the flips hit what describes the values, at the start and at the end.
            edge = min(400, len(content))
            offset = draw.choice(
                [draw.randrange(len(content)), draw.randrange(edge), -1 - draw.randrange(edge)]
            )
            content[offset] ^= 1 << draw.randrange(8)
        part.write_bytes(content)
        result = outcome(path)
        part.write_bytes(before)
        if isinstance(result, str):
            refused += 1
        elif form in SEALED:
            assert files.same(result, expected)
        else:
            # Nothing there can tell a changed value from the right one: only sizes are compared.
            assert sum(value.nbytes for value in result.values()) <= 4 * len(before)
    assert refused >= count / 3  # at least those that were cut
    assert files.same(read_weights(path).values, expected)


def pickle_of(program: bytes) -> bytes:
    return b"\x80\x04" + program + b"."


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def calls(path: str) -> dict[str, bytes]:
    """Programs that make a file when a pickle reads them: open(path, "w"), in every way."""
    arguments = text(path) + text("w")
    named = b"cio\nopen\n"
    return {
        "REDUCE": named + b"(" + arguments + b"tR",
        "STACK_GLOBAL": text("io") + text("open") + b"\x93(" + arguments + b"tR",
        "INST": b"(" + arguments + b"iio\nopen\n",
        "OBJ": b"(" + named + arguments + b"o",
        "NEWOBJ": b"cio\nFileIO\n(" + arguments + b"t\x81",
        "NEWOBJ_EX": b"cio\nFileIO\n(" + arguments + b"t}\x92",
    }


@pytest.mark.parametrize("code", calls(""))
def test_what_a_pickle_calls_is_not_called(tmp_path: Path, code: str) -> None:
    canary = tmp_path / "canary"
    program = calls(str(canary))[code]
    try:  # so that the test can fail: the program does what it says
        pickle.loads(pickle_of(program)).close()
    except (TypeError, AttributeError, pickle.UnpicklingError):
        assert code in ("INST", "OBJ", "NEWOBJ")  # functions are no classes, others open and fail
    canary.unlink(missing_ok=True)
    path = tmp_path / "weights"
    hostile = b"}" + text("lr") + program + b"s" + text("a")
    path.write_bytes(pickle_of(hostile + files.pickled(np.ones(2))[2:-1] + b"s"))
    assert files.same(read_weights(path).values, {"a": torch.ones(2, dtype=torch.float64)})
    assert set(read_weights(path).not_run) <= {"io.open", "io.FileIO"}
    path.write_bytes(pickle_of(program))
    assert "is not run" in str(outcome(path))
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_tensors_of_torch_are_not_run(tmp_path: Path, legacy: bool) -> None:
    canary = tmp_path / "canary"
    tensors = files.tensors()
    path = tmp_path / "weights"
    path.write_bytes(files.torch_file({"model": tensors, "x": files.Opens(canary)}, legacy))
    weights = read_weights(path)
    assert files.same(weights.values, tensors)
    assert weights.dropped == {"x": "io.open, which is not run"}
    assert not canary.exists()


def archive(pickled: bytes, members: dict[str, bytes], packed: bool = False) -> bytes:
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as out:
        for name, content in {"x/data.pkl": pickled, **members}.items():
            out.writestr(name, content)
    return file.getvalue()


def stored(count: int, shape: str, stride: str, offset: int = 0) -> bytes:
    """The pickle of {"a": a view of a storage of `count` floats}."""

    def numbers(values: str) -> bytes:
        return b"(" + b"".join(b"L%sL\n" % n.encode() for n in values.split()) + b"t"

    identity = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage = b"(" + identity + b"L%dL\n" % count + b"tQ"
    view = b"L%dL\n" % offset + numbers(shape) + numbers(stride)
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"\x89}tR"
    return pickle_of(b"}" + text("a") + rebuilt + b"s")


def long_identity() -> bytes:
    """A storage's identity with 400,000 parts too many, asked for again and again."""
    start = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02"
    return pickle_of(b"(" + start + b"N" * 400_000 + b"tq\x000(" + b"h\x00Q" * 200_000 + b"l")


def array(shape: bytes, data: bytes) -> bytes:
    dtype = b"cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03" + text("<") + b"NNNK\x00K\x00K\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return made + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


def binary(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def one_array_under_many_names() -> bytes:
    first = b"}" + text("first") + array(b"L1000000L\n\x85", binary(bytes(4_000_000))) + b"q\x00s"
    return pickle_of(first + b"".join(text(str(n)) + b"h\x00s" for n in range(90_000)))


def copies_of_one_text() -> bytes:
    """A text of one megabyte, made bytes again and again, as Python 2's arrays are."""
    start = text("x" * 1_000_000) + b"q\x000" + text("latin1") + b"q\x010"
    return pickle_of(start + b"(" + b"c_codecs\nencode\nh\x00h\x01\x86R" * 20_000 + b"l")


def dicts_from_one_list() -> bytes:
    pairs = b"(" + b"(K\x01K\x02t" * 50_000 + b"lq\x000"
    return pickle_of(pairs + b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 50_000 + b"l")


def keys_with_one_hash() -> bytes:
    numbers = (n * (2**61 - 1) for n in range(1, 100_000))
    longs = (b"\x8a\x0a" + n.to_bytes(10, "little") + b"N" for n in numbers)
    return pickle_of(b"}(" + b"".join(longs) + b"u")


def overlapping_members() -> bytes:
    """An archive whose directory gives one member a thousand names."""
    content = bytearray(archive(stored(1_000_000, "1", "1"), {"x/data/0": bytes(4_000_000)}))
    end = content.rfind(b"PK\x05\x06")
    start = int.from_bytes(content[end + 16 : end + 20], "little")
    last = content.rfind(b"PK\x01\x02", start, end)
    copies = b"".join(
        bytes(content[last:end]).replace(b"x/data/0", b"x/%06d" % n) for n in range(1000)
    )
    length = end - start + len(copies)
    head = content[end : end + 8] + struct.pack("<HHII", 1002, 1002, length, start) + b"\0\0"
    return bytes(content[:end]) + copies + bytes(head)


def many_members() -> bytes:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHHHHII", 1, 0, 0, 0, 0, 0, 0) + b"x"
    directory = entry * 500_000
    end = b"PK\x05\x06" + bytes(4) + struct.pack("<HHIIH", 65535, 65535, len(directory), 4, 0)
    return b"PK\x03\x04" + directory + end


def growing_names() -> bytes:
    """A table each of whose names is the one before and one letter more."""
    rows = b"".join(files.varint(n) + b"\x01\x00" + b"a" for n in range(100_000))
    content = rows + struct.pack("<II", 0, 1)
    return files.table(content + b"\0" + struct.pack("<I", files.masked_crc32c(content + b"\0")))


def entries(*rows: tuple[bytes, bytes]) -> bytes:
    return files.table(files.block([(b"", files.field(1, 1)), *rows]))


def safetensors_table(table: object) -> bytes:
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def tensor_entry(shape: list[object], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


FRONT = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
LEGACY = b"".join(pickle.dumps(part, 2) for part in FRONT)
TWO = np.ones(2, "<f4").tobytes()
HOSTILE: dict[str, Callable[[], bytes]] = {
    # pickles
    "values of 2^60 bytes": lambda: pickle_of(b"\x8e" + struct.pack("<Q", HUGE)),
    "a text of 2^60 bytes": lambda: pickle_of(b"\x8d" + struct.pack("<Q", HUGE)),
    "a number of 2^31 bytes": lambda: pickle_of(b"\x8b" + struct.pack("<I", 2**31 - 1)),
    "a million digits": lambda: pickle_of(b"I" + b"9" * 1_000_000 + b"\n"),
    "three million instructions": lambda: pickle_of(b"N" * 3_000_000),
    "DUP without end": lambda: pickle_of(b"(}" + b"2" * 900_000 + b"l"),
    "lists in lists": lambda: pickle_of(b"(" * 400_000 + b"l" * 400_000),
    "tuples in tuples": lambda: pickle_of(b")" + b"\x85" * 900_000),
    "a list doubled a hundred times": lambda: pickle_of(b"]" + b"q\x00h\x00\x86" * 100),
    "a key doubled a hundred times": lambda: pickle_of(b"}N" + b"q\x00h\x00\x86" * 100 + b"Ns"),
    "keys with one hash": keys_with_one_hash,
    "a dict in itself": lambda: pickle_of(b"}q\x00" + text("model") + b"h\x00s"),
    "one array under many names": one_array_under_many_names,
    "copies of one text": copies_of_one_text,
    "dicts from one list": dicts_from_one_list,
    "a long identity asked for again and again": long_identity,
    "an array of 2^60 values": lambda: pickle_of(
        b"}" + text("a") + array(b"L%dL\n\x85" % HUGE, binary(TWO)) + b"s"
    ),
    "an array of -2 values": lambda: pickle_of(
        b"}" + text("a") + array(b"I-2\n\x85", binary(TWO)) + b"s"
    ),
    "an extension": lambda: pickle_of(b"\x82\x01"),
    "values in a buffer": lambda: b"\x80\x05\x97.",
    "nothing on the stack": lambda: pickle_of(b"0" * 10),
    # torch
    "a storage of 2^59 values": lambda: archive(stored(2**59, "2", "1"), {"x/data/0": TWO}),
    "a view behind its storage": lambda: archive(stored(2, "2", "1", 1), {"x/data/0": TWO}),
    "a view before its storage": lambda: archive(stored(2, "2", "1", -1), {"x/data/0": TWO}),
    "a view of 2^60 values": lambda: archive(stored(2, str(HUGE), "1"), {"x/data/0": TWO}),
    "a value repeated 2^60 times": lambda: archive(stored(2, str(HUGE), "0"), {"x/data/0": TWO}),
    "a view that goes backwards": lambda: archive(stored(2, "2", "-1", 1), {"x/data/0": TWO}),
    "forty dimensions": lambda: archive(stored(2, "1 " * 40, "1 " * 40), {"x/data/0": TWO}),
    "a storage that is missing": lambda: archive(stored(2, "2", "1"), {}),
    "an archive of zeros": lambda: archive(
        stored(2**27, str(2**27), "1"), {"x/data/0": bytes(2**29)}, packed=True
    ),
    "members that overlap": overlapping_members,
    "half a million members": many_members,
    "two pickles": lambda: archive(stored(2, "2", "1"), {"y/data.pkl": b"", "x/data/0": TWO}),
    "a legacy storage of 2^59 values": lambda: (
        LEGACY + stored(2**59, "2", "1") + pickle.dumps(["0"], 2) + struct.pack("<Q", 2**59) + TWO
    ),
    "a legacy storage of another size": lambda: (
        LEGACY + stored(2, "2", "1") + pickle.dumps(["0"], 2) + struct.pack("<Q", 3) + TWO
    ),
    "legacy keys by the thousand": lambda: (
        LEGACY + stored(0, "0", "1") + pickle.dumps(["0"] * 9999, 2) + bytes(80_000)
    ),
    # safetensors
    "a header of brackets": lambda: struct.pack("<Q", 2**22) + b'{"a":' + b"[" * 2**22,
    "a header of 100 MB": lambda: struct.pack("<Q", 10**8) + b"{" + b" " * 10**8,
    "tensors that overlap": lambda: safetensors_table(
        {"a": tensor_entry([4], 0, 16), "b": tensor_entry([4], 0, 16)}
    ),
    "a gap": lambda: safetensors_table({"a": tensor_entry([2], 8, 16)}),
    "a shape that overflows": lambda: safetensors_table(
        {"a": tensor_entry([2**32, 2**32, 4], 0, 16)}
    ),
    "a negative shape": lambda: safetensors_table({"a": tensor_entry([-2, -2], 0, 16)}),
    "offsets that are no numbers": lambda: safetensors_table({"a": tensor_entry([4], 0.0, 16.0)}),
    # protobuf
    "a blob of 2^62 values": lambda: files.caffemodel({"a": [files.blob([2**62], TWO)]}),
    "a blob of -2 values": lambda: files.caffemodel({"a": [files.blob([-2], TWO)]}),
    "a blob of a thousand dimensions": lambda: files.caffemodel(
        {"a": [files.blob([1] * 1000, TWO[:4])]}
    ),
    "a layer of 2^60 bytes": lambda: files.varint(100 << 3 | 2) + files.varint(HUGE),
    "a number without end": lambda: files.field(1, "net") + b"\xa2\x06" + b"\xff" * 1000,
    "groups in groups": lambda: files.field(1, "net") + files.field(100, b"\x0b" * 100_000),
    "a million layers": lambda: files.field(100, files.field(1, "a")) * 1_000_000,
    "a constant of 2^40 values": lambda: files.constant("a", 1, [2**40], files.field(5, TWO)),
    "constants that add up": lambda: b"".join(
        files.constant(f"a{n}", 1, [2**20], files.field(5, TWO)) for n in range(1000)
    ),
    "more values than the shape": lambda: files.constant("a", 1, [1], files.field(5, TWO)),
    # TensorFlow's tables
    "a block of 2^60 bytes": lambda: files.table(
        files.block([]), files.varint(0) + files.varint(HUGE)
    ),
    "a block of snappy": lambda: files.table(files.block([(b"", b"")], compression=1)),
    "names that grow": growing_names,
    "a tensor of 2^60 bytes": lambda: entries((b"a", files.entry(1, [2**58], 0, b"", size=HUGE))),
    "shards that overlap": lambda: entries(
        (b"a", files.entry(1, [2], 0, TWO)), (b"b", files.entry(1, [2], 4, TWO))
    ),
    "shard 2^60": lambda: entries((b"a", files.entry(1, [2], 0, TWO, shard=HUGE))),
    "2^60 shards": lambda: files.table(files.block([(b"", files.field(1, HUGE))])),
    "a wrong checksum": lambda: entries((b"a", files.entry(1, [2], 0, TWO))).replace(b"a", b"b", 1),
}
# Files of megabytes, which take longer to write than to refuse.
LARGE = {
    "a long identity asked for again and again",
    "three million instructions",
    "DUP without end",
    "lists in lists",
    "tuples in tuples",
    "keys with one hash",
    "one array under many names",
    "copies of one text",
    "dicts from one list",
    "an archive of zeros",
    "members that overlap",
    "half a million members",
    "a header of brackets",
    "a header of 100 MB",
    "a million layers",
    "names that grow",
}
MAX_PEAK_KB = 1_000_000
MAX_SECONDS = 10  # on a busy machine; alone it is at most two or three


def write(folder: Path, name: str) -> Path:
    path = folder / "model.ckpt.index"
    path.write_bytes(HOSTILE[name]())
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(TWO * 8)
    return path


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - LARGE))
def test_a_small_hostile_file_is_one_line(tmp_path: Path, name: str) -> None:
    assert isinstance(outcome(write(tmp_path, name)), str)


REASONS = {
    "a view behind its storage": "reaches beyond its storage",
    "a storage that is missing": "the values '0' are missing",
    "an array of 2^60 values": "an array whose bytes do not fit its shape",
    "a legacy storage of 2^59 values": "its values end early",
    "a blob of 2^62 values": "the blob 'a/0' has 8 bytes, which its shape does not",
    "a layer of 2^60 bytes": "its format is not known",
    "a block of snappy": "compressed (snappy); save it again with tf.train.Saver",
    "shards that overlap": "'b' overlaps another tensor",
    "a wrong checksum": "does not have the checksum that was written; get it again",
}


@pytest.mark.parametrize("name", REASONS)
def test_the_line_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    assert REASONS[name] in str(outcome(write(tmp_path, name)))


@pytest.mark.slow
def test_hostile_files_are_refused_soon_in_little_memory(tmp_path: Path) -> None:
    for number, name in enumerate(HOSTILE):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number), name)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from test_broken_weights import outcome\n"
        "for folder in sys.argv[1:]:\n"
        "    start = time.monotonic()\n"
        "    result = outcome(Path(folder, 'model.ckpt.index'))\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    peak = status.split('VmHWM:')[1].split()[0]\n"
        "    print(time.monotonic() - start, peak, isinstance(result, str), flush=True)\n"
    )
    folders = [str(tmp_path / str(number)) for number in range(len(HOSTILE))]
    tests = Path(__file__).resolve().parent
    path = [str(tests), str(tests.parent), str(tests.parent.parent)]
    ran = subprocess.run(
        [sys.executable, "-c", code, *folders],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == len(HOSTILE) >= 30
    for name, (seconds, peak, refused) in zip(HOSTILE, lines, strict=True):
        assert refused == "True", name
        assert float(seconds) < MAX_SECONDS, name
        assert int(peak) < MAX_PEAK_KB, name
