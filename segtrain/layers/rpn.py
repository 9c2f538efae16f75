"""Region proposals (Faster R-CNN, arXiv:1506.01497, section 3.1; on a pyramid: FPN, arXiv:1612.03144, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from segtrain.errors import UserError
from segtrain.layers.regions import Objects, clip, decode, draws, encode, match, not_crowded, sample

RATIOS = (0.5, 1.0, 2.0)  # height / width
NMS = 0.7
LOW, HIGH = 0.3, 0.7  # IoU below which an anchor is background, from which on it is an object
SMALLEST = 1e-3  # pixels that a proposal's sides must have


@dataclass(frozen=True)
class Scored:
    """What the head says of every anchor. A anchors, level by level, row by row."""

    logits: Tensor  # (B, A) float32
    deltas: Tensor  # (B, A, 4) float32
    anchors: Tensor  # (A, 4) float32
    counts: list[int]  # anchors of each level


class RegionProposals(nn.Module):
    """Objectness and a better box for each of the anchors of `sizes` (sides in pixels, per level) and three ratios.

    `strides` of the levels; the grid of anchors starts at pixel 0. Of the proposals the best
    `before` of each level enter the non-maximum suppression (per level, IoU 0.7), and the best
    `after` of the image are kept; both in training and in evaluation: (training, evaluation). Per
    image, where Detectron keeps the best of all images of a process together.
    """

    def __init__(
        self,
        channels: int,
        strides: list[int],
        sizes: list[list[int]],
        before: tuple[int, int] = (2000, 1000),
        after: tuple[int, int] = (2000, 1000),
        samples: int = 256,
    ) -> None:
        super().__init__()
        if min(side for level in sizes for side in level) < 1:
            raise UserError(
                f"model.anchors={[side for level in sizes for side in level]}: sides in pixels, each at least 1"
            )
        if min(after) < 1:
            raise UserError(f"model.proposals={list(after)}: proposals an image, at least 1")
        self.strides, self.before, self.after, self.samples = list(strides), before, after, samples
        self.grid = AnchorGenerator(tuple(tuple(level) for level in sizes), (RATIOS,) * len(sizes))
        self.head = RPNHead(channels, len(sizes[0]) * len(RATIOS))

    def forward(self, features: list[Tensor]) -> Scored:
        """What the head says of the levels' features (B, C, h, w)."""
        flat, moves = [], []
        for feature in features:
            seen = self.head.conv(feature).float()
            with torch.autocast(
                seen.device.type, enabled=False
            ):  # eight bits would tie too many scores
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
        """(A, 4): boxes around the grid points (stride * column, stride * row), three ratios at each."""
        device = features[0].device
        self.grid.set_cell_anchors(torch.float32, device)
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        return torch.cat(
            self.grid.grid_anchors([list(feature.shape[-2:]) for feature in features], steps)
        )

    @torch.no_grad()
    def propose(self, scored: Scored, sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per image (boxes (n, 4) within its real size, scores (n,) in [0, 1]), best first."""
        found = []
        for logits, deltas, size in zip(scored.logits, scored.deltas, sizes.tolist(), strict=True):
            parts, first = [], 0
            for count in scored.counts:
                best = (
                    logits[first : first + count]
                    .topk(min(count, self.before[not self.training]))
                    .indices
                )
                parts.append(best + first)
                first += count
            places = torch.cat(parts)
            level = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
            boxes = clip(decode(deltas[places], scored.anchors[places]), (size[0], size[1]))
            good = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST).all(
                1
            )  # false for what is not a number
            boxes, scores, level = boxes[good], logits[places][good].sigmoid(), level[good]
            kept = batched_nms(boxes, scores, level, NMS)[: self.after[not self.training]]
            found.append((boxes[kept], scores[kept]))
        return found

    def learn(self, scored: Scored, objects: list[Objects], sizes: Tensor) -> dict[str, Tensor]:
        """What the loss reads of the sampled anchors: at most 256 an image, half of them positive.

        No negative has its middle in the padding beyond an image's real size (of `sizes` (B, 2),
        height and width). `rpn_class` (S,) and 0 or 1; `rpn_box` (P, 4) of the positives and the
        deltas to their objects.
        """
        anchors, generator = scored.anchors, draws(self.training)
        columns: dict[str, list[Tensor]] = {"logits": [], "truth": [], "deltas": [], "wanted": []}
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        for logits, deltas, truth, size in zip(
            scored.logits, scored.deltas, objects, sizes, strict=True
        ):
            which, kind = match(truth.boxes, anchors, LOW, HIGH, best=True)
            kind = not_crowded(kind, anchors, truth.crowds)
            kind = torch.where((middles >= size.flip(0)).any(1) & (kind == 0), -1, kind)
            positive, negative = sample(kind, self.samples, 0.5, generator)
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
