"""Which GPUs a process may use, found without asking torch in this process. No torch here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from segtrain.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
# One of them is there where a driver is: NVIDIA's, AMD's, and that of Windows below Linux.
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
GROUP = Path("/sys/fs/cgroup")  # of a container: its limits (control groups, version 2)
COUNT = "import torch; print(torch.cuda.device_count())"
COUNT_SECONDS = 120  # that importing torch may take on a slow disk; chosen by hand


def has_driver() -> bool:
    """Tell whether this machine has the driver of a GPU."""
    return any(Path(file).exists() for file in DRIVERS)


def devices_here(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that a process started here may use, by their names in CUDA_VISIBLE_DEVICES.

    They are those that the variable lists, else all of the machine.
    """
    listed = environment.get(VISIBLE)
    if listed is None:
        return [str(number) for number in range(_count())] if has_driver() else []
    names = [name.strip() for name in listed.split(",")]
    # As CUDA reads it: what follows on a name that is none, such as -1, does not count.
    wrong = next((i for i, name in enumerate(names) if not name or name == "-1"), len(names))
    return list(dict.fromkeys(names[:wrong]))


@cache
def _count() -> int:
    """Ask torch in a process of its own: the driver alone does not know which ones it can use."""
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", COUNT],
            capture_output=True,
            text=True,
            check=True,
            timeout=COUNT_SECONDS,
        )
        return int(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def chosen(names: Sequence[str], where: str) -> list[str]:
    """Return GPUs that were asked for by name, as the setting `where` says.

    Errors: UserError for one that is named twice, or that CUDA_VISIBLE_DEVICES does not allow.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{where}: names {name} twice; for two jobs on one GPU there is "
                "hydra.launcher.jobs_per_gpu=2"
            )
    allowed = devices_here() if VISIBLE in os.environ else None
    for name in names:
        if allowed is not None and name not in allowed:
            listed = ", ".join(allowed) or "none"
            raise UserError(f"{where}: {VISIBLE} allows {listed}, and not {name}")
    return list(names)


@dataclass(frozen=True)
class Seat:
    """Where a process of a run computes: its machine, the GPUs that it sees, and its own of them.

    GPUs are names that no other one has. Of two processes of a machine each may see others.
    """

    host: str
    seen: tuple[str, ...]
    own: str


def idle(seats: Sequence[Seat]) -> str | None:
    """Say which GPUs the processes of a run see and none computes on; None where all are used."""
    seen = {seat.host: dict[str, int]() for seat in seats}
    for seat in seats:
        for number, name in enumerate(seat.seen):
            seen[seat.host].setdefault(name, number)
    own = {seat.own for seat in seats}
    left = {
        host: [number for name, number in names.items() if name not in own]
        for host, names in seen.items()
    }
    count = sum(map(len, left.values()))
    if not count:
        return None
    most = max(map(len, seen.values()))
    said = f"{count} of {sum(map(len, seen.values()))} GPUs are used by no process of this run"
    if len(seats) == 1:
        names = ", ".join(f"cuda:{number}" for number in left[seats[0].host])
        return f"{said}: {names}; train.processes={most} uses all"
    where = ", ".join(f"{len(left[host])} of {len(seen[host])} on {host}" for host in seen)
    return (
        f"{said}: {where}; start a process per GPU (train.processes={most}, "
        f"torchrun --nproc-per-node={most}, srun --ntasks-per-node={most})"
    )


def cores_here() -> int:
    """Return the number of cores that this process may keep busy.

    A container may see all of its machine, and be given the time of fewer.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = (GROUP / "cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return cores


def free_memory() -> int | None:
    """Return the bytes of memory that can be had, None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        used, most = (int((GROUP / f"memory.{of}").read_text()) for of in ("current", "max"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, most - used))
