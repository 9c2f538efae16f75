"""Read many files in threads, which a signal does not wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# Decoding, hashing and reading release the GIL, and files may lie on another machine. Chosen by
# hand.
READER_THREADS = 8

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_threads(
    look: Callable[[Item], Found], items: Iterable[Item], threads: int = READER_THREADS
) -> Iterator[Found]:
    """Yield what `look` returns of each item, in their order. Errors: those that it raises."""
    pool = ThreadPoolExecutor(max(1, threads))
    try:
        yield from pool.map(look, items)
    finally:
        # A signal waits neither for all items nor for those that are being read.
        pool.shutdown(wait=False, cancel_futures=True)
