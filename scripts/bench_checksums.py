"""What comparing the checksums of PNG files costs a reader: CPU time with it by that without it.

Run:  python scripts/bench_checksums.py --root data

Reads the images and masks of data/cityscapes and the masks of data/voc2012 with `read_image` and
`read_mask`, each file both ways in turn; and whole training samples of Cityscapes as the loader
makes them, with a crop of 769 pixels. Files are in memory after the first round, so that this is
the most that it can cost: a disk would make both sides slower by the same time. It is the time of
this thread, which other programs on the machine change least.

With --fingerprints, what the fingerprint of a split takes, which is compared at a resume: CPU time
of all threads by that of verifying the split, of data/camvid, data/cityscapes and data/coco.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--root", type=Path, default=Path("data"), help="holds cityscapes/, voc2012/")
parser.add_argument("--files", type=int, default=24, help="files of each kind, at most")
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--fingerprints", action="store_true", help="measure these instead")
CROP = 769


def sides(root: Path, most: int) -> dict[str, list[Callable[[], object]]]:
    """Return what is read of each kind: a call for each file."""
    from segtrain.data.images import read_image, read_mask
    from segtrain.data.transforms import Augment
    from segtrain.datasets.cityscapes import Cityscapes

    cities = root / "cityscapes"
    masks = root / "voc2012/VOCdevkit/VOC2012/SegmentationClass"
    kinds: dict[str, list[Callable[[], object]]] = {}
    if cities.is_dir():
        data = Cityscapes(str(cities), "train")
        augment = Augment((CROP, CROP))
        files = [data.files(index) for index in range(min(most, len(data)))]
        kinds["Cityscapes images"] = [lambda p=each.image: read_image(p) for each in files]
        kinds["Cityscapes masks"] = [
            lambda p=each.annotation: read_mask(p) for each in files if each.annotation
        ]
        kinds["Cityscapes samples"] = [
            lambda i=index: augment(data[i], i) for index in range(len(files))
        ]
    if masks.is_dir():
        paths = sorted(masks.glob("*.png"))[:most]
        kinds["VOC masks"] = [lambda p=path: read_mask(p) for path in paths]
    return kinds


def ratios(calls: list[Callable[[], object]], rounds: int) -> tuple[list[float], float]:
    """Return the ratio of each round, and the milliseconds of a call without the comparison."""
    from segtrain.data import images

    compare = images._check_sums
    found = []
    plain_seconds = 0.0
    try:
        for number in range(rounds + 1):  # the first reads from the disk and does not count
            seconds = {True: 0.0, False: 0.0}
            for call in calls:
                for compared in (True, False) if number % 2 else (False, True):
                    images._check_sums = compare if compared else lambda image: None
                    started = time.thread_time()
                    call()
                    seconds[compared] += time.thread_time() - started
            if number:
                found.append(seconds[True] / seconds[False])
                plain_seconds += seconds[False]
    finally:
        images._check_sums = compare
    return found, 1000 * plain_seconds / rounds / len(calls)


def fingerprints(root: Path, rounds: int) -> Iterator[tuple[str, int, float, list[float]]]:
    """Yield name, files, seconds of a fingerprint, and its share of a verification each round."""
    from segtrain.data import fingerprint
    from segtrain.data.verify import verify_labels
    from segtrain.datasets.camvid import CamVid
    from segtrain.datasets.cityscapes import Cityscapes
    from segtrain.datasets.coco import CocoInstances

    known = {"camvid": (CamVid, "train"), "cityscapes": (Cityscapes, "train")}
    for name, (make, split) in {**known, "coco": (CocoInstances, "train2017")}.items():
        if not (root / name).is_dir():
            continue
        data = make(str(root / name), split)
        seconds = []
        shares = []
        count = 0
        for _ in range(rounds):
            started = time.process_time()
            verify_labels(data)
            verified = time.process_time()
            files = fingerprint.named_files(data)
            fingerprint.marks(files, fingerprint.spread(list(files)))
            seconds.append(time.process_time() - verified)
            shares.append(seconds[-1] / (verified - started))
            count = len(files)
        yield name, count, statistics.median(seconds), shares


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each kind of file."""
    options = parser.parse_args(arguments)
    if options.fingerprints:
        for name, count, seconds, shares in fingerprints(options.root, options.rounds):
            print(
                f"fingerprint of {name:<12} {count:4} files {seconds:8.3f} s, of a verification "
                f"{statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"
            )
        return
    for name, calls in sides(options.root, options.files).items():
        found, milliseconds = ratios(calls, options.rounds)
        print(
            f"{name:<20} {len(calls):3} files {milliseconds:8.2f} ms  ratio "
            f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"
        )


if __name__ == "__main__":
    main()
