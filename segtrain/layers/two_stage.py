"""The second stage of Faster R-CNN and Mask R-CNN: which proposals are learned from, and what is read of the heads.

N regions of all images of a batch, image by image; K classes, column 0 is background; M x M cells
of a mask.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.layers.regions import (
    Objects,
    clip,
    decode,
    draws,
    encode,
    mask_targets,
    match,
    not_crowded,
    sample,
    usable,
)
from segtrain.layers.rpn import RegionProposals
from segtrain.structures.samples import Batch

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the deltas of the second stage
OVERLAP = 0.5  # IoU from which on a region is an object


class TwoStage(nn.Module):
    """Proposals, then a class, a box and a mask for each: everything behind the feature maps.

    `box_head(features, boxes) -> (scores (N, K + 1), deltas (N, 4 (K + 1)))` and
    `mask_head(features, boxes) -> (N, C, M, M)` with C = K + 1, or 1 where a mask does not depend
    on its class. `regions` proposals an image are learned from, `share` of them at most positive
    (IoU 0.5 with an object), the objects' own boxes among them. `masks`: "sigmoid" decides each
    class for itself, "softmax" between the classes and background (Mask R-CNN, arXiv:1703.06870,
    table 2b). `legacy`: targets of masks as torchvision makes them. Everything here computes in
    float32; autocast is for the heads.
    """

    def __init__(
        self,
        rpn: RegionProposals,
        box_head: nn.Module,
        mask_head: nn.Module,
        regions: int = 512,
        share: float = 0.25,
        masks: Literal["sigmoid", "softmax"] = "sigmoid",
        legacy: bool = False,
    ) -> None:
        super().__init__()
        if int(regions * share) < 1:
            raise UserError(
                f"model.regions={regions}: of which {share:g} may be objects, which is none; the paper has 512"
            )
        self.rpn, self.box_head, self.mask_head = rpn, box_head, mask_head
        self.regions, self.share, self.masks_by, self.legacy = regions, share, masks, legacy

    def forward(self, features: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """What the loss reads, see docs/architecture.md; {} for a batch without instances as targets."""
        if not batch.instances:
            return {}
        scored, objects = self.rpn(features), [usable(each) for each in batch.instances]
        output = self.rpn.learn(scored, objects, batch.sizes)
        generator, picked = draws(self.training), []
        for (boxes, _), truth in zip(self.rpn.propose(scored, batch.sizes), objects, strict=True):
            picked.append(self.pick(torch.cat([boxes, truth.boxes]), truth, generator))
        boxes, positives = [p[0] for p in picked], [len(p[1]) for p in picked]
        which = [p[1] for p in picked]
        labels = torch.cat(
            [self.labels(p[0], p[1], truth) for p, truth in zip(picked, objects, strict=True)]
        )
        scores, deltas = (each.float() for each in self.box_head(features, boxes))
        first = torch.nonzero(labels).flatten()
        certain = [box[:count] for box, count in zip(boxes, positives, strict=True)]
        wanted = [t.boxes[w] for t, w in zip(objects, which, strict=True)]
        output |= {
            "class": scores,
            "class_target": labels,
            "box": deltas.unflatten(1, (-1, 4))[first, labels[first]],
            "box_target": encode(torch.cat(wanted), torch.cat(certain), WEIGHTS),
        }
        return output | self.learn_masks(features, certain, which, objects, labels[first])

    def pick(
        self, boxes: Tensor, truth: Objects, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """(sampled regions (n, 4), positives first; the objects that these P positives are matched with (P,))."""
        which, kind = match(truth.boxes, boxes, OVERLAP, OVERLAP)
        kind = not_crowded(kind, boxes, truth.crowds)
        positive, negative = sample(kind, self.regions, self.share, generator)
        return boxes[torch.cat([positive, negative])], which[positive]

    def labels(self, boxes: Tensor, which: Tensor, truth: Objects) -> Tensor:
        """(n,) class of each sampled region, 0 is background."""
        labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        labels[: len(which)] = truth.labels[which] + 1
        return labels

    def learn_masks(
        self,
        features: list[Tensor],
        boxes: list[Tensor],
        which: list[Tensor],
        objects: list[Objects],
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """`mask` (P, M, M) of the true class and 0 or 1; for "softmax" (P, C, M, M) and the class of each cell."""
        logits = self.mask_head(features, boxes).float()
        size, parts = logits.shape[-1], zip(objects, boxes, which, strict=True)
        target = torch.cat(
            [mask_targets(truth.masks, box, w, size, self.legacy) for truth, box, w in parts]
        )
        if self.masks_by == "softmax":
            return {"mask": logits, "mask_target": (target * labels[:, None, None]).long()}
        return {"mask": self.chosen(logits, labels), "mask_target": target}

    def chosen(self, masks: Tensor, labels: Tensor) -> Tensor:
        """(N, C, M, M) -> (N, M, M): that of each region's class (N,), the only one where there is one."""
        return (
            masks[:, 0]
            if masks.shape[1] == 1
            else masks[torch.arange(len(labels), device=labels.device), labels]
        )

    def detect(self, features: list[Tensor], sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per image (probabilities (n, K), boxes (n, K, 4) within its real size) of its proposals, one box for each class."""
        proposals = [boxes for boxes, _ in self.rpn.propose(self.rpn(features), sizes)]
        scores, deltas = (each.float() for each in self.box_head(features, proposals))
        counts = [len(boxes) for boxes in proposals]
        moved = decode(deltas.unflatten(1, (-1, 4))[:, 1:], torch.cat(proposals)[:, None], WEIGHTS)
        parts = zip(
            scores.softmax(1)[:, 1:].split(counts), moved.split(counts), sizes.tolist(), strict=True
        )
        return [
            (probabilities, clip(boxes, (size[0], size[1]))) for probabilities, boxes, size in parts
        ]

    def masks(self, features: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """(N, M, M) probabilities of the masks of `boxes` (n, 4) per image, of their classes `labels` (N,), from 0 on."""
        logits = self.mask_head(features, boxes).float()
        chosen = self.chosen(
            logits.softmax(1) if self.masks_by == "softmax" else logits, labels + 1
        )
        return chosen if self.masks_by == "softmax" else chosen.sigmoid()
