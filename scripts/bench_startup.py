"""Seconds from Enter to the first training step, of this checkout beside another one.

Run:  python scripts/bench_startup.py --other FOLDER --rounds 5
      python scripts/bench_startup.py                               this checkout alone
      python scripts/bench_startup.py --other FOLDER model=unet     settings of the run

A fresh process trains the default run for one step. The clock stops when the first training line is
in metrics.jsonl, which is written right after the first update; validation and the checkpoint come
later. CPU seconds are those that the process and its threads have spent until then, so they tell
more than wall seconds on a busy machine. Both checkouts take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--other", type=Path, help="a checkout to compare with")
parser.add_argument("--rounds", type=int, default=5, help="starts of each")
parser.add_argument("overrides", nargs="*", help="settings of the run, KEY=VALUE")

HERE = Path(__file__).resolve().parent.parent
ONE_STEP = ["train.steps=1", "dataset.val=2", "log.progress=false"]
POLL_SECONDS = 0.005  # finer than the differences that matter, and cheap beside an import
TIMEOUT_SECONDS = 300  # a start takes seconds; on a very busy machine a minute


class Start(NamedTuple):
    """What one start took until its first training step."""

    wall: float  # seconds
    cpu: float  # seconds, user and system


def measure(checkout: Path, overrides: Sequence[str]) -> Start:
    """Start the program of a checkout once. Errors: SystemExit where it ends without a step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "segtrain", *ONE_STEP, f"hydra.run.dir={run}", *overrides]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        output = Path(folder) / "output"
        with output.open("wb") as file:
            started = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=checkout, env=environment, stdout=file, stderr=file
            )
            start = wait_for_step(process, run / "metrics.jsonl", started)
            process.wait(TIMEOUT_SECONDS)
        if start is None or process.returncode:
            raise SystemExit(f"{checkout}: no step was made\n{output.read_text()}")
    return start


def wait_for_step(process: subprocess.Popen, metrics: Path, started: float) -> Start | None:
    """Wait for the first training line; None where the process ends before it."""
    while time.perf_counter() - started < TIMEOUT_SECONDS:
        if metrics.exists() and b'"step": 1' in metrics.read_bytes():
            wall = time.perf_counter() - started
            return Start(wall, cpu_seconds(process.pid))
        if process.poll() is not None:  # after the file: a process that was polled has no /proc
            return None
        time.sleep(POLL_SECONDS)
    process.kill()
    return None


def cpu_seconds(pid: int) -> float:
    """Return the user and system seconds of a process so far (Linux)."""
    # After the name in brackets, which may hold anything, utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(name: str, starts: Sequence[Start]) -> None:
    """Print median and spread of one checkout."""
    wall = [start.wall for start in starts]
    cpu = [start.cpu for start in starts]
    print(
        f"{name:<6} wall {statistics.median(wall):6.2f} s ({min(wall):.2f} to {max(wall):.2f})   "
        f"CPU {statistics.median(cpu):6.2f} s ({min(cpu):.2f} to {max(cpu):.2f})"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Start both in turns; print every round, the medians and their ratios."""
    options = parser.parse_intermixed_args(arguments)
    sides = {"this": HERE} | ({"other": options.other.resolve()} if options.other else {})
    starts: dict[str, list[Start]] = {name: [] for name in sides}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    for number in range(1, options.rounds + 1):
        for name, checkout in sides.items():
            starts[name].append(measure(checkout, options.overrides))
        rounds = "   ".join(
            f"{name} {taken[-1].wall:6.2f} s, CPU {taken[-1].cpu:6.2f} s"
            for name, taken in starts.items()
        )
        print(f"round {number}: {rounds}", flush=True)
    for name, taken in starts.items():
        show(name, taken)
    if "other" in starts:
        pairs = list(zip(starts["this"], starts["other"], strict=True))
        wall = statistics.median(mine.wall / other.wall for mine, other in pairs)
        cpu = statistics.median(mine.cpu / other.cpu for mine, other in pairs)
        print(
            f"ratio this/other, median of {options.rounds} rounds: wall {wall:.3f}, CPU {cpu:.3f}"
        )


if __name__ == "__main__":
    main()
