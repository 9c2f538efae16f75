"""The semantic encoding loss (EncNet, Zhang et al., CVPR 2018, arXiv:1803.08904, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.contracts import LossTerm
from segtrain.errors import UserError, did_you_mean
from segtrain.losses.base import BaseLoss
from segtrain.losses.pixel import train_ids
from segtrain.structures.samples import IGNORE, Batch


class SemanticEncodingLoss(BaseLoss):
    """Ask which classes the label map holds: binary cross-entropy per image and class, in fp32.

    A term reads the output of its own name, scores (B, K) before the sigmoid: "se", and "se_aux"
    for the paper's second head. A class is present when one pixel of it is, in the map the network
    sees: cropped, padded, `ignore_index` left out. A class therefore weighs the same whatever its
    size. A term's count is B and its sum the mean over the classes, so the count follows from the
    labels alone. Such outputs exist in training only; outside it a missing one is left out.

    Errors: UserError where weights and model do not fit.
    """

    def __init__(self, weights: dict[str, float] | None = None, ignore_index: int = IGNORE) -> None:
        weights = weights or {"se": 0.2}
        super().__init__(weights, needs=weights)
        self.ignore_index = ignore_index

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of images, for each term."""
        target = train_ids(batch)
        return dict.fromkeys(self.weights, torch.full((), float(len(target)), device=target.device))

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Return the terms of one micro-batch."""
        terms = {}
        for name in self.weights:
            if name in output:
                means = self.mean_over_classes(name, output[name], train_ids(batch))
                terms[name] = LossTerm(means.sum())
            elif self.training:
                given = ", ".join(output)
                raise UserError(
                    f"loss weighs the term `{name}`, but the model gives no output `{name}` "
                    f"(it gives {given}).{did_you_mean(name, output)} Set model.{name}=true, "
                    "or take the term out"
                )
        return terms

    def mean_over_classes(self, name: str, scores: Tensor, target: Tensor) -> Tensor:
        """Return the loss (B,) of the scores (B, K) of the term `name` and targets (B, H, W)."""
        if scores.ndim != 2:
            raise UserError(
                f"the term `{name}` needs one score per image and class, got {tuple(scores.shape)}"
            )
        with torch.autocast(scores.device.type, enabled=False):
            present = classes_present(target, scores.shape[1], self.ignore_index)
            each = F.binary_cross_entropy_with_logits(scores.float(), present, reduction="none")
            return each.mean(1)


def classes_present(target: Tensor, classes: int, ignore_index: int = IGNORE) -> Tensor:
    """Tell which classes (B, classes) float32 occur in maps (B, H, W) int64 of bytes: 1 or 0."""
    present = torch.zeros(len(target), 256, device=target.device)
    present.scatter_(1, target.flatten(1), 1.0)  # many write the same 1: the order does not matter
    present[:, ignore_index] = 0
    return present[:, :classes]
