"""From a detector's boxes and masks to run lengths: segtrain beside torchvision and pycocotools.

Run:  python scripts/bench_paste.py

Boxes have sides like COCO's objects in an image of shorter edge
800 (median about 90 px, log-normal), masks are 28 x 28 blobs with wavy borders; all from seeds.
Both take turns in one process; a time is from boxes and probabilities in memory to run lengths.
Peak extra memory is what a fresh process holds at its highest beyond what it held before the call
(VmHWM and VmRSS of /proc, so Linux with glibc only); libraries are loaded, both ways have run once,
on one mask in a small image, and what is free was given back to the system, so that nothing large
is taken from what the process holds anyway.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
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

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--masks", type=int, default=100, help="boxes of an image")
parser.add_argument("--rounds", type=int, default=15, help="turns of each")
parser.add_argument(
    "--size", type=int, nargs=2, default=[800, 1333], help="height and width of the image"
)
parser.add_argument(
    "--memory",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="measure memory too, in processes of their own",
)

Size = tuple[int, int]  # height, width
Way = Callable[[Size, Tensor, Tensor], list[dict[str, Any]]]


def detections(count: int, seed: int, size: Size, cells: int = 28) -> tuple[Tensor, Tensor]:
    """Draw boxes (count, 4) inside an image, and probabilities (count, cells, cells) of blobs."""
    rng = np.random.default_rng(seed)
    side = 90 * np.exp(rng.normal(0, 1, count))
    aspect = np.exp(rng.normal(0, 0.35, count))
    extent = np.stack([side * aspect, side / aspect], 1).clip(8, (size[1], size[0]))
    corner = rng.uniform(0, 1, (count, 2)) * ((size[1], size[0]) - extent)
    middles = (torch.arange(cells) + 0.5) / cells * 2 - 1  # of cells, from -1 to 1
    ellipse = 1 - middles[:, None] ** 2 - middles**2
    waves = interpolate(
        torch.from_numpy(rng.normal(0, 1, (count, 1, 6, 6))), (cells, cells), mode="bicubic"
    )[:, 0]
    probabilities = (8 * ellipse + 2 * waves).sigmoid().float()
    return torch.from_numpy(np.concatenate([corner, corner + extent], 1)).float(), probabilities


def ours(size: Size, boxes: Tensor, probabilities: Tensor) -> list[dict[str, Any]]:
    """Paste and encode mask by mask, as our predictors do."""
    objects = paste.segments(
        size, boxes, probabilities, torch.zeros(len(boxes)), torch.ones(len(boxes))
    )
    return objects.masks or []


def theirs(size: Size, boxes: Tensor, probabilities: Tensor) -> list[dict[str, Any]]:
    """Paste all, threshold, encode one by one: torchvision's references/detection/coco_eval.py."""
    masks = paste_masks_in_image(probabilities[:, None], boxes, size) > 0.5
    return [
        coco_mask.encode(np.array(mask[0, :, :, np.newaxis].numpy(), dtype=np.uint8, order="F"))[0]
        for mask in masks
    ]


def sampled(size: Size, boxes: Tensor, probabilities: Tensor) -> Tensor:
    """Compute the same pixels (N, H, W) by a dense `grid_sample` of the image."""
    x1, y1, x2, y2 = (side[:, None] for side in boxes.double().unbind(1))
    x = ((torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1)[:, None, :].expand(-1, size[0], -1)
    y = ((torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1)[:, :, None].expand(-1, -1, size[1])
    grid = torch.stack([x, y], 3).float()
    return (
        torch.nn.functional.grid_sample(probabilities[:, None], grid, align_corners=False)[:, 0]
        >= 0.5
    )


def timed(call: Way, *given: Any) -> float:
    """Time one call in seconds."""
    start = time.perf_counter()
    call(*given)
    return time.perf_counter() - start


def status(name: str) -> float:
    """Read a line of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def peak(way: str, count: int, size: Size) -> None:
    """Print the peak extra memory of one way in this process."""
    torch.set_num_threads(1)
    given = detections(count, 0, size)
    small = detections(1, 1, (64, 64))
    for call in (ours, theirs):
        call((64, 64), *small)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    before = status("VmRSS")
    {"segtrain": ours, "torchvision": theirs}[way](size, *given)
    print(f"{way:<14}{count:>6} masks{status('VmHWM') - before:>10.1f} MB", flush=True)


def agreement(count: int, size: Size) -> None:
    """Print how far the pixels are equal: IoU of each mask, and pixels on one side only."""
    boxes, probabilities = detections(count, 0, size)
    masks = dense(ours(size, boxes, probabilities), size)
    others = {
        "torchvision's": dense(theirs(size, boxes, probabilities), size),
        "a dense grid_sample's": sampled(size, boxes, probabilities).numpy(),
    }
    for name, other in others.items():
        shared = (masks & other).sum((1, 2))
        union = (masks | other).sum((1, 2))
        iou = shared / union
        print(
            f"IoU with {name} masks: mean {np.mean(iou):.4f}, lowest {np.min(iou):.4f}; "
            f"{(union - shared).sum():,} of {union.sum():,} pixels differ"
        )


def dense(masks: list[dict[str, Any]], size: Size) -> np.ndarray:
    """Decode run lengths to masks (N, H, W); pycocotools gives their text as bytes."""
    texts = [mask["counts"] for mask in masks]
    texts = [text if isinstance(text, str) else text.decode() for text in texts]
    return run_lengths.decode([{"size": list(size), "counts": text} for text in texts], size)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print time, memory and agreement."""
    options = parser.parse_args(arguments)
    size = (options.size[0], options.size[1])
    given = detections(options.masks, 0, size)
    sides = (given[0][:, 2:] - given[0][:, :2]).prod(1).sqrt()
    spread = f"{sides.min():.0f} to {sides.max():.0f} px, median {sides.median():.0f} px"
    print(f"{options.masks} masks of 28 x 28 in an image of {size[0]} x {size[1]}, sides {spread}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        spent: dict[Way, list[float]] = {ours: [], theirs: []}
        for _ in range(options.rounds):
            for way, times in spent.items():
                times.append(1000 * timed(way, size, *given))
        ratios = [b / a for a, b in zip(spent[ours], spent[theirs], strict=True)]
        for name, way in (("segtrain", ours), ("torchvision", theirs)):
            times = spent[way]
            print(
                f"{threads} thread{'s' * (threads > 1):<2}{name:<12}"
                f"{statistics.median(times):>8.1f} ms ({min(times):.1f} to {max(times):.1f})"
            )
        spread = f"({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"           faster by {statistics.median(ratios):.1f} {spread}")
    counts = (
        ("segtrain", options.masks),
        ("segtrain", 10 * options.masks),
        ("torchvision", options.masks),
    )
    for way, count in counts if options.memory else ():
        # A fresh process each time: what one way has allocated must not be there for the other.
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=peak, args=(way, count, size))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{way} failed (exit {process.exitcode})")
    agreement(min(options.masks, 25), size)


if __name__ == "__main__":
    main()
