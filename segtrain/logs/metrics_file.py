"""metrics.jsonl, timing.jsonl, bad_samples.jsonl, spikes.jsonl: files that grow by whole lines."""

from __future__ import annotations

import errno
import json
import math
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segtrain.errors import DataError, DiskError
from segtrain.runtime.files import (
    WAIT_SECONDS,
    open_to_append,
    replace_file,
    retried,
    sync,
    sync_folder,
)

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"  # there only where `train.bad_samples=skip` met one
SPIKES = "spikes.jsonl"  # there only where a number was far above what was usual, or not finite
TEXT = "train.log"


def rewind(run_dir: Path, step: int) -> None:
    """Drop what these files say about steps after `step`.

    A last line that a kill cut off is dropped too. Each file is replaced as a whole or not at all;
    the lines kept keep their bytes. Errors: DataError for a damaged line, DiskError.
    """
    for path in (run_dir / name for name in (METRICS, TIMING, BAD_SAMPLES, SPIKES)):
        if not path.exists():
            continue
        kept = b"".join(line for line, record in _records(path) if record["step"] <= step)
        if len(kept) < path.stat().st_size:
            with writing(path):
                replace_file(path, kept)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, without one that is still being written.

    An empty list where the file is missing. Errors: DataError for a damaged line.
    """
    return read_lines_of(run_dir / METRICS)


def read_lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of one of these files, as `read_metrics` does."""
    return [record for _, record in _records(path)] if path.exists() else []


class Appender:
    """A file that grows by whole lines.

    Each line is handed to the system at once, so a kill of the process loses none.
    Errors: DiskError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(path)

    def add(self, line: bytes) -> None:
        """Append a line, which ends in a newline."""
        rest = memoryview(line)
        with writing(self.path):
            while rest:  # a disk that fills up may take a part
                rest = rest[retried(lambda part=rest: self._file.write(part)) :]

    def sync(self) -> None:
        """Bring all lines to the disk."""
        with writing(self.path):
            try:
                sync(self._file.fileno())
                sync_folder(self.path.parent)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._copy()

    def _copy(self) -> None:
        """Put a copy in the file's place: what a failed sync lost is not synced by another one."""
        self._file.close()
        time.sleep(WAIT_SECONDS)
        replace_file(self.path, self.path.read_bytes())
        self._file = open_to_append(self.path)

    def close(self) -> None:
        """Close the file."""
        with writing(self.path):
            self._file.close()


def json_number(value: float | None) -> float | int | None:
    """Return a number as JSON can hold it: an int, a finite float, or None."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def json_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line of JSON."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the bytes and the record of each whole line. Errors: DataError.

    Only the last line may be torn, as a kill leaves it; it is left out, and no other is.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            whole = line.endswith(b"\n") and isinstance(record["step"], int)
        except (ValueError, TypeError, KeyError):
            whole = False
        if whole:
            yield line, record
        elif number < len(lines):
            raise DataError(
                f"{path}: line {number} is damaged ({line[:60]!r}); remove it, or start a new run"
            )


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn an OSError into a DiskError that names the path and the space left."""
    try:
        yield
    except OSError as error:
        free = "unknown"
        with suppress(OSError):
            free = f"{shutil.disk_usage(path.parent).free:,}"
        raise DiskError(
            f"{path}: cannot write ({error.strerror or error}); free bytes: {free}. "
            f"Make room or allow writing, then go on with: segtrain resume={path.parent}"
        ) from error
