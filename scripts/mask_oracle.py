"""The AP that masks of boxes could reach: perfect boxes and classes, perfect masks of M x M cells.

Run:  python scripts/mask_oracle.py data/coco --split val2017

Each object's mask, as training sees it, becomes the target of its own box, and that is pasted back
as in inference. So what is missing to 1 is lost between a mask and its cells, and no training with
such targets can gain it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segtrain.data.shorter_edge import ShorterEdge
from segtrain.datasets.coco import CocoInstances, CocoJson
from segtrain.inference.paste import segments
from segtrain.layers.regions import Objects, mask_targets, usable
from segtrain.metrics.coco import CocoEvaluator
from segtrain.structures.instances import Instances, Segments

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "root", type=Path, help="COCO, which holds annotations/; or one annotation file"
)
parser.add_argument("--split", default="val2017")
parser.add_argument("--images", type=Path, help="folder of images of an annotation file")
parser.add_argument(
    "--sizes", type=int, nargs="+", default=[14, 28], help="cells of a mask's side, a row each"
)
parser.add_argument(
    "--targets",
    nargs="+",
    default=["binary", "covered"],
    choices=["binary", "covered"],
    help="model.mask_targets, a row each",
)
parser.add_argument("--shorter", type=int, default=800, help="pixels of the shorter edge")
parser.add_argument(
    "--longest", type=int, default=1333, help="pixels that the longer edge may have"
)


def perfect(objects: Objects, shown: tuple[int, int], truth: Segments, cells: int, covered: bool):
    """Return the objects of an image with masks of `cells` x `cells`.

    `shown` is the size (height, width) of the resized image, in which the objects lie.
    """
    grow = torch.tensor([shown[1] / truth.size[1], shown[0] / truth.size[0]] * 2)
    own = torch.arange(len(objects.boxes))
    masks = mask_targets(objects.masks, objects.boxes, own, cells, covered=covered)
    return segments(truth.size, objects.boxes / grow, masks, objects.labels, torch.ones(len(masks)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each setting."""
    settings = parser.parse_args(arguments)
    root = str(settings.root)
    images = (
        CocoJson(root, "val", images=str(settings.images))
        if settings.root.is_file()
        else CocoInstances(root, settings.split)
    )
    augment = ShorterEdge((settings.shorter,), settings.longest, flip=0.0)
    rows = [(size, target) for size in settings.sizes for target in settings.targets]
    evaluators = [CocoEvaluator(list(images.labels.names)) for _ in rows]
    for index, name in enumerate(images.ids):
        sample = images.scored(index)
        truth = sample.truth
        learned = augment(sample, 0)
        assert isinstance(truth, Segments)
        assert isinstance(learned.instances, Instances)
        shown = learned.image.shape[:2]
        objects = usable(learned.instances)
        for (size, target), evaluator in zip(rows, evaluators, strict=True):
            found = perfect(objects, shown, truth, size, target == "covered")
            evaluator.update(name, found, truth)
    print("mask  targets  " + "  ".join(f"{name:>6}" for name in NUMBERS))
    for (size, target), evaluator in zip(rows, evaluators, strict=True):
        numbers = evaluator.compute()
        values = "  ".join(f"{numbers.get(f'segm/{name}', np.nan):6.4f}" for name in NUMBERS)
        print(f"{size:4}  {target:>7}  {values}", flush=True)


if __name__ == "__main__":
    main()
