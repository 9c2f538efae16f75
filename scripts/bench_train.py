"""Images per second of a training step on the CPU: a plain loop, as most people write it, against segtrain.

Run:  make bench CAMVID=FOLDER        (installs segmentation_models_pytorch)
      python scripts/bench_train.py --root FOLDER --steps 20 --rounds 5 --threads 2

Both train DeepLabv3+ with a ResNet-18 from scratch on CamVid: crops of 240 x 320, batch 8, bf16 autocast, AdamW at one rate,
decoding and augmentation in the training process. They take turns in one process (plain, ours, plain, ours, ...), because a
machine's speed drifts. The networks are not the same to the last layer: compare their printed sizes.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

# Thread pools read it when torch and cv2 are imported, so it is set before.
parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--root", required=True, type=Path, help="CamVid: train, trainannot, val, valannot"
)
parser.add_argument("--steps", type=int, default=20, help="updates of one turn")
parser.add_argument("--rounds", type=int, default=5, help="turns of each")
parser.add_argument(
    "--warmup", type=int, default=3, help="updates of each before the first turn, not timed"
)
parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of torch")
CROP, BATCH, RATE, VOID, CLASSES = (240, 320), 8, 1e-3, 11, 11
PACKAGES = (
    "torch",
    "torchvision",
    "albumentations",
    "segmentation_models_pytorch",
    "opencv-python-headless",
)


def plain_batches(root: Path) -> Iterator:
    """Batches of the usual albumentations pipeline: the whole image is scaled, then cropped and normalised."""
    import albumentations as A
    import cv2
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    view = A.Compose(
        [
            A.RandomScale(scale_limit=(-0.5, 1.0), p=1.0),  # 0.5 to 2
            A.PadIfNeeded(
                *CROP, border_mode=cv2.BORDER_CONSTANT, fill=(124, 116, 104), fill_mask=255
            ),
            A.RandomCrop(*CROP),
            A.HorizontalFlip(p=0.5),
            A.Normalize(),
        ],
        seed=0,
    )

    class Pairs(Dataset):
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
            return torch.from_numpy(seen["image"].transpose(2, 0, 1).copy()), torch.from_numpy(
                seen["mask"]
            ).long()

    return repeated(DataLoader(Pairs(), BATCH, shuffle=True, drop_last=True, num_workers=0))


def plain(root: Path) -> tuple[Callable[[], None], int]:
    """(one update, parameters) of segmentation_models_pytorch in the loop of its own examples."""
    import segmentation_models_pytorch as smp
    import torch
    from torch.nn.functional import cross_entropy

    network = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=CLASSES).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    stream = plain_batches(root)

    def update() -> None:
        images, masks = next(stream)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(network(images), masks, ignore_index=255)
        loss.backward()
        optimizer.step()
        loss.item()

    return update, sum(p.numel() for p in network.parameters())


def repeated(loader: object) -> Iterator:
    """Epoch after epoch."""
    while True:
        yield from loader  # ty: ignore


def ours(root: Path, threads: int, updates: int) -> tuple[Callable[[], None], int]:
    """(one update, parameters) of segtrain's own loop: the sampler, loader, update and host read."""
    import segtrain
    from segtrain.engine.parts import build_parts, train_batches
    from segtrain.engine.state import new_state
    from segtrain.engine.update import read
    from segtrain.engine.update import update as train_update
    from segtrain.runtime.distributed import World, pick_device
    from segtrain.runtime.signals import Signals

    run = segtrain.compose(
        [
            "dataset=camvid",
            f"dataset.root={root}",
            "model=deeplabv3plus_r18",
            "optimizer=adamw",
            f"optimizer.lr={RATE}",
            f"dataset.crop={list(CROP)}",
            f"train.batch_size={BATCH}",
            f"train.steps={updates}",
            f"train.threads={threads}",
            "train.precision=bf16",
            "train.device=cpu",
            "train.workers=0",
        ]
    )
    world = World(device=pick_device("cpu"))
    parts = build_parts(run, world)
    state = new_state(run.train, parts, world)
    stream = train_batches(run, parts, world, 0, updates)
    signals = Signals()

    def update() -> None:
        report = train_update(run, parts, state, next(stream), world, signals)
        state.step += 1
        read([report], world)

    return update, sum(p.numel() for p in state.network.parameters())


def rate(update: Callable[[], None], steps: int, cv_threads: int) -> float:
    """Images per second of `steps` updates."""
    import cv2

    cv2.setNumThreads(
        cv_threads
    )  # importing segtrain sets it to 0 for the whole process; the plain loop keeps the usual
    start = time.perf_counter()
    for _ in range(steps):
        update()
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Both in turns; prints every round and the median ratio."""
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    updates = args.warmup + args.rounds * args.steps
    our_update, our_size = ours(args.root, args.threads, updates)
    plain_update, plain_size = plain(args.root)
    torch.set_num_threads(args.threads)
    print(
        f"python {platform.python_version()}  "
        + "  ".join(f"{name} {version(name)}" for name in PACKAGES)
    )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, batch {BATCH}, crop {CROP}, bf16, CPU"
    )
    print(f"parameters: plain {plain_size:,}, ours {our_size:,}")
    sides = ((plain_update, args.threads), (our_update, 0))
    for update, threads in sides:
        rate(update, args.warmup, threads)
    rounds = []
    for number in range(1, args.rounds + 1):
        plain_rate, our_rate = (rate(update, args.steps, threads) for update, threads in sides)
        rounds.append((plain_rate, our_rate))
        print(
            f"round {number}: plain {plain_rate:6.2f}  ours {our_rate:6.2f} images/s  ratio {our_rate / plain_rate:.3f}"
        )
    plain_median, our_median = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratios = [b / a for a, b in rounds]
    print(f"median: plain {plain_median:6.2f}  ours {our_median:6.2f} images/s")
    print(
        f"ratio ours/plain: {statistics.median(ratios):.3f} (of {args.rounds} rounds, {min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
