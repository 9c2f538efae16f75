"""Errors a user can meet, each with its exit code. No torch here.

A message is one line that names the file or key, the value and the way out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# With the two separators at which Unicode ends a line, and bytes that are no text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class SegtrainError(Exception):
    """Base of every error that ends a command with one line instead of a traceback."""

    exit_code = 70


class UserError(SegtrainError):
    """The command or its configuration is wrong (exit 2)."""

    exit_code = 2


class DataError(SegtrainError):
    """A file of the data set is missing, damaged or holds illegal values (exit 65)."""

    exit_code = 65


class NothingToMeasure(SegtrainError):
    """A split holds nothing that a metric could compare with (exit 65; training goes on)."""

    exit_code = 65


class InternalError(SegtrainError):
    """A stalled step, a lost process or a diverged loss: the run cannot go on (exit 70)."""

    exit_code = 70


class ResourceError(SegtrainError):
    """The machine ran out of memory, open files, threads or processes (exit 71)."""

    exit_code = 71


class LockedError(SegtrainError):
    """Another process is using the run folder (exit 73)."""

    exit_code = 73


class DiskError(SegtrainError):
    """A file could not be written (exit 74)."""

    exit_code = 74


class Interrupted(SegtrainError):
    """Stopped by a signal after a save; `segtrain resume=RUN` goes on (exit 75)."""

    exit_code = 75


class Stopped(SegtrainError):
    """Stopped by a signal before anything was saved; the same command begins again (exit 130)."""

    exit_code = 130


def printable(text: str) -> str:
    """Return a text with its control characters escaped, as a line for a terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def words_of(error: object) -> str:
    """Return what an error says, on one line, or its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_of(names: Sequence[str], shown: int) -> str:
    """Return the first `shown` of many names on one line, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean `x`?' for the nearest known word, or '' when nothing is near."""
    as_written = {str(name).lower(): str(name) for name in known}
    # The cutoff is difflib's default.
    near = difflib.get_close_matches(str(word).lower(), as_written, n=1, cutoff=0.6)
    return f" Did you mean `{as_written[near[0]]}`?" if near else ""


def check_name(what: str, name: object) -> None:
    """Refuse control characters in what becomes the name of a file, or stands in one.

    Errors: UserError, which shows them escaped.
    """
    if _CONTROL.search(str(name)):
        raise UserError(
            f"{what}={printable(str(name))}: holds a control character, or bytes that are no text; "
            "choose a name without"
        )


def check_names(what: str, names: Iterable[str]) -> None:
    """Refuse control characters in any of many names. Errors: UserError."""
    names = list(names)
    if _CONTROL.search("".join(names)):
        for name in names:
            check_name(what, name)


def complain(problems: Sequence[str]) -> None:
    """Raise DataError with the first of `problems` and the number of the others, if any."""
    if not problems:
        return
    others = len(problems) - 1
    more = f" (and {others} more; segdata verify lists them)" if others else ""
    raise DataError(problems[0] + more)
