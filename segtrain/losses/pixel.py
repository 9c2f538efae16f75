"""Cross-entropy over pixels: the loss of most semantic systems here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.contracts import LossTerm
from segtrain.errors import UserError, did_you_mean
from segtrain.losses.base import BaseLoss
from segtrain.structures.samples import IGNORE, Batch


class PixelCrossEntropy(BaseLoss):
    """Sum -w[y] log softmax(logits)[y] over the valid pixels, one term per weight, always in fp32.

    weights        weighs the terms: "seg" reads the output "logits", every other term the output
                   of its own name. Such outputs exist in training only, so outside training a
                   missing one is left out.
    class_weights  w: one number per class in the order of the data set, or numbers by the names of
                   classes, the others 1. None: w = 1.
    ignore_index   pixels of this label neither count nor have a gradient.
    reduction      "mean": a term's count is the sum of w[y] over the valid pixels, so the objective
                   is a weighted mean. "sum": no division, the sum over all pixels of all images of
                   an update (FCN, arXiv:1411.4038, whose learning rates of 1e-10 belong to it;
                   their batch is one image); outside training, the mean over images.
    shrink         term -> f: in training that output is small and has the labels of every f-th row
                   and column, the first ones included (DeepLab v1 and v2, arXiv:1606.00915: 8).
    nearest        in training every output may have a size of its own, and its labels are brought
                   to it: row i of h is row floor((i + 0.5) H / h) of the labels, as Pillow's
                   NEAREST takes it (kazuto1011's deeplab-pytorch). How many count is known with the
                   output only, so a mean is that of a micro-batch over all processes, averaged over
                   micro-batches, as it is there.
    hard           in training only the hardest pixels count, those whose true class is the least
                   likely: this share of the valid pixels of a micro-batch, and those as likely as
                   the last of them (bootstrapping, Wu et al., arXiv:1605.06885; "top k percent" in
                   DeepLab's TensorFlow release). Which pixels these are depends on the micro-batch,
                   so more of them or more processes are not exactly the same as one.

    Errors: UserError for values that do not fit each other, the model or the labels.
    """

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        class_weights: list[float] | dict[str, float] | None = None,
        ignore_index: int = IGNORE,
        reduction: Literal["mean", "sum"] = "mean",
        shrink: dict[str, int] | None = None,
        hard: float | None = None,
        hard_of: Literal["valid", "all"] = "valid",
        hard_threshold: float | None = None,
        min_kept: int = 100_000,
        nearest: bool = False,
    ) -> None:
        weights = weights or {"seg": 1.0}
        super().__init__(weights, needs=map(output_of, weights))
        self.reduction = reduction
        self.shrink = dict(shrink or {})
        self.hard = hard
        self.hard_of = hard_of
        self.hard_threshold = hard_threshold
        self.min_kept = min_kept
        self.nearest = nearest
        if nearest and self.shrink:
            raise UserError(
                "loss.nearest=true brings the labels to every output's size: leave loss.shrink out"
            )
        for name, factor in self.shrink.items():
            if name not in self.weights:
                hint = did_you_mean(name, self.weights)
                raise UserError(
                    f"loss.shrink has `{name}`, no term of loss.weights.{hint} "
                    f"Terms: {listed(self.weights)}"
                )
            if factor < 1:
                raise UserError(
                    f"loss.shrink.{name}={factor}: every how many-th label to take, 1 or more"
                )
        check_hard(hard, hard_of, hard_threshold, min_kept)
        if self.selects and reduction == "sum":
            raise UserError(
                "loss.hard needs loss.reduction=mean: a sum would depend on how a batch is split"
            )
        self.ignore_index = ignore_index
        self.class_weights = class_weights
        self.num_classes = number_of(class_weights)
        self.table: Tensor
        self.register_buffer("table", weight_table(class_weights, ignore_index), persistent=False)

    @property
    def selects(self) -> bool:
        """Tell whether only the hard pixels count in training."""
        return self.hard is not None or self.hard_threshold is not None

    def name_classes(self, names: Sequence[str]) -> None:
        """Look up the classes that `class_weights` names. Errors: UserError for others."""
        if isinstance(self.class_weights, dict):
            weights = weights_of(self.class_weights, names)
            self.num_classes = len(weights)
            self.table = weight_table(weights, self.ignore_index).to(self.table.device)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of valid pixels, or the sum of their class weights, for each term.

        There is no count for a plain sum, or where the output decides it.
        """
        target = train_ids(batch)
        if self.reduction == "sum" and not self.training:
            images = torch.full((), float(len(target)), device=target.device)
            return dict.fromkeys(self.weights, images)
        if self.training and (self.reduction == "sum" or self.selects or self.nearest):
            return {}
        factors = {name: self.factor(name) for name in self.weights}
        # Terms of the same factor read the same labels, so each factor is summed once.
        sums = {f: self.table[target[:, ::f, ::f]].sum() for f in dict.fromkeys(factors.values())}
        return {name: sums[factor] for name, factor in factors.items()}

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Return the terms of one micro-batch of logits (B, K, H, W)."""
        target = train_ids(batch)
        terms = {}
        for name in self.weights:
            source = output_of(name)
            if source in output:
                labels = self.labels(name, output[source], target)
                terms[name] = self.term(name, output[source], labels)
            elif self.training or name == "seg":
                raise UserError(missing(name, source, output))
        return terms

    def factor(self, name: str) -> int:
        """Return every how many-th label a term reads."""
        return self.shrink.get(name, 1) if self.training else 1

    def labels(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        """Return which of the labels (B, H, W) the term of an output reads, (B, h, w)."""
        if self.training and self.nearest:
            return nearest_to(target, *logits.shape[-2:])
        factor = self.factor(name)
        return target[:, ::factor, ::factor]

    def term(self, name: str, logits: Tensor, target: Tensor) -> LossTerm:
        """Return the term `name` of logits (B, K, h, w) and labels (B, h, w)."""
        check_classes(self.num_classes, logits)
        if logits.shape[-2:] != target.shape[-2:]:
            logits_size = "{}x{}".format(*logits.shape[-2:])
            target_size = "{}x{}".format(*target.shape[-2:])
            raise UserError(
                f"the term `{name}` has scores of {logits_size} pixels for labels of {target_size} "
                f"(loss.shrink.{name}={self.factor(name)}): let loss.shrink be the stride of that "
                "output, 1 for none"
            )
        pixel_weights = self.table[target]
        with torch.autocast(logits.device.type, enabled=False):
            log_likelihood = log_likelihoods(logits, target, self.ignore_index)
            if self.training and self.selects:
                kept = self.kept(log_likelihood.detach(), pixel_weights > 0)
                pixel_weights = pixel_weights * kept
            total = -(log_likelihood * pixel_weights).sum()
            own = self.selects or (self.nearest and self.reduction == "mean")
            return LossTerm(total, pixel_weights.sum() if self.training and own else None)

    def kept(self, log_likelihood: Tensor, valid: Tensor) -> Tensor:
        """Choose the hard ones among the `valid` pixels, both (B, h, w)."""
        if self.hard is None:
            assert self.hard_threshold is not None
            return unlikely(log_likelihood, valid, self.hard_threshold, self.min_kept)
        if self.hard_of == "all":
            number = torch.full((), int(self.hard * valid.numel()), device=valid.device)
            return hardest_of(log_likelihood, valid, number)
        return hardest(log_likelihood, valid, self.hard)


def nearest_to(target: Tensor, height: int, width: int) -> Tensor:
    """Return labels (B, H, W) at another size (B, height, width), each the nearest to its centre.

    Whole numbers decide, so that no rounding does where a centre lies between two labels.
    """
    for axis, size in ((1, height), (2, width)):
        centres = 2 * torch.arange(size, device=target.device) + 1
        target = target.index_select(axis, centres * target.shape[axis] // (2 * size))
    return target


def output_of(term: str) -> str:
    """Return the name of the model's output that a term reads."""
    return "logits" if term == "seg" else term


def weight_table(
    class_weights: list[float] | dict[str, float] | None, ignore_index: int = IGNORE
) -> Tensor:
    """Return the weight (256,) of every byte a mask can hold.

    One look-up then serves classes, class weights and ignored pixels. Weights by name are looked up
    later (`weights_of`).
    """
    table = torch.ones(256)
    if isinstance(class_weights, list):
        table[: len(class_weights)] = torch.tensor(class_weights)
    table[ignore_index] = 0
    return table


def weights_of(class_weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Return the weight of each of the classes `names`; 1 for those that are not mentioned.

    Errors: UserError for a class that is none of them.
    """
    for name in class_weights:
        if name not in names:
            raise UserError(
                f"loss.class_weights: there is no class `{name}`.{did_you_mean(name, names)} "
                f"Classes: {listed(names)}"
            )
    return [class_weights.get(name, 1.0) for name in names]


def number_of(class_weights: list[float] | dict[str, float] | None) -> int | None:
    """Return how many classes have a weight; None where all weigh 1, 0 as long as none is known."""
    if class_weights is None:
        return None
    return len(class_weights) if isinstance(class_weights, list) else 0


def check_classes(weighed: int | None, logits: Tensor) -> None:
    """Refuse logits (B, K, ...) of another number of classes than `weighed` of loss.class_weights.

    Errors: UserError.
    """
    if weighed == 0:
        raise UserError(
            "loss.class_weights names classes that nobody has told: call name_classes(names) first"
        )
    if weighed not in (None, logits.shape[1]):
        raise UserError(f"loss.class_weights has {weighed} numbers for {logits.shape[1]} classes")


def log_likelihoods(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Return log softmax(logits)[y] (B, h, w) fp32; that of class 0 where y is ignored.

    To be called outside autocast. It is log_softmax and gather, as nll_loss2d adds up in no fixed
    order on CUDA, and is no faster on the CPU.
    """
    index = target.masked_fill(target == ignore_index, 0).unsqueeze(1)
    return F.log_softmax(logits.float(), dim=1).gather(1, index).squeeze(1)


def hardest(log_likelihood: Tensor, valid: Tensor, share: float) -> Tensor:
    """Choose the round(share x valid) pixels, at least one, of the lowest likelihood.

    Those equal to the last are chosen too: a threshold, not the sorted order, picks the pixels, so
    equal ones share their fate. The number stays on the device, so the host does not wait for it.
    """
    return hardest_of(log_likelihood, valid, (valid.sum() * share).round().long())


def unlikely(log_likelihood: Tensor, valid: Tensor, threshold: float, least: int) -> Tensor:
    """Choose the pixels of a probability of at most `threshold`, and at least `least` of them.

    Where fewer are valid, all are chosen.
    """
    below = valid & (log_likelihood <= math.log(threshold))
    if least == 0:
        return below
    return below | hardest_of(log_likelihood, valid, torch.full((), least, device=valid.device))


def hardest_of(log_likelihood: Tensor, valid: Tensor, number: Tensor) -> Tensor:
    """Choose the `number` (int64) valid pixels of the lowest likelihood, at least one.

    See `hardest`.
    """
    scores = log_likelihood.masked_fill(~valid, torch.inf).flatten().sort().values
    last = number.clamp(min=1, max=scores.numel()) - 1
    return valid & (log_likelihood <= scores.gather(0, last.view(1)))


def check_hard(hard: float | None, hard_of: str, threshold: float | None, least: int) -> None:
    """Refuse settings by which no hard pixels can be chosen. Errors: UserError."""
    if hard is not None and not 0 < hard <= 1:
        raise UserError(
            f"loss.hard={hard}: the share of pixels to keep, above 0 and at most 1, or null for all"
        )
    if hard_of not in ("valid", "all"):
        raise UserError(f"loss.hard_of={hard_of} is unknown. Known: valid, all")
    if threshold is not None and not 0 < threshold <= 1:
        raise UserError(
            f"loss.hard_threshold={threshold}: a probability above 0 and at most 1, or null"
        )
    if hard is not None and threshold is not None:
        raise UserError(
            f"loss.hard={hard} and loss.hard_threshold={threshold} both choose the hard pixels: "
            "set one of them to null"
        )
    if least < 0:
        raise UserError(f"loss.min_kept={least}: a number of pixels, 0 or more")


def missing(name: str, source: str, output: dict[str, Tensor]) -> str:
    """Return what to say where the model does not give what a term reads."""
    hint = did_you_mean(name, {"seg", *output} - {source, name})
    way = "set model.aux=true, or take" if name == "aux" else "take"
    return (
        f"loss.weights has the term `{name}`, but the model gives no output `{source}` "
        f"(it gives {listed(output)}).{hint} To go on, {way} the term out of loss.weights"
    )


def listed(names: Iterable[str]) -> str:
    """Return names with commas."""
    return ", ".join(names)


def train_ids(batch: Batch) -> Tensor:
    """Return the labels (B, H, W) int64, to index with. Errors: UserError for instances."""
    if batch.masks is None:
        raise UserError(
            "loss: a pixel loss needs label maps, but this data set gives instances; take a model "
            "of objects with loss=multitask, or another dataset"
        )
    return batch.masks.long()
