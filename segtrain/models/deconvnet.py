"""DeconvNet (Noh, Hong and Han, ICCV 2015, arXiv:1505.04366).

It is a VGG down to a 1x1 code, and its mirror image back up.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.backbones.vgg import DEPTHS, VGG, WIDTHS, fully_convolutional
from segtrain.errors import UserError
from segtrain.layers.blocks import model_input
from segtrain.layers.preprocess import Input, chosen
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

WINDOW_SIDE = 224  # pixels that fc6 sees: its 7x7 kernel at stride 32
NEW_NORM_BIAS = 0.001  # in the released network


class DeconvNet(SegmentationModel):
    """Code a window in one vector and draw its labels by putting values back where they came from.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size.

    Five VGG blocks, each with batch norm and a 2x2 max-pool that remembers where its maxima were;
    fc6 and fc7 as convolutions to `code` channels (the paper: 4096 at 1x1); a 7x7 deconvolution;
    then five times unpooling, which puts every value back to where its maximum was, and as many
    layers as the block has, in reverse (section 3). Batch norm and ReLU follow every layer but the
    last. `weights="imagenet"` is torchvision's classifier with batch norm. `bn_eps` is added to the
    variance in every batch norm: 1e-9 in the authors' Caffe (bn_layer.cpp), 1e-5 in torch.

    Made for 224 x 224 windows: other inputs are padded with zeros at the right and bottom to 224,
    or the next multiple of 32 above, and the logits are cut back. A process needs `min_train_batch`
    = 2 images to train. The running statistics of batch norm are to be estimated after training:
    `train.bn_batches`.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal["vgg11", "vgg13", "vgg16"] = "vgg16",
        weights: Literal["imagenet"] | Path | None = None,
        code: int = 4096,
        input: Input = None,
        bn_eps: float = 1e-9,
    ) -> None:
        super().__init__()
        if weights not in (None, "imagenet") and not isinstance(weights, Path):
            raise UserError(
                f"model.weights={weights}: deconvnet offers imagenet, or null to start from scratch"
            )
        if code < 1:
            raise UserError(
                f"model.code={code}: the channels of fc6 and fc7; give at least 1, e.g. 4096"
            )
        if bn_eps <= 0:
            raise UserError(f"model.bn_eps={bn_eps}: must be above 0, e.g. 1e-9")
        self.backbone = VGG(backbone, norm="batch", weights=weights)
        self.preprocess = chosen(input, self.backbone.preprocess)
        fc6, fc7 = fully_convolutional(backbone, "batch", weights, code)
        widths = (64, *WIDTHS[:-1])
        unpooled = nn.ConvTranspose2d(code, WIDTHS[-1], 7)
        blocks = [
            mirror(a, b, depth)
            for a, b, depth in zip(WIDTHS, widths, DEPTHS[backbone], strict=True)
        ]
        self.score = nn.Conv2d(widths[0], num_classes, 1)
        for layer in (unpooled, self.score, *(layer for block in blocks for layer in block)):
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.get_parameter("bias"))
        self.code = nn.Sequential(*normed(fc6), *normed(fc7), *normed(unpooled))
        self.decoder = nn.ModuleList(reversed(blocks))
        new = self if weights is None else nn.ModuleList([self.code, self.decoder])
        for layer in new.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.constant_(layer.bias, NEW_NORM_BIAS)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = bn_eps

    @property
    def min_train_batch(self) -> int:
        """Return how many images one process needs in a training batch.

        SyncBatchNorm sees the other processes' images.
        """
        return 2 if isinstance(self.code[1], nn.BatchNorm2d) else 1

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all that ImageNet trained, so fc6 and fc7 too: they get the backbone's factor."""
        return chain(self.backbone.parameters(), self.code[:6].parameters())

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        return {"score": ClassRows()}

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) at the input's size."""
        x = model_input(batch, self.preprocess)
        height, width = x.shape[-2:]
        high, wide = (max(WINDOW_SIDE, -(-side // 32) * 32) for side in (height, width))
        if self.training and len(x) < self.min_train_batch and high == wide == WINDOW_SIDE:
            raise UserError(
                "a training batch of 1 image per process leaves BatchNorm of the 1x1 code nothing "
                "to average: set batch_size to at least 2 per process"
            )
        x = F.pad(x, (0, wide - width, 0, high - height))
        switches = []  # of each block: where its maxima were
        for block in self.backbone.blocks:
            x, switch = F.max_pool2d(block(x), 2, 2, return_indices=True)
            switches.append(switch)
        x = self.code(x)
        for block, switch in zip(self.decoder, reversed(switches), strict=True):
            x = block(unpool(x, switch))
        return {"logits": self.score(x)[..., :height, :width]}


def normed(layer: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    """Return the layer, batch norm, ReLU. The layer keeps its bias, as in the released network."""
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True)]


def mirror(width: int, last: int, depth: int) -> nn.Sequential:
    """Return a VGG block backwards: `depth` 3x3 layers of `width` channels, then `last` channels.

    A deconvolution of stride 1 is the convolution with the kernel turned by 180 degrees: the same
    function, initialised alike, and a third quicker on a CPU.
    """
    outputs = [width] * (depth - 1) + [last]
    return nn.Sequential(
        *(layer for out in outputs for layer in normed(nn.Conv2d(width, out, 3, padding=1)))
    )


def unpool(x: Tensor, switch: Tensor) -> Tensor:
    """Put every value of (B, C, h, w) back to where its maximum was: (B, C, 2h, 2w), else zero.

    `switch` (B, C, h, w) are the positions row * 2w + column in the plane.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.max_unpool2d(x, switch, [2, 2])
    # torch refuses max_unpool2d here, as positions might repeat. Those of windows that do not
    # overlap never do.
    height = 2 * x.shape[2]
    width = 2 * x.shape[3]
    plane = x.new_zeros(*x.shape[:2], height * width)
    return plane.scatter(2, switch.flatten(2), x.flatten(2)).view(*x.shape[:2], height, width)
