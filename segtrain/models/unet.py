"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015, arXiv:1505.04597)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.errors import UserError
from segtrain.layers.blocks import initialise, model_input
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import Input, chosen, mirrored, preprocess
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

DEPTH = 4  # times that the encoder halves its input
MARGIN = 92  # pixels that unpadded convolutions take from each side of the input: 572 -> 388
SMALLEST_SIDE = 188  # pixels; the first 16k + 60 that leaves an output, of 4 x 4


class UNet(SegmentationModel):
    """Shrink an image and grow it again, with a skip at each of four levels (figure 1).

    Its `backbone` is the contracting path, whose maps of all levels are kept. Nothing in it is
    pre-trained.

    `forward(batch)` gives "logits" (B, num_classes, H, W). With padding="same", a modern variant,
    they have the input's size, whatever that is. With padding="valid", the paper's network, an
    output pixel sees real pixels only:

    - in training the sides must be 16k + 60, at least 188 (UserError), and the logits are those of
    the central window, 92
      pixels (`margin`) less on each side: 572 -> 388. The loss must be told: loss.margin=92.
    - in evaluation the image, of any size, is continued by mirroring (section 3), and logits have
    its size. In a batch of
      different sizes it is the padded images that are continued.

    `in_channels` 1 takes the mean of RGB, in [0, 1]; 3 is normalised as ImageNet is; `input` says
    otherwise. `width` is that of the first level, doubled at each. `dropout` acts where section 3.1
    has it, at the end of the encoder: on levels 3, with its skip, and 4. `released` is the network
    that the authors published: a ReLU after every up-convolution, the last one of twice the width.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Literal[1, 3] = 3,
        padding: Literal["same", "valid"] = "same",
        norm: Literal["batch", "group", "none"] = "batch",
        width: int = 64,
        dropout: float = 0.5,
        released: bool = False,
        input: Input = None,
    ) -> None:
        super().__init__()
        check_settings(in_channels, padding, width, dropout)
        self.preprocess = chosen(input, preprocess("grey" if in_channels == 1 else "imagenet"))
        self.margin = MARGIN if padding == "valid" else 0
        widths = [width << level for level in range(DEPTH + 1)]
        pad = 1 if padding == "same" else 0
        pairs = zip([in_channels, *widths], widths, strict=False)
        self.backbone = nn.ModuleList(
            double_conv(inputs, outputs, pad, norm) for inputs, outputs in pairs
        )
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in reversed(range(DEPTH)):
            narrow = widths[level]
            wide = widths[level + 1]
            kept = wide if released and level == 0 else narrow
            up = nn.ConvTranspose2d(wide, kept, 2, stride=2)
            self.up.append(nn.Sequential(up, nn.ReLU(inplace=True)) if released else up)
            self.decoder.append(double_conv(kept + narrow, narrow, pad, norm))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        initialise(self)
        initialise_rest(self)

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        return {"classifier": ClassRows()}

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W).

        Unpadded, those of training are of the central window.
        """
        x = model_input(batch, self.preprocess)
        if not self.margin:
            return {"logits": self.network(x)}
        if self.training:
            return {"logits": self.tile(x)}
        height, width = x.shape[-2:]
        around = mirrored(x, -self.margin, -self.margin, valid_side(height), valid_side(width))
        return {"logits": self.network(around)[..., :height, :width]}

    def tile(self, batch: Batch | Tensor) -> Tensor:
        """Return logits (B, K, H - 184, W - 184) of the central window: nothing is mirrored.

        Errors: UserError unless sides are 16k + 60.
        """
        x = model_input(batch, self.preprocess)
        check_sides(x.shape[-2], x.shape[-1])
        return self.network(x)

    def network(self, x: Tensor) -> Tensor:
        """Return logits (B, K, h, w) of the input's size, unpadded 92 less on each side."""
        levels = []
        for level, convs in enumerate(self.backbone):
            # ceil_mode: of an odd side, the last pixel is its own pool.
            x = convs(F.max_pool2d(x, 2, ceil_mode=True) if level else x)
            if level >= DEPTH - 1:
                x = self.dropout(x)
            levels.append(x)
        x = levels.pop()
        for up, convs in zip(self.up, self.decoder, strict=True):
            # The up-sampled map comes first: the authors' channel order.
            x = convs(torch.cat(fitted(up(x), levels.pop()), dim=1))
        return self.classifier(x)


def double_conv(inputs: int, outputs: int, pad: int, norm: str) -> nn.Sequential:
    """Return twice a 3x3 convolution (with a bias where no norm follows), norm, ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        conv = nn.Conv2d(channels, outputs, 3, padding=pad, bias=norm == "none")
        layers += [
            conv,
            *([] if norm == "none" else [norm_factory(norm)(outputs)]),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def fitted(x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps at the smaller of their sizes.

    Padded, `x` is cut: doubling an odd side that was rounded up gives one row too many. Unpadded,
    the skip is cut to its middle.
    """
    x = x[..., : skip.shape[-2], : skip.shape[-1]]
    height, width = x.shape[-2:]
    top = (skip.shape[-2] - height) // 2
    left = (skip.shape[-1] - width) // 2
    return x, skip[..., top : top + height, left : left + width]


def initialise_rest(model: nn.Module) -> None:
    """Draw up-convolutions with deviation sqrt(2 / N), set biases to 0 (section 3.1)."""
    for layer in model.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            # The kernels of stride 2 do not overlap, so N is just the channels.
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_channels))
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def valid_side(output: int) -> int:
    """Return the smallest input side 16k + 60 whose output side 16k - 124 is at least `output`."""
    return max(SMALLEST_SIDE, 16 * math.ceil((output + 2 * MARGIN - 60) / 16) + 60)


def check_sides(height: int, width: int) -> None:
    """Raise UserError unless both sides are 16k + 60 and at least 188."""

    def nearest(side: int) -> tuple[int, ...]:
        below = 16 * ((side - 60) // 16) + 60
        if below < SMALLEST_SIDE:
            return (SMALLEST_SIDE,)
        return (side,) if below == side else (below, below + 16)

    if nearest(height) != (height,) or nearest(width) != (width,):
        high, wide = (" or ".join(map(str, nearest(side))) for side in (height, width))
        raise UserError(
            f"padding=valid takes sides of 16k + 60 pixels, not {height} x {width}: set "
            f"dataset.crop to [{high}, {wide}]"
        )


def check_settings(in_channels: int, padding: str, width: int, dropout: float) -> None:
    """Raise UserError for values that no network can be made from."""
    if in_channels not in (1, 3):
        raise UserError(f"model.in_channels={in_channels}: use 1 (grey) or 3 (RGB)")
    if padding not in ("same", "valid"):
        raise UserError(f"model.padding={padding}: use same or valid (the paper's)")
    if width < 1:
        raise UserError(
            f"model.width={width}: give the channels of the first level, at least 1 (the paper's: "
            f"64)"
        )
    if not 0 <= dropout < 1:
        raise UserError(f"model.dropout={dropout}: a probability from 0 to below 1")
