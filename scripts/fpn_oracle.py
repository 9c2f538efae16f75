"""The recall that FPN's mask proposals could reach: one perfect proposal for every object.

Run:  python scripts/fpn_oracle.py data/coco --split val2017 --levels 5 6 7 --sizes 14 28

Each object's own mask is resampled to M x M cells in a window, as in training, and pasted back as
in inference. Of the windows within an octave of its size and 0.1 windows of its middle, the one
counts whose result overlaps the object most. No training with such targets can gain what is missing
to 1, so the oracle belongs beside each reported AR.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from segtrain.datasets.coco import CocoJson, CocoProposals
from segtrain.inference.paste import segments
from segtrain.layers.regions import mask_targets
from segtrain.metrics.coco import PROPOSAL_NUMBERS, ProposalEvaluator
from segtrain.models.fpn import Sampling, Scale, windows_of
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
    "--levels", type=int, nargs="+", default=[5, 6, 7], help="coarsest levels, a row each"
)
parser.add_argument(
    "--sizes", type=int, nargs="+", default=[14, 28], help="cells of a mask's side, a row each"
)
parser.add_argument(
    "--octaves", type=float, default=1.0, help="between an object and its windows; 0: the nearest"
)
parser.add_argument("--heads", type=int, nargs="+", default=[5, 7], help="cells of a window's side")
parser.add_argument(
    "--thresholds", type=float, nargs="+", default=[0.5], help="of the pasted mask, a row each"
)
parser.add_argument("--shorter", type=int, default=800, help="pixels of the shorter edge")
parser.add_argument(
    "--longest", type=int, default=1333, help="pixels that the longer edge may have"
)


def perfect(
    truth: Segments, shown: tuple[int, int], levels: int, settings: argparse.Namespace
) -> Iterator[Segments]:
    """Yield the best proposals of all objects, for each mask size and threshold.

    `shown` is the size (height, width) of the resized image.
    """
    grow = torch.tensor([shown[1] / truth.size[1], shown[0] / truth.size[0]] * 2)
    boxes = torch.from_numpy(truth.boxes).float()
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) * grow
    strides = [2**level for level in range(2, levels + 1)]
    scales = [
        Scale(k, s, -(-shown[0] // s), -(-shown[1] // s)) for s in strides for k in settings.heads
    ]
    windows = windows_of(scales, boxes.device) / grow
    rules = Sampling(octaves=settings.octaves)
    # One box at a time: of several, one could take another one's window.
    positions = [rules.positives(box[None], scales)[0] for box in boxes]
    masks = torch.from_numpy(run_lengths.decode(truth.masks or [], truth.size))
    for size in settings.sizes:
        for threshold in settings.thresholds:
            best = []
            for mask, position in zip(masks, positions, strict=True):
                around = windows[position]
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
    print("levels  mask  threshold  " + "  ".join(f"{name:>7}" for name in PROPOSAL_NUMBERS))
    for levels in settings.levels:
        rows = [(size, threshold) for size in settings.sizes for threshold in settings.thresholds]
        evaluators = [ProposalEvaluator(list(images.labels.names)) for _ in rows]
        for index, name in enumerate(images.ids):
            truth = images.truth(index)
            shown = edge_size(truth.size, settings.shorter, settings.longest)
            proposals = perfect(truth, shown, levels, settings)
            for evaluator, best in zip(evaluators, proposals, strict=True):
                evaluator.update(name, best, truth)
        for (size, threshold), evaluator in zip(rows, evaluators, strict=True):
            numbers = evaluator.compute()
            values = "  ".join(
                f"{numbers.get(f'segm/{name}', float('nan')):7.3f}" for name in PROPOSAL_NUMBERS
            )
            print(f"P2-P{levels}  {size:4}  {threshold:9.2f}  {values}", flush=True)


if __name__ == "__main__":
    main()
