"""Features of regions: which level of a pyramid a box is read from, and how.

"align"   RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3): 2x2 samples a bin, nothing rounded
"legacy"  the same, half a cell to the right and below: torchvision's and Detectron's, for their
          weights
"pool"    RoIPool (Fast R-CNN, arXiv:1504.08083): rounds to whole cells and takes the maximum (an
          ablation of Mask R-CNN)

With 0 samples their number is adaptive: as many along each side of a bin as it has cells, rounded
up (detectron2, mmdetection, and Detectron without a pyramid).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from segtrain.errors import UserError
from segtrain.layers.regions import up_to_last

KINDS = ("align", "legacy", "pool")
# A box of 224 x 224 pixels is read from level 4, stride 16 (FPN, arXiv:1612.03144, equation 1).
CANONICAL_SIDE = 224
CANONICAL_LEVEL = 4


def regions_of(boxes: list[Tensor]) -> Tensor:
    """Join the boxes (n, 4) of all images to (N, 5), with the image's number in front."""
    return torch.cat(
        [torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(boxes)]
    )


class RoIPool(nn.Module):
    """Read each box from the level that fits its area: `(features, boxes) -> (N, C, size, size)`.

    The result is float32. `strides` are those of the levels that boxes are read from: 4, 8, 16, 32
    of a pyramid, or one. Further features are not read. Boxes (n, 4) per image are in pixels of the
    network's input; N is all of them, image by image. `samples` are taken along each side of a bin
    (not by "pool"); `inclusive` boxes are read up to their last pixel.
    """

    def __init__(
        self,
        size: int,
        strides: list[int],
        roi: Literal["align", "legacy", "pool"] = "align",
        samples: int = 2,
        inclusive: bool = False,
    ) -> None:
        super().__init__()
        if roi not in KINDS:
            raise UserError(f"roi={roi} is unknown. Known: {', '.join(KINDS)}")
        if samples < 0:
            raise UserError(
                f"model.roi_samples={samples}: samples along a side of a bin, 2 as in the paper, "
                "or 0 for as many as it has cells"
            )
        self.size = size
        self.strides = list(strides)
        self.roi = roi
        self.samples = samples
        self.inclusive = inclusive

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return the regions' features in the order of the boxes."""
        regions = regions_of(boxes)
        if len(self.strides) == 1:
            return self.read(features[0], regions, 0)
        levels = self.levels(regions[:, 1:])
        rows = [torch.nonzero(levels == number).flatten() for number in range(len(self.strides))]
        pooled = [self.read(features[i], regions[own], i) for i, own in enumerate(rows)]
        return torch.cat(pooled)[torch.cat(rows).argsort()]

    def read(self, feature: Tensor, regions: Tensor, level: int) -> Tensor:
        """Read all `regions` (N, 5) from one level's feature (B, C, h, w): (N, C, size, size)."""
        scale = 1 / self.strides[level]
        feature = feature.float()
        if self.inclusive:
            regions = torch.cat([regions[:, :1], up_to_last(regions[:, 1:])], 1)
        if self.roi == "pool":
            return roi_pool(feature, regions, self.size, scale)
        return roi_align(
            feature, regions, self.size, scale, self.samples, aligned=self.roi == "align"
        )

    def levels(self, boxes: Tensor) -> Tensor:
        """Return the index in `strides` (N,) of the level that each box is read from.

        It is floor(4 + log2(sqrt(w h) / 224)), kept within the levels that there are.
        """
        side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1).sqrt()
        # 1e-6: a side of 224 itself is level 4 in float32 too.
        level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIDE) + 1e-6)
        lowest = round(math.log2(self.strides[0]))
        return (level.clamp(lowest, lowest + len(self.strides) - 1) - lowest).long()
