"""DeepLabv3+ (Chen et al., ECCV 2018, arXiv:1802.02611) on a ResNet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.backbones.resnet import ResNet
from segtrain.contracts import Batch
from segtrain.models.aspp import ASPP, aspp_rates
from segtrain.models.layers import classifier, conv3x3, conv_norm_relu, fcn_head, initialise, model_input, resize

LOW_LEVEL_WIDTH = 48  # section 4.1, table 1


class DeepLabV3Plus(nn.Module):
    """DeepLabv3 as encoder and a light decoder at stride 4 (figure 2); low-level feature: first stage.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size and, in training with `aux`, "aux" too.
    `output_stride` may differ between training and evaluation: the weights are the same, the rates follow.
    `separable` makes the 3x3 of ASPP and decoder depthwise separable; `decoder` holds the widths of the decoder's 3x3
    (table 2: two of 256). `multi_grid` is (1, 2, 4) for ResNet-101 in the papers. `aux` adds an FCN head on the third
    stage. With norm="batch" a process needs `min_train_batch` = 2 images to train.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet101",
        output_stride: Literal[8, 16, 32] = 16,
        separable: bool = True,
        multi_grid: list[int] | None = None,
        decoder: list[int] | None = None,
        norm: Literal["batch", "group"] = "batch",
        weights: Literal["imagenet"] | None = None,
        aux: bool = False,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = ResNet(backbone, output_stride, multi_grid or [1, 2, 4], norm, weights)
        self.preprocess = self.backbone.preprocess
        self.align_corners = align_corners
        low, _, middle, deep = self.backbone.channels
        self.aspp = ASPP(deep, aspp_rates(output_stride), 256, separable, norm)
        self.low_level = conv_norm_relu(low, LOW_LEVEL_WIDTH, norm=norm)
        widths = [256 + LOW_LEVEL_WIDTH, *(decoder or [256, 256])]
        convs = [conv3x3(a, b, 1, separable, norm) for a, b in zip(widths, widths[1:], strict=False)]
        self.decoder = nn.Sequential(*convs)
        self.classifier = classifier(widths[-1], num_classes)
        self.aux = fcn_head(middle, num_classes, norm) if aux else None
        initialise(self.aspp, self.low_level, self.decoder)

    @property
    def min_train_batch(self) -> int:
        """Images that one process needs in a training batch."""
        return self.aspp.min_train_batch

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that get the backbone's learning-rate factor."""
        return self.backbone.parameters()

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """See the class."""
        x = model_input(batch, self.preprocess)
        low, _, middle, deep = self.backbone(x)
        low = self.low_level(low)
        deep = resize(self.aspp(deep), low, self.align_corners)
        logits = self.classifier(self.decoder(torch.cat([deep, low], dim=1)))
        output = {"logits": resize(logits, x, self.align_corners)}
        if self.aux is not None and self.training:
            output["aux"] = resize(self.aux(middle), x, self.align_corners)
        return output
