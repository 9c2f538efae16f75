"""Commands in forks of a warm interpreter: milliseconds where a process costs seconds.

`Warm` starts this file as a process that imports segtrain once and computes nothing, so that a
fork of it is safe. Each command runs in a fork of its own, with its own folder, environment, output
and limits, through the same `run_command` as the console scripts.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "segtrain.commands.main",
    "segtrain.commands.start",
    "hydra",
    "hydra._internal.hydra",
)  # what a refusal needs
TRAINING = (*SETTINGS, "segtrain.engine.train", "segtrain.api", "segtrain.benchmarks.submission")

# A bomb that goes off must hurt the test, not the machine.
MEMORY_BYTES = 8 << 30
CPU_SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it cost beyond the imports."""

    code: int
    out: str
    err: str
    seconds: float  # of CPU, with those of its own processes
    mebibytes: float  # most memory of one of its processes


class Warm:
    """The warm interpreter: `with Warm(SETTINGS) as run: run("segtrain", "x=1", cwd=folder)`."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
        self._server = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.communicate()

    def __call__(
        self,
        name: str,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Ended:
        """Run a command in `cwd`; after `timeout` seconds it is killed."""
        with tempfile.TemporaryDirectory() as spool:
            asked = {
                "name": name,
                "arguments": arguments,
                "cwd": str(cwd),
                "env": dict(env or {}),
                "timeout": timeout,
                "spool": spool,
            }
            assert self._server.stdin
            assert self._server.stdout
            self._server.stdin.write(f"{json.dumps(asked)}\n")
            self._server.stdin.flush()
            code, seconds, mebibytes = json.loads(self._server.stdout.readline())
            out, err = (
                Path(spool, stream).read_text(errors="backslashreplace")
                for stream in ("out", "err")
            )
        return Ended(code, out, err, seconds, mebibytes)


def serve(modules: list[str]) -> None:
    """Answer each line of stdin by one of stdout: [exit code, CPU seconds, MiB]."""
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(asked)
        deadline = time.monotonic() + asked["timeout"]
        ended = 0
        while not ended:
            ended, status, used = os.wait4(child, os.WNOHANG)
            if not ended and time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                deadline += 60
            time.sleep(0.001)
        answer = [
            os.waitstatus_to_exitcode(status),
            used.ru_utime + used.ru_stime,
            used.ru_maxrss / 1024,
        ]
        print(json.dumps(answer), flush=True)


def _become(asked: dict[str, Any]) -> None:
    """Be the process of a command, to its end."""
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.update(asked["env"])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, stream in ((1, "out"), (2, "err")):
        with open(Path(asked["spool"], stream), "wb") as file:
            os.dup2(file.fileno(), descriptor)
    code = 70
    try:
        sys.argv = [asked["name"], *asked["arguments"]]
        _command(asked["name"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        print(f"Traceback: {error!r}", file=sys.stderr)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _command(name: str) -> None:
    """Call what the console script of this name calls."""
    main = importlib.import_module("segtrain.commands.main")
    vars(main)[name]()


if __name__ == "__main__":
    serve(sys.argv[1:])
