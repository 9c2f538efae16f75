"""The recall that FPN's mask proposals could reach: one perfect proposal for every object.

Run:  python scripts/fpn_oracle.py data/coco --split val2017 --sizes 14 28

Each object's own mask is resampled to M x M cells in a region, as in training, and pasted back as
in inference. Of the positions nearest to its middle on the scales within an octave of its size, the
one counts whose result overlaps the object most; the paper's own positives are `--octaves 0
--reach 1`. No training with such targets can gain what is missing to 1, so the oracle belongs
beside each reported AR. `positives` are the positions of an image that learn an object.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from segtrain.datasets.coco import CocoJson, CocoProposals
from segtrain.inference.paste import segments
from segtrain.layers.regions import mask_targets
from segtrain.metrics.coco import PROPOSAL_NUMBERS, ProposalEvaluator
from segtrain.models.fpn import DeepMaskSampling, Geometry, Sampling, Scale, regions_of
from segtrain.structures import run_lengths
from segtrain.structures.boxes import edge_size
from segtrain.structures.instances import Segments

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "root", type=Path, help="COCO, which holds annotations/; or one annotation file"
)
parser.add_argument("--split", default="val2017")
parser.add_argument(
    "--levels", type=int, nargs="+", default=[6], help="coarsest levels, a row each"
)
parser.add_argument(
    "--sizes", type=int, nargs="+", default=[14, 28], help="cells of a mask's side, a row each"
)
parser.add_argument(
    "--octaves", type=float, default=1.0, help="between an object and its scales; 0: the nearest"
)
parser.add_argument(
    "--reach", type=float, default=0.5, help="cells between an object's middle and its positions"
)
parser.add_argument("--heads", type=int, nargs="+", default=[5, 7], help="cells of a kernel's side")
parser.add_argument(
    "--geometry", choices=get_args(Geometry), default="paper", help="model.geometry of the network"
)
parser.add_argument(
    "--thresholds", type=float, nargs="+", default=[0.5], help="of the pasted mask, a row each"
)
parser.add_argument("--shorter", type=int, default=800, help="pixels of the shorter edge")
parser.add_argument(
    "--longest", type=int, default=1333, help="pixels that the longer edge may have"
)


class Candidates(Sampling):
    """Positions within `cells` of an object's middle on all scales within `octaves` of its size.

    The nearest scale, and the nearest position on each, are always among them.
    """

    def __init__(self, octaves: float, cells: float) -> None:
        super().__init__()
        self.octaves = octaves
        self.cells = cells

    def serves(self, octaves: torch.Tensor) -> torch.Tensor:
        """Return which scales an object is tried on, (N, scales) bool."""
        return super().serves(octaves) | (octaves <= self.octaves)

    def reach(self, scale: Scale) -> float:
        """Return how many pixels a position may lie from the object's middle, in x and in y."""
        return self.cells * scale.stride


def corners(truth: Segments, growth: torch.Tensor) -> torch.Tensor:
    """Return the objects' boxes (N, 4) x1, y1, x2, y2 in pixels of the resized image."""
    boxes = torch.from_numpy(truth.boxes).float()
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) * growth


def scales_of(shown: tuple[int, int], levels: int, settings: argparse.Namespace) -> list[Scale]:
    """Return the scales of a resized image of `shown` (height, width) pixels."""
    return [
        Scale(kernel, stride, -(-shown[0] // stride), -(-shown[1] // stride), settings.geometry)
        for stride in (2**level for level in range(2, levels + 1))
        for kernel in settings.heads
    ]


def learned(truth: Segments, boxes: torch.Tensor, scales: list[Scale]) -> int:
    """Return how many positions of an image learn an object, by the rules of its geometry."""
    rules = Sampling() if scales[0].geometry == "paper" else DeepMaskSampling()
    crowd = np.zeros(len(boxes), bool) if truth.crowd is None else truth.crowd
    return len(rules.positives(boxes[torch.from_numpy(~crowd)], scales)[0])


def perfect(
    truth: Segments,
    boxes: torch.Tensor,
    growth: torch.Tensor,
    scales: list[Scale],
    settings: argparse.Namespace,
) -> Iterator[Segments]:
    """Yield the best proposals of all objects, for each mask size and threshold.

    `boxes` (N, 4) are those of the objects in the resized image, `growth` (4,) is how much it grew
    in x, y, x, y.
    """
    regions = regions_of(scales, boxes.device) / growth
    rules = Candidates(settings.octaves, settings.reach)
    # One box at a time: of several, one could take another one's position.
    positions = [rules.positives(box[None], scales)[0] for box in boxes]
    masks = torch.from_numpy(run_lengths.decode(truth.masks or [], truth.size))
    for size in settings.sizes:
        for threshold in settings.thresholds:
            best = []
            for mask, position in zip(masks, positions, strict=True):
                around = regions[position]
                cells = mask_targets(mask[None], around, torch.zeros_like(position), size)
                ones = torch.ones(len(position))
                pasted = segments(truth.size, around, cells, position, ones, threshold).masks or []
                candidates = run_lengths.decode(pasted, truth.size)
                own = mask.numpy()
                union = np.maximum((candidates | own).sum((1, 2)), 1)
                overlap = (candidates & own).sum((1, 2)) / union
                best.append(pasted[int(overlap.argmax())])
            yield Segments(
                size=truth.size,
                labels=np.zeros(len(best), np.int64),
                boxes=run_lengths.boxes(best),
                masks=best,
                areas=run_lengths.areas(best).astype(np.float64),
                scores=np.ones(len(best)),
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each setting."""
    settings = parser.parse_args(arguments)
    root = str(settings.root)
    is_file = settings.root.is_file()
    images = CocoJson(root, "val") if is_file else CocoProposals(root, settings.split)
    print(
        "levels  mask  threshold  positives  "
        + "  ".join(f"{name:>7}" for name in PROPOSAL_NUMBERS)
    )
    for levels in settings.levels:
        rows = [(size, threshold) for size in settings.sizes for threshold in settings.thresholds]
        evaluators = [ProposalEvaluator(list(images.labels.names)) for _ in rows]
        positives = 0
        for index, name in enumerate(images.ids):
            truth = images.truth(index)
            shown = edge_size(truth.size, settings.shorter, settings.longest)
            growth = torch.tensor([shown[1] / truth.size[1], shown[0] / truth.size[0]] * 2)
            boxes = corners(truth, growth)
            scales = scales_of(shown, levels, settings)
            positives += learned(truth, boxes, scales)
            proposals = perfect(truth, boxes, growth, scales, settings)
            for evaluator, best in zip(evaluators, proposals, strict=True):
                evaluator.update(name, best, truth)
        for (size, threshold), evaluator in zip(rows, evaluators, strict=True):
            numbers = evaluator.compute()
            values = "  ".join(
                f"{numbers.get(f'segm/{name}', float('nan')):7.3f}" for name in PROPOSAL_NUMBERS
            )
            mean = positives / len(images.ids)
            print(f"P2-P{levels}  {size:4}  {threshold:9.2f}  {mean:9.2f}  {values}", flush=True)


if __name__ == "__main__":
    main()
