"""Processes: start them, join them, sum over them. The only user of torch.distributed.

Everything here also works for one process, so no caller asks how many there are.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from segtrain.errors import InternalError, UserError


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
        return nn.parallel.DistributedDataParallel(
            model, device_ids=ids, gradient_as_bucket_view=True
        )


def no_reduce(model: nn.Module, active: bool) -> contextlib.AbstractContextManager[Any]:
    """Inside it, backward passes accumulate locally; the next one outside reduces them all."""
    return model.no_sync() if active and hasattr(model, "no_sync") else contextlib.nullcontext()  # ty: ignore


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device. Errors: UserError when there is no GPU to use."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device=cuda: torch sees no GPU here; train.device=cpu works everywhere"
        )
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
        "SLURM_PROCID" in os.environ
        and int(os.environ.get("SLURM_NTASKS", "1")) > 1
        and "SLURM_STEP_ID" in os.environ
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
        f"cpu:gloo,cuda:{backend}" if backend == "nccl" else backend,
        timeout=timedelta(seconds=timeout_seconds),
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
    return (
        "lost contact with another process of this run"
        if any(sign in text for sign in signs)
        else None
    )
