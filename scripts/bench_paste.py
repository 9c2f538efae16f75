"""Masks of a detector's boxes as run-length masks of the image: segtrain beside torchvision's paste and pycocotools' encode.

Run:  python scripts/bench_paste.py

Boxes have sides like COCO's objects in an image of shorter edge 800 (median about 90 px, log-normal), masks are 28 x 28 blobs
with wavy borders; all from seeds. Both take turns in one process; a time is from boxes and probabilities in memory to run
lengths. Peak extra memory is what a fresh process holds at its highest beyond what it held before the call (VmHWM and VmRSS
of /proc, so Linux with glibc only); libraries are loaded, both ways have run once, on one mask in a small image, and what
is free was given back to the system, so that nothing large is taken from what the process holds anyway.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from segtrain.inference import paste
from segtrain.structures import run_lengths

SIZE = (800, 1333)
parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--masks", type=int, default=100, help="boxes of an image")
parser.add_argument("--rounds", type=int, default=15, help="turns of each")

Way = Callable[[tuple[int, int], Tensor, Tensor], list[dict[str, Any]]]


def detections(
    count: int, seed: int, size: tuple[int, int] = SIZE, cells: int = 28
) -> tuple[Tensor, Tensor]:
    """Boxes (count, 4) inside an image of `size`, and probabilities (count, cells, cells) of blobs."""
    rng = np.random.default_rng(seed)
    side, shape = 90 * np.exp(rng.normal(0, 1, count)), np.exp(rng.normal(0, 0.35, count))
    extent = np.stack([side * shape, side / shape], 1).clip(8, (size[1], size[0]))
    corner = rng.uniform(0, 1, (count, 2)) * ((size[1], size[0]) - extent)
    place = (torch.arange(cells) + 0.5) / cells * 2 - 1
    ellipse = 1 - place[:, None] ** 2 - place**2
    waves = interpolate(
        torch.from_numpy(rng.normal(0, 1, (count, 1, 6, 6))), (cells, cells), mode="bicubic"
    )[:, 0]
    probabilities = (8 * ellipse + 2 * waves).sigmoid().float()
    return torch.from_numpy(np.concatenate([corner, corner + extent], 1)).float(), probabilities


def ours(size: tuple[int, int], boxes: Tensor, probabilities: Tensor) -> list[dict[str, Any]]:
    found = paste.segments(
        size, boxes, probabilities, torch.zeros(len(boxes)), torch.ones(len(boxes))
    )
    return found.masks or []


def theirs(size: tuple[int, int], boxes: Tensor, probabilities: Tensor) -> list[dict[str, Any]]:
    """As torchvision's references/detection/coco_eval.py: paste all, threshold, encode one by one."""
    masks = paste_masks_in_image(probabilities[:, None], boxes, size) > 0.5
    return [
        coco_mask.encode(np.array(mask[0, :, :, np.newaxis].numpy(), dtype=np.uint8, order="F"))[0]
        for mask in masks
    ]


def sampled(size: tuple[int, int], boxes: Tensor, probabilities: Tensor) -> Tensor:
    """The same pixels (N, H, W) by a dense `grid_sample` of the whole image, zeros around the mask."""
    x1, y1, x2, y2 = (side[:, None] for side in boxes.double().unbind(1))
    x = ((torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1)[:, None, :].expand(-1, size[0], -1)
    y = ((torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1)[:, :, None].expand(-1, -1, size[1])
    grid = torch.stack([x, y], 3).float()
    return (
        torch.nn.functional.grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0]
        >= 0.5
    )


def timed(call: Way, *given: Any) -> float:
    start = time.perf_counter()
    call(*given)
    return time.perf_counter() - start


def status(name: str) -> float:
    """A line of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def peak(way: str, count: int) -> None:
    """Prints the peak extra memory of one way in this process."""
    torch.set_num_threads(1)
    given, small = detections(count, seed=0), detections(1, seed=1, size=(64, 64))
    for call in (ours, theirs):
        call((64, 64), *small)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    before = status("VmRSS")
    {"segtrain": ours, "torchvision": theirs}[way](SIZE, *given)
    print(f"{way:<14}{count:>6} masks{status('VmHWM') - before:>10.1f} MB")


def agreement(count: int) -> None:
    """Prints how far the pixels are equal: intersection over union of each mask, and pixels on one side only."""
    boxes, probabilities = detections(count, seed=0)
    (a, b), reference = (
        (
            run_lengths.decode(
                [
                    {**mask, "counts": text(mask["counts"])}
                    for mask in way(SIZE, boxes, probabilities)
                ],
                SIZE,
            )
            for way in (ours, theirs)
        ),
        sampled(SIZE, boxes, probabilities).numpy(),
    )
    for name, other in (("torchvision's", b), ("a dense grid_sample's", reference)):
        same, union = (a & other).sum((1, 2)), (a | other).sum((1, 2))
        print(
            f"IoU with {name} masks: mean {np.mean(same / union):.4f}, lowest {np.min(same / union):.4f}; "
            f"{(union - same).sum():,} of {union.sum():,} pixels differ"
        )


def text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode()


def main() -> None:
    """The tables."""
    options = parser.parse_args()
    given = detections(options.masks, seed=0)
    sides = (given[0][:, 2:] - given[0][:, :2]).prod(1).sqrt()
    said = f"{sides.min():.0f} to {sides.max():.0f} px, median {sides.median():.0f} px"
    print(f"{options.masks} masks of 28 x 28 in an image of {SIZE[0]} x {SIZE[1]}, sides {said}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        spent: dict[Way, list[float]] = {ours: [], theirs: []}
        for _ in range(options.rounds):
            for way, times in spent.items():
                times.append(1000 * timed(way, SIZE, *given))
        ratios = [b / a for a, b in zip(spent[ours], spent[theirs], strict=True)]
        for name, way in (("segtrain", ours), ("torchvision", theirs)):
            middle, low, high = statistics.median(spent[way]), min(spent[way]), max(spent[way])
            print(
                f"{threads} thread{'s' * (threads > 1):<2}{name:<12}{middle:>8.1f} ms ({low:.1f} to {high:.1f})"
            )
        print(
            f"           faster by {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        )
    for way, count in (
        ("segtrain", options.masks),
        ("segtrain", 10 * options.masks),
        ("torchvision", options.masks),
    ):
        process = multiprocessing.get_context("spawn").Process(target=peak, args=(way, count))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{way} failed (exit {process.exitcode})")
    agreement(min(options.masks, 25))


if __name__ == "__main__":
    main()
