"""The multi-task loss of systems of regions (Fast R-CNN, arXiv:1504.08083; Mask R-CNN, 1703.06870).

| term | what | divided by |
|---|---|---|
| rpn_class | is this anchor an object: binary cross-entropy | sampled anchors |
| rpn_box | smooth L1 of the four deltas of positive anchors | sampled anchors |
| class | cross-entropy over classes and background | sampled regions |
| box | smooth L1 of the four deltas of positive regions, of their true class | sampled regions |
| mask | binary cross-entropy of the cells of positive regions, see `term` | their cells |
| object | is there an object in this window: binary cross-entropy (FPN) | sampled windows |
| dropped | no loss: objects that augmentation left without a pixel, so that they are counted | - |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.contracts import LossTerm
from segtrain.errors import UserError, did_you_mean
from segtrain.losses.base import BaseLoss
from segtrain.structures.samples import Batch

# The sums over positive samples that are divided by the number of all samples of another term.
COUNTED_BY = {"rpn_box": "rpn_class", "box": "class"}
TERMS = ("rpn_class", "rpn_box", "class", "box", "mask", "object")


class MultiTask(BaseLoss):
    """Give one weighted term for each output of the model that `weights` names.

    A term NAME reads the outputs `NAME` and `NAME_target`. All counts depend on what was sampled;
    they are summed over the ranks of one micro-batch. Where nothing was sampled a term is 0 and
    still reaches every parameter. `rpn_beta` and `box_beta` say where smooth L1 turns from a
    parabola to a line; 1/9 and 1 are Detectron's, and 0, which is L1, is detectron2's.

    Errors: UserError for weights of unknown terms, for a `beta` below 0, and for terms that the
    model does not give.
    """

    def __init__(
        self, weights: dict[str, float], rpn_beta: float = 1 / 9, box_beta: float = 1.0
    ) -> None:
        for name in weights:
            if name not in TERMS:
                raise UserError(
                    f"loss.weights.{name}: no such term.{did_you_mean(name, TERMS)} "
                    f"Known: {', '.join(TERMS)}"
                )
        for name, beta in (("rpn_beta", rpn_beta), ("box_beta", box_beta)):
            if beta < 0:
                raise UserError(f"loss.{name}={beta}: where smooth L1 turns to a line; 0 is L1")
        super().__init__({**weights, "dropped": 0.0}, needs=weights)
        self.beta = {"rpn_box": rpn_beta, "box": box_beta}

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Return the terms of one micro-batch."""
        if not batch.instances:
            raise UserError(
                "loss: a multi-task loss needs objects, but this data set gives label maps; take "
                "another model, or dataset=coco_instance or another one with instances"
            )
        names = [name for name in self.weights if name in TERMS]
        if missing := [name for name in names if name not in output]:
            given = ", ".join(name for name in TERMS if name in output) or "none of them"
            raise UserError(
                f"loss.weights.{missing[0]}: the model gives no such output; it gives {given}"
            )
        if unused := [name for name in TERMS if name in output and name not in names]:
            raise UserError(
                f"loss.weights: the model's output `{unused[0]}` has no weight; "
                f"add loss.weights.{unused[0]}=1 (or 0)"
            )
        terms = {name: self.term(name, output) for name in names}
        if self.training:
            dropped = sum(objects.dropped for objects in batch.instances)
            terms["dropped"] = LossTerm(batch.images.new_full((), dropped, dtype=torch.float32))
        return terms

    def term(self, name: str, output: dict[str, Tensor]) -> LossTerm:
        """Return sum and count of one output.

        Where the model lets the masks of the classes compete, the cells have one logit per class
        and their loss is the cross-entropy over the classes.
        """
        prediction = output[name].float()
        target = output[f"{name}_target"]
        if name in self.beta:
            total = F.smooth_l1_loss(prediction, target, reduction="sum", beta=self.beta[name])
            return LossTerm(total, _count(output[f"{COUNTED_BY[name]}_target"]))
        masks_compete = prediction.ndim > target.ndim
        if name == "class" or masks_compete:
            total = F.cross_entropy(prediction, target, reduction="sum")
        else:
            total = F.binary_cross_entropy_with_logits(prediction, target, reduction="sum")
        return LossTerm(total, _count(target))


def _count(samples: Tensor) -> Tensor:
    """Return the number of elements as a scalar on their device."""
    return torch.tensor(float(samples.numel()), device=samples.device)
