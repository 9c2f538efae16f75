"""ParseNet (Liu, Rabinovich and Berg, 2015, arXiv:1506.04579).

It is LargeFOV and what the whole image looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.backbones.large_fov import WIDTH, large_fov
from segtrain.backbones.vgg import VGG
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.blocks import classifier, model_input, resize
from segtrain.layers.preprocess import Input, chosen
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

FC6_DILATION = 12
STRIDE = 8  # input pixels per cell of fc7
SQUARED_NORM_EPS = 1e-10  # added, so that a position of zeros divides by no zero
FUSIONS = ("late", "early", "none")
L2 = ("learned", "fixed", "none")


class ParseNet(SegmentationModel):
    """Join fc7 of a dilated VGG, at every location, with its mean over the image (figure 1).

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size. The mean covers
    `batch.sizes`: cells of a batch's padding do not count, but an augmented crop counts as a whole,
    and so does a tensor. Both features are divided by their L2 norm over the channels, at each
    location, and scaled per channel.

    fusion   "late": a classifier each, scores added; "early": concatenated, one classifier (equal
             functions); "none": without the context, the LargeFOV baseline.
    l2       "learned": scales that start at `initial_scale` and train; "fixed" ones; "none":
             features as they are.
    norm     "none" (the paper), or "batch" after every convolution, which trains from scratch.
    weights  "imagenet" (torchvision's, fc6 and fc7 subsampled) or "features" (convolutions of the
             authors' Caffe model).
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal["vgg11", "vgg13", "vgg16"] = "vgg16",
        norm: Literal["none", "batch"] = "none",
        weights: Literal["imagenet", "features"] | Path | None = None,
        fusion: Literal["late", "early", "none"] = "late",
        l2: Literal["learned", "fixed", "none"] = "learned",
        initial_scale: float = 10.0,
        dropout: float = 0.5,
        input: Input = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("fusion", fusion, FUSIONS), ("l2", l2, L2)):
            if value not in known:
                near = did_you_mean(value, known)
                raise UserError(f"{name}={value} is unknown.{near} Known: {', '.join(known)}")
        self.backbone = VGG(backbone, norm, weights, layout="largefov")
        self.preprocess = chosen(input, self.backbone.preprocess)
        (self.fc,) = large_fov(backbone, norm, weights, [FC6_DILATION], dropout)
        self.fusion = fusion
        scaled = l2 != "none" and fusion != "none"
        self.local_norm = L2Norm(WIDTH, initial_scale, l2 == "learned") if scaled else nn.Identity()
        self.context_norm = (
            L2Norm(WIDTH, initial_scale, l2 == "learned") if scaled else nn.Identity()
        )
        self.classifier = classifier(WIDTH * 2 if fusion == "early" else WIDTH, num_classes)
        self.context_classifier = classifier(WIDTH, num_classes) if fusion == "late" else None

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        late = [] if self.context_classifier is None else ["context_classifier"]
        return dict.fromkeys(["classifier", *late], ClassRows())

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield all that ImageNet trained, so fc6 and fc7 too: they get the backbone's factor."""
        return chain(self.backbone.parameters(), self.fc.parameters())

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) at the input's size."""
        x = model_input(batch, self.preprocess)
        fc7 = self.fc(self.backbone(x)[-1])
        if self.fusion == "none":
            return {"logits": resize(self.classifier(fc7), x, align_corners=True)}
        context = self.context_norm(
            image_mean(fc7, batch.sizes if isinstance(batch, Batch) else None)
        )
        fc7 = self.local_norm(fc7)
        if self.context_classifier is None:
            scores = self.classifier(torch.cat([fc7, context.to(fc7.dtype).expand_as(fc7)], dim=1))
        else:
            # The context is repeated behind its classifier: a 1x1 gives the same scores either way.
            scores = self.classifier(fc7) + self.context_classifier(context)
        return {"logits": resize(scores, x, align_corners=True)}


class L2Norm(nn.Module):
    """Scale each location to a norm of its own: scale[c] * x / sqrt(sum_c x^2 + 1e-10).

    `(B, C, H, W) -> (B, C, H, W)` fp32 (section 3.3).
    """

    def __init__(self, channels: int, initial_scale: float = 10.0, learned: bool = True) -> None:
        super().__init__()
        self.scale: Tensor
        values = torch.full((channels,), float(initial_scale))
        if learned:
            self.scale = nn.Parameter(values)
        else:
            self.register_buffer("scale", values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled map."""
        x = x.float()  # a square in bf16 keeps 8 bits, in fp16 it overflows at 256
        return (
            x
            * (x.square().sum(1, keepdim=True) + SQUARED_NORM_EPS).rsqrt()
            * self.scale.view(1, -1, 1, 1)
        )


def image_mean(x: Tensor, sizes: Tensor | None) -> Tensor:
    """Return the mean (B, C, 1, 1) over each image without its padding.

    `x` (B, C, h, w) is at stride 8, `sizes` (B, 2) are in pixels; None counts every cell.
    """
    x = x.float()
    if sizes is None:
        return x.mean((2, 3), keepdim=True)
    cells = (sizes + STRIDE - 1) // STRIDE  # cell i looks at pixel 8i: real where that pixel is
    rows = torch.arange(x.shape[2], device=x.device) < cells[:, :1]
    columns = torch.arange(x.shape[3], device=x.device) < cells[:, 1:]
    real = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
    return (x * real).sum((2, 3), keepdim=True) / (cells[:, 0] * cells[:, 1]).view(-1, 1, 1, 1)
