"""Weight files as an attacker writes them, each with a canary that an unsafe load would create."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from pathlib import Path

import torch

from segtrain.checkpoints import manifest


class Touch:
    """Writes a canary file when an unsafe load meets it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


def bare(path: Path, canary: Path) -> None:
    torch.save(Touch(canary), path)


def nested(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2), "deep": [{"x": (1, [Touch(canary)])}]}, path)


def as_key(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2), Touch(canary): 1}, path)


def old_format(path: Path, canary: Path) -> None:
    torch.save({"w": Touch(canary)}, path, _use_new_zipfile_serialization=False)


def raw_script(path: Path, canary: Path) -> None:
    path.write_bytes(b"cos\nmkdir\n(S'" + str(canary).encode() + b"'\ntR.")


def attribute_walk(path: Path, canary: Path) -> None:
    path.write_bytes(
        b"\x80\x04ctorch.serialization\nos.mkdir\n(S'" + str(canary).encode() + b"'\ntR."
    )


def deflated_bomb(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            archive.writestr(name, bytes(1 << 24) if name.endswith("data/0") else data)


def ten_terabytes(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    path.write_bytes(data[: at + 20] + struct.pack("<II", 2**32 - 2, 2**32 - 2) + data[at + 28 :])


def old_format_ten_terabytes(path: Path, canary: Path) -> None:
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    # the number of elements, as one byte, follows the device and its memo
    at = data.index(b"cpu") + 5
    assert data[at : at + 2] == b"K\x03", data[at - 10 : at + 10]
    path.write_bytes(data[:at] + b"\x8a\x06" + (10 * 2**40).to_bytes(6, "little") + data[at + 2 :])


def endless_nesting(path: Path, canary: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".")


def empty(path: Path, canary: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path, canary: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 8)


FILES = [bare, nested, as_key, old_format, raw_script, attribute_walk, deflated_bomb]
FILES += [ten_terabytes, old_format_ten_terabytes, endless_nesting, empty, noise]


def seal(path: Path, **changes: object) -> None:
    """A manifest that is right about the files that are there, as an attacker would write it."""
    files = {}
    for file in sorted(path.glob("*.pt")):
        files[file.name] = {
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    body = {"format": 1, "step": 100, "meta": {}, "files": files, **changes}
    (path / "manifest.json").write_bytes(manifest.encode(body))
