"""What a finished run says of itself: final numbers, and where they came from."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision


def final_table(numbers: Mapping[str, float]) -> str:
    """Overall numbers on one line, one more for masks and for boxes of objects, then a line per class."""
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


def environment() -> dict[str, Any]:
    """Versions, machine, memory used and git revision, so that a number can be explained later."""
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "git": git.stdout.strip() or None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "machine": {
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        **peak_memory(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def forget_peak_memory() -> None:
    """Let the largest memory use count from here on: a sweep runs its jobs one after the other in one process."""
    with contextlib.suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int | None]:
    """Most memory this process has held at once, in MiB: in RAM, and of tensors on its GPU."""
    found = None
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        found = next(
            (int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None
        )
    gpu = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else None
    return {"peak_memory_mib": found, "peak_gpu_memory_mib": gpu}


def write_json(path: Path, content: Any) -> None:
    """A JSON file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
