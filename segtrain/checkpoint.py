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
import logging
import math
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor, nn

from segtrain.errors import DiskError, InternalError, UserError, did_you_mean
from segtrain.weights.files import Damaged, check_hash, load, load_weights, open_regular
from segtrain.weights.match import Match, compare, init_from, load_exactly, tensors

__all__ = ["Checkpoint", "save", "latest", "best", "find", "weights_of"]
__all__ += ["Match", "compare", "init_from", "load_exactly", "load_weights"]

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 64 << 20  # bytes
STEP_FOLDER = re.compile(r"step_(\d{8,})(\.old-\d+)?")
FILE_NAME = re.compile(r"[A-Za-z0-9_]+\.pt")
PLAIN = (int, float, bool, str, type(None))
log = logging.getLogger("segtrain")


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
            raise UserError(f"{self.path}: holds no `{name}`, only {held}.{did_you_mean(name, held.split(', '))}")
        try:
            with open_regular(self.path / file_name) as file:
                check_hash(file, file_name, *self.files[file_name])
                return load(file, self.path / file_name, map_location)
        except (OSError, Damaged) as error:
            raise UserError(f"{self.path}: damaged checkpoint ({error}); use another one") from None


# ---- writing


class _HashingFile:
    """What `torch.save` writes to: hashes, counts, and keeps the first OSError, which torch would hide."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing to do: `_write` flushes and syncs at the end."""


def save(folder: Path, step: int, payload: Mapping[str, Any], meta: Mapping[str, Any], keep: int = 2) -> Path:
    """Write `folder/step_<step>` whole or not at all, then drop all but the newest `keep` whole ones and the best.

    `payload` maps names to tensors and plain types, each to a file of its own. `meta` is plain JSON; `meta["score"]`
    (higher is better) decides which one is best. Raises DiskError when the disk refuses; older checkpoints stay.
    """
    if illegal := [name for name in payload if not FILE_NAME.fullmatch(f"{name}.pt")]:
        raise InternalError(f"checkpoint entry {illegal[0]!r}: a name has letters, digits and _ only")
    need = sum(_weigh(value, name) for name, value in payload.items())
    json.dumps(dict(meta))  # a meta that is not plain fails here, before anything is written
    temporary = folder / f".tmp-step_{step:08d}"
    try:
        created = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".tmp-*"):
            _remove(leftover)
        temporary.mkdir()
        files = {f"{name}.pt": _write(temporary / f"{name}.pt", value) for name, value in payload.items()}
        manifest = _encode({"format": FORMAT, "step": step, "meta": dict(meta), "files": files})
        _write_synced(temporary / MANIFEST, lambda file: file.write(manifest))
        _sync_folder(temporary)
        path = _put_in_place(temporary, folder / f"step_{step:08d}")
        if created:
            _sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(_refusal(folder, step, need, error)) from error
    _prune(folder, keep, path)
    return path


def _weigh(value: Any, where: str) -> int:
    """Bytes of the tensors in `value`; InternalError for what a safe load would refuse later, when it is too late."""
    kind = type(value)
    if kind in (Tensor, nn.Parameter):
        return value.numel() * value.element_size()
    if kind in (dict, OrderedDict):
        return sum(_weigh(key, f"{where} key") + _weigh(item, f"{where}.{key}") for key, item in value.items())
    if kind in (list, tuple):
        return sum(_weigh(item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind not in PLAIN:
        raise InternalError(f"checkpoint entry {where} is a {kind.__name__}; only tensors and plain types can be saved")
    return 0


def _write(path: Path, value: Any) -> dict[str, Any]:
    """Save `value` and return its manifest record."""
    record: dict[str, Any] = {}

    def write(file: BinaryIO) -> None:
        sink = _HashingFile(file)
        torch.save(value, sink)  # ty: ignore[invalid-argument-type]  # torch needs write and flush only
        if sink.error is not None:
            raise sink.error
        record.update(size=sink.size, sha256=sink.hash.hexdigest())

    _write_synced(path, write)
    return record


def _write_synced(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(temporary: Path, path: Path) -> Path:
    """Rename to the final name. One that stands there, whole or damaged, moves aside; `_prune` drops it if whole."""
    if os.path.lexists(path):
        number = 1
        while os.path.lexists(aside := path.with_name(f"{path.name}.old-{number}")):
            number += 1
        os.rename(path, aside)
    os.rename(temporary, path)
    _sync_folder(path.parent)
    return path


def _prune(folder: Path, keep: int, written: Path) -> None:
    """Drop whole checkpoints that are neither among the newest `keep`, nor best, nor just written."""
    try:
        whole = [found for found in _scan(folder) if found.path == written or _is_whole(found)]
        current: dict[int, Checkpoint] = {}
        for found in whole:  # newest first, and before the one it replaced
            current.setdefault(found.step, found)
        ranked = sorted(filter(_has_score, current.values()), key=_rank, reverse=True)
        kept = {written, *(found.path for found in [*list(current.values())[:keep], *ranked[:1]])}
        for found in whole:
            if found.path not in kept:
                trash = folder / f".tmp-{found.path.name}"  # a death halfway must not leave a damaged checkpoint
                os.rename(found.path, trash)
                _remove(trash)
    except (OSError, UserError) as error:  # the new one is safe, so this must not end a run
        log.warning("%s: old checkpoints were not removed: %s", folder, error)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _refusal(folder: Path, step: int, need: int, error: OSError) -> str:
    try:
        free = f"{shutil.disk_usage(folder).free} bytes are free"
    except OSError:
        free = "the free space is unknown"
    return (
        f"{folder}: step {step} was not saved: {error.strerror or error}; it needs about {need} bytes, {free}. "
        f"Older checkpoints are intact: make room, then resume"
    )


# ---- finding


def latest(folder: Path) -> Checkpoint | None:
    """The whole checkpoint with the highest step, None when there is none. Damaged ones are named in the log."""
    return next(filter(_is_whole, _scan(folder)), None)


def best(folder: Path) -> Checkpoint | None:
    """The whole checkpoint with the highest `meta["score"]`, ties to the newest; None when none has a score."""
    ranked = sorted(filter(_has_score, _scan(folder)), key=_rank, reverse=True)
    return next(filter(_is_whole, ranked), None)


def find(path: str | Path, prefer: Literal["best", "latest"] = "latest") -> Checkpoint:
    """The checkpoint meant by a run folder, a `checkpoints` folder, one step folder or a file inside one.

    Where several are meant, `prefer` picks; "best" is "latest" when no checkpoint has a score. UserError otherwise.
    """
    given = Path(path).expanduser()
    if not given.exists():
        near = [str(p) for p in given.parent.iterdir()] if given.parent.is_dir() else []
        raise UserError(f"{given}: does not exist.{did_you_mean(str(given), near)}")
    place = given.resolve()
    if place.is_file():
        if place.name != MANIFEST and not (place.parent / MANIFEST).is_file():
            raise UserError(f"{given}: a foreign file, no segtrain checkpoint; bare weights go to train.init=FILE")
        place = place.parent
    if (place / MANIFEST).is_file() or STEP_FOLDER.fullmatch(place.name):
        try:
            found = _inspect(place)
            _check_files(found)
        except (OSError, Damaged) as error:
            raise UserError(f"{given}: damaged checkpoint ({error}); use another one") from None
        return found
    folder = place / "checkpoints" if (place / "checkpoints").is_dir() else place
    chosen = (best(folder) if prefer == "best" else None) or latest(folder)
    if chosen is None:
        raise UserError(f"{given}: holds no whole checkpoint; give a run folder, or a folder step_NNNNNNNN inside one")
    return chosen


def weights_of(source: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Weights to start from, and the names of their classes: of whatever `find` finds (the best, averaged if it has an
    average), or of a bare file, which knows no names. UserError as in `find` and `load_weights`."""
    place = Path(source).expanduser()
    if place.is_file() and not (place.resolve().parent / MANIFEST).is_file():
        return load_weights(place), []
    found = find(place, "best")
    names = list(found.meta.get("class_names", []))
    if "ema.pt" not in found.files:
        return dict(tensors(found.read("model"), found.path)), names
    averaged = tensors(found.read("ema"), found.path)  # torch's AveragedModel: `module.` and a counter
    return {key.removeprefix("module."): value for key, value in averaged.items() if key != "n_averaged"}, names


def _scan(folder: Path) -> list[Checkpoint]:
    """Checkpoints with a sound manifest, newest first, a replaced one after its successor. Files are not hashed yet."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if STEP_FOLDER.fullmatch(path.name):
            try:
                found.append(_inspect(path))
            except (OSError, Damaged) as error:
                _skip(path, error)
    return sorted(found, key=lambda c: (c.step, ".old-" not in c.path.name), reverse=True)


def _skip(path: Path, reason: Exception) -> None:
    log.warning("%s: damaged checkpoint skipped: %s", path, reason)


def _is_whole(found: Checkpoint) -> bool:
    try:
        _check_files(found)
    except (OSError, Damaged) as error:
        _skip(found.path, error)
        return False
    return True


def _has_score(found: Checkpoint) -> bool:
    score = found.meta.get("score")
    return isinstance(score, int | float) and not math.isnan(score)


def _rank(found: Checkpoint) -> tuple[float, int, bool]:
    return found.meta["score"], found.step, ".old-" not in found.path.name


# ---- trusting nothing


def _encode(body: Mapping[str, Any]) -> bytes:
    """The one text of a manifest: sorted keys, and a seal over the rest. This rule outlives format versions."""
    text = json.dumps(body, sort_keys=True, indent=1)
    return json.dumps({**body, "seal": hashlib.sha256(text.encode()).hexdigest()}, sort_keys=True, indent=1).encode()


def _inspect(path: Path) -> Checkpoint:
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
        sound = seal and _encode(body) == data
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise Damaged(f"{MANIFEST} is damaged or not ours")
    return _from_manifest(path, body)


def _from_manifest(path: Path, body: dict[str, Any]) -> Checkpoint:
    version = body.get("format")
    if type(version) is int and version > FORMAT:
        raise UserError(f"{path}: has format {version}, this segtrain reads up to {FORMAT}; update segtrain to use it")
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


def _check_files(found: Checkpoint) -> None:
    for name, (size, sha256) in found.files.items():
        with open_regular(found.path / name) as file:
            check_hash(file, name, size, sha256)
