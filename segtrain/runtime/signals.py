"""Signals that wait for the end of a step. No torch here."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Two SIGINT within this time are one key press: a terminal sends Ctrl-C to every process of its
# group, and torchrun hands the one it got on to ranks that had it already. Nobody presses twice in
# half a second without meaning once.
SAME_KEY_PRESS_SECONDS = 0.5


class Signals:
    """Remember SIGTERM, SIGINT or SIGUSR1 inside `with Signals() as signals:`.

    `signals.received` is the name of the first one. The loop reads it after a step, saves and exits
    75. A second SIGINT, more than `SAME_KEY_PRESS_SECONDS` after the first, exits at once with 130.
    Outside the main thread, where Python takes no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupted: float | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
        self._old = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
        elif now - self._interrupted > SAME_KEY_PRESS_SECONDS:
            os.write(
                2,
                b"segtrain: second interrupt, exit without saving; the last checkpoint is whole\n",
            )
            os._exit(130)
