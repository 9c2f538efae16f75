"""Run `segtrain` and write down, after each training line, what this process holds.

Run:  python tests/leaks.py RECORD SETTINGS...
RECORD gets a JSON list a step: step, resident memory in KiB, open descriptors, threads.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from segtrain.commands import exit_codes, main
from segtrain.logs.run_log import RunLog


def held() -> list[int]:
    """Return resident memory in KiB, open descriptors and threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    counts = [len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task")]
    return [pages * os.sysconf("SC_PAGE_SIZE") >> 10, *counts]


def watched(record: Path) -> None:
    """Let each training line of the run in this process write a line to `record`."""
    real = RunLog.train

    def train(self: RunLog, step: int, *others: Any, **named: Any) -> None:
        real(self, step, *others, **named)
        with record.open("a") as file:
            file.write(json.dumps([step, *held()]) + "\n")

    RunLog.train = train


if __name__ == "__main__":
    watched(Path(sys.argv[1]))
    exit_codes.run_command("segtrain", main.run, sys.argv[2:])
