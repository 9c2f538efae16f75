"""Time of a sweep by hydra/launcher=gpus on the CPU beside the same runs started by hand.

Run:  python scripts/bench_sweep.py --rounds 5
      python scripts/bench_sweep.py --runs 8 --at-once 4 model=unet train.steps=200

By hand is `segtrain train.seed=N`, as many at a time as the launcher has, the next one as soon as
one has ended (as `xargs -P` does), each with the launcher's share of the cores as train.threads.
Both take turns, and who begins changes each round. The ratio that counts is that of wall seconds on
a machine that does nothing else; CPU seconds of all processes stand beside it, as they tell more on
a busy one.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from segtrain.runtime.devices import cores_here

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--rounds", type=int, default=3, help="sweeps of each")
parser.add_argument("--runs", type=int, default=4, help="runs of a sweep")
parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
parser.add_argument("overrides", nargs="*", help="settings of the runs, KEY=VALUE")

HERE = Path(__file__).resolve().parent.parent
# A run of some seconds, most of which is training and not the start of Python.
RUN = ["model=unet", "model.width=8", "dataset.crop=[128,128]", "train.batch_size=8"]
RUN += ["train.steps=100", "train.device=cpu", "writer=[]", "log.images=0", "log.progress=false"]


class Taken(NamedTuple):
    """What a sweep took."""

    wall: float  # seconds
    cpu: float  # seconds of all its processes, user and system


def started(arguments: Sequence[str], folder: Path) -> None:
    """Run `segtrain ARGUMENTS` to its end. Errors: SystemExit where it fails."""
    command = [sys.executable, "-m", "segtrain", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def by_launcher(options: argparse.Namespace, folder: Path) -> None:
    """Let the launcher do it."""
    seeds = f"train.seed={','.join(map(str, range(options.runs)))}"
    launcher = ["hydra/launcher=gpus", f"hydra.launcher.jobs={options.at_once}"]
    sweep = [seeds, *launcher, f"hydra.sweep.dir={folder}/sweep"]
    started(["-m", *RUN, *options.overrides, *sweep], folder)


def by_hand(options: argparse.Namespace, folder: Path) -> None:
    """Start every run, and the next one when one has ended."""
    threads = max(1, cores_here() // options.at_once)

    def one(seed: int) -> None:
        own = [f"train.seed={seed}", f"train.threads={threads}", f"hydra.run.dir={folder}/{seed}"]
        started([*RUN, *options.overrides, *own], folder)

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(one, range(options.runs)))


def measure(
    sweep: Callable[[argparse.Namespace, Path], None], options: argparse.Namespace
) -> Taken:
    """Take the time of a whole sweep."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        sweep(options, Path(folder))
        wall = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(wall, cpu)


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both in turns; print every round, and the medians of the ratios."""
    options = parser.parse_intermixed_args(arguments)
    sides = {"launcher": by_launcher, "by hand": by_hand}
    taken: dict[str, list[Taken]] = {name: [] for name in sides}
    cores = cores_here()
    print(f"{options.runs} runs, {options.at_once} at a time, {cores} cores")
    for number in range(1, options.rounds + 1):
        load = os.getloadavg()[0]
        for name in sorted(sides, reverse=number % 2 == 0):
            taken[name].append(measure(sides[name], options))
        rounds = "   ".join(
            f"{name} {times[-1].wall:6.2f} s, CPU {times[-1].cpu:6.2f} s"
            for name, times in taken.items()
        )
        print(f"round {number}: {rounds}   load {load:.1f}", flush=True)
    pairs = list(zip(taken["launcher"], taken["by hand"], strict=True))
    wall = statistics.median(ours.wall / hand.wall for ours, hand in pairs)
    cpu = statistics.median(ours.cpu / hand.cpu for ours, hand in pairs)
    print(
        f"ratio launcher/by hand, median of {options.rounds} rounds: wall {wall:.3f}, CPU {cpu:.3f}"
    )


if __name__ == "__main__":
    main()
