"""Signals: they end a pass at once, or wait for the end of a step that is saved. No torch here."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Self, cast

from segtrain.errors import Interrupted, Stopped
from segtrain.runtime.parent import ERRORS

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
# Two SIGINT within this time are one key press: a terminal sends Ctrl-C to every process of its
# group, and torchrun hands the one it got on to ranks that had it already. Nobody presses twice in
# half a second without meaning once.
SAME_KEY_PRESS_SECONDS = 0.5


# Python runs a handler between two of its own instructions. A call into a library that takes longer
# than this, such as waiting for another process that has gone, would keep a signal waiting.
STUCK_SECONDS = 1.5
REPEAT_SECONDS = 0.2  # between two reminders that the command is to end


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


class Stopping:
    """Let a signal raise `Stop` wherever the main thread is, inside `with Stopping() as signals:`.

    `signals.received` is the name of the first one. Another one lets the command clean up, but a
    second SIGINT ends it at once with 130.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._process = os.getpid()
        self._presses = _KeyPresses()
        self._handled = threading.Event()
        self._over = threading.Event()
        self._reminding = threading.Lock()
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._inside.enter_context(_handled(self._handle))
            # A machine without another thread or descriptor has worse to tell than this.
            with suppress(OSError, RuntimeError):
                self._begin_watch()
        return self

    def _begin_watch(self) -> None:
        wakeup, told = os.pipe()
        os.set_blocking(told, False)
        threading.Thread(target=self._watch, args=(wakeup,), daemon=True).start()
        self._inside.callback(os.close, told)
        self._inside.callback(_wakeup, _wakeup(told))

    def __exit__(self, *exception: object) -> None:
        self.end()
        self._inside.close()

    def end(self) -> None:
        """Answer no more signals: the command has ended, and only its exit code is missing."""
        with self._reminding:  # a reminder that came later would find no handler and kill
            self._over.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A forked worker has not yet said what it does with signals.
        if self._over.is_set() or os.getpid() != self._process:
            return
        self.received = self.received or signal.Signals(number).name
        self._handled.set()
        twice = self._presses.twice(number)
        if not isinstance(sys.exception(), ENDING):
            raise Stop(self.received)
        if twice:
            leave_at_once("second interrupt")

    def _watch(self, wakeup: int) -> None:
        """Make sure, in a thread of its own, that a signal is answered."""
        numbers = answered()
        main = cast(int, threading.main_thread().ident)
        while received := os.read(wakeup, 1):  # Python writes the number of every signal there
            if received[0] not in numbers:
                continue
            if not self._handled.wait(STUCK_SECONDS):
                leave_at_once(f"{signal.Signals(received[0]).name}: stopped at once")
            # A library may have swallowed what was raised: torch does, while it imports numpy.
            while not self._over.wait(REPEAT_SECONDS):
                with self._reminding:
                    if not self._over.is_set():
                        signal.pthread_kill(main, signal.SIGUSR1)
        os.close(wakeup)


def _unwatched_in_child() -> None:
    """Take a forked child's signals off its parent's watch."""
    _wakeup(-1)


os.register_at_fork(after_in_child=_unwatched_in_child)


class Signals:
    """Remember a signal inside `with Signals() as signals:`.

    `signals.received` is the name of the first one. The loop reads it after a step, saves and exits
    75. A second SIGINT, more than `SAME_KEY_PRESS_SECONDS` after the first, exits at once with 130;
    in a process that is not ours, where we are a `guest`, it raises KeyboardInterrupt at once.
    Outside the main thread, where Python takes no handlers, it does nothing.
    """

    def __init__(self, guest: bool = False) -> None:
        self.received: str | None = None
        self._guest = guest
        self._presses = _KeyPresses()
        self._handlers = _handled(self._handle)
        self._watch = -1
        self._at_once = False

    def __enter__(self) -> Self:
        self._handlers.__enter__()
        self._watch = _wakeup(-1)  # an update may take its time
        return self

    def __exit__(self, *exception: object) -> None:
        _wakeup(self._watch)
        self._handlers.__exit__(None, None, None)

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Let the first signal raise `Stop` inside the block: what is begun there can be left."""
        self._at_once = True
        try:
            if self.received:
                raise Stop(self.received)
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if self._at_once:
            self._at_once = False
            raise Stop(self.received)
        if self._presses.twice(number):
            if self._guest:
                raise KeyboardInterrupt("second interrupt; the last checkpoint is whole")
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
