"""Processes: start them, join them, sum over them. The only user of torch.distributed.

Everything here also works for one process, so no caller asks how many there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtrain.errors import InternalError, Interrupted, SegtrainError, UserError

PARENT = "SEGTRAIN_PARENT"  # pid of the process that launched this one
ERRORS = "SEGTRAIN_ERRORS"  # folder where a worker leaves the reason of its death for the parent
SHUTDOWN_SECONDS = "25"  # a step and a save; the matrix promises that all processes are gone within 30 s


@dataclass(frozen=True)
class World:
    """This process among its peers. `rank` 0 writes files; `device` is where it computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """Everyone's `item`, in rank order, on every process. Plain types and CPU tensors only."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(items, item)
        return items

    def broadcast(self, item: Any) -> Any:
        """Rank 0's `item` on every process."""
        return self.gather(item)[0]

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            self.sum(torch.zeros(1, device=self.device))

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process rank 0's buffers (running statistics differ between ranks without SyncBN)."""
        if self.size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as data-parallel: gradients are averaged over processes in backward."""
        if self.size == 1:
            return model
        # Depthwise weights in channels_last: two names for the same strides, and a copy of some kilobytes.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def no_reduce(model: nn.Module, active: bool) -> contextlib.AbstractContextManager[Any]:
    """Inside it, backward passes accumulate locally; the next one outside reduces them all."""
    return model.no_sync() if active and hasattr(model, "no_sync") else contextlib.nullcontext()  # ty: ignore


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device. Errors: UserError when there is no GPU to use."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda: torch sees no GPU here; train.device=cpu works everywhere")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def use_threads(asked: int | None, processes: int) -> None:
    """CPU threads of this process: as asked, or its share of the cores. One rule for training and evaluating, as sums
    over another number of threads end in other last bits."""
    torch.set_num_threads(asked or max(1, (os.cpu_count() or 1) // processes))


def launched() -> bool:
    """Whether a launcher (torchrun, Slurm's srun) started this process as one of several."""
    return "RANK" in os.environ or _under_slurm()


def _under_slurm() -> bool:
    return (
        "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in os.environ
    )


def _slurm_environment() -> None:
    """Slurm's names under the names torch reads; one port per job."""
    env = os.environ
    env.setdefault("RANK", env["SLURM_PROCID"])
    env.setdefault("WORLD_SIZE", env["SLURM_NTASKS"])
    env.setdefault("LOCAL_RANK", env.get("SLURM_LOCALID", "0"))
    env.setdefault("MASTER_ADDR", env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000))


@contextlib.contextmanager
def join(device: str, timeout_seconds: float = 600.0) -> Generator[World]:
    """Join the group the launcher describes, or be alone. Leaves the group at the end.

    Errors: UserError for an unusable device; InternalError when another process is lost.
    """
    if not launched():
        yield World(device=pick_device(device))
        return
    if _under_slurm():
        _slurm_environment()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = pick_device(device, local)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    # gloo carries gather() of host objects, NCCL the gradients
    torch.distributed.init_process_group(
        f"cpu:gloo,cuda:{backend}" if backend == "nccl" else backend, timeout=timedelta(seconds=timeout_seconds)
    )
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), place)
    try:
        yield world
    except RuntimeError as error:
        if lost := _lost_peer(error):
            raise InternalError(lost) from error
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def _lost_peer(error: RuntimeError) -> str | None:
    text = str(error)
    signs = ("gloo", "Connection closed", "Connection reset", "NCCL", "timed out", "Broken pipe")
    return "lost contact with another process of this run" if any(sign in text for sign in signs) else None


def default_processes(device: str) -> int:
    """Processes on this machine when none are asked for: one per GPU, one on the CPU."""
    return max(1, torch.cuda.device_count()) if device != "cpu" and torch.cuda.is_available() else 1


def launch(processes: int, arguments: list[str], resume_hint: str) -> None:
    """Run `python -m segtrain ARGUMENTS` in `processes` new processes through torch's elastic launcher, to their end.

    Errors: whatever ended the first worker, by its own exit code and message; Interrupted after a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we name the cause ourselves, once
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_SECONDS)
    if sys.platform == "linux" and not torch.cuda.is_available():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: do not depend on how its name resolves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"segtrain-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        local_addr="127.0.0.1",
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )
    with tempfile.TemporaryDirectory(prefix="segtrain-") as errors:
        os.environ[ERRORS], os.environ[PARENT] = errors, str(os.getpid())
        try:
            elastic_launch(config, sys.executable)("-m", "segtrain", *arguments)
        except SignalException as error:
            raise Interrupted(f"{error.sigval.name}: {resume_hint}") from None
        except ChildFailedError as error:
            raise _first_cause(error.failures, Path(errors)) from None
        finally:
            del os.environ[ERRORS], os.environ[PARENT]


def _first_cause(failures: dict[int, Any], errors: Path) -> SegtrainError:
    """The one error to report: a process killed from outside, else the earliest that said why it stopped."""
    for rank, failure in sorted(failures.items()):
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return InternalError(f"process {rank} (pid {failure.pid}) was killed by {name}; the others were stopped")
    told = sorted((json.loads(path.read_text()) for path in errors.glob("*.json")), key=lambda cause: cause["time"])
    own = [cause for cause in told if "lost contact" not in cause["message"]] or told
    if own:
        reason = SegtrainError(own[0]["message"])
        reason.exit_code = own[0]["exit_code"]
        return reason
    rank, failure = min(failures.items())
    return InternalError(f"process {rank} (pid {failure.pid}) ended with exit code {failure.exitcode}")


def tell_parent(error: SegtrainError) -> bool:
    """Leave the reason for the parent that launched us, which prints it once. False: nobody launched us that way."""
    folder = os.environ.get(ERRORS)
    if folder is None:
        return False
    cause = {"time": time.time(), "message": str(error), "exit_code": error.exit_code}
    Path(folder, f"{os.getpid()}.json").write_text(json.dumps(cause))
    return True


def die_with_parent() -> None:
    """A killed parent must not leave workers behind that go on writing into its run folder."""
    parent = int(os.environ.get(PARENT, os.getppid()))  # it may have been killed before this line
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(137)

    threading.Thread(target=watch, daemon=True).start()
