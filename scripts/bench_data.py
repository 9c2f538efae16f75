"""Training samples per second of one thread: segtrain, without and with its cache, and torchvision.

Run:  python scripts/bench_data.py --root data

Data sets are data/cityscapes and data/coco; one that is missing is left out.

Cityscapes: 2048 x 1024 PNG, scale 0.5 to 2, mirror, crop of 769. COCO: about 640 x 480 JPEG with
the maps of COCO-Stuff, likewise, crop of 513. The reference is that of torchvision's
references/segmentation on PIL images: decode, resize the whole image and its labels, mirror, pad,
crop, tensor, float, normalise. Every side gets the same files, scales, crops and mirrors, and they
take turns sample by sample in one process, because a machine's speed drifts.

Two differences: the reference filters when it makes an image smaller, ours is plain bilinear; and
it gives normalised floats, ours bytes, which the model normalises later on its device. So ours is
also shown with that normalisation, on this CPU.

Cold means that the kernel was told to forget the cache's files before each sample. That shows what
a first read costs in requests and bytes; a virtual disk whose host still has the data in memory, or
a fast SSD, hides what a slow disk would add.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--root", type=Path, default=Path("data"), help="folder that holds cityscapes/ and coco/"
)
parser.add_argument(
    "--images",
    type=int,
    default=24,
    help="the first images of each data set; two caches are made of them",
)
parser.add_argument("--samples", type=int, default=24, help="samples of each side in a round")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument(
    "--cache",
    type=Path,
    default=None,
    help="folder on the disk to measure; default: the system's own",
)
parser.add_argument("--crop", type=int, help="pixels of a side; default: 769 and 513")
# Thread pools read it when torch and cv2 are imported, so it is set before.
os.environ["OMP_NUM_THREADS"] = "1"
PACKAGES = ("torch", "torchvision", "pillow", "opencv-python-headless", "numpy")
CROPS = {"cityscapes": 769, "coco": 513}  # pixels
TRAIN_IMAGES = {"cityscapes": 2_975, "coco": 118_287}  # of the whole training split
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]

Side = Callable[[int, int], object]  # (image number, seed) -> one training sample


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes_read = 0  # where a side counts them
        self.last = 0.0

    def start(self) -> None:
        """Begin the first stage."""
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last call as `stage`."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now

    def line(self, samples: int) -> str:
        """Return the milliseconds a sample, stage by stage."""
        parts = [
            f"{stage} {1000 * seconds / samples:.1f}" for stage, seconds in self.seconds.items()
        ]
        return f"{1000 * sum(self.seconds.values()) / samples:6.1f} ms = " + " + ".join(parts)


class First:
    """The first images of a data set; all but their number is the data set's own."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset = dataset
        self.ids = dataset.ids[:count]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def draws(seed: int) -> tuple[float, ...]:
    """Return what `Augment` draws with `seed`: scale, rotated?, angle, top, left, mirrored.

    All are in [0, 1).
    """
    import numpy as np

    return tuple(np.random.default_rng(seed).random(6).tolist())


def reference(dataset: Any, crop: int, clock: Clock) -> Side:
    """Make samples as torchvision's reference does: normalised float image, int64 labels."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.transforms.v2 import functional

    def sample(number: int, seed: int) -> object:
        scale, _, _, top, left, mirrored = draws(seed)
        image_path, mask_path = dataset.files(number)
        clock.start()
        with Image.open(image_path) as file:
            image = file.convert("RGB")
        with Image.open(mask_path) as file:
            file.load()
            mask = file.copy()
        clock.lap("decode")
        side = round((0.5 + 1.5 * scale) * min(image.size))
        nearest = functional.InterpolationMode.NEAREST
        image = functional.resize(image, [side], antialias=True)
        mask = functional.resize(mask, [side], interpolation=nearest)
        clock.lap("resize")
        if mirrored < 0.5:
            image = functional.horizontal_flip(image)
            mask = functional.horizontal_flip(mask)
        padding = [0, 0, max(0, crop - image.width), max(0, crop - image.height)]
        if any(padding):
            image = functional.pad(image, padding, fill=0)
            mask = functional.pad(mask, padding, fill=255)
        y = int(top * (image.height - crop + 1))
        x = int(left * (image.width - crop + 1))
        image = functional.crop(image, y, x, crop, crop)
        mask = functional.crop(mask, y, x, crop, crop)
        clock.lap("mirror and crop")
        labels = torch.as_tensor(np.array(mask), dtype=torch.int64)
        floats = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
        pixels = functional.normalize(floats, MEAN, STD)
        clock.lap("tensor")
        return pixels, labels

    return sample


def ours(dataset: Any, crop: int, normalise: bool = False) -> Side:
    """Make samples as segtrain's loader does, from a data set or its cache."""
    import torch

    from segtrain.data.transforms import Augment
    from segtrain.layers.preprocess import preprocess

    augment, normalised = Augment((crop, crop)), preprocess("imagenet")
    get = getattr(dataset, "lazy", dataset.__getitem__)

    def sample(number: int, seed: int) -> object:
        made = augment(get(number), seed)
        pixels = torch.from_numpy(made.image).permute(2, 0, 1)[None]
        if normalise:
            pixels = normalised(pixels, torch.tensor([[crop, crop]]))
        return pixels, torch.from_numpy(made.mask)

    return sample


def stages(dataset: Any, crop: int, clock: Clock) -> Side:
    """Time the steps of `ours` without a cache, one by one."""
    import numpy as np

    from segtrain.data.images import read_image, read_mask
    from segtrain.data.transforms import Augment

    augment = Augment((crop, crop))

    def sample(number: int, seed: int) -> object:
        image_path, mask_path = dataset.files(number)
        clock.start()
        image = read_image(image_path)
        raw = read_mask(mask_path)
        clock.lap("decode")
        mask = dataset.labels.encode(raw, "")
        clock.lap("label map")
        view = augment.draw((mask.shape[0], mask.shape[1]), np.random.default_rng(seed))
        shown = view.show(image, smooth=True), view.show(mask, smooth=False)
        clock.lap("resize and mirror the window")
        return shown

    return sample


def cached_stages(cached: Any, crop: int, clock: Clock) -> Side:
    """Time the steps of `ours` with a cache, one by one."""
    import numpy as np

    from segtrain.data.transforms import Augment

    augment = Augment((crop, crop))

    def sample(number: int, seed: int) -> object:
        lazy = cached.lazy(number)
        clock.start()
        view = augment.draw((lazy.image.shape[0], lazy.image.shape[1]), np.random.default_rng(seed))
        top, left, bottom, right = view.reach()
        windows = [pixels[top:bottom, left:right] for pixels in (lazy.image, lazy.mask)]
        clock.bytes_read += sum(window.nbytes for window in windows)
        clock.lap("read the window")
        whole = replace(view, source=windows[1].shape, window=(0, 0, *windows[1].shape))
        shown = whole.show(windows[0], smooth=True), whole.show(windows[1], smooth=False)
        clock.lap("resize and mirror it")
        return shown

    return sample


def forget(folder: Path) -> None:
    """Tell the kernel to drop a cache's files from memory."""
    for path in folder.glob("*.bin"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_bytes() -> int:
    """Return the bytes that this process has made the disk read; 0 where nobody tells."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def compare(sides: dict[str, Side], images: int, options: argparse.Namespace, cold: Path) -> None:
    """Print samples per second, and the ratio to the first side; sides take turns by sample."""
    ratios: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    for number in range(options.rounds + 1):  # the first round warms up
        seconds: dict[str, float] = defaultdict(float)
        for k in range(options.samples):
            for name, sample in sides.items():
                if "cold" in name:
                    forget(cold)
                start = time.perf_counter()
                sample(k % images, number * options.samples + k)
                seconds[name] += time.perf_counter() - start
        for name in sides if number else ():
            rates[name].append(options.samples / seconds[name])
            ratios[name].append(seconds[next(iter(sides))] / seconds[name])
    for name in sides:
        spread = f"{min(ratios[name]):.2f} to {max(ratios[name]):.2f}"
        rate = statistics.median(rates[name])
        ratio = statistics.median(ratios[name])
        print(f"  {name:<34}{rate:8.1f} samples/s   {ratio:6.2f} x  ({spread})")


def explain(dataset: Any, caches: tuple[Any, Any], crop: int, samples: int) -> None:
    """Print where the time goes, and how fast windows are read from memory and from the disk."""
    images = len(dataset)
    for name, make, source, cold in (
        ("torchvision", reference, dataset, False),
        ("ours", stages, dataset, False),
        ("ours, cached, warm", cached_stages, caches[0], False),
        ("ours, cached, cold", cached_stages, caches[1], True),
    ):
        clock = Clock()
        side = make(source, crop, clock)
        before = disk_bytes()
        for k in range(samples):
            if cold:
                forget(source.folder)
            side(k % images, k)
        print(f"  {name:<20}{clock.line(samples)}")
        if clock.bytes_read:
            megabytes = clock.bytes_read / 1e6
            rate = megabytes / clock.seconds["read the window"]
            from_disk = (disk_bytes() - before) / samples / 1e6
            print(
                f"{'':<22}windows of {megabytes / samples:.2f} MB a sample at {rate:,.0f} MB/s, "
                f"{from_disk:.2f} MB of them from the disk"
            )


def bench(name: str, dataset: Any, options: argparse.Namespace) -> None:
    """Measure one data set: build the caches, compare, explain."""
    from segtrain.data.cache import Cached, build_cache

    images = len(dataset)
    crop = options.crop or CROPS[name]
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        warm = Path(folder) / "warm"
        cold = Path(folder) / "cold"
        report = build_cache(dataset, warm, workers=0)
        build_cache(dataset, cold, workers=0)
        caches = Cached(dataset, warm), Cached(dataset, cold)
        print(
            f"\n{name}: {images} images, crop {crop}, {options.samples} samples a round, "
            f"median of {options.rounds} rounds"
        )
        sides = {
            "torchvision": reference(dataset, crop, Clock()),
            "ours": ours(dataset, crop),
            "ours, normalised here": ours(dataset, crop, normalise=True),
            "ours, cached, warm": ours(caches[0], crop),
            "ours, cached, warm, normalised": ours(caches[0], crop, normalise=True),
            "ours, cached, cold": ours(caches[1], crop),
        }
        compare(sides, images, options, cold)
        explain(dataset, caches, crop, options.samples)
    cached = (report.image_bytes + report.mask_bytes) / images
    stored = sum(path.stat().st_size for k in range(images) for path in dataset.files(k)) / images
    print(
        f"  cache: {cached / 1e6:.2f} MB an image ({stored / 1e6:.2f} MB in its files); "
        f"{TRAIN_IMAGES[name]:,} images would take {cached * TRAIN_IMAGES[name] / 1e9:.0f} GB; "
        f"built by one thread at {images / report.seconds:.1f} images/s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both data sets, where they are."""
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    from segtrain.datasets.cityscapes import Cityscapes
    from segtrain.datasets.coco_stuff import CocoStuff

    print(
        f"python {platform.python_version()}  "
        + "  ".join(f"{name} {version(name)}" for name in PACKAGES)
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, one thread; "
        f"load of the machine at the start: {load}"
    )
    for name, kind, split in (
        ("cityscapes", Cityscapes, "train"),
        ("coco", CocoStuff, "train2017"),
    ):
        root = options.root / name
        if root.is_dir():
            bench(name, First(kind(str(root), split), options.images), options)
        else:
            print(f"{root}: not there, left out")


if __name__ == "__main__":
    main()
