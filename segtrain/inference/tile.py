"""Predict an image in overlapping tiles, with a network that does not pad.

This is U-Net's overlap-tile strategy (arXiv:1505.04597, section 2, figure 2).
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

# U-Net's four poolings join 16 pixels. A tile that begins elsewhere would pool other pixels
# together than the whole image does, and its scores would differ.
POOLING_PIXELS = 16
# A tile's output has 16k + 4 pixels a side, so neighbours at multiples of 16 overlap by 4.
OVERLAP_PIXELS = 4
SMALLEST_TILE = POOLING_PIXELS + OVERLAP_PIXELS

# (mirrored first, then turned by how many times 90 degrees)
VIEWS = [(mirror, turns) for mirror in (False, True) for turns in range(4)]


class OverlapTile(BasePredictor):
    """Label images of any size in tiles, each predicted with the real pixels around it.

    The result is that of the whole image at once, for less memory. Beyond its border the image
    goes on mirrored. The model needs `margin` and `tile(batch)`, see `models.unet`.

    tile   (height, width) of a tile's output in pixels, 16k + 4; a smaller image gets the
           smallest tile that holds it.
    batch  tiles per forward pass.
    views  1: the image. 8: the mean of the probabilities over its four turns and those of its
           mirror image. 7: without the image itself, which is our reading of the paper's
           "7 rotated versions" (section 4); it does not say which they are.
    crf    refines the mean probabilities; no part of the paper.

    Errors: UserError for other values, and for a model that pads.
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
                f"inference.tile: {type(model).__name__} pads its convolutions, so tiles would "
                "show seams; take inference=whole, or model=unet_paper"
            )
        self.model = model
        self.tiled: Tiled = model
        self.margin = int(model.margin)
        self.batch = batch
        self.views = views
        self.crf = crf
        self.tile = [388, 388] if tile is None else [int(side) for side in tile]
        self.mode = "tile" if views == 1 else f"tile_{views}_views"
        if len(self.tile) != 2 or any(
            side < SMALLEST_TILE or side % POOLING_PIXELS != OVERLAP_PIXELS for side in self.tile
        ):
            raise UserError(
                f"inference.tile={tile}: give [height, width] of 16k + 4 pixels, from 20, "
                "e.g. [388, 388]"
            )
        if batch < 1:
            raise UserError(f"inference.batch={batch}: at least 1 tile per forward pass")
        if views not in (1, 7, 8):
            raise UserError(f"inference.views={views}: use 1, 7 or 8")

    @property
    def tag(self) -> str:
        """Return the number of views and whether a CRF refines, for the folder of results."""
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
        """Predict an image (3, H, W) uint8 RGB: labels (H, W) uint8 on the model's device."""
        return largest(self.probabilities(image))

    @torch.inference_mode()
    def probabilities(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Return the probabilities (K, H, W) fp32 of an image (3, H, W), refined by a CRF."""
        scores = self.scores(image)
        return scores if self.crf is None else self.crf(image, scores)

    @torch.inference_mode()
    def scores(self, image: Tensor) -> Tensor:
        """Return the mean probabilities (K, H, W) fp32 of an image (3, H, W) uint8, without CRF."""
        image = image.to(device_of(self.model))
        views = VIEWS[:1] if self.views == 1 else VIEWS[len(VIEWS) - self.views :]
        total: Tensor | None = None
        for mirror, turns in views:
            view = torch.rot90(image.flip(-1) if mirror else image, turns, (-2, -1))
            scores = torch.rot90(self.logits(view).softmax(0), -turns, (-2, -1))
            scores = scores.flip(-1) if mirror else scores
            total = scores if total is None else total + scores
        assert total is not None  # there is at least one view
        return total.div_(self.views)

    @torch.inference_mode()
    def logits(self, image: Tensor) -> Tensor:
        """Return the logits (K, H, W) fp32 of an image (3, H, W) uint8, put together from tiles."""
        height, width = image.shape[-2:]
        tile_height = min(self.tile[0], smallest_tile(height))
        tile_width = min(self.tile[1], smallest_tile(width))
        corners = [
            (top, left)
            for top in tile_starts(height, tile_height)
            for left in tile_starts(width, tile_width)
        ]
        margin = self.margin
        size = (tile_height + 2 * margin, tile_width + 2 * margin)
        result: Tensor | None = None
        for first in range(0, len(corners), self.batch):
            batch = corners[first : first + self.batch]
            inputs = torch.stack(
                [mirrored(image, top - margin, left - margin, *size) for top, left in batch]
            )
            tiles = self.tiled.tile(batch_of(inputs, size)).float()
            for (top, left), tile in zip(batch, tiles, strict=True):
                if result is None:
                    result = tile.new_empty((len(tile), height, width))
                inside = tile[:, : height - top, : width - left]
                result[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
        assert result is not None  # an image has at least one tile
        return result


def smallest_tile(length: int) -> int:
    """Return the smallest 16k + 4, from 20, that is at least `length`."""
    steps = -(-(length - OVERLAP_PIXELS) // POOLING_PIXELS)  # rounded up
    return max(SMALLEST_TILE, steps * POOLING_PIXELS + OVERLAP_PIXELS)


def tile_starts(length: int, tile: int) -> list[int]:
    """Return the first pixels of the tiles that cover `length` pixels: multiples of 16.

    Neighbours overlap by 4 pixels, and no tile is without a pixel of its own.
    """
    step = tile - OVERLAP_PIXELS
    return [0, *range(step, length - OVERLAP_PIXELS, step)]
