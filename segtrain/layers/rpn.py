"""Region proposals (Faster R-CNN, arXiv:1506.01497, section 3.1).

On a pyramid they are those of FPN (arXiv:1612.03144, section 4.1). Only instance systems import
this module: it imports torchvision, which takes seconds.

The corners of anchors differ between releases, and weights need those that they were trained with:

"exact"      sides of size / sqrt(ratio) and size * sqrt(ratio) around the grid point (detectron2,
             mmdetection)
"rounded"    the same, corners rounded to whole pixels (torchvision)
"quantised"  an anchor as large as a cell is rounded to whole sides, which are then scaled; it lies
             around the middle of the cell, half a stride further (Detectron, PANet's release)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from segtrain.errors import UserError, did_you_mean
from segtrain.layers.pyramid import STRIDES
from segtrain.layers.regions import (
    Objects,
    clip,
    decode,
    encode,
    match,
    not_crowded,
    sample,
    sampling_generator,
)

# Faster R-CNN's values: ratios and suppression of section 3.3, labels of anchors of section 3.1.2,
# the share of positives (up to 1 : 1) of section 3.1.3.
RATIOS = (0.5, 1.0, 2.0)  # height / width
CORNERS = ("exact", "rounded", "quantised")
NMS_IOU = 0.7
NEGATIVE_IOU = 0.3  # below it an anchor is background
POSITIVE_IOU = 0.7  # from it on an anchor is an object
POSITIVE_SHARE = 0.5  # of the sampled anchors, at most
MIN_SIDE = 1e-3  # pixels of a proposal, as in torchvision; boxes that are NaN fall below it, too
INCLUSIVE_MIN_SIDE = 1.0  # a box from a pixel to itself, the smallest that Detectron keeps


@dataclass(frozen=True)
class Scored:
    """What the head says of every anchor. A anchors, level by level, row by row."""

    logits: Tensor  # (B, A) float32
    deltas: Tensor  # (B, A, 4) float32
    anchors: Tensor  # (A, 4) float32
    counts: list[int]  # anchors of each level


class RegionProposals(nn.Module):
    """Tell how likely an anchor is an object, and a better box for it.

    Anchors have the `sizes` (sides in pixels, per level) and three ratios, and the `corners` that
    the module describes. `strides` of the levels; the grid of anchors starts at pixel 0. Of the
    proposals the best `before` of each level enter the non-maximum suppression (per level, IoU
    0.7), and the best `after` of the image are kept; both in training and in evaluation:
    (training, evaluation). Per image, where Detectron keeps the best of all images of a process
    together. `inclusive` proposals are cut as layers/regions.py says. The head has `convs` 3x3
    before its 1x1.
    """

    def __init__(
        self,
        channels: int,
        strides: list[int],
        sizes: list[list[int]],
        before: tuple[int, int] = (2000, 1000),
        after: tuple[int, int] = (2000, 1000),
        samples: int = 256,
        corners: Literal["exact", "rounded", "quantised"] = "rounded",
        inclusive: bool = False,
        convs: int = 1,
    ) -> None:
        super().__init__()
        if convs < 1:
            raise UserError(f"model.rpn_convs={convs}: 3x3 of the RPN, at least 1, as in the paper")
        if min(side for level in sizes for side in level) < 1:
            raise UserError(
                f"model.anchors={[side for level in sizes for side in level]}: sides in pixels, "
                f"each at least 1"
            )
        if min(after) < 1:
            raise UserError(f"model.proposals={list(after)}: proposals an image, at least 1")
        if min(before) < 1:
            raise UserError(f"model.candidates={list(before)}: proposals of a level, at least 1")
        self.strides = list(strides)
        self.before = before
        self.after = after
        self.samples = samples
        self.inclusive = inclusive
        self.grid = AnchorGenerator(tuple(tuple(level) for level in sizes), (RATIOS,) * len(sizes))
        if corners != "rounded":  # torchvision's own
            self.grid.cell_anchors = [
                cell_anchors(level, stride, corners)
                for level, stride in zip(sizes, strides, strict=True)
            ]
        self.head = RPNHead(channels, len(sizes[0]) * len(RATIOS), convs)

    def forward(self, features: list[Tensor]) -> Scored:
        """Return what the head says of the levels' features (B, C, h, w)."""
        flat = []
        moves = []
        for feature in features:
            seen = self.head.conv(feature).float()
            # The eight bits of bfloat16 would tie too many scores.
            with torch.autocast(seen.device.type, enabled=False):
                flat.append(self.head.cls_logits(seen).permute(0, 2, 3, 1).flatten(1))
                moves.append(
                    self.head.bbox_pred(seen).permute(0, 2, 3, 1).reshape(len(seen), -1, 4)
                )
        return Scored(
            torch.cat(flat, 1),
            torch.cat(moves, 1),
            self.anchors(features),
            [each.shape[1] for each in flat],
        )

    def anchors(self, features: list[Tensor]) -> Tensor:
        """Return the anchors (A, 4) at the grid points (stride * column, stride * row)."""
        device = features[0].device
        self.grid.set_cell_anchors(torch.float32, device)
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        return torch.cat(
            self.grid.grid_anchors([list(feature.shape[-2:]) for feature in features], steps)
        )

    @torch.no_grad()
    def propose(self, scored: Scored, sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the proposals of each image, best first.

        They are (boxes (n, 4) within its real size, scores (n,) in [0, 1]).
        """
        smallest = INCLUSIVE_MIN_SIDE if self.inclusive else MIN_SIDE
        proposals = []
        for logits, deltas, size in zip(scored.logits, scored.deltas, sizes.tolist(), strict=True):
            parts = []
            first = 0
            for count in scored.counts:
                most = min(count, self.before[not self.training])
                parts.append(logits[first : first + count].topk(most).indices + first)
                first += count
            best = torch.cat(parts)
            level = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
            moved = decode(deltas[best], scored.anchors[best])
            boxes = clip(moved, (size[0], size[1]), self.inclusive)
            good = (boxes[:, 2:] - boxes[:, :2] >= smallest).all(1)  # false for what is no number
            boxes = boxes[good]
            scores = logits[best][good].sigmoid()
            kept = batched_nms(boxes, scores, level[good], NMS_IOU)[: self.after[not self.training]]
            proposals.append((boxes[kept], scores[kept]))
        return proposals

    def learn(self, scored: Scored, objects: list[Objects], sizes: Tensor) -> dict[str, Tensor]:
        """Return what the loss reads of the sampled anchors.

        At most 256 an image are sampled, at most half of them positive. No negative has its middle
        in the padding beyond an image's real size (of `sizes` (B, 2), height and width).
        `rpn_class` (S,) and 0 or 1; `rpn_box` (P, 4) of the positives and the deltas to their
        objects.
        """
        anchors = scored.anchors
        generator = sampling_generator(self.training)
        columns: dict[str, list[Tensor]] = {"logits": [], "truth": [], "deltas": [], "wanted": []}
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        for logits, deltas, truth, size in zip(
            scored.logits, scored.deltas, objects, sizes, strict=True
        ):
            which, kind = match(truth.boxes, anchors, NEGATIVE_IOU, POSITIVE_IOU, best=True)
            kind = not_crowded(kind, anchors, truth.crowds)
            kind = torch.where((middles >= size.flip(0)).any(1) & (kind == 0), -1, kind)
            positive, negative = sample(kind, self.samples, POSITIVE_SHARE, generator)
            columns["logits"].append(logits[torch.cat([positive, negative])])
            columns["truth"].append(
                torch.cat([logits.new_ones(len(positive)), logits.new_zeros(len(negative))])
            )
            columns["deltas"].append(deltas[positive])
            columns["wanted"].append(encode(truth.boxes[which[positive]], anchors[positive]))
        joined = {name: torch.cat(parts) for name, parts in columns.items()}
        return {
            "rpn_class": joined["logits"],
            "rpn_class_target": joined["truth"],
            "rpn_box": joined["deltas"],
            "rpn_box_target": joined["wanted"],
        }


def on_pyramid(
    width: int,
    sides: Sequence[int],
    kept: tuple[int, int],
    corners: Literal["exact", "rounded", "quantised"],
    inclusive: bool,
    convs: int = 1,
    candidates: tuple[int, int] | None = None,
) -> RegionProposals:
    """Return region proposals on P2 to P6, `width` channels wide.

    Anchors have one of the `sides` on each level. `kept` proposals of an image remain, in training
    and in evaluation; the `candidates` of each level enter the suppression, None: as many.
    """
    sizes = [[side] for side in sides]
    before = kept if candidates is None else (candidates[0], candidates[1])
    return RegionProposals(
        width, STRIDES, sizes, before, kept, corners=corners, inclusive=inclusive, convs=convs
    )


def cell_anchors(sizes: list[int], stride: int, corners: Literal["exact", "quantised"]) -> Tensor:
    """Return the anchors (3 len(sizes), 4) at the grid point (0, 0), ratio by ratio.

    Errors: UserError for other `corners`.
    """
    if corners not in CORNERS:
        near = did_you_mean(corners, CORNERS)
        raise UserError(
            f"model.anchor_corners={corners} is unknown.{near} Known: {', '.join(CORNERS)}"
        )
    sides = torch.tensor(sizes, dtype=torch.float32)
    roots = torch.tensor(RATIOS).sqrt()[:, None]
    if corners == "exact":
        width = sides / roots
        height = sides * roots
        middle = 0.0
    else:
        # One anchor as large as a cell is rounded (torch and numpy round halves to even), then
        # scaled.
        one = (stride / roots).round()
        width = one * sides / stride
        height = (one * torch.tensor(RATIOS)[:, None]).round() * sides / stride
        middle = stride / 2
    return middle + torch.stack([-width, -height, width, height], -1).flatten(0, 1) / 2
