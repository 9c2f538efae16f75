"""Overlap-tile inference for networks without padding (U-Net, arXiv:1505.04597, section 2, figure 2).

Shapes: images (3, H, W) uint8 RGB, scores (K, H, W) fp32, labels (H, W) uint8.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.inference.base import BasePredictor, Tiled
from segtrain.inference.crf import DenseCRF
from segtrain.inference.maps import batch_of, device_of, largest
from segtrain.layers.preprocess import mirrored

GRID = 16  # pixels that the deepest pooling joins: tiles that begin elsewhere would pool other pixels together
VIEWS = [
    (mirror, turns) for mirror in (False, True) for turns in range(4)
]  # mirrored first, then turned by 90 degrees


class OverlapTile(BasePredictor):
    """Labels an image of any size in tiles, each predicted with the real pixels around it; the image goes on mirrored.

    The result is that of the whole image at once, for less memory: tiles begin at multiples of 16 pixels, where the
    network's pooling does, so neighbours overlap by 4. The model needs `margin` and `tile(batch)` (see `models.unet`).

    tile   (height, width) of a tile's output in pixels, 16k + 4; a smaller image gets the smallest tile that holds it.
    batch  tiles per forward pass.
    views  1: the image. 8: the mean of the probabilities over its four turns and those of its mirror image. 7: without the
           image itself, our reading of the paper's "7 rotated versions" (section 4), which does not say which they are.
    crf    refines the mean probabilities; no part of the paper.

    Raises `UserError` for other values, and for a model that pads.
    """

    def __init__(
        self,
        model: nn.Module,
        tile: list[int] | None = None,
        batch: int = 1,
        views: Literal[1, 7, 8] = 1,
        crf: DenseCRF | None = None,
    ) -> None:
        if not isinstance(model, Tiled) or not model.margin:
            raise UserError(
                f"inference.tile: {type(model).__name__} pads its convolutions, so tiles would show seams; "
                "take inference=whole, or model=unet_paper"
            )
        self.model = model
        self.tiled: Tiled = model
        self.margin = int(model.margin)
        self.batch = batch
        self.views = views
        self.crf = crf
        self.tile = [388, 388] if tile is None else [int(side) for side in tile]
        self.mode = "tile" if views == 1 else f"tile_{views}_views"  # names the folder of results
        if len(self.tile) != 2 or any(side < GRID + 4 or side % GRID != 4 for side in self.tile):
            raise UserError(
                f"inference.tile={tile}: give [height, width] of 16k + 4 pixels, from 20, e.g. [388, 388]"
            )
        if batch < 1:
            raise UserError(f"inference.batch={batch}: at least 1 tile per forward pass")
        if views not in (1, 7, 8):
            raise UserError(f"inference.views={views}: use 1, 7 or 8")

    @property
    def tag(self) -> str:
        """Return how many views are averaged and whether a CRF refines, for the folder of results."""
        return self.mode if self.crf is None else f"{self.mode}-crf"

    def settings(self) -> dict[str, Any]:
        """Return the arguments and what follows from them, as plain values for metrics.json."""
        return {
            "batch": self.batch,
            "views": self.views,
            "crf": None if self.crf is None else self.crf.settings(),
            "tile": self.tile,
            "mode": self.mode,
            "margin": self.margin,
        }

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Tensor:
        """(3, H, W) uint8 RGB -> labels (H, W) uint8 on the model's device."""
        scores = self.scores(image)
        return largest(scores if self.crf is None else self.crf(image, scores))

    @torch.inference_mode()
    def scores(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 RGB -> mean probabilities (K, H, W) fp32 that sum to one. No CRF."""
        image = image.to(device_of(self.model))
        total: Tensor | None = None
        for mirror, turns in VIEWS[:1] if self.views == 1 else VIEWS[8 - self.views :]:
            view = torch.rot90(image.flip(-1) if mirror else image, turns, (-2, -1))
            scores = torch.rot90(self.logits(view).softmax(0), -turns, (-2, -1))
            scores = scores.flip(-1) if mirror else scores
            total = scores if total is None else total + scores
        assert total is not None
        return total.div_(self.views)

    @torch.inference_mode()
    def logits(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (K, H, W) fp32, tile by tile."""
        height, width = image.shape[-2:]
        high, wide = (
            min(side, smallest_tile(length))
            for side, length in zip(self.tile, (height, width), strict=True)
        )
        corners = [
            (top, left) for top in tile_starts(height, high) for left in tile_starts(width, wide)
        ]
        size, margin = (high + 2 * self.margin, wide + 2 * self.margin), self.margin
        result: Tensor | None = None
        for first in range(0, len(corners), self.batch):
            some = corners[first : first + self.batch]
            inputs = torch.stack(
                [mirrored(image, top - margin, left - margin, *size) for top, left in some]
            )
            for (top, left), tile in zip(
                some, self.tiled.tile(batch_of(inputs, size)).float(), strict=True
            ):
                if result is None:
                    result = tile.new_empty((len(tile), height, width))
                inside = tile[:, : height - top, : width - left]
                result[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
        assert result is not None  # an image has at least one tile
        return result


def smallest_tile(length: int) -> int:
    """The smallest 16k + 4 that is at least `length`, from 20."""
    return max(GRID + 4, -(-(length - 4) // GRID) * GRID + 4)


def tile_starts(length: int, tile: int) -> list[int]:
    """First pixels of the tiles that cover `length` pixels: multiples of 16, 4 pixels of overlap, no tile for nothing."""
    return [0, *range(tile - 4, length - 4, tile - 4)]
