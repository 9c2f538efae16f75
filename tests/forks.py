"""Whole runs in forks of a warm interpreter, to be killed: a start costs half a second.

`Forks` starts this file as a process that imports segtrain once and computes nothing: it has no
threads of torch, so a fork of it is safe. A run is a fork that calls the `segtrain` command. With
`train.processes=2` its launcher forks the ranks in place of starting interpreters, and all else is
as it is: the launcher watches them, they die with it, each is a process that can be killed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, Self

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "hydra",
    "hydra._internal.hydra",
    "segtrain.commands.main",
    "segtrain.engine.train",
    "torch.distributed.launcher.api",
    "torch._dynamo",  # what DistributedDataParallel imports, for seconds
)


class Forks:
    """The warm interpreter: `with Forks() as forks: run = forks.start(["x=1"], folder)`."""

    def __init__(self) -> None:
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.communicate()

    def start(self, arguments: list[str], place: Path) -> Forked:
        """Begin `segtrain ARGUMENTS` in `place`, where stderr.txt gets what it says."""
        fifo = place / "alive"
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
        (place / "stderr.txt").unlink(missing_ok=True)  # of a run before
        alive = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        pid = self.ask({"do": "start", "arguments": arguments, "place": str(place)})
        return Forked(self, pid, alive, place / "stderr.txt")

    def ask(self, what: dict[str, Any]) -> int:
        """Return the server's answer."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(f"{json.dumps(what)}\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of a process has started; none of one that went."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


class Forked:
    """A run that was started: its parent process, and whatever that starts."""

    def __init__(self, forks: Forks, pid: int, alive: int, log: Path) -> None:
        self.pid = pid
        self._forks = forks
        self._alive = alive
        self._log = log

    def stderr(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="backslashreplace") if self._log.exists() else ""

    def processes(self) -> list[int]:
        """Return the parent, then the ranks below it, where there are any."""
        return [self.pid, *children(self.pid)]

    def workers(self, processes: int) -> list[int]:
        """Return the loader workers: what the one process has started, or each of several."""
        trainers = self.processes()[1:] if processes > 1 else [self.pid]
        return [worker for trainer in trainers for worker in children(trainer)]

    def ended(self) -> bool:
        """Whether all of its processes are gone: each holds the pipe open until its end."""
        return bool(select.select([self._alive], [], [], 0)[0])

    def end(self, seconds: float) -> int:
        """Wait until all processes are gone, and return the parent's exit code.

        Errors: AssertionError after `seconds`, and then nothing of it is left.
        """
        gone = bool(select.select([self._alive], [], [], seconds)[0])
        if not gone:
            for pid in reversed(self.processes()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        os.close(self._alive)
        code = self._forks.ask({"do": "wait", "pid": self.pid})
        assert gone, f"processes were left after {seconds} s: {self.stderr()[-2000:]}"
        return code


# ---------------------------------------------------------------------- the warm interpreter


def serve() -> None:
    """Answer each line of stdin: "start" by a pid, "wait" by an exit code."""
    for module in MODULES:
        importlib.import_module(module)
    fork_the_ranks()
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "start":
            place = Path(asked["place"])
            # Here, so that the end is seen of a run that is killed before its first line as well.
            alive = os.open(place / "alive", os.O_WRONLY)
            child = os.fork()
            if child == 0:
                become(asked["arguments"], place)
            os.close(alive)  # the end of the last process that inherited it closes it
            answer = child
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["pid"], 0)[1])
        print(answer, flush=True)


def become(arguments: list[str], place: Path) -> NoReturn:
    """Be the process of a run, to its end."""
    os.setsid()
    os.chdir(place)
    with open(os.devnull, "r+b") as nothing, Path("stderr.txt").open("wb") as log:
        for descriptor, file in enumerate((nothing, nothing, log)):
            os.dup2(file.fileno(), descriptor)
    command("segtrain", arguments)


def command(name: str, arguments: list[str]) -> NoReturn:
    """Call what `python -m segtrain ARGUMENTS` calls."""
    main = importlib.import_module("segtrain.commands.main")
    train = importlib.import_module("segtrain.commands.train")
    sys.argv = [name, *arguments]
    code = 70
    try:
        train.worker(arguments[1:]) if arguments[:1] == ["--worker"] else main.segtrain()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stderr.flush()
        os._exit(code)


def fork_the_ranks() -> None:
    """Let torch's launcher fork its workers instead of starting interpreters."""
    handler = importlib.import_module(
        "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
    )

    def forked(self: object, words: tuple[str, ...], env: dict[str, str]) -> Child:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.environ.clear()
            os.environ.update(env)
            command("segtrain", list(words[words.index("segtrain") + 1 :]))
        return Child(child)

    handler.SubprocessHandler._popen = forked


class Child:
    """What torch's launcher asks of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Errors: subprocess.TimeoutExpired."""
        deadline = time.monotonic() + (timeout if timeout is not None else 1e9)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked rank", timeout or 0.0)
            time.sleep(0.01)
        return code


if __name__ == "__main__":
    serve()
