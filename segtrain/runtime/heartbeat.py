"""What this process is doing, told by setting variables, for the watchdog to read. No torch here.

The thread that works is the only one that calls these. It costs a step less than a microsecond.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Heart:
    """The signs of life of this process."""

    beats: int = 0  # grows with each of them
    arrived: int = 0  # at how many exchanges with the other processes; all come to the same ones
    patient: bool = False  # what is done now may take longer than a step
    what: str = ""  # is done now
    images: str = ""  # on which


HEART = Heart()


def beat() -> None:
    """Show that this process has come further."""
    HEART.beats += 1


def arrive() -> None:
    """Show that this process now exchanges something with the others, and may wait for them.

    Whoever came to fewer exchanges than another is whom the others wait for.
    """
    HEART.arrived += 1
    HEART.beats += 1


def doing(what: str, images: str) -> None:
    """Show what is begun, and on which images."""
    HEART.what = what
    HEART.images = images
    HEART.beats += 1


@contextmanager
def patiently() -> Generator[None]:
    """Let what is done inside the block take longer than a step: it is a save, or a validation."""
    before = HEART.patient
    HEART.patient = True
    HEART.beats += 1
    try:
        yield
    finally:
        HEART.patient = before
        HEART.beats += 1
