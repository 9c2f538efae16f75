"""The form of a checkpoint: a folder that exists whole or not at all, and its manifest.

    checkpoints/step_00000100/
        manifest.json   format, step, meta, size and sha256 of every file, and a seal over itself
        model.pt ...    one torch file per payload entry

A save is built in `.tmp-...` and renamed when every byte is on the disk. A folder that does not
match its manifest is skipped and named, never deleted. A whole one that gives way to a new one of
the same step is first moved to `.old-N`, which is read like any other, so that there is no moment
without a checkpoint. The lock of the run folder sees to it that there is one writer at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from segtrain.checkpoints.safe_load import Damaged, check_hash, load, open_regular
from segtrain.errors import UserError, did_you_mean

FORMAT = 1
MANIFEST = "manifest.json"
# No run comes near it; a manifest is read into memory before anything in it can be trusted.
MAX_MANIFEST_BYTES = 64 << 20
STEP_FOLDER = re.compile(r"step_(\d{8,})(\.old-\d+)?")
# Of what `meta` tells, where it does.
KINDS = {
    "best": (dict, type(None)),
    "numbers": (dict,),
    "train": (dict,),
    "evaluated": (bool,),
    "pieces": (int,),
    "fingerprint": (str, type(None)),
}
NUMBER = (int, float)
FILE_NAME = re.compile(r"[A-Za-z0-9_]+\.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose manifest is sound.

    `files` maps file names to (size in bytes, sha256). The files themselves may not have been read.
    """

    path: Path
    step: int
    meta: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]] = field(repr=False)

    def read(self, name: str, map_location: str | torch.device = "cpu") -> Any:
        """Read the payload entry `name`: the same bits that were saved.

        Errors: UserError when it is absent or damaged.
        """
        file_name = f"{name}.pt"
        if file_name not in self.files:
            entries = sorted(file.removesuffix(".pt") for file in self.files)
            hint = did_you_mean(name, entries)
            raise UserError(f"{self.path}: holds no `{name}`, only {', '.join(entries)}.{hint}")
        try:
            with open_regular(self.path / file_name) as file:
                check_hash(file, file_name, *self.files[file_name])
                return load(file, self.path / file_name, map_location)
        except (OSError, Damaged) as error:
            raise UserError(f"{self.path}: damaged checkpoint ({error}); use another one") from None


def encode(body: Mapping[str, Any]) -> bytes:
    """Return the one text of a manifest: sorted keys, and a seal over the rest.

    This rule must outlive format versions: by it a newer manifest is told from a damaged one. Keys
    become text before they are sorted, as {3: road, 255: null} comes back from a file.
    """
    plain = json.loads(json.dumps(body))
    seal = _seal(json.dumps(plain, sort_keys=True, indent=1))
    return json.dumps({**plain, "seal": seal}, sort_keys=True, indent=1).encode()


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_sealed(data: bytes) -> bool:
    """Tell whether a manifest is as `encode` wrote it, by whatever order of keys.

    Errors: those of JSON and of what has no seal.
    """
    whole = json.loads(data)
    body = {key: value for key, value in whole.items() if key != "seal"}
    as_written = json.dumps(whole, indent=1).encode() == data
    return as_written and whole["seal"] == _seal(json.dumps(body, indent=1))


def inspect(path: Path) -> Checkpoint:
    """Read the manifest of the checkpoint at `path`; its other files are not read.

    Errors: Damaged, or UserError when a newer segtrain wrote it.
    """
    if path.is_symlink():
        raise Damaged("the folder is a symbolic link")
    with open_regular(path / MANIFEST) as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise Damaged(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        sound = _is_sealed(data)
        body = json.loads(data)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise Damaged(f"{MANIFEST} is damaged or not ours")
    return _from_manifest(path, body)


def _from_manifest(path: Path, body: dict[str, Any]) -> Checkpoint:
    """Check every value of a sealed manifest: the seal shows that it is whole, not who wrote it."""
    version = body.get("format")
    if type(version) is int and version > FORMAT:
        raise UserError(
            f"{path}: has format {version}, this segtrain reads up to {FORMAT}; "
            "update segtrain to use it"
        )
    try:
        step = body["step"]
        meta = body["meta"]
        files = {name: (record["size"], record["sha256"]) for name, record in body["files"].items()}
    except (LookupError, TypeError, AttributeError):
        raise Damaged(f"{MANIFEST} lacks an entry") from None
    if version != FORMAT or type(step) is not int or type(meta) is not dict:
        raise Damaged(f"{MANIFEST} holds a value of a wrong kind")
    if wrong := [key for key, value in meta.items() if not _is_of_its_kind(key, value)]:
        raise Damaged(f"{MANIFEST} holds a value of a wrong kind, `{wrong[0]}`")
    if unsafe := [name for name in files if not FILE_NAME.fullmatch(name)]:
        raise Damaged(f"{MANIFEST} names the illegal file {unsafe[0]!r}")
    named = STEP_FOLDER.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise Damaged(f"{MANIFEST} is of step {step}")
    return Checkpoint(path, step, meta, files)


def _is_of_its_kind(key: str, value: Any) -> bool:
    """Tell whether an entry of `meta` that is read without a further look is what it should be."""
    if key == "class_names":
        return type(value) is list and all(type(name) is str for name in value)
    if key == "skipped":
        return type(value) is list and [type(count) for count in value] == [int, int]
    if type(value) not in KINDS.get(key, (type(value),)):
        return False
    if key == "best" and value is not None:
        return type(value.get("step")) in NUMBER and type(value.get("value")) in NUMBER
    plain = (*NUMBER, type(None))  # what JSON has in place of NaN
    return key not in ("numbers", "train") or all(type(each) in plain for each in value.values())


def check_files(checkpoint: Checkpoint) -> None:
    """Compare size and hash of every file with the manifest. Errors: Damaged."""
    for name, (size, sha256) in checkpoint.files.items():
        with open_regular(checkpoint.path / name) as file:
            check_hash(file, name, size, sha256)
