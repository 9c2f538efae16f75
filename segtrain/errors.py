"""Errors a user can meet, each with its exit code. No torch here.

A message is one line that names the file or key, the value and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SegtrainError(Exception):
    """Base of every error that ends a command with one line instead of a traceback."""

    exit_code = 70


class UserError(SegtrainError):
    """The command or its configuration is wrong (exit 2)."""

    exit_code = 2


class DataError(SegtrainError):
    """A file of the data set is missing, damaged or holds illegal values (exit 65)."""

    exit_code = 65


class InternalError(SegtrainError):
    """A stalled step, a lost process or a diverged loss: the run cannot go on (exit 70)."""

    exit_code = 70


class LockedError(SegtrainError):
    """Another process is using the run folder (exit 73)."""

    exit_code = 73


class DiskError(SegtrainError):
    """A file could not be written (exit 74)."""

    exit_code = 74


class Interrupted(SegtrainError):
    """Stopped by a signal after a save; `segtrain resume=RUN` goes on (exit 75)."""

    exit_code = 75


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean `x`?' for the nearest known word, or '' when nothing is near."""
    spelt = {str(k).lower(): str(k) for k in known}
    near = difflib.get_close_matches(str(word).lower(), spelt, n=1, cutoff=0.6)
    return f" Did you mean `{spelt[near[0]]}`?" if near else ""


def complain(problems: Sequence[str]) -> None:
    """The first problem, and how many more there are, as one line; nothing when there are none. Errors: DataError."""
    if problems:
        more = (
            f" (and {len(problems) - 1} more; segdata verify lists them)"
            if len(problems) > 1
            else ""
        )
        raise DataError(problems[0] + more)
