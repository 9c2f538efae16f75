"""Checkpoints: folders that exist whole or not at all, read without running anything they hold.

    checkpoints/step_00000100/manifest.json     format, step, meta, size and sha256 of every file, a seal over itself
                              model.pt ...      one torch file per payload entry

A save is built in `.tmp-...` and renamed when every byte is on the disk. A folder that does not match its manifest is
skipped and named, never deleted. A whole one that gives way to a new one of the same step is first moved to `.old-N`,
which is read like any other, so that there is no moment without a checkpoint. One writer at a time: `guard.RunLock`.
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
MANIFEST_LIMIT = 64 << 20  # bytes
STEP_FOLDER = re.compile(r"step_(\d{8,})(\.old-\d+)?")
FILE_NAME = re.compile(r"[A-Za-z0-9_]+\.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose manifest is sound. `files` maps file name to (size in bytes, sha256)."""

    path: Path
    step: int
    meta: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]] = field(repr=False)

    def read(self, name: str, map_location: str | torch.device = "cpu") -> Any:
        """The payload entry `name`, the same bits that were saved. UserError when it is absent or damaged."""
        file_name = f"{name}.pt"
        if file_name not in self.files:
            held = ", ".join(sorted(f.removesuffix(".pt") for f in self.files))
            raise UserError(
                f"{self.path}: holds no `{name}`, only {held}.{did_you_mean(name, held.split(', '))}"
            )
        try:
            with open_regular(self.path / file_name) as file:
                check_hash(file, file_name, *self.files[file_name])
                return load(file, self.path / file_name, map_location)
        except (OSError, Damaged) as error:
            raise UserError(f"{self.path}: damaged checkpoint ({error}); use another one") from None


# ---- trusting nothing


def encode(body: Mapping[str, Any]) -> bytes:
    """The one text of a manifest: sorted keys, and a seal over the rest. This rule outlives format versions."""
    text = json.dumps(body, sort_keys=True, indent=1)
    return json.dumps(
        {**body, "seal": hashlib.sha256(text.encode()).hexdigest()}, sort_keys=True, indent=1
    ).encode()


def inspect(path: Path) -> Checkpoint:
    """The checkpoint at `path` by its manifest alone; UserError when a newer segtrain wrote it."""
    if path.is_symlink():
        raise Damaged("the folder is a symbolic link")
    with open_regular(path / MANIFEST) as file:
        data = file.read(MANIFEST_LIMIT + 1)
    if len(data) > MANIFEST_LIMIT:
        raise Damaged(f"{MANIFEST} is larger than {MANIFEST_LIMIT} bytes")
    try:
        body = json.loads(data)
        seal = body.pop("seal")
        sound = seal and encode(body) == data
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise Damaged(f"{MANIFEST} is damaged or not ours")
    return _from_manifest(path, body)


def _from_manifest(path: Path, body: dict[str, Any]) -> Checkpoint:
    version = body.get("format")
    if type(version) is int and version > FORMAT:
        raise UserError(
            f"{path}: has format {version}, this segtrain reads up to {FORMAT}; update segtrain to use it"
        )
    try:
        step, meta = body["step"], body["meta"]
        files = {name: (record["size"], record["sha256"]) for name, record in body["files"].items()}
    except (LookupError, TypeError, AttributeError):
        raise Damaged(f"{MANIFEST} lacks an entry") from None
    if version != FORMAT or type(step) is not int or type(meta) is not dict:
        raise Damaged(f"{MANIFEST} holds a value of a wrong kind")
    if unsafe := [name for name in files if not FILE_NAME.fullmatch(name)]:
        raise Damaged(f"{MANIFEST} names the illegal file {unsafe[0]!r}")
    named = STEP_FOLDER.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise Damaged(f"{MANIFEST} is of step {step}")
    return Checkpoint(path, step, meta, files)


def check_files(found: Checkpoint) -> None:
    for name, (size, sha256) in found.files.items():
        with open_regular(found.path / name) as file:
            check_hash(file, name, size, sha256)
