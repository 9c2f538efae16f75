"""How many updates until AP 0.5? Our Mask R-CNN beside torchvision's in a plain loop.

Run:  python scripts/coco_subset.py data/coco/annotations/instances_train2017.json sixteen.json
      python scripts/compare_mask_rcnn.py sixteen.json data/coco/train2017 --out outputs/mask_rcnn

Both learn a few images by heart from scratch and are measured on the same images by our evaluator
every `--every` updates: a ResNet-18 with GroupNorm, a pyramid 128 wide, anchors of 16 to 256
pixels, 128 regions an image, shorter edge 256 and longer at most 427, mirroring, 4 images an
update, AdamW at 0.0005 with poly, bf16. "ours" is the command `segtrain`; "torchvision" is its
network, its resizing and a loop that adds its losses up. Initial weights are each library's own.

Each finished arm leaves a file in `--out` and is not trained again. Every call prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LR = 5e-4
WIDTH = 128
SHORTER = 256
LONGEST = 427
ANCHORS = (16, 32, 64, 128, 256)
PROPOSALS = (500, 300)  # in training, in evaluation
REGIONS = 128
GOAL = 0.5  # segm/AP
ARMS = ("ours", "torchvision")

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("annotations", type=Path, help="file of COCO's format")
parser.add_argument("images", type=Path, help="folder of its images")
parser.add_argument("--out", required=True, type=Path, help="folder of the results")
parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--steps", type=int, default=400, help="updates of one arm")
parser.add_argument("--every", type=int, default=40, help="updates between two measurements")
parser.add_argument("--batch", type=int, default=4, help="images of an update")
parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of torch")

Curve = list[tuple[int, float]]  # (updates made, segm/AP)


def overrides(options: argparse.Namespace, seed: int) -> list[str]:
    """Return what `segtrain` is told; torchvision's arm takes data and metric from it."""
    return [
        "recipe=null",  # both arms share one recipe, this one
        "dataset=coco_json",
        f"dataset.annotations={options.annotations.resolve()}",
        f"dataset.images={options.images.resolve()}",
        "model=mask_rcnn_r18",
        f"model.width={WIDTH}",
        f"model.anchors={list(ANCHORS)}",
        f"model.proposals={list(PROPOSALS)}",
        f"model.regions={REGIONS}",
        "optimizer=adamw",
        f"optimizer.lr={LR}",
        "schedule=poly",
        "augment=detection",
        f"augment.shorter=[{SHORTER}]",
        f"augment.longest={LONGEST}",
        f"inference.shorter={SHORTER}",
        f"inference.longest={LONGEST}",
        f"train.batch_size={options.batch}",
        f"train.steps={options.steps}",
        f"train.eval_every={options.every}",
        f"train.threads={options.threads}",
        f"train.seed={seed}",
        "train.precision=bf16",
        "train.device=cpu",
        "train.workers=0",
        "log.every=1",
        "log.progress=false",
        "writer=[]",
    ]


def ours(options: argparse.Namespace, seed: int) -> tuple[Curve, list[float]]:
    """Train by the command `segtrain`; return the curve of its AP and the losses."""
    folder = options.out / f"seed{seed}_ours"
    shutil.rmtree(folder, ignore_errors=True)  # of an arm that was stopped
    words = [*overrides(options, seed), f"hydra.run.dir={folder.resolve()}"]
    subprocess.run([sys.executable, "-m", "segtrain", *words], check=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(line["step"], line["segm/AP"]) for line in lines if line["phase"] == "val"]
    return curve, [line["loss"] for line in lines if line["phase"] == "train"]


def torchvision_network(num_classes: int) -> Any:
    """Return torchvision's Mask R-CNN of the sizes above; class 0 is its background."""
    from torch import nn
    from torchvision.models import resnet18
    from torchvision.models.detection import mask_rcnn
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(32, channels)

    trunk = resnet18(weights=None, norm_layer=norm)
    layers = {f"layer{number}": str(number - 1) for number in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(trunk, layers, [64, 128, 256, 512], WIDTH, norm_layer=norm)
    anchors = AnchorGenerator(tuple((side,) for side in ANCHORS), ((0.5, 1.0, 2.0),) * len(ANCHORS))
    return mask_rcnn.MaskRCNN(
        backbone,
        min_size=SHORTER,
        max_size=LONGEST,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=PROPOSALS[0],
        rpn_pre_nms_top_n_test=PROPOSALS[1],
        rpn_post_nms_top_n_train=PROPOSALS[0],
        rpn_post_nms_top_n_test=PROPOSALS[1],
        box_batch_size_per_image=REGIONS,
        box_head=TwoMLPHead(WIDTH * 7 * 7, 1024),
        box_predictor=FastRCNNPredictor(1024, num_classes + 1),
        mask_head=mask_rcnn.MaskRCNNHeads(WIDTH, (WIDTH,) * 4, 1, norm_layer=norm),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(WIDTH, WIDTH, num_classes + 1),
    )


def plain(options: argparse.Namespace, seed: int) -> tuple[Curve, list[float]]:
    """Train torchvision's network as its reference does; return the curve of AP and the losses."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    import segtrain
    from segtrain.config import parts as config_parts

    run = segtrain.compose(overrides(options, seed))
    images = config_parts.dataset(run.dataset, "train")
    names = list(images.labels.names)
    torch.set_num_threads(options.threads)
    torch.manual_seed(seed)
    network = torchvision_network(len(names))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01)
    schedule = LambdaLR(optimizer, lambda step: (1 - step / options.steps) ** 0.9)
    batches = mirrored_batches(images, options.batch)
    curve = []
    losses = []
    for step in range(1, options.steps + 1):
        network.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = sum(network(*next(batches)).values())
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % options.every == 0 or step == options.steps:
            evaluator = config_parts.evaluator(run.metric, names)
            curve.append((step, average_precision(network, images, evaluator)))
            print(f"torchvision, step {step}: segm/AP {curve[-1][1]:.3f}", flush=True)
    return curve, losses


def mirrored_batches(images: Any, size: int) -> Iterator[tuple[list, list]]:
    """Yield (images, targets) as torchvision's detectors take them, half of them mirrored."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Objects(Dataset):
        """Images in [0, 1] with boxes, labels from 1 on and masks."""

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            sample = images[index]
            pixels = torch.from_numpy(sample.image).permute(2, 0, 1) / 255
            objects = sample.instances
            boxes = objects.boxes
            masks = objects.masks
            if torch.rand(()) < 0.5:
                width = pixels.shape[2]
                pixels = pixels.flip(2)
                masks = masks.flip(2)
                boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
                boxes = boxes + torch.tensor([width, 0, width, 0])
            target = {"boxes": boxes, "labels": objects.labels + 1, "masks": masks.byte()}
            return pixels, target

    def together(samples: list) -> tuple[list, list]:
        pixels, targets = zip(*samples, strict=True)
        return list(pixels), list(targets)

    loader = DataLoader(Objects(), size, shuffle=True, drop_last=True, collate_fn=together)
    while True:
        yield from loader


def average_precision(network: Any, images: Any, evaluator: Any) -> float:
    """Return segm/AP of torchvision's network on all `images`."""
    import torch

    from segtrain.structures.instances import Instances

    network.eval()
    for index in range(len(images)):
        sample = images.scored(index)
        pixels = torch.from_numpy(sample.image).permute(2, 0, 1) / 255
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            (seen,) = network([pixels])
        prediction = Instances(
            boxes=seen["boxes"].float(),
            labels=seen["labels"] - 1,
            masks=seen["masks"][:, 0] > 0.5,
            scores=seen["scores"].float(),
        )
        evaluator.update(sample.id, prediction, sample.truth)
    return evaluator.compute()["segm/AP"]


def train(options: argparse.Namespace, seed: int, arm: str) -> None:
    """Train one arm of one seed, unless its result is there already."""
    path = options.out / f"seed{seed}_{arm}.json"
    settings = {"steps": options.steps, "batch": options.batch, "every": options.every}
    if path.exists():
        stored = json.loads(path.read_text())["settings"]
        if stored != settings:
            parser.error(f"{path} was trained with {stored}: choose another --out")
        return
    curve, losses = ours(options, seed) if arm == "ours" else plain(options, seed)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"settings": settings, "curve": curve, "losses": losses}))
    part.rename(path)  # whole, or not there


def reached(curve: Curve) -> str:
    """Return after how many updates AP was first `GOAL` or more."""
    return next((str(step) for step, value in curve if value >= GOAL), "never")


def table(out: Path) -> str:
    """Return a line for each result: when AP 0.5 was reached, and the curve."""
    lines = []
    for path in sorted(out.glob("seed*_*.json")):
        seed, _, arm = path.stem.removeprefix("seed").partition("_")
        curve = [tuple(point) for point in json.loads(path.read_text())["curve"]]
        points = " ".join(f"{step}:{value:.3f}" for step, value in curve)
        lines.append(f"seed {seed} {arm:<12} AP {GOAL} at step {reached(curve):>5}  {points}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, seed by seed; print the table."""
    options = parser.parse_args(arguments)
    # Thread pools read it when torch is imported, so it is set before.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for arm in options.arms:
            train(options, seed, arm)
    print(
        f"{options.steps} steps of {options.batch}, measured every {options.every}, "
        f"{options.threads} threads, bf16, CPU; AP of the most frequent class as whole images 0.000"
    )
    print(table(options.out))


if __name__ == "__main__":
    main()
