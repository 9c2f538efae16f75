"""The summary of a finished run: its final numbers, and where they came from."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from segtrain.runtime.files import replace_file

GIT_SECONDS = 10  # that a checkout on a slow disk may take; chosen by hand
# A block that says what it failed at, and lets the run go on: `RunLog.aside`.
Aside = Callable[[str], AbstractContextManager[None]]


def final_table(numbers: Mapping[str, float]) -> str:
    """Return the overall numbers on one line, then a line per class.

    Objects have one more line for the numbers of masks, and one for those of boxes.
    """
    groups: dict[str, list[str]] = {"": [], "segm": [], "bbox": []}
    for name, value in numbers.items():
        group, _, short = name.rpartition("/")
        if group in groups:
            groups[group].append(f"{short} {value:.4f}")
    overall = [
        f"{group:<5}  {'  '.join(texts)}" for group, texts in groups.items() if texts and group
    ]
    classes = {
        name.removeprefix("IoU/"): value
        for name, value in numbers.items()
        if name.startswith("IoU/")
    }
    width = max((len(name) for name in classes), default=0)
    first = f"final  {'  '.join(groups[''])}".rstrip()
    return "\n".join(
        [first, *overall, *(f"  {name:<{width}}  {value:.3f}" for name, value in classes.items())]
    )


def environment(aside: Aside) -> dict[str, Any]:
    """Return versions, machine, memory used and git revision: they explain a number later.

    Each is looked up `aside`; one that cannot be is None.
    """
    told: dict[str, Any] = {}
    for name, look in _DESCRIBED.items():
        told[name] = None
        with aside(f"summary.json: {name}"):
            told[name] = look()
    return {**told, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def _revision() -> str | None:
    """Return the git revision of segtrain's own checkout, None where it is none.

    An installed segtrain may lie in the checkout of something else, whose revision says nothing.
    """
    root = Path(__file__).resolve().parents[2]
    git = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        timeout=GIT_SECONDS,
    )
    top, _, revision = git.stdout.strip().partition("\n")
    return revision if git.returncode == 0 and Path(top).resolve() == root else None


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _torchvision_version(),
    }


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _torchvision_version() -> str | None:
    """The version as torchvision names it, without importing it, which takes seconds."""
    try:
        return version("torchvision")
    except PackageNotFoundError:
        return None


def forget_peak_memory() -> bool:
    """Let the largest memory use count from here on; tell whether the process's own does.

    A sweep runs its jobs one after the other in one process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_memory() -> int | None:
    """Return the most memory this process held at once, in MiB. Only Linux tells."""
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(
            (int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None
        )
    return None


def peak_gpu_memory() -> int | None:
    """Return the most memory that was held at once on the GPU, in MiB."""
    return torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else None


_DESCRIBED: dict[str, Callable[[], Any]] = {
    "git": _revision,
    "versions": _versions,
    "machine": _machine,
    "peak_memory_mib": peak_memory,
    "peak_gpu_memory_mib": peak_gpu_memory,
}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode())
