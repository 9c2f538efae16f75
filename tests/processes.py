"""Commands as processes: with streams that break, and signals that come at a known moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def redirected(streams: str, *command: object) -> subprocess.CompletedProcess:
    """Run a command as a shell does with `streams`: "pipe" has a reader that has gone."""
    kept: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if streams == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        kept = {"stdout": writer, "stderr": writer}
    line = '"$@"' if streams == "pipe" else f'"$@" {streams}'
    try:
        return subprocess.run(
            ["sh", "-c", line, "sh", *map(str, command)],
            **kept,
            env=ENVIRONMENT,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        if streams == "pipe":
            os.close(writer)


def segtrain(name: str, *arguments: object) -> list[str]:
    """Return the command line of `segtrain`, `segeval`, ... as a process of this Python."""
    command = [] if name == "segtrain" else [name]
    return [sys.executable, "-m", "segtrain", *command, *map(str, arguments)]


class Signalled:
    """A command that gets a signal once `moment` is true, and how it ended.

    `moment` is called with the process and what it has written so far.
    """

    def __init__(
        self,
        command: list[str],
        name: str,
        moment: Callable[[subprocess.Popen, str], bool],
        place: Path,
        ignored: bool = False,
        group: bool = False,
    ) -> None:
        log = place / "signalled.log"

        def dispositions() -> None:  # a test that runs in the background ignores SIGINT
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=place,
                env=ENVIRONMENT,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                preexec_fn=dispositions,
            )
        try:
            deadline = time.monotonic() + 200
            while not moment(process, log.read_text()):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.01)
            number = signal.Signals[name]
            sent = time.monotonic()
            os.killpg(process.pid, number) if group else process.send_signal(number)
            self.code = process.wait(200)
            self.seconds = time.monotonic() - sent
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        # A bar that was drawn and wiped out again is no line.
        lines = [line.split("\r")[-1].strip() for line in log.read_text().split("\n")]
        self.lines = [line for line in lines if line]


def reading(process: subprocess.Popen) -> bool:
    """Tell whether the eight threads that read a data set are at work."""
    return len(os.listdir(f"/proc/{process.pid}/task")) >= 10
