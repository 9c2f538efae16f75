"""Does segtrain train as well as a plain loop? Several arms on CamVid, seed by seed.

Run:  python scripts/compare_loop.py --root FOLDER --out outputs/loop
      python scripts/compare_loop.py --root FOLDER --out outputs/loop --arms plain_our_views
      python scripts/compare_loop.py --root FOLDER --out outputs/mobilenet --steps 1000 \
          --arms imagenet scratch smp --against smp --seeds 0 1 2 --weights mobilenet_v2.pth

All arms train with AdamW at 0.001 with the poly schedule, bf16, no class weights, scales 0.5 to 2,
crop, mirror, and are measured by our evaluator on the 101 validation images at full size.

ours              the command `segtrain`, our DeepLabv3+ with a ResNet-18 from scratch
plain             the same network from the same initial weights, in a loop, a Dataset and
                  albumentations as one would write them without a framework
plain_our_views   that loop, fed by segtrain's batches, with its seeds of dropout
plain_our_decay   that loop with segtrain's groups: biases and norms do not decay
plain_same        both of these: what is left of the difference is the loop itself
imagenet          the command `segtrain`, our DeepLabv3+ on MobileNet-v2 from `--weights`
scratch           the same without weights
smp               the plain loop with segmentation_models_pytorch's DeepLabV3Plus on MobileNet-v2
                  from the same `--weights`

Each finished arm leaves a file in `--out` and is not trained again, so the command may be stopped
and repeated, and two processes may share the arms. Every call prints the table of what is there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench_train import CLASSES, LR, SMP, plain_batches

COMMANDS = ("ours", "imagenet", "scratch")  # arms that are the command `segtrain`
# Arms that are the plain loop.
PLAIN = ("plain", "plain_our_views", "plain_our_decay", "plain_same", "smp")
FROM_FILE = ("imagenet", "smp")
# One convolution in the decoder, as segmentation_models_pytorch has it.
MOBILENET = ("model=deeplabv3plus", "model.backbone=mobilenet_v2", "model.decoder=[256]")
SIDE = 16  # segmentation_models_pytorch takes images whose sides are multiples of its stride

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "--root", required=True, type=Path, help="CamVid: train, trainannot, val, valannot"
)
parser.add_argument("--out", required=True, type=Path, help="folder of the results")
parser.add_argument("--arms", nargs="+", choices=COMMANDS + PLAIN, default=["ours", "plain"])
parser.add_argument(
    "--against", choices=COMMANDS + PLAIN, default="plain", help="what the others differ from"
)
parser.add_argument(
    "--weights",
    type=Path,
    help="of MobileNet-v2 by torchvision's names; where its batch norms were folded, first run "
    "scripts/unfold_batch_norm.py",
)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
parser.add_argument("--steps", type=int, default=400, help="updates of one arm")
parser.add_argument("--batch", type=int, default=8, help="images of an update")
parser.add_argument("--crop", type=int, nargs=2, default=[240, 320], help="height and width")
parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of torch")


def overrides(options: argparse.Namespace, seed: int, arm: str) -> list[str]:
    """Return what `segtrain` is told; the plain loop takes its network and its protocol from it."""
    height, width = options.crop
    model = ["model=deeplabv3plus_r18"]
    if arm in ("imagenet", "scratch"):
        weights = options.weights.resolve() if arm in FROM_FILE else "null"
        model = [*MOBILENET, f"model.weights={weights}"]
    return [
        "recipe=null",  # the arms share one recipe, this one
        "dataset=camvid",
        f"dataset.root={options.root.resolve()}",
        f"dataset.crop=[{height},{width}]",
        *model,
        "optimizer=adamw",
        f"optimizer.lr={LR}",
        "schedule=poly",
        "loss=pixel",
        "augment=standard",
        f"train.batch_size={options.batch}",
        f"train.steps={options.steps}",
        f"train.eval_every={options.steps}",
        f"train.threads={options.threads}",
        f"train.seed={seed}",
        "train.precision=bf16",
        "train.device=cpu",
        "train.workers=0",
        "log.every=1",
        "log.progress=false",
        "writer=[]",
    ]


def command(options: argparse.Namespace, seed: int, arm: str, folder: Path) -> dict[str, Any]:
    """Train by the command `segtrain`; return its last numbers and the loss of every update."""
    shutil.rmtree(folder, ignore_errors=True)  # of an arm that was stopped
    words = [*overrides(options, seed, arm), f"hydra.run.dir={folder.resolve()}"]
    subprocess.run([sys.executable, "-m", "segtrain", *words], check=True)
    final = json.loads((folder / "summary.json").read_text())["final"]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["phase"] == "train"]
    return {"metrics": {name: final[name] for name in ("mIoU", "pixAcc")}, "losses": losses}


def plain(options: argparse.Namespace, seed: int, arm: str) -> dict[str, Any]:
    """Train by a loop as in a tutorial; return our evaluator's numbers and every update's loss."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.optim.lr_scheduler import LambdaLR

    import segtrain
    from segtrain.engine.parts import build_parts
    from segtrain.runtime.distributed import World, pick_device

    run = segtrain.compose(overrides(options, seed, arm))
    world = World(device=pick_device("cpu"))
    parts = build_parts(run, world)  # the network with the weights that `segtrain` starts from

    torch.manual_seed(seed)
    network = smp_mobilenet(options.weights) if arm == "smp" else parts.network
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
    if arm in ("plain_our_decay", "plain_same"):
        optimizer = parts.optimizer  # the same, but biases and norms do not decay
    schedule = LambdaLR(optimizer, lambda step: (1 - step / options.steps) ** 0.9)
    if arm in ("plain_our_views", "plain_same"):
        batches = our_batches(run, parts, world)
    else:
        batches = plain_batches(options.root, options.batch, options.crop, seed)

    losses = []
    for _ in range(options.steps):
        images, masks = next(batches)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(network(images)["logits"], masks, ignore_index=255)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return {"metrics": measure(run, network, parts, world), "losses": losses}


def smp_mobilenet(weights: Path) -> Any:
    """Return segmentation_models_pytorch's DeepLabV3Plus on a MobileNet-v2 from a file.

    Its forward gives what our networks' gives, so that our evaluator measures it.
    """
    import segmentation_models_pytorch as smp
    from torch import Tensor, nn
    from torch.nn.functional import pad

    from segtrain.layers.preprocess import preprocess
    from segtrain.weights.formats import read_weights

    class Padded(nn.Module):
        """Pads right and below by zeros, which are the mean colour, and cuts the logits."""

        def __init__(self) -> None:
            super().__init__()
            self.network = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=CLASSES)
            self.network.encoder.load_state_dict(dict(read_weights(weights).values))
            self.preprocess = preprocess("imagenet")

        def forward(self, batch: Any) -> dict[str, Tensor]:
            images = batch
            if not isinstance(batch, Tensor):
                images = self.preprocess(batch.images, batch.sizes)
            height, width = images.shape[-2:]
            whole = pad(images, (0, -width % SIDE, 0, -height % SIDE))
            return {"logits": self.network(whole)[..., :height, :width]}

    return Padded()


def our_batches(run: Any, parts: Any, world: Any) -> Iterator:
    """Yield normalised images and their labels as `segtrain` trains on them.

    Before each of them torch is seeded as `segtrain` does, for dropout.
    """
    import torch

    from segtrain.engine.parts import train_batches
    from segtrain.rng import seed_for

    for step, (batch,) in enumerate(train_batches(run, parts, world, 0, run.train.steps)):
        torch.manual_seed(seed_for(run.train.seed, "dropout", step, 0))
        yield parts.network.preprocess(batch.images, batch.sizes), batch.masks.long()


def measure(run: Any, network: Any, parts: Any, world: Any) -> dict[str, float]:
    """Return mIoU and pixAcc of a network on the validation images, as `segtrain` measures."""
    from segtrain.config import parts as config_parts
    from segtrain.engine.evaluate import evaluate

    predictor = config_parts.predictor(run, network)
    evaluator = config_parts.evaluator(run.metric, parts.class_names)
    metrics = evaluate(
        network, predictor, parts.val_set, evaluator, world=world, precision=parts.precision
    )
    return {name: metrics[name] for name in ("mIoU", "pixAcc")}


def train(options: argparse.Namespace, seed: int, arm: str) -> None:
    """Train one arm of one seed, unless its result is there already."""
    path = options.out / f"seed{seed}_{arm}.json"
    if path.exists():
        check_same(options, path)
        return
    start = time.perf_counter()
    if arm in COMMANDS:
        result = command(options, seed, arm, options.out / f"seed{seed}_{arm}")
    else:
        result = plain(options, seed, arm)
    result |= {"settings": settings(options), "seconds": time.perf_counter() - start}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result))
    part.rename(path)  # whole, or not there
    metrics = result["metrics"]
    print(
        f"seed {seed} {arm:<16} mIoU {metrics['mIoU']:.4f}  pixAcc {metrics['pixAcc']:.4f}  "
        f"{result['seconds']:.0f} s",
        flush=True,
    )


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all arms of one folder have in common."""
    return {"steps": options.steps, "batch": options.batch, "crop": list(options.crop)}


def check_same(options: argparse.Namespace, path: Path) -> None:
    """Refuse a folder whose results were made with other settings."""
    stored = json.loads(path.read_text())["settings"]
    if stored != settings(options):
        parser.error(f"{path} was trained with {stored}: choose another --out")


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the two-sided 95 % t-interval of the mean of paired differences, two or more."""
    from scipy.special import stdtrit

    half = stdtrit(len(differences) - 1, 0.975) * statistics.stdev(differences)
    half /= len(differences) ** 0.5
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """Return what is compared of an arm: the metrics, and the mean loss of the last quarter."""
    losses = result["losses"]
    return {**result["metrics"], "loss": statistics.fmean(losses[-max(len(losses) // 4, 1) :])}


def table(out: Path, against: str) -> str:
    """Return every result in the folder, and how arms differ from `against`, pair by pair."""
    results: dict[str, dict[int, dict[str, float]]] = {}
    lines = [f"{'arm':<16} {'seed':>4} {'mIoU':>8} {'pixAcc':>8} {'loss':>8} {'s':>6}"]
    for path in sorted(out.glob("seed*_*.json")):
        seed, _, arm = path.stem.removeprefix("seed").partition("_")
        result = json.loads(path.read_text())
        own = numbers(result)
        results.setdefault(arm, {})[int(seed)] = own
        lines.append(
            f"{arm:<16} {seed:>4} {own['mIoU']:>8.4f} {own['pixAcc']:>8.4f} {own['loss']:>8.4f} "
            f"{result['seconds']:>6.0f}"
        )
    for arm in results:
        both = sorted(results[arm].keys() & results.get(against, {}).keys())
        if arm == against or not both:
            continue
        for name in ("mIoU", "pixAcc", "loss"):
            differences = [results[arm][seed][name] - results[against][seed][name] for seed in both]
            text = f"{arm} - {against}, {name}: " + " ".join(f"{d:+.4f}" for d in differences)
            text += f"  mean {statistics.fmean(differences):+.4f}"
            if len(differences) > 1:
                low, high = interval(differences)
                text += f"  95 % [{low:+.4f}, {high:+.4f}]"
            lines.append(text)
    return "\n".join(lines)


def baseline(options: argparse.Namespace) -> dict[str, float]:
    """Return the numbers of calling every pixel what most training pixels are."""
    import numpy as np
    import torch

    import segtrain
    from segtrain.config import parts as config_parts

    run = segtrain.compose(overrides(options, 0, "scratch"))
    train_set, val_set = (config_parts.dataset(run.dataset, split) for split in ("train", "val"))
    masks = (train_set.target(index).mask for index in range(len(train_set)))
    pixels = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)
    evaluator = config_parts.evaluator(run.metric, list(val_set.labels.names))
    for index in range(len(val_set)):
        truth = torch.as_tensor(val_set.truth(index))
        evaluator.update(str(index), torch.full_like(truth, int(pixels[:CLASSES].argmax())), truth)
    metrics = evaluator.compute()
    return {name: metrics[name] for name in ("mIoU", "pixAcc")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, seed by seed; print the table."""
    options = parser.parse_args(arguments)
    if options.weights is None and (asking := set(options.arms) & set(FROM_FILE)):
        parser.error(f"--arms {' '.join(sorted(asking))}: give --weights FILE")
    if "smp" in options.arms and importlib.util.find_spec(SMP) is None:
        parser.error(f"--arms smp: pip install {SMP}, or leave it out")
    # Thread pools read it when torch and cv2 are imported, so it is set before.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for arm in options.arms:
            train(options, seed, arm)
    height, width = options.crop
    print(
        f"{options.steps} steps of {options.batch}, crop {height} x {width}, "
        f"{options.threads} threads, bf16, CPU"
    )
    print(table(options.out, options.against))
    trivial = baseline(options)
    print(f"most frequent class: mIoU {trivial['mIoU']:.4f}  pixAcc {trivial['pixAcc']:.4f}")


if __name__ == "__main__":
    main()
