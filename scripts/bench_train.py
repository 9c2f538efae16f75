"""Images per second of a training step on the CPU: a plain loop beside segtrain's.

Run:  make bench CAMVID=FOLDER
      python scripts/bench_train.py --root FOLDER --steps 20 --rounds 5 --threads 2

Both train DeepLabv3+ with a ResNet-18 from scratch on CamVid: crops of 240 x 320, batch 8, bf16
autocast, AdamW at one learning rate, decoding and augmentation in the training process. They take
turns in one process (plain, ours, plain, ours, ...), because the speed of a machine drifts.
`--network smp` gives the plain loop the network of segmentation_models_pytorch, which is not ours
to the last layer: compare the printed sizes. `--network ours` gives it our own, so that only the
loops differ. Without the option it is smp where that is installed, else ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--root", required=True, type=Path, help="CamVid: train, trainannot, val, valannot"
)
parser.add_argument("--network", choices=["smp", "ours"], help="of the plain loop")
parser.add_argument("--steps", type=int, default=20, help="updates of one turn")
parser.add_argument("--rounds", type=int, default=5, help="turns of each")
parser.add_argument(
    "--warmup", type=int, default=3, help="updates of each before the first turn, not timed"
)
parser.add_argument("--batch", type=int, default=8, help="images of an update")
parser.add_argument("--crop", type=int, nargs=2, default=[240, 320], help="height and width")
parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of torch")

LR = 1e-3
VOID = 11  # CamVid's label of pixels that do not count
CLASSES = 11
SMP = "segmentation_models_pytorch"
PACKAGES = ("torch", "albumentations", "opencv-python-headless")

Update = Callable[[], None]


def plain_batches(root: Path, batch: int, crop: Sequence[int], seed: int = 0) -> Iterator:
    """Yield batches of the usual pipeline: scale the whole image, crop, mirror, normalise."""
    import albumentations as album
    import cv2
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    view = album.Compose(
        [
            album.RandomScale(scale_limit=(-0.5, 1.0), p=1.0),  # 0.5 to 2
            album.PadIfNeeded(
                *crop, border_mode=cv2.BORDER_CONSTANT, fill=(124, 116, 104), fill_mask=255
            ),
            album.RandomCrop(*crop),
            album.HorizontalFlip(p=0.5),
            album.Normalize(),
        ],
        seed=seed,
    )

    class Pairs(Dataset):
        """Images and masks of CamVid's train."""

        def __init__(self) -> None:
            self.files = sorted((root / "train").iterdir())

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            path = self.files[index]
            image = np.array(Image.open(path).convert("RGB"))
            mask = np.array(Image.open(root / "trainannot" / f"{path.stem}.png"))
            mask[mask == VOID] = 255
            seen = view(image=image, mask=mask)
            pixels = torch.from_numpy(seen["image"].transpose(2, 0, 1).copy())
            return pixels, torch.from_numpy(seen["mask"]).long()

    loader = DataLoader(Pairs(), batch, shuffle=True, drop_last=True, num_workers=0)
    while True:
        yield from loader


def plain(options: argparse.Namespace, network_name: str) -> tuple[Update, int]:
    """Return (one update, number of parameters) of a loop as in the examples of libraries."""
    import torch
    from torch.nn.functional import cross_entropy

    network, logits = smp_network() if network_name == "smp" else our_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
    stream = plain_batches(options.root, options.batch, options.crop)

    def update() -> None:
        images, masks = next(stream)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(logits(images), masks, ignore_index=255)
        loss.backward()
        optimizer.step()
        loss.item()

    return update, sum(parameter.numel() for parameter in network.parameters())


def smp_network() -> tuple[Any, Callable]:
    """Return DeepLabv3+ of segmentation_models_pytorch, and how it turns images into logits."""
    import segmentation_models_pytorch as smp

    network = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=CLASSES).train()
    return network, network


def our_network() -> tuple[Any, Callable]:
    """Return our DeepLabv3+, and how it turns images that are normalised already into logits."""
    import segtrain

    network = segtrain.create_model("deeplabv3plus_r18", CLASSES).train()
    return network, lambda images: network(images)["logits"]


def ours(options: argparse.Namespace, updates: int) -> tuple[Update, int]:
    """Return (one update, number of parameters) of segtrain's own batches, step and reading."""
    import segtrain
    from segtrain.engine.parts import build_parts, train_batches
    from segtrain.engine.state import new_state
    from segtrain.engine.update import read, update
    from segtrain.runtime.distributed import World, pick_device
    from segtrain.runtime.signals import Signals

    run = segtrain.compose(
        [
            "dataset=camvid",
            f"dataset.root={options.root}",
            "model=deeplabv3plus_r18",
            "optimizer=adamw",
            f"optimizer.lr={LR}",
            f"dataset.crop={list(options.crop)}",
            f"train.batch_size={options.batch}",
            f"train.steps={updates}",
            f"train.threads={options.threads}",
            "train.precision=bf16",
            "train.device=cpu",
            "train.workers=0",
        ]
    )
    world = World(device=pick_device("cpu"))
    parts = build_parts(run, world)
    state = new_state(run.train, parts, world)
    batches = train_batches(run, parts, world, 0, updates)
    signals = Signals()

    def one_update() -> None:
        report = update(run, parts, state, next(batches), world, signals)
        state.step += 1
        assert not read([report])[0].bad, "a loss or gradient is not finite"

    return one_update, sum(parameter.numel() for parameter in state.network.parameters())


def images_per_second(update: Update, steps: int, batch: int, cv_threads: int) -> float:
    """Time `steps` updates.

    Importing segtrain sets cv2's threads to 0 for the whole process; the plain loop keeps the usual
    number.
    """
    import cv2

    cv2.setNumThreads(cv_threads)
    start = time.perf_counter()
    for _ in range(steps):
        update()
    return steps * batch / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Let both loops train in turns; print every round and the median ratio."""
    options = parser.parse_args(arguments)
    # Thread pools read it when torch and cv2 are imported, so it is set before.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    installed = importlib.util.find_spec(SMP) is not None
    network_name = options.network or ("smp" if installed else "ours")
    if network_name == "smp" and not installed:
        parser.error(f"--network smp: pip install {SMP}, or take --network ours")
    updates = options.warmup + options.rounds * options.steps
    our_update, our_size = ours(options, updates)
    plain_update, plain_size = plain(options, network_name)
    torch.set_num_threads(options.threads)
    packages = (*PACKAGES, SMP) if network_name == "smp" else PACKAGES
    versions = "  ".join(f"{name} {version(name)}" for name in packages)
    print(f"python {platform.python_version()}  {versions}")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, "
        f"batch {options.batch}, crop {tuple(options.crop)}, bf16, CPU"
    )
    if network_name == "ours":
        why = "" if options.network else f" ({SMP} is not installed)"
        print(f"the plain loop trains our network{why}")
    print(f"parameters: plain {plain_size:,}, ours {our_size:,}")
    sides = ((plain_update, options.threads), (our_update, 0))
    for update, cv_threads in sides:
        images_per_second(update, options.warmup, options.batch, cv_threads)
    rounds = []
    for number in range(1, options.rounds + 1):
        plain_rate, our_rate = (
            images_per_second(update, options.steps, options.batch, cv_threads)
            for update, cv_threads in sides
        )
        rounds.append((plain_rate, our_rate))
        print(
            f"round {number}: plain {plain_rate:6.2f}  ours {our_rate:6.2f} images/s  "
            f"ratio {our_rate / plain_rate:.3f}"
        )
    plain_median, our_median = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratios = [our_rate / plain_rate for plain_rate, our_rate in rounds]
    print(f"median: plain {plain_median:6.2f}  ours {our_median:6.2f} images/s")
    print(
        f"ratio ours/plain: {statistics.median(ratios):.3f} "
        f"(of {options.rounds} rounds, {min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
