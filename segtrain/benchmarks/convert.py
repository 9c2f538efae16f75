"""Conversion of a benchmark's label maps to PNG files, one by one; an interrupted one goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from segtrain.benchmarks.archives import make_folder
from segtrain.errors import DiskError
from segtrain.logs.progress import Progress

# Decompression and PNG encoding release the GIL, so threads help; the Python between them holds it,
# so a few are enough. How many is chosen by hand.
WORKERS = 4


def convert(
    ids: Sequence[str], folder: Path, write: Callable[[str, Path], Any], name: str, progress: bool
) -> None:
    """Call `write(id, path)` for every id whose folder/<id>.png is not there, in threads.

    Each file appears whole. `name` stands beside the progress.
    Errors: DiskError, and those of `write`.
    """
    make_folder(folder)
    present = {entry.name for entry in os.scandir(folder)}
    missing = [sample_id for sample_id in ids if f"{sample_id}.png" not in present]

    def convert_one(sample_id: str) -> None:
        write_whole(folder / f"{sample_id}.png", lambda path: write(sample_id, path))

    pool = ThreadPoolExecutor(WORKERS)
    try:
        with Progress(len(missing), name, enabled=progress and bool(missing)) as bar:
            for done, _ in enumerate(pool.map(convert_one, missing), 1):
                bar.to(done)
    finally:
        pool.shutdown(cancel_futures=True)  # neither Ctrl-C nor a damaged file waits for the rest


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, which then gets its name.

    Errors: DiskError, and those of `write`.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
