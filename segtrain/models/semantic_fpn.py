"""Semantic FPN (Kirillov et al., CVPR 2019, arXiv:1901.02446, section 3).

It is a feature pyramid as a dense predictor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from segtrain.backbones.staged import make_staged
from segtrain.layers.blocks import classifier, conv_norm_relu, initialise, model_input, resize
from segtrain.layers.preprocess import Input, chosen
from segtrain.layers.pyramid import FeaturePyramid
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch


class SemanticFPN(SegmentationModel):
    """Bring every level of the pyramid to stride 4 and `channels` wide, add them up, classify.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size. A level takes a 3x3,
    norm, ReLU and bilinear x2 as often as it lies above stride 4: p5 three times, p4 twice, p3
    once; p2 takes the 3x3 alone. Corners are not aligned. `width` is the pyramid's; `norm` the
    backbone's, `head_norm` that of the 3x3.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"
        ] = "resnet50",
        width: int = 256,
        channels: int = 128,
        norm: Literal["batch", "group", "frozen"] = "batch",
        head_norm: Literal["group", "batch", "frozen", "none"] = "group",
        weights: Literal["imagenet"] | Path | None = None,
        input: Input = None,
    ) -> None:
        super().__init__()
        self.backbone = make_staged(backbone, norm=norm, weights=weights)
        self.preprocess = chosen(input, self.backbone.preprocess)
        self.pyramid = FeaturePyramid(self.backbone.channels, width)
        heads = []
        for level in range(len(self.backbone.channels)):
            inputs = [width] + [channels] * (max(level, 1) - 1)
            heads.append(
                nn.ModuleList(conv_norm_relu(n, channels, 3, norm=head_norm) for n in inputs)
            )
        self.heads = nn.ModuleList(heads)
        self.classifier = classifier(channels, num_classes)
        initialise(self.heads)

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        return {"classifier": ClassRows()}

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) at the input's size."""
        x = model_input(batch, self.preprocess)
        levels = self.pyramid(self.backbone(x))
        total = self.climb(levels, 0)
        for top in range(1, len(levels)):
            total = total + self.climb(levels, top)
        return {"logits": resize(self.classifier(total), x, align_corners=False)}

    def climb(self, levels: list[Tensor], top: int) -> Tensor:
        """Return level `top` at the size of the finest level.

        After each 3x3 it is brought to the size of the next finer level, x2 where that is even.
        """
        x = levels[top]
        head = self.heads[top]
        assert isinstance(head, nn.ModuleList)
        for step, layer in enumerate(head):
            x = resize(layer(x), levels[max(top - step - 1, 0)], align_corners=False)
        return x
