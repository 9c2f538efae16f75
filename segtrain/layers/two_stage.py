"""The second stage of Faster R-CNN and Mask R-CNN.

It decides which proposals train the heads, and reads what the heads say.

Shapes: N regions of all images of a batch, image by image; K classes, column 0 is background; M x M
cells of a mask.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from segtrain.errors import UserError, did_you_mean
from segtrain.layers.regions import (
    Objects,
    clip,
    decode,
    encode,
    mask_targets,
    match,
    moved_ends,
    not_crowded,
    sample,
    sampling_generator,
    up_to_last,
    usable,
)
from segtrain.layers.rpn import RegionProposals
from segtrain.structures.samples import Batch

# Of the second stage: 1 / the standard deviations, 0.1 and 0.2, by which py-faster-rcnn divides the
# deltas (Detectron's MODEL.BBOX_REG_WEIGHTS).
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MaskTargets = Literal["binary", "covered"]
MASK_TARGETS = get_args(MaskTargets)
POSITIVE_IOU = 0.5  # from it on a region is an object (Fast R-CNN, arXiv:1504.08083, section 2.3)


class TwoStage(nn.Module):
    """Propose regions, then give a class, a box and a mask to each: all behind the feature maps.

    `box_head(features, boxes)` gives (scores (N, K + 1), deltas (N, 4 (K + 1))),
    `mask_head(features, boxes)` gives (N, C, M, M) with C = K + 1, or 1 where a mask does not
    depend on its class. Everything here computes in float32; autocast is for the heads.

    regions         proposals sampled per image to train the heads, the objects' own boxes too
    positive_share  of them at most are positive (IoU 0.5 with an object)
    masks           "sigmoid" decides each class for itself, "softmax" between the classes and
                    background (Mask R-CNN, arXiv:1703.06870, table 2b)
    legacy          makes the targets of masks as torchvision does, by the RoIAlign of roi="legacy":
                    what is drawn lies `mask_shift`, half a pixel, to the right of its box and below
                    it; not where boxes are `inclusive`
    inclusive       boxes are cut and read as layers/regions.py says
    mask_targets    of a cell: "covered", the share that is mask, or "binary", whether that is at
                    least half. None is binary, and covered with `legacy`, as in torchvision. What
                    classes compete for is binary.
    """

    def __init__(
        self,
        rpn: RegionProposals,
        box_head: nn.Module,
        mask_head: nn.Module,
        regions: int = 512,
        positive_share: float = 0.25,
        masks: Literal["sigmoid", "softmax"] = "sigmoid",
        legacy: bool = False,
        inclusive: bool = False,
        mask_targets: MaskTargets | None = None,
    ) -> None:
        super().__init__()
        if int(regions * positive_share) < 1:
            raise UserError(
                f"model.regions={regions}: of which {positive_share:g} may be objects, which is "
                f"none; the paper has 512"
            )
        if mask_targets is not None and mask_targets not in MASK_TARGETS:
            near = did_you_mean(mask_targets, MASK_TARGETS)
            raise UserError(
                f"model.mask_targets={mask_targets} is unknown.{near} "
                f"Known: {', '.join(MASK_TARGETS)}, null"
            )
        if mask_targets == "covered" and masks == "softmax":
            raise UserError(
                "model.mask_targets=covered: with model.masks=softmax a cell has one class, and no "
                "shares; set model.mask_targets=binary"
            )
        self.rpn = rpn
        self.box_head = box_head
        self.mask_head = mask_head
        self.regions = regions
        self.positive_share = positive_share
        self.mask_activation = masks
        # Detectron, whose boxes are inclusive, trains masks on polygons: they lie in the box.
        self.legacy = legacy and not inclusive
        self.mask_shift = 0.5 if self.legacy else 0.0
        self.inclusive = inclusive
        usual = self.legacy and masks == "sigmoid"
        self.covered = usual if mask_targets is None else mask_targets == "covered"

    def forward(self, features: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return what the loss reads, as docs/architecture.md lists it.

        It is {} for a batch without instances.
        """
        if not batch.instances:
            return {}
        scored = self.rpn(features)
        objects = [usable(each) for each in batch.instances]
        output = self.rpn.learn(scored, objects, batch.sizes)
        generator = sampling_generator(self.training)
        picked = []
        for (boxes, _), truth in zip(self.rpn.propose(scored, batch.sizes), objects, strict=True):
            picked.append(self.pick(torch.cat([boxes, truth.boxes]), truth, generator))
        boxes = [sampled for sampled, _ in picked]
        which = [matched for _, matched in picked]
        positives = [len(matched) for matched in which]
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
            "box_target": encode(torch.cat(wanted), torch.cat(certain), DELTA_WEIGHTS),
        }
        return output | self.learn_masks(features, certain, which, objects, labels[first])

    def pick(
        self, boxes: Tensor, truth: Objects, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Sample (boxes (n, 4), positives first; the objects that the positives match (P,))."""
        which, kind = match(truth.boxes, boxes, POSITIVE_IOU, POSITIVE_IOU)
        kind = not_crowded(kind, boxes, truth.crowds)
        positive, negative = sample(kind, self.regions, self.positive_share, generator)
        return boxes[torch.cat([positive, negative])], which[positive]

    def labels(self, boxes: Tensor, which: Tensor, truth: Objects) -> Tensor:
        """Return the class (n,) of each sampled region, 0 is background."""
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
        """Return what the loss reads of the masks of P positive regions.

        `mask` (P, M, M) is that of the true class, and its target is in [0, 1]. For "softmax" it is
        (P, C, M, M), and the target is the class of each cell.
        """
        logits = self.mask_head(features, boxes).float()
        size = logits.shape[-1]
        read = [up_to_last(box) for box in boxes] if self.inclusive else boxes
        parts = zip(objects, read, which, strict=True)
        target = torch.cat(
            [
                mask_targets(truth.masks, box, w, size, self.legacy, self.covered)
                for truth, box, w in parts
            ]
        )
        if self.mask_activation == "softmax":
            return {"mask": logits, "mask_target": (target * labels[:, None, None]).long()}
        return {"mask": self.chosen(logits, labels), "mask_target": target}

    def chosen(self, masks: Tensor, labels: Tensor) -> Tensor:
        """Return each region's mask (N, M, M) of its class (N,), the only one if there is one."""
        if masks.shape[1] == 1:
            return masks[:, 0]
        return masks[torch.arange(len(labels), device=labels.device), labels]

    def detect(
        self, features: list[Tensor], sizes: Tensor, growth: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Classify the proposals of each image: (probabilities (n, K), boxes (n, K, 4)).

        There is one box for each class, within the image's real size of `sizes` (B, 2). Inclusive
        boxes are refined as they lie in the images before these grew by `growth` (4,), in x, y, x,
        y: there their + 1 is larger.
        """
        proposals = [boxes for boxes, _ in self.rpn.propose(self.rpn(features), sizes)]
        scores, deltas = (each.float() for each in self.box_head(features, proposals))
        counts = [len(boxes) for boxes in proposals]
        moves = deltas.unflatten(1, (-1, 4))[:, 1:]
        boxes = torch.cat(proposals)[:, None]
        if growth is None or not self.inclusive:
            moved = decode(moves, boxes, DELTA_WEIGHTS)
        else:
            ends = moved_ends(growth, self.inclusive)
            moved = decode(moves, (boxes + ends) / growth, DELTA_WEIGHTS) * growth - ends
        parts = zip(
            scores.softmax(1)[:, 1:].split(counts), moved.split(counts), sizes.tolist(), strict=True
        )
        return [
            (probabilities, clip(boxes, (size[0], size[1]), self.inclusive))
            for probabilities, boxes, size in parts
        ]

    def masks(self, features: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Return the probabilities (N, M, M) of the masks of `boxes` (n, 4) per image.

        `labels` (N,) are their classes, from 0 on.
        """
        logits = self.mask_head(features, boxes).float()
        chosen = self.chosen(
            logits.softmax(1) if self.mask_activation == "softmax" else logits, labels + 1
        )
        return chosen if self.mask_activation == "softmax" else chosen.sigmoid()
