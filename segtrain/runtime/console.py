"""Standard output and error, which a run can do without. No torch here.

A pipe may be closed by its reader (`segtrain ... | head -1`), a log may fill its disk, or a command
may be started without either stream (`>&-`). None of it is a reason to lose a training.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from segtrain.errors import DiskError


class Forgiving:
    """A text stream that drops what its file refuses, and everything after that.

    `lost` is the first refusal. Then the file itself leads nowhere, so that libraries, processes
    that are started later and the interpreter at its end meet no error either.
    """

    def __init__(self, stream: TextIO, lost: OSError | None = None) -> None:
        self.stream = stream
        self.lost = lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write `text`, or drop it; return its length.

        Names of classes and files may hold what the terminal's encoding lacks: that is escaped.
        """
        try:
            try:
                self.stream.write(text)
            except UnicodeEncodeError as error:
                shown = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
                self.stream.write(shown)
        except OSError as error:
            self._lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write all `lines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand what was written to the system, or drop it."""
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost or error
        if isinstance(error, BlockingIOError):
            return  # a slow reader: only this text is lost
        with suppress(OSError):  # a stream that is no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            self.stream.flush()  # what it kept for a second try


@contextmanager
def forgiving() -> Generator[None]:
    """Do without standard output and error where they are closed or break, inside the block.

    What is closed is opened on nothing first: otherwise the next file that is opened would get its
    number, and a library's warning would be written into a checkpoint.
    """
    closed = _open_standard_streams()
    before = sys.stdout, sys.stderr
    wrapped = [
        Forgiving(stream, closed.get(number)) for number, stream in enumerate(_streams(), start=1)
    ]
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in wrapped)
    try:
        yield
    finally:
        for stream in wrapped:
            stream.flush()
        if sys.stdout is wrapped[0] and sys.stderr is wrapped[1]:
            sys.stdout, sys.stderr = before


def require_output() -> None:
    """Raise DiskError where standard output lost something: for what is made to be read there.

    A reader that closed its end has what it wanted and is told nothing: SystemExit.
    """
    output = cast(Any, sys.stdout)
    output.flush()
    if not isinstance(output, Forgiving) or output.lost is None:
        return
    if output.lost.errno == errno.EPIPE:
        raise SystemExit(DiskError.exit_code)
    raise DiskError(f"standard output: cannot be written ({output.lost.strerror})")


def _open_standard_streams() -> dict[int, OSError]:
    """Open those of the descriptors 0, 1 and 2 that are closed; return why, by descriptor."""
    closed = {}
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError as error:
            closed[number] = error
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            os.set_inheritable(number, True)
    return closed


def _streams() -> list[TextIO]:
    """Return standard output and error; Python has None where they were closed at its start."""
    streams: list[TextIO | None] = [sys.stdout, sys.stderr]
    return [
        stream or open(number, "w", encoding="utf-8", errors="replace", closefd=False)
        for number, stream in enumerate(streams, start=1)
    ]
