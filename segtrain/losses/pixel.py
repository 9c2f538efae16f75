"""Cross-entropy over pixels: the loss of every semantic system here."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.contracts import IGNORE, Batch, Term
from segtrain.errors import UserError, did_you_mean

OUTPUTS = {"seg": "logits", "aux": "aux"}  # term -> name of the model's output


class PixelCrossEntropy(nn.Module):
    """Sum over valid pixels of -w[y] log softmax(logits)[y], one term per name in `weights`; always fp32.

    `weights` weighs the terms: "seg" reads the output "logits", "aux" the output "aux" (a model has that in training
    only, so outside training a missing output is left out). `class_weights` w has one number per class, else w = 1; a
    term's count is the sum of w[y] over the valid pixels, so the objective is a weighted mean. Pixels of `ignore_index`
    neither count nor have a gradient. Raises UserError where weights and model do not fit.
    """

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        class_weights: list[float] | None = None,
        ignore_index: int = IGNORE,
    ) -> None:
        super().__init__()
        self.weights = dict(weights or {"seg": 1.0})
        for name in self.weights:
            if name not in OUTPUTS:
                raise UserError(f"loss.weights has the term `{name}`.{did_you_mean(name, OUTPUTS)} Known: seg, aux")
        self.ignore_index = ignore_index
        self.num_classes = None if class_weights is None else len(class_weights)
        # Weight of every byte a mask can hold: one look-up serves classes, class weights and ignored pixels.
        table = torch.ones(256)
        if class_weights is not None:
            table[: len(class_weights)] = torch.tensor(class_weights)
        table[ignore_index] = 0
        self.table: Tensor
        self.register_buffer("table", table, persistent=False)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Valid pixels, or the sum of their class weights: the same for each term."""
        return dict.fromkeys(self.weights, self.table[train_ids(batch)].sum())

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Term]:
        """The terms of one micro-batch; logits are (B, K, H, W), targets (B, H, W) uint8."""
        target = train_ids(batch)
        pixel_weights = self.table[target]
        terms = {}
        for name in self.weights:
            if OUTPUTS[name] in output:
                terms[name] = Term(self.weighted_sum(output[OUTPUTS[name]], target, pixel_weights))
            elif self.training or name == "seg":
                raise UserError(
                    f"loss.weights has the term `{name}`, but the model gives no output `{OUTPUTS[name]}` "
                    f"(it gives {', '.join(output)}): set model.aux=true, or take the term out of loss.weights"
                )
        return terms

    def weighted_sum(self, logits: Tensor, target: Tensor, pixel_weights: Tensor) -> Tensor:
        """Scalar. log_softmax and gather: nll_loss2d adds up in no fixed order on CUDA, and is no faster on CPU."""
        if self.num_classes not in (None, logits.shape[1]):
            raise UserError(f"loss.class_weights has {self.num_classes} numbers for {logits.shape[1]} classes")
        with torch.autocast(logits.device.type, enabled=False):
            index = target.masked_fill(target == self.ignore_index, 0).unsqueeze(1)
            log_likelihood = F.log_softmax(logits.float(), dim=1).gather(1, index).squeeze(1)
            return -(log_likelihood * pixel_weights).sum()


def train_ids(batch: Batch) -> Tensor:
    """(B, H, W) int64, to index with. Errors: UserError for instances."""
    if not isinstance(batch.targets, Tensor):
        raise UserError(
            "loss: a pixel loss needs label maps, but this data set gives instances; take another model or dataset"
        )
    return batch.targets.long()
