"""Cross-entropy that weighs the narrow gaps between objects (U-Net, arXiv:1505.04597, section 3, equations 1 and 2)."""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from segtrain.contracts import LossTerm
from segtrain.errors import UserError
from segtrain.losses.pixel import check_classes, log_likelihoods, train_ids, weight_table
from segtrain.structures.samples import IGNORE, Batch

REACH = 6.0  # in sigmas: beyond, a second cell adds less than w0 * exp(-18), which fp32 cannot tell from 0 beside w_c = 1


class BorderCrossEntropy(nn.Module):
    """Sum over valid pixels of -w(x) log softmax(logits)[y], in fp32; its count is the sum of w(x): a weighted mean.

    w(x) = w_c[y] + border_w0 * exp(-(d1 + d2)^2 / (2 border_sigma^2)), see `border_term`; `class_weights` w_c has one number
    per class, None is 1. Cells are the connected regions of the class `foreground`.
    `margin` pixels on each side of the target are left out in training, where a network without padding gives logits of the
    central window only (U-Net: 92); w(x) is that of the whole target, so cells outside the window count.
    The map is made on the host, once for a batch. Raises UserError where arguments, model and targets do not fit.
    """

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        border_w0: float = 10.0,
        border_sigma: float = 5.0,
        class_weights: list[float] | None = None,
        foreground: int = 1,
        margin: int = 0,
    ) -> None:
        super().__init__()
        self.weights = dict(weights or {"seg": 1.0})
        if set(self.weights) != {"seg"}:
            raise UserError(
                f"loss.weights has the terms {', '.join(self.weights)}, but this loss has one: seg"
            )
        if border_w0 < 0 or border_sigma <= 0:
            raise UserError(
                f"loss.border_w0={border_w0}, loss.border_sigma={border_sigma}: at least 0, and above 0 pixels"
            )
        if margin < 0:
            raise UserError(f"loss.margin={margin}: at least 0 pixels (U-Net without padding: 92)")
        self.border_w0, self.border_sigma, self.foreground, self.margin = (
            border_w0,
            border_sigma,
            foreground,
            margin,
        )
        self.num_classes = None if class_weights is None else len(class_weights)
        self.table: Tensor
        self.register_buffer("table", weight_table(class_weights), persistent=False)
        self._made: list[tuple[weakref.ref[Batch], Tensor]] = []

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The sum of w(x) over the valid pixels of the window."""
        return {"seg": self.window(self.pixel_weights(batch)).sum()}

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """The term of one micro-batch; logits are (B, K, h, w), targets (B, H, W) uint8."""
        logits, target = output["logits"], self.window(train_ids(batch))
        if logits.shape[-2:] != target.shape[-2:]:
            there, left = (f"{maps.shape[-2]} x {maps.shape[-1]}" for maps in (logits, target))
            raise UserError(
                f"loss.margin={self.margin} leaves a target of {left} pixels, but the logits are {there}: set loss.margin "
                "to what the network takes from each side (unet_paper: 92, with padding: 0)"
            )
        check_classes(self.num_classes, logits)
        if self.foreground >= logits.shape[1]:
            raise UserError(
                f"loss.foreground={self.foreground}: the classes are 0 to {logits.shape[1] - 1}"
            )
        with torch.autocast(logits.device.type, enabled=False):
            return {
                "seg": LossTerm(
                    -(
                        log_likelihoods(logits, target) * self.window(self.pixel_weights(batch))
                    ).sum()
                )
            }

    def window(self, maps: Tensor) -> Tensor:
        """(B, H, W) -> what the logits cover of it."""
        margin = self.margin if self.training else 0
        height, width = maps.shape[-2:]
        if min(height, width) <= 2 * margin:
            raise UserError(
                f"loss.margin={margin} leaves nothing of {height} x {width} pixels: enlarge dataset.crop"
            )
        return maps[:, margin : height - margin, margin : width - margin]

    def pixel_weights(self, batch: Batch) -> Tensor:
        """(B, H, W) fp32 w(x) on the targets' device, 0 where ignored; kept as long as the batch lives."""
        for known, made in self._made:
            if known() is batch:
                return made
        target = train_ids(batch)
        masks = target.to("cpu", torch.uint8).numpy()
        terms = [
            border_term(mask, self.foreground, self.border_w0, self.border_sigma) for mask in masks
        ]
        border = torch.from_numpy(np.stack(terms)).to(target.device)
        made = self.table[target] + border.masked_fill_(target == IGNORE, 0)
        alive = [(known, maps) for known, maps in self._made if known() is not None]
        self._made = [*alive, (weakref.ref(batch), made)]
        return made


def border_term(mask: np.ndarray, foreground: int, w0: float, sigma: float) -> np.ndarray:
    """(H, W) float32: w0 * exp(-(d1 + d2)^2 / (2 sigma^2)) where `mask` (H, W) is not `foreground`, 0 where it is.

    d1 and d2 are the distances in pixels to the nearest pixels of the nearest and of the second-nearest cell. A cell is a
    4-connected region of `foreground`: a membrane that is one pixel wide separates, also where it runs diagonally. With
    fewer than two cells within 6 sigma the term is 0.
    """
    cells, _ = ndimage.label(mask == foreground)
    reach = math.ceil(REACH * sigma)
    nearest = np.full(mask.shape, np.inf, np.float32)
    second = nearest.copy()
    for number, (rows, columns) in enumerate(ndimage.find_objects(cells), 1):
        # Around the cell as far as it matters: a transform of the whole map for each of 200 cells takes seconds.
        around = (
            slice(max(0, rows.start - reach), rows.stop + reach),
            slice(max(0, columns.start - reach), columns.stop + reach),
        )
        distance = ndimage.distance_transform_edt(cells[around] != number).astype(np.float32)
        np.minimum(second[around], np.maximum(nearest[around], distance), out=second[around])
        np.minimum(nearest[around], distance, out=nearest[around])
    term = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(cells > 0, 0, term).astype(np.float32)
