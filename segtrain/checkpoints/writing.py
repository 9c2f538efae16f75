"""Write a checkpoint whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from segtrain.checkpoints.manifest import FILE_NAME, FORMAT, MANIFEST, Checkpoint, encode
from segtrain.checkpoints.reading import is_whole, log, ranked, scan
from segtrain.errors import DiskError, InternalError, UserError
from segtrain.runtime.files import rename, retried, sync_folder, write_synced

PLAIN_TYPES = (int, float, bool, str, type(None))  # what torch loads with weights_only=True


class _HashingFile:
    """A file for `torch.save` that hashes and counts what is written.

    It keeps the first OSError, which torch would replace by one that does not tell the reason.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write, hash and count; after an error only hash and count."""
        self.hash.update(data)
        self.size += len(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: `_write` flushes and syncs at the end."""


def save(
    folder: Path,
    step: int,
    payload: Mapping[str, Any],
    meta: Mapping[str, Any],
    keep: int = 2,
    keep_best: int = 1,
) -> Path:
    """Write `folder/step_<step>` whole or not at all, and return its path.

    Then all but the newest `keep` whole checkpoints and the best `keep_best` are dropped. `payload`
    maps names to tensors and plain types, each to a file of its own. `meta` is plain JSON;
    `meta["score"]` (higher is better) decides which are best, of equal ones the newest; one without
    a score, or whose score is NaN, is none of them. Errors: DiskError when the disk refuses; older
    checkpoints stay.
    """
    path = _save_as(folder, f"step_{step:08d}", step, payload, meta, ".tmp-*")
    _prune(folder, keep, keep_best, path)
    return path


def save_as(
    folder: Path, name: str, step: int, payload: Mapping[str, Any], meta: Mapping[str, Any]
) -> Path:
    """Write `folder/name` in the form of a checkpoint, as `save` does, and drop nothing."""
    return _save_as(folder, name, step, payload, meta, f".tmp-{name}")


def _save_as(
    folder: Path,
    name: str,
    step: int,
    payload: Mapping[str, Any],
    meta: Mapping[str, Any],
    leftovers: str,
) -> Path:
    """Write `folder/name`; what an earlier process left of `leftovers` (a pattern) is removed."""
    if illegal := [entry for entry in payload if not FILE_NAME.fullmatch(f"{entry}.pt")]:
        raise InternalError(
            f"checkpoint entry {illegal[0]!r}: a name has letters, digits and _ only"
        )
    bytes_needed = sum(_count_bytes(value, entry) for entry, value in payload.items())
    json.dumps(dict(meta))  # a meta that is not plain fails here, before anything is written
    temporary = folder / f".tmp-{name}"

    created = not folder.exists()

    def write() -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(leftovers):
            remove(leftover)
        temporary.mkdir()
        files = {
            f"{entry}.pt": _write(temporary / f"{entry}.pt", value)
            for entry, value in payload.items()
        }
        manifest = encode({"format": FORMAT, "step": step, "meta": dict(meta), "files": files})
        write_synced(temporary / MANIFEST, lambda file: file.write(manifest))
        sync_folder(temporary)
        path = _put_in_place(temporary, folder / name)
        if created:
            sync_folder(folder.parent)
        return path

    try:
        return retried(write)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(_refusal(folder, step, bytes_needed, error)) from error


def _count_bytes(value: Any, where: str) -> int:
    """Return the bytes of the tensors in `value`.

    Errors: InternalError for what a safe load would refuse later, when it is too late.
    """
    kind = type(value)
    if kind in (Tensor, nn.Parameter):
        return value.numel() * value.element_size()
    if kind in (dict, OrderedDict):
        return sum(
            _count_bytes(key, f"{where} key") + _count_bytes(item, f"{where}.{key}")
            for key, item in value.items()
        )
    if kind in (list, tuple):
        return sum(_count_bytes(item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind not in PLAIN_TYPES:
        raise InternalError(
            f"checkpoint entry {where} is a {kind.__name__}; "
            "only tensors and plain types can be saved"
        )
    return 0


def _write(path: Path, value: Any) -> dict[str, Any]:
    """Save `value` and return its record in the manifest."""
    record: dict[str, Any] = {}

    def write(file: BinaryIO) -> None:
        sink = _HashingFile(file)
        # torch calls write and flush only; its annotation asks for a whole file.
        torch.save(value, sink)  # ty: ignore[invalid-argument-type]
        if sink.error is not None:
            raise sink.error
        record.update(size=sink.size, sha256=sink.hash.hexdigest())

    write_synced(path, write)
    return record


def _put_in_place(temporary: Path, path: Path) -> Path:
    """Rename a finished folder to its final name.

    A checkpoint that stands there, whole or damaged, moves aside; `_prune` drops it if it is whole.
    """
    if os.path.lexists(path):
        number = 1
        while os.path.lexists(aside := path.with_name(f"{path.name}.old-{number}")):
            number += 1
        rename(path, aside)
    rename(temporary, path)
    sync_folder(path.parent)
    return path


def _prune(folder: Path, keep: int, keep_best: int, written: Path) -> None:
    """Drop whole checkpoints but the newest `keep`, the best `keep_best` and the one just written.

    Damaged ones stay: something in them may still be of use to somebody.
    """
    try:
        whole = [old for old in scan(folder) if old.path == written or is_whole(old)]
        current: dict[int, Checkpoint] = {}
        for checkpoint in whole:  # newest first, and before the one it replaced
            current.setdefault(checkpoint.step, checkpoint)
        newest = list(current.values())[:keep]
        best = ranked(current.values())[:keep_best]
        kept = {written, *(checkpoint.path for checkpoint in [*newest, *best])}
        for checkpoint in whole:
            if checkpoint.path not in kept:
                # Renamed first: a death halfway must not leave a damaged checkpoint.
                trash = folder / f".tmp-{checkpoint.path.name}"
                rename(checkpoint.path, trash)
                remove(trash)
    except (OSError, UserError) as error:  # the new one is safe, so this must not end a run
        log.warning("%s: old checkpoints were not removed: %s", folder, error)


def remove(path: Path) -> None:
    """Remove a folder with all it holds, or a file; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _refusal(folder: Path, step: int, bytes_needed: int, error: OSError) -> str:
    """Say why a checkpoint was not saved, and what to do."""
    try:
        free = f"{shutil.disk_usage(folder).free} bytes are free"
    except OSError:
        free = "the free space is unknown"
    return (
        f"{folder}: step {step} was not saved: {error.strerror or error}; "
        f"it needs about {bytes_needed} bytes, {free}. "
        "Older checkpoints are intact: make room, then resume"
    )
