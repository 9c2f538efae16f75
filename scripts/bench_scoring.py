"""Milliseconds to score one label map of 19 classes: the usual code against segtrain, and memory.

Run:  python scripts/bench_scoring.py --rounds 50

One thread, 10 % of the pixels ignored, 8 % on objects. Three kinds of map: in `regions` both are
blocks, and a twentieth of the prediction is wrong in patches of 8 x 8; in `speckled` single pixels
are wrong; `noise` has an independent class in every pixel. All take turns in one process, because
the speed of a machine drifts; the table shows the median of the rounds and the ratios to the usual
two (smaller is better). Then `SemanticEvaluator` counts images, and the memory of the process is
read on the way.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

# Thread pools read it when torch and numpy are imported, so it is set before.
os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
import torch

from segtrain.metrics.boundary import BoundaryEvaluator
from segtrain.metrics.cityscapes import CLASSES, INSTANCES, CityscapesEvaluator
from segtrain.metrics.confusion import SemanticEvaluator, confusion
from segtrain.structures.samples import Scene

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--rounds", type=int, default=50, help="turns of each")
parser.add_argument(
    "--images", type=int, default=5000, help="images for the memory; 0: leave it out"
)
parser.add_argument(
    "--size", type=int, nargs=2, default=[1024, 2048], help="height and width, multiples of 64"
)
IGNORED_SHARE = 0.1
BLOCK = 64  # pixels of a block's side
NAMES = list(CLASSES)

Size = tuple[int, int]  # height, width


def maps(kind: str, size: Size) -> tuple[np.ndarray, Scene]:
    """Make a prediction and a truth; every block of a class with instances is an object."""
    rng = np.random.default_rng(0)
    chance = np.array([0.08 / 8 if name in INSTANCES else 0.92 / 11 for name in NAMES])

    def drawn(cell: int) -> np.ndarray:
        """Draw classes (H, W) uint8, one in each square of `cell` pixels."""
        classes = rng.choice(19, (size[0] // cell, size[1] // cell), p=chance).astype(np.uint8)
        return classes.repeat(cell, 0).repeat(cell, 1)

    def some(cell: int, share: float) -> np.ndarray:
        """Draw a mask (H, W) of squares of `cell` pixels that covers about `share`."""
        chosen = rng.random((size[0] // cell, size[1] // cell)) < share
        return chosen.repeat(cell, 0).repeat(cell, 1)

    mask = drawn(1 if kind == "noise" else BLOCK)
    cell = 8 if kind == "regions" else 1
    prediction = np.where(some(cell, 1 if kind == "noise" else 0.05), drawn(cell), mask)
    mask[some(1 if kind == "noise" else BLOCK, IGNORED_SHARE)] = 255
    blocks = (size[0] // BLOCK, size[1] // BLOCK)
    raw = np.zeros(256, np.int32)
    for name, thing in INSTANCES.items():
        raw[NAMES.index(name)] = thing.label_id * 1000
    number = np.arange(blocks[0] * blocks[1]).reshape(blocks).repeat(BLOCK, 0).repeat(BLOCK, 1)
    return prediction, Scene(mask, np.where(raw[mask] > 0, raw[mask] + number, 0).astype(np.uint16))


def usual_numpy(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Count the confusion matrix as most people do."""
    valid = target != 255
    index = 19 * target[valid].astype(np.int64) + prediction[valid]
    return np.bincount(index, minlength=19 * 19).reshape(19, 19)


def usual_torch(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Count the same in torch, on maps that are int64 already."""
    valid = target != 255
    return torch.bincount(19 * target[valid] + prediction[valid], minlength=19 * 19).reshape(19, 19)


def sides(kind: str, size: Size) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name; the usual ones first. All matrices are the same."""
    guess, scene = maps(kind, size)
    prediction = torch.from_numpy(guess)
    target = torch.from_numpy(scene.mask)
    wide = prediction.long(), target.long()
    assert usual_numpy(guess, scene.mask).tolist() == confusion(prediction, target, 19).tolist()
    assert usual_torch(*wide).tolist() == confusion(prediction, target, 19).tolist()
    return {
        "masked np.bincount, int64": lambda: usual_numpy(guess, scene.mask),
        "torch.bincount, boolean mask": lambda: usual_torch(*wide),
        "segtrain confusion": lambda: confusion(prediction, target, 19),
        "SemanticEvaluator.update": lambda: SemanticEvaluator(NAMES).update("a", prediction, scene),
        "CityscapesEvaluator.update, instances": lambda: CityscapesEvaluator(NAMES).update(
            "a", prediction, scene
        ),
        "BoundaryEvaluator.update": lambda: BoundaryEvaluator(NAMES).update("a", prediction, scene),
    }


def timed(call: Callable[[], object]) -> float:
    """Time one call in milliseconds, after one that is not timed.

    The side before it has left its own maps in the caches.
    """
    call()
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def compare(kind: str, size: Size, rounds: int) -> None:
    """Print the medians of all sides on one kind of map."""
    calls = sides(kind, size)
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(timed(call))
    median = {name: statistics.median(times) for name, times in taken.items()}
    numpy_way, torch_way = list(median.values())[:2]
    print(f"\n{kind:40s} {'median ms':>10s} {'min ms':>8s} {'to numpy':>9s} {'to torch':>9s}")
    for name, value in median.items():
        print(
            f"{name:40s} {value:10.2f} {min(taken[name]):8.2f} "
            f"{value / numpy_way:9.2f} {value / torch_way:9.2f}"
        )


def resident() -> float:
    """Return the MB of memory that this process holds (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(images: int, size: Size) -> None:
    """Print the resident memory while one evaluator counts."""
    guess, scene = maps("regions", size)
    prediction = torch.from_numpy(guess)
    evaluator = SemanticEvaluator(NAMES)
    print("\nimages counted   resident MB")
    for number in range(1, images + 1):
        evaluator.update(f"frankfurt/frankfurt_{number:06d}_000019", prediction, scene)
        if number in (1, images // 10, images // 2, images):
            print(f"{number:14,d} {resident():13.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all kinds of map, then the memory."""
    options = parser.parse_args(arguments)
    size = (options.size[0], options.size[1])
    torch.set_num_threads(1)
    print(f"python {platform.python_version()}  torch {version('torch')}  numpy {version('numpy')}")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, 1 thread, "
        f"{size[0]} x {size[1]}, median of {options.rounds}"
    )
    for kind in ("regions", "speckled", "noise"):
        compare(kind, size, options.rounds)
    if options.images:
        memory(options.images, size)


if __name__ == "__main__":
    main()
