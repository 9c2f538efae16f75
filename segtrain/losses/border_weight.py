"""Cross-entropy that weighs the narrow gaps between objects (U-Net, arXiv:1505.04597, section 3).

The weights are those of its equations 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from segtrain.contracts import LossTerm, MaskMap
from segtrain.errors import UserError, did_you_mean
from segtrain.losses.base import BaseLoss
from segtrain.losses.pixel import (
    check_classes,
    listed,
    log_likelihoods,
    number_of,
    train_ids,
    weight_table,
    weights_of,
)
from segtrain.structures.samples import IGNORE, Batch

# Beyond so many sigmas a second cell adds less than w0 * exp(-18), which fp32 cannot tell from 0
# beside w_c = 1.
BORDER_REACH_SIGMAS = 6.0
UNKNOWN = -1  # the train id of a class of which only the name is known


class BorderCrossEntropy(BaseLoss):
    """Sum -w(x) log softmax(logits)[y] over the valid pixels, in fp32; its count is that of w(x).

    So the objective is a weighted mean. w(x) = w_c[y] + border_w0 * exp(-(d1 + d2)^2 /
    (2 border_sigma^2)), see `border_term`. The border's part is made on the host, by the data
    workers: a GPU does not wait for it.

    class_weights  w_c: one number per class in the order of the data set, or numbers by the names
                   of classes, the others 1. None: all are 1.
    foreground     the class whose connected regions are the cells, by name or train id.
    margin         pixels on each side of the target that are left out in training, where a network
                   without padding gives logits of the central window only (U-Net: 92). w(x) is
                   that of the whole target, so cells outside the window count.

    Errors: UserError where arguments, model and targets do not fit.
    """

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        border_w0: float = 10.0,
        border_sigma: float = 5.0,
        class_weights: list[float] | dict[str, float] | None = None,
        foreground: int | str = 1,
        margin: int = 0,
    ) -> None:
        super().__init__(weights or {"seg": 1.0}, needs=["logits"])
        if set(self.weights) != {"seg"}:
            raise UserError(
                f"loss.weights has the terms {', '.join(self.weights)}, but this loss has one: seg"
            )
        if border_w0 < 0 or border_sigma <= 0:
            raise UserError(
                f"loss.border_w0={border_w0}, loss.border_sigma={border_sigma}: at least 0, "
                "and above 0 pixels"
            )
        if margin < 0:
            raise UserError(f"loss.margin={margin}: at least 0 pixels (U-Net without padding: 92)")
        self.border_w0 = border_w0
        self.border_sigma = border_sigma
        self.named_foreground = foreground if isinstance(foreground, str) else None
        self.foreground = foreground if isinstance(foreground, int) else UNKNOWN
        self.margin = margin
        self.class_weights = class_weights
        self.num_classes = number_of(class_weights)
        self.table: Tensor
        self.register_buffer("table", weight_table(class_weights), persistent=False)

    def name_classes(self, names: Sequence[str]) -> None:
        """Look up the classes that arguments name. Errors: UserError for others."""
        if isinstance(self.class_weights, dict):
            weights = weights_of(self.class_weights, names)
            self.num_classes = len(weights)
            self.table = weight_table(weights).to(self.table.device)
        if self.named_foreground is not None:
            if self.named_foreground not in names:
                raise UserError(
                    f"loss.foreground={self.named_foreground}: there is no such class."
                    f"{did_you_mean(self.named_foreground, names)} Classes: {listed(names)}"
                )
            self.foreground = list(names).index(self.named_foreground)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of w(x) over the valid pixels of the window."""
        return {"seg": self.window(self.pixel_weights(batch)).sum()}

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Return the term of one micro-batch of logits (B, K, h, w)."""
        logits = output["logits"]
        target = self.window(train_ids(batch))
        if logits.shape[-2:] != target.shape[-2:]:
            logits_size = "{} x {}".format(*logits.shape[-2:])
            target_size = "{} x {}".format(*target.shape[-2:])
            raise UserError(
                f"loss.margin={self.margin} leaves a target of {target_size} pixels, but the "
                f"logits are {logits_size}: set loss.margin to what the network takes from each "
                "side (unet_paper: 92, with padding: 0)"
            )
        check_classes(self.num_classes, logits)
        if self.foreground == UNKNOWN:
            raise UserError(
                f"loss.foreground={self.named_foreground} names a class that nobody has told: call "
                "name_classes(names) first"
            )
        if self.foreground >= logits.shape[1]:
            raise UserError(
                f"loss.foreground={self.foreground}: the classes are 0 to {logits.shape[1] - 1}"
            )
        with torch.autocast(logits.device.type, enabled=False):
            pixel_weights = self.window(self.pixel_weights(batch))
            return {"seg": LossTerm(-(log_likelihoods(logits, target) * pixel_weights).sum())}

    def window(self, maps: Tensor) -> Tensor:
        """Return what the logits cover of maps (B, H, W)."""
        margin = self.margin if self.training else 0
        height, width = maps.shape[-2:]
        if min(height, width) <= 2 * margin:
            raise UserError(
                f"loss.margin={margin} leaves nothing of {height} x {width} pixels: "
                "enlarge dataset.crop"
            )
        return maps[:, margin : height - margin, margin : width - margin]

    def mask_map(self) -> MaskMap:
        """Return what makes the border's part of w(x) of a mask."""
        return partial(
            border_term, foreground=self.foreground, w0=self.border_w0, sigma=self.border_sigma
        )

    def pixel_weights(self, batch: Batch) -> Tensor:
        """Return w(x) (B, H, W) fp32 on the targets' device, 0 where ignored."""
        target = train_ids(batch)
        border = batch.mask_maps
        if border is None:  # no loader made the batch
            terms = [self.mask_map()(mask) for mask in target.to("cpu", torch.uint8).numpy()]
            border = torch.from_numpy(np.stack(terms)).to(target.device)
        return self.table[target] + border.masked_fill(target == IGNORE, 0)


def border_term(mask: np.ndarray, foreground: int, w0: float, sigma: float) -> np.ndarray:
    """Return (H, W) float32: w0 * exp(-(d1 + d2)^2 / (2 sigma^2)) outside the cells, 0 inside.

    A cell is a 4-connected region of the pixels of `mask` (H, W) that are `foreground`: a membrane
    that is one pixel wide separates, also where it runs diagonally. d1 and d2 are the distances in
    pixels to the nearest pixels of the nearest and of the second-nearest cell. With fewer than two
    cells within 6 sigma the term is 0.
    """
    cells, _ = ndimage.label(mask == foreground)
    reach = math.ceil(BORDER_REACH_SIGMAS * sigma)
    nearest = np.full(mask.shape, np.inf, np.float32)
    second = nearest.copy()
    for number, (rows, columns) in enumerate(ndimage.find_objects(cells), 1):
        # Only as far around the cell as it matters: a transform of the whole map for each of 200
        # cells takes seconds.
        around = (
            slice(max(0, rows.start - reach), rows.stop + reach),
            slice(max(0, columns.start - reach), columns.stop + reach),
        )
        distance = ndimage.distance_transform_edt(cells[around] != number).astype(np.float32)
        np.minimum(second[around], np.maximum(nearest[around], distance), out=second[around])
        np.minimum(nearest[around], distance, out=nearest[around])
    term = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(cells > 0, 0, term).astype(np.float32)
