"""Read what `torch.save` writes: a pickle of the names and shapes, and the values beside it.

Since torch 1.6 it is a zip archive, whose members are stored without compression:

    NAME/data.pkl       the pickle; tensors are views of storages, which it names by a key
    NAME/data/KEY       the values of a storage, nothing else
    NAME/byteorder      "little" (since torch 2.1)

Before, it is four pickles in a row (a magic number, the version, facts about the machine, the
content), a fifth with the list of keys, and for each key 8 bytes with the count and the values.

`torch.load(weights_only=True)` is not used here. It reads an archive without its checksums, so a
damaged tensor becomes other values (torch 2.15), and it refuses a whole file for one setting of a
class that it does not know.
Source: torch/serialization.py.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Any, BinaryIO

from segtrain.weights.content import Damaged, Weights, size_of, take
from segtrain.weights.pickled import Storage, read_pickle
from segtrain.weights.state_dict import weights_of

ZIP = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_HEAD = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_VERSION = 1001
LOCAL_HEADER = struct.Struct("<4s22xHH")  # magic, ..., length of the name, length of the extras
END_OF_DIRECTORY = struct.Struct("<4s6xHII")  # magic, ..., members, bytes of the directory, where
ZIP64_END_BYTES = 56
MAX_DIRECTORY_BYTES = 16 << 20  # a member takes some 70 bytes


def read_torch_zip(file: BinaryIO) -> Weights:
    """Return the tensors of an open archive. Errors: Damaged."""
    size = size_of(file)
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
    # Members that share bytes, or are compressed, could be any number of gigabytes.
    if sum(member.file_size for member in members.values()) > size:
        raise Damaged("its members are larger than the file")
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Damaged("it is an archive that torch.save did not write", "unpack it first")
    folder = pickles[0].removesuffix("data.pkl")
    if (order := members.get(f"{folder}byteorder")) and _member(file, order) != b"little":
        raise Damaged("it was written on a big-endian machine", "save it again on another")
    program = _member(file, members[pickles[0]])
    content = read_pickle(io.BytesIO(program), len(program))

    def read(storage: Storage) -> bytearray:
        if (member := members.get(f"{folder}data/{storage.key}")) is None:
            raise Damaged(f"the values {storage.key[:80]!r} are missing")
        return _member(file, member)

    return weights_of(content, "torch", size, read)


def read_torch_legacy(file: BinaryIO) -> Weights:
    """Return the tensors of an open file of torch before 1.6. Errors: Damaged."""
    size = size_of(file)
    magic, version, machine = (read_pickle(file, size).value for _ in range(3))
    if (magic, version) != (LEGACY_MAGIC, LEGACY_VERSION):
        raise Damaged("it has a version of torch's files that nobody wrote")
    if isinstance(machine, dict) and machine.get("little_endian") is not True:
        raise Damaged("it was written on a big-endian machine", "save it again on another")
    content = read_pickle(file, size)
    offsets = _legacy_offsets(file, read_pickle(file, size).value, content.storages)

    def read(storage: Storage) -> bytearray:
        if storage.key not in offsets:
            raise Damaged(f"the values {storage.key[:80]!r} are missing")
        file.seek(offsets[storage.key])
        return take(file, storage.count * storage.dtype.itemsize)

    return weights_of(content, "torch before 1.6", size, read)


def _legacy_offsets(file: BinaryIO, keys: Any, storages: dict[str, Storage]) -> dict[str, int]:
    """Return where the values of each storage start, from where the file stands."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Damaged("it has no list of its storages")
    size = size_of(file)
    offsets: dict[str, int] = {}
    for key in keys:
        count = int.from_bytes(take(file, 8), "little")
        storage = storages.get(key)
        if storage is None or storage.count != count or key in offsets:
            raise Damaged("its storages are not those that its tensors name")
        offsets[key] = file.tell()
        if count * storage.dtype.itemsize > size - offsets[key]:
            raise Damaged("its values end early")
        file.seek(count * storage.dtype.itemsize, io.SEEK_CUR)
    return offsets


def _check_directory(file: BinaryIO, size: int) -> None:
    """Refuse an archive with more members than a network has tensors, before they are listed."""
    file.seek(max(0, size - (1 << 16) - END_OF_DIRECTORY.size))
    tail = file.read()
    start = tail.rfind(b"PK\x05\x06")
    if start < 0 or len(tail) - start < END_OF_DIRECTORY.size:
        raise Damaged("the end of its archive is missing")
    _, _, length, _ = END_OF_DIRECTORY.unpack_from(tail, start)
    if tail[max(0, start - 20) :].startswith(b"PK\x06\x07"):  # zip64: the length has eight bytes
        if (big := start - 20 - ZIP64_END_BYTES) < 0:
            raise Damaged("the end of its archive is missing")
        length = int.from_bytes(tail[big + 40 : big + 48], "little")
    if length > MAX_DIRECTORY_BYTES:
        raise Damaged(f"it is an archive with a directory of {length} bytes")


def _member(file: BinaryIO, member: zipfile.ZipInfo) -> bytearray:
    """Return the bytes of a member that is not compressed. Errors: Damaged.

    `zipfile` is not asked for them: torch can write archives without checksums (they are 0), which
    it would refuse.
    """
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise Damaged("it is an archive with compressed members, which torch.save does not write")
    file.seek(member.header_offset)
    magic, name, extra = LOCAL_HEADER.unpack(take(file, LOCAL_HEADER.size))
    if magic != ZIP:
        raise Damaged(f"the member {member.filename[:80]!r} is not where it should be")
    file.seek(name + extra, io.SEEK_CUR)
    content = take(file, member.file_size)
    if member.CRC not in (0, zlib.crc32(content)):
        raise Damaged(f"{member.filename[:80]!r} does not have the checksum that was written")
    return content
