"""Signals: they end a pass at once, or wait for the end of a step that is saved. No torch here."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from segtrain.errors import Interrupted, Stopped
from segtrain.runtime.parent import ERRORS

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Two SIGINT within this time are one key press: a terminal sends Ctrl-C to every process of its
# group, and torchrun hands the one it got on to ranks that had it already. Nobody presses twice in
# half a second without meaning once.
SAME_KEY_PRESS_SECONDS = 0.5


# Python runs a handler between two of its own instructions. A call into a library that takes longer
# than this, such as waiting for another process that has gone, would keep a signal waiting.
STUCK_SECONDS = 1.5


class Stop(KeyboardInterrupt):
    """A signal came where nothing is to be saved. Its text is the signal's name."""


# While one of these is on its way out, the command is ending and cleans up.
ENDING = (KeyboardInterrupt, SystemExit, Interrupted, Stopped)


def answered() -> list[signal.Signals]:
    """Return the signals that a command answers.

    Where SIGHUP is ignored (`nohup`), it shall not end the command.
    """
    hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [number for number in SIGNALS if hangup or number is not signal.SIGHUP]


@contextmanager
def stopping() -> Generator[None]:
    """Let a signal raise `Stop` wherever the main thread is, inside the block.

    A second one lets the command clean up, but a second SIGINT ends it at once with 130.
    """
    process = os.getpid()
    presses = _KeyPresses()
    handled = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            return  # a forked worker that has not yet said what it does with signals
        handled.set()
        twice = presses.twice(number)
        if not isinstance(sys.exception(), ENDING):
            raise Stop(signal.Signals(number).name)
        if twice:
            leave_at_once("second interrupt")

    with _handled(handle), _watched(handled):
        yield


@contextmanager
def _watched(handled: threading.Event) -> Generator[None]:
    """End the process with 130 where a signal came and `handled` is not set soon.

    Then the main thread is inside a library, and nothing can be cleaned up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wakeup, told = os.pipe()
    os.set_blocking(told, False)
    numbers = answered()

    def watch() -> None:
        while received := os.read(wakeup, 1):  # Python writes the number of every signal there
            if received[0] in numbers and not handled.wait(STUCK_SECONDS):
                name = signal.Signals(received[0]).name
                leave_at_once(f"{name}: stopped at once")
        os.close(wakeup)

    before = _wakeup(told)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        _wakeup(before)
        os.close(told)


def _unwatched_in_child() -> None:
    """Take a forked child's signals off its parent's watch."""
    _wakeup(-1)


os.register_at_fork(after_in_child=_unwatched_in_child)


class Signals:
    """Remember a signal inside `with Signals() as signals:`.

    `signals.received` is the name of the first one. The loop reads it after a step, saves and exits
    75. A second SIGINT, more than `SAME_KEY_PRESS_SECONDS` after the first, exits at once with 130.
    Outside the main thread, where Python takes no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._presses = _KeyPresses()
        self._handlers = _handled(self._handle)
        self._watch = -1

    def __enter__(self) -> Self:
        self._handlers.__enter__()
        self._watch = _wakeup(-1)  # an update may take its time
        return self

    def __exit__(self, *exception: object) -> None:
        _wakeup(self._watch)
        self._handlers.__exit__(None, None, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if self._presses.twice(number):
            leave_at_once("second interrupt, exit without saving; the last checkpoint is whole")


class _KeyPresses:
    """Tell a second Ctrl-C from the echo of the first."""

    def __init__(self) -> None:
        self._first: float | None = None

    def twice(self, number: int) -> bool:
        """Return whether this signal is a second press of the keys."""
        if number != signal.SIGINT:
            return False
        now = time.monotonic()
        self._first = self._first or now
        return now - self._first > SAME_KEY_PRESS_SECONDS


def _wakeup(descriptor: int) -> int:
    """Let Python write the numbers of signals there; return where it did. -1 is nowhere."""
    if threading.current_thread() is threading.main_thread():
        return signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    return -1


def leave_at_once(why: str) -> None:
    """End the process, cleaning nothing up. Of several the parent says why."""
    try:
        if ERRORS not in os.environ:
            os.write(2, f"segtrain: {why}\n".encode())
    finally:
        os._exit(Stopped.exit_code)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Let `handler` take the signals inside the block. Handlers belong to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in answered()}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
