"""Start several processes on this machine and tell why one of them ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from segtrain.errors import InternalError, SegtrainError
from segtrain.runtime.own_folder import own_folder
from segtrain.runtime.parent import (
    as_error,
    environment_of_start,
    program,
    reasons,
    told_to_children,
)

# Time from the signal to the kill: long enough to end a step and save, short enough that all
# processes are gone within the 30 s that docs/reliability.md promises (and that Slurm gives).
SHUTDOWN_SECONDS = 25


def default_processes(device: str) -> int:
    """Processes on this machine when none are asked for: one per GPU, one on the CPU."""
    return max(1, torch.cuda.device_count()) if device != "cpu" and torch.cuda.is_available() else 1


def launch(processes: int, arguments: list[str]) -> None:
    """Run `python -m segtrain ARGUMENTS` in new processes to their end, by torch's launcher.

    A signal that raises KeyboardInterrupt here reaches them as SIGTERM, and goes on once they have
    ended. Errors: whatever ended the first worker, by its own exit code and message.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher logs a worker's death in many lines; we name the cause ourselves, in one.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    python, *command = program()
    with own_folder() as errors:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=f"segtrain-{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            local_addr="127.0.0.1",
            # Its handlers would raise again while it waits for workers that save; ours do not.
            signals_to_handle="",
            # Else it leaves a folder of its own among the temporary ones at each start.
            logs_specs=DefaultLogsSpecs(log_dir=str(errors)),
        )
        try:
            with environment_of_start({**_for_torch(), **told_to_children(errors)}):
                elastic_launch(config, python)(*command, *arguments)
        except ChildFailedError as error:
            raise _first_cause(error.failures, errors) from None


def _for_torch() -> dict[str, str]:
    """Return the environment variables that torch's launcher and its workers need."""
    wanted = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS)}
    if sys.platform == "linux" and not torch.cuda.is_available():
        # Gloo would look its own host name up, which fails on machines without a network.
        wanted["GLOO_SOCKET_IFNAME"] = "lo"
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _first_cause(failures: dict[int, Any], errors: Path) -> SegtrainError:
    """Return the one error to report.

    It is that of a watchdog, else of a process killed from outside, else of the earliest that said
    why it stopped.
    """
    told = reasons(errors)
    for cause in told:
        if cause["sure"]:
            return as_error(cause)
    for rank, failure in sorted(failures.items()):
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return InternalError(
                f"process {rank} (pid {failure.pid}) was killed by {name}; the others were stopped"
            )
    # A process that lost another one is a consequence, not the cause.
    own = [cause for cause in told if "lost contact" not in cause["message"]] or told
    if own:
        return as_error(own[0])
    rank, failure = min(failures.items())
    return InternalError(
        f"process {rank} (pid {failure.pid}) ended with exit code {failure.exitcode}"
    )
