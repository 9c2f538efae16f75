"""Signals at moments of a run that are known to the instruction: imported by a warm interpreter.

A command that runs there with MOMENT in its environment gets the signals of SENT at that moment,
from itself, or from a process beside it where the moment is a time. Moments:

    build, restore, verify      before that part of `fit`
    update K, updated K         before the K-th update, and after it
    validating K                in the K-th image of a validation
    saving K                    at the K-th request to the file system inside a save
    after MS                    so many milliseconds after the run has begun to build its parts

SENT is a list such as `SIGTERM,SIGINT`; `pause` in it lasts longer than one key press.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from segtrain.engine import state, train
from segtrain.logs.run_log import RunLog
from segtrain.runtime.signals import SAME_KEY_PRESS_SECONDS

MOMENT = "SEGTRAIN_TEST_MOMENT"
SENT = "SEGTRAIN_TEST_SENT"
# Where a save asks the file system to change something.
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")

counted: dict[str, int] = {}
saving = False


def send(process: int) -> None:
    """Send what the environment names to a process."""
    for name in os.environ.pop(SENT, "").split(","):
        if name == "pause":
            time.sleep(SAME_KEY_PRESS_SECONDS + 0.1)
        elif name:
            os.kill(process, signal.Signals[name])


def reached(moment: str) -> None:
    """Note that a moment has come, and send what was to be sent then."""
    counted[moment] = counted.get(moment, 0) + 1
    asked = os.environ.get(MOMENT, "")
    if asked in (moment, f"{moment} {counted[moment]}"):
        send(os.getpid())
    if moment == "build" and asked.startswith("after "):
        run = os.getpid()
        if os.fork() == 0:
            time.sleep(float(asked.removeprefix("after ")) / 1000)
            if os.getppid() == run:
                send(run)
            os._exit(0)


def before(moment: str, function: Callable[..., Any], after: str = "") -> Callable[..., Any]:
    """Return the function with its moments."""

    def told(*arguments: Any, **named: Any) -> Any:
        reached(moment)
        result = function(*arguments, **named)
        if after:
            reached(after)
        return result

    return told


def saved(*arguments: Any, **named: Any) -> Any:
    """Write a checkpoint, every request of which is a moment."""
    global saving
    saving = True
    try:
        return write(*arguments, **named)
    finally:
        saving = False


def asked_of_the_file_system(event: str, arguments: tuple[Any, ...]) -> None:
    """Count the requests of a save. An audit hook."""
    if saving and event in CHANGES:
        reached("saving")


train.build_parts = before("build", train.build_parts)
train.restore = before("restore", train.restore)
train.verify = before("verify", train.verify)
train.update = before("update", train.update, "updated")
RunLog.evaluating = before("validating", RunLog.evaluating)
write = state.writing.save
state.writing.save = saved
sys.addaudithook(asked_of_the_file_system)
