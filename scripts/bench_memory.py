"""Memory that COCO's annotations take in a training process and its workers, beside pycocotools.

Run:  python scripts/bench_memory.py --root FOLDER

Images and objects of FOLDER/annotations/instances_train2017.json are repeated under new ids up to
the size of train2017. Each way gets a fresh process, which reads the file and forks workers; each
worker reads the masks of the same images. Private is what a worker holds alone, shared-out counts
pages that several hold in equal parts (USS and PSS of /proc/PID/smaps_rollup, so Linux only).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TRAIN2017_IMAGES = 118_287
WAYS = ("segtrain", "pycocotools")
parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--root",
    required=True,
    type=Path,
    help="COCO: annotations/instances_train2017.json, any part of it",
)
parser.add_argument(
    "--images", type=int, default=TRAIN2017_IMAGES, help="images in the file that is made"
)
parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what is measured")
parser.add_argument("--workers", type=int, default=4, help="loader processes")
parser.add_argument("--samples", type=int, default=2000, help="images that each worker reads")


def repeated(content: dict[str, Any], count: int) -> Iterator[tuple[dict, list[dict]]]:
    """Yield (image, its objects) of `count` images: those of the file repeated, under new ids."""
    objects: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        objects[entry["image_id"]].append(entry)
    object_ids = itertools.count(1)
    for image_id, image in zip(
        range(1, count + 1), itertools.cycle(content["images"]), strict=False
    ):
        owned = [
            entry | {"id": next(object_ids), "image_id": image_id} for entry in objects[image["id"]]
        ]
        yield image | {"id": image_id, "file_name": f"{image_id:012d}.jpg"}, owned


def make_file(source: Path, target: Path, count: int) -> int:
    """Write the large annotation file, images first as in train2017, and count its objects."""
    content = json.loads(source.read_text())
    total = 0
    with target.open("w") as file:
        file.write('{"categories": ' + json.dumps(content["categories"]) + ', "images": [')
        for number, (image, _) in enumerate(repeated(content, count)):
            file.write(", " * bool(number) + json.dumps(image))
        file.write('], "annotations": [')
        for entry in (entry for _, owned in repeated(content, count) for entry in owned):
            file.write(", " * bool(total) + json.dumps(entry))
            total += 1
        file.write("]}")
    return total


def memory(name: str) -> float:
    """Read a line of /proc/self/status, in MB: VmRSS now, VmHWM at the highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1e3
    raise LookupError(name)


def own_memory() -> tuple[float, float]:
    """Return (private, proportional) MB of this process."""
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    return (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1e3, kilobytes["Pss"] / 1e3


def reader_of_segtrain(path: Path) -> Callable[[int], int]:
    """Read the file; return a function that decodes and counts the masks of an image."""
    from segtrain.data.coco_index import CocoIndex
    from segtrain.structures.labels import LabelMap

    index = CocoIndex(path, LabelMap.load("coco"))
    return lambda number: len(index.instances(number).masks)


def reader_of_pycocotools(path: Path) -> Callable[[int], int]:
    """Do the same in the usual way: a COCO object, kept by the data set and so by every worker."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    ids = sorted(coco.imgs)
    return lambda number: len(
        [coco.annToMask(entry) for entry in coco.loadAnns(coco.getAnnIds(ids[number]))]
    )


def work(read: Callable[[int], int], indices: range, barrier: Any, answer: Connection) -> None:
    """Send the memory of one worker at the start and after reading.

    All workers live at both times.
    """
    barrier.wait()
    start = own_memory()
    barrier.wait()
    started = time.perf_counter()
    masks = sum(read(index) for index in indices)
    seconds = time.perf_counter() - started
    barrier.wait()
    answer.send((start, own_memory(), masks, seconds))
    barrier.wait()


def measure(way: str, path: Path, options: argparse.Namespace) -> None:
    """Print everything about one way. Runs in a process of its own."""
    import numpy  # noqa: F401  both ways need them, and neither should be charged for them
    import torch

    torch.set_num_threads(1)
    before = memory("VmRSS")
    started = time.perf_counter()
    read = {"segtrain": reader_of_segtrain, "pycocotools": reader_of_pycocotools}[way](path)
    seconds = time.perf_counter() - started
    print(f"\n{way}: read in {seconds:.1f} s")
    print(
        f"  parent, resident MB: {before:,.0f} before, {memory('VmHWM'):,.0f} at the highest, "
        f"{memory('VmRSS'):,.0f} after"
    )
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(options.workers)
    workers = []
    step = max(1, options.images // (options.workers * options.samples))
    for number in range(options.workers):
        indices = range(number * step, options.images, options.workers * step)[: options.samples]
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(read, indices, barrier, sending))
        process.start()
        workers.append((process, receiving))
    for number, (process, receiving) in enumerate(workers):
        start, end, masks, spent = receiving.recv()
        process.join()
        private = f"private {start[0]:,.0f} -> {end[0]:,.0f} MB"
        shared = f"shared-out {start[1]:,.0f} -> {end[1]:,.0f} MB"
        print(f"  worker {number}: {private}, {shared}; {masks:,} masks in {spent:.1f} s")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the file, measure both ways, remove the file."""
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        source = options.root / "annotations" / "instances_train2017.json"
        objects = make_file(source, path, options.images)
        megabytes = path.stat().st_size / 1e6
        print(f"{options.images:,} images, {objects:,} objects, {megabytes:,.0f} MB of JSON")
        print(
            f"{options.workers} workers read {options.samples} images each; {os.cpu_count()} cores",
            flush=True,
        )
        for way in options.ways:
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(way, path, options)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{way} failed (exit {process.exitcode})")


if __name__ == "__main__":
    main()
