"""Processes: start them, join them, sum over them. The only user of torch.distributed.

Everything here also works for one process, so no caller asks how many there are.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from segtrain.errors import InternalError, ResourceError, SegtrainError, UserError
from segtrain.runtime import heartbeat
from segtrain.runtime.devices import Seat, idle
from segtrain.runtime.parent import RESTARTS, cores, launched, under_slurm

T = TypeVar("T")

# How long a process waits for the others. Rank 0 may hash and write a checkpoint of gigabytes to a
# slow disk, or one rank decode a last large image, while all others wait: ten minutes is more than
# either, and still ends a job whose peer is gone on the same day.
TIMEOUT_SECONDS = 600.0


def patience(watchdog_floor: float) -> float:
    """Return how long a process waits for the others: the watchdog shall say first who is missing.

    A third of it is the watchdog's own limit, the rest is for what it waits to be sure. In seconds.
    """
    return max(TIMEOUT_SECONDS, 3 * watchdog_floor)


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
        heartbeat.arrive()
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average each tensor over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                self.sum(tensor).div_(self.size)

    def any(self, here: bool) -> bool:
        """Tell whether it is so on any process. The hosts agree; no device is waited for."""
        return here if self.size == 1 else bool(self.sum(torch.tensor(float(here))).item())

    def gather(self, item: Any) -> list[Any]:
        """Everyone's `item`, in rank order, on every process. Plain types and CPU tensors only."""
        heartbeat.arrive()
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(items, item)
        return items

    def broadcast(self, item: Any) -> Any:
        """Rank 0's `item` on every process."""
        return self.gather(item)[0]

    def decide(self, action: Callable[[], T]) -> T:
        """Call `action` on rank 0 only, and return its result on every process.

        Where it raises, all processes end: rank 0 with the error, so that it is told once, the
        others silently with the same exit code. The result consists of plain types.
        """
        if not self.main:
            result, exit_code = self.broadcast(None)
            if exit_code is not None:
                raise SystemExit(exit_code)
            return result
        try:
            result = action()
        except Exception as error:
            known = isinstance(error, SegtrainError)
            self.broadcast((None, error.exit_code if known else InternalError.exit_code))
            raise
        self.broadcast((result, None))
        return result

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            self.sum(torch.zeros(1, device=self.device))

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the buffers of rank 0.

        Without synchronised batch norm running statistics differ between ranks.
        """
        heartbeat.arrive()
        if self.size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as data-parallel: gradients are averaged over processes in backward."""
        if self.size == 1:
            return model
        # Depthwise weights in channels_last have strides that can be written in two ways; the
        # warning is about a copy of some kilobytes.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True
        )


def no_reduce(model: nn.Module, active: bool) -> contextlib.AbstractContextManager[Any]:
    """Let backward passes inside it accumulate locally; the next one outside reduces them all."""
    if active and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device.

    Errors: UserError for another name, and where there is no such GPU.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::([0-9]+))?", str(name))
    if found is None:
        raise UserError(f"device={name}: not one of auto, cpu, cuda, and cuda:N for one of several")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name.startswith("cuda") and not count:
        raise UserError(
            f"train.device={name}: torch sees no GPU here; train.device=cpu works everywhere"
        )
    if name == "cpu" or not count:
        return torch.device("cpu")
    number = local_rank % count if found[1] is None else int(found[1])
    if number >= count:
        raise UserError(f"device={name}: torch sees {count} GPUs here, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", number)


def idle_gpus(world: World) -> str | None:
    """Say which GPUs no process of this run computes on; None where all are used, or on the CPU."""
    if world.device.type != "cuda":
        return None
    try:
        seen = tuple(map(_name_of_gpu, range(torch.cuda.device_count())))
        seat = Seat(socket.gethostname(), seen, seen[world.device.index or 0])
    except (RuntimeError, AttributeError, IndexError):  # a driver without such names: no run ends
        seat = Seat(socket.gethostname(), (), "")
    return idle(world.gather(seat))


def _name_of_gpu(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)


def use_threads(asked: int | None, processes: int) -> None:
    """Set the CPU threads of this process: as asked, or its share of the cores.

    It is one rule for training and evaluating, because sums over another number of threads end in
    other last bits. Errors: ResourceError where so many cannot be started.
    """
    threads = asked or max(1, cores() // processes)
    _try_threads(threads)
    torch.set_num_threads(threads)


def _try_threads(count: int) -> None:
    """Start as many threads once: OpenMP, which torch computes with, ends the process if it cannot.

    Errors: ResourceError.
    """
    go = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count - 1):
            started.append(threading.Thread(target=go.wait))
            started[-1].start()
    except RuntimeError:
        started.pop()
        raise ResourceError(
            f"train.threads={count}: only {len(started) + 1} threads can be started here; lower "
            "it, or raise the limit (ulimit -u)"
        ) from None
    finally:
        go.set()
        for thread in started:
            thread.join()


def _slurm_environment() -> None:
    """Give torch what Slurm knows, under the names torch reads, and one port per job."""
    env = os.environ
    env.setdefault("RANK", env["SLURM_PROCID"])
    env.setdefault("WORLD_SIZE", env["SLURM_NTASKS"])
    env.setdefault("LOCAL_RANK", env.get("SLURM_LOCALID", "0"))
    env.setdefault("MASTER_ADDR", env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    # Every rank must know the port before they can talk, so it follows from the job's number; it is
    # above the ports that need privileges or that services use.
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000))


@contextlib.contextmanager
def join(device: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Generator[World]:
    """Join the group the launcher describes, or be alone. Leaves the group at the end.

    Errors: UserError for an unusable device; InternalError when another process is lost.
    """
    if not launched():
        yield World(device=pick_device(device))
        return
    if under_slurm():
        _slurm_environment()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = pick_device(device, local)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    backend = "nccl" if here.type == "cuda" else "gloo"
    try:
        # Gloo carries what `gather` sends, which is on the host; NCCL carries the gradients.
        _init(f"cpu:gloo,cuda:{backend}" if backend == "nccl" else backend, timeout_seconds)
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size(), here)
    except RuntimeError as error:
        if lost := _lost_peer(error):
            raise InternalError(lost) from error
        raise
    finally:
        with contextlib.suppress(RuntimeError, AssertionError):  # a group that has not come about
            torch.distributed.destroy_process_group()


def _init(backend: str, timeout_seconds: float) -> None:
    """Meet the other processes under names of this start.

    The store in which processes find each other is torchrun's, and outlives a restart: under the
    names of the start before they would find the addresses of processes that are gone.
    """
    timeout = timedelta(seconds=timeout_seconds)
    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=timeout))
    names = torch.distributed.PrefixStore(f"start_{os.environ.get(RESTARTS, '0')}", store)
    torch.distributed.init_process_group(
        backend, store=names, rank=rank, world_size=size, timeout=timeout
    )


def _lost_peer(error: RuntimeError) -> str | None:
    """Return our words for a torch error that means a lost process; None for any other error."""
    text = str(error)
    signs = ("gloo", "Connection closed", "Connection reset", "NCCL", "timed out", "Broken pipe")
    return (
        "lost contact with another process of this run"
        if any(sign in text for sign in signs)
        else None
    )
