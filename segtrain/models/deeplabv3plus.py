"""DeepLabv3+ (Chen et al., ECCV 2018, arXiv:1802.02611).

It stands on a ResNet, an aligned Xception or a MobileNet-v2.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from segtrain.backbones.staged import Staged, make_staged
from segtrain.backbones.xception import Xception
from segtrain.errors import UserError
from segtrain.layers.aspp import ASPP, aspp_dilations, check_aspp
from segtrain.layers.blocks import (
    classifier,
    conv3x3,
    conv_norm_relu,
    fcn_head,
    initialise,
    model_input,
    resize,
    set_momentum,
)
from segtrain.layers.preprocess import Input, chosen
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch


class DeepLabV3Plus(SegmentationModel):
    """Sharpen what DeepLabv3 sees by a light decoder at stride 4 (figure 2).

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size and, in training with
    `aux`, "aux" of the same shape.

    backbone          the low-level feature is the first stage of a ResNet, behind its last sum and
                      ReLU (the authors' code takes the last-but-one block's, before both), or of
                      a MobileNet-v2 (their releases on it have no decoder), or what `Xception`
                      gives at stride 4, as theirs does.
    output_stride     may differ between training and evaluation: the weights are the same, the
                      dilations follow.
    separable         makes the 3x3 of ASPP and decoder depthwise separable.
    multi_grid        factors on the dilations of the last stage. None: (1, 2, 4) for a ResNet, none
                      for an Xception (the papers) and a MobileNet-v2, which takes none.
    decoder           widths of the decoder's convolutions; None: two of 256 (table 2).
    decoder_kernel    their size, 3 or 1.
    low_level_width   channels that a 1x1 leaves of the low-level feature (table 1). 0: no decoder,
                      the encoder alone.
    image_pooling     the branch of ASPP with the image's mean, which the paper leaves out on
                      Cityscapes (table 7). With it and norm="batch" a process needs
                      `min_train_batch` = 2 images to train.
    norm, momentum    of all parts; the paper's decay of 0.9997 is a momentum of 0.0003. eps is
                      1e-5, in an Xception 1e-3.
    backbone_momentum  of the backbone's, where it is another: 0.05 for a ResNet in the authors'
                      release, not in the paper.
    aux               adds an FCN head on the third stage; on an Xception, on its feature at stride
                      16.
    activate_depthwise  of an Xception: the paper's ReLU behind every depthwise convolution, not the
                        authors' code.
    pattern           of a ResNet's dilations, see backbones/resnet.py: "uniform", or "delayed" for
                      weights of code that dilates as torchvision does (VainF's, jfzhang95's).
    style             a ResNet's layout, see `ResNet`: "caffe" in kazuto1011's deeplab-pytorch.
    aspp_width        channels of ASPP's branches; 512 in mmsegmentation.
    project_kernel    size of the convolution that joins them; 3 in mmsegmentation.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "resnet18",
            "resnet34",
            "resnet50",
            "resnet101",
            "xception41",
            "xception65",
            "xception71",
            "mobilenet_v2",
        ] = "resnet101",
        output_stride: Literal[8, 16, 32] = 16,
        separable: bool = True,
        multi_grid: list[int] | None = None,
        decoder: list[int] | None = None,
        norm: Literal["batch", "group", "frozen"] = "batch",
        weights: Literal["imagenet"] | Path | None = None,
        aux: bool = False,
        align_corners: bool = True,
        low_level_width: int = 48,
        decoder_kernel: Literal[1, 3] = 3,
        image_pooling: bool = True,
        momentum: float = 0.1,
        activate_depthwise: bool = False,
        input: Input = None,
        pattern: Literal["uniform", "delayed"] = "uniform",
        style: Literal["torchvision", "deep", "deep32", "caffe"] = "torchvision",
        aspp_width: int = 256,
        project_kernel: Literal[1, 3] = 1,
        backbone_momentum: float | None = None,
    ) -> None:
        super().__init__()
        widths = [256, 256] if decoder is None else decoder
        check_arguments(
            backbone, widths, low_level_width, decoder_kernel, activate_depthwise, pattern
        )
        check_style(backbone, style)
        check_aspp(aspp_width, project_kernel)
        self.backbone: Staged | Xception
        if backbone.startswith("xception"):
            self.backbone = Xception(
                backbone,
                output_stride,
                multi_grid,
                norm,
                weights=weights,
                activate_depthwise=activate_depthwise,
            )
        else:
            if multi_grid is None and not backbone.startswith("mobilenet"):
                multi_grid = [1, 2, 4]
            self.backbone = make_staged(
                backbone, output_stride, multi_grid, norm, weights, style, pattern
            )
        self.preprocess = chosen(input, self.backbone.preprocess)
        self.align_corners = align_corners
        low, _, middle, deep = self.backbone.channels
        self.aspp = ASPP(
            deep,
            aspp_dilations(output_stride),
            aspp_width,
            separable,
            norm,
            image_pooling=image_pooling,
            project_kernel=project_kernel,
        )
        self.low_level = self.decoder = None
        if low_level_width > 0:
            self.low_level = conv_norm_relu(low, low_level_width, norm=norm)
            self.decoder = decoder_of(
                [aspp_width + low_level_width, *widths], decoder_kernel, separable, norm
            )
        last = aspp_width if self.decoder is None else widths[-1]
        self.classifier = classifier(last, num_classes)
        self.aux = fcn_head(middle, num_classes, norm) if aux else None
        initialise(
            *(part for part in (self.aspp, self.low_level, self.decoder) if part is not None)
        )
        set_momentum(self, momentum)
        if backbone_momentum is not None:
            set_momentum(self.backbone, backbone_momentum)

    @property
    def min_train_batch(self) -> int:
        """Return how many images one process needs in a training batch."""
        return self.aspp.min_train_batch

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the tensors that `forward` gives in training."""
        return ("logits",) if self.aux is None else ("logits", "aux")

    def class_rows(self) -> dict[str, ClassRows]:
        """Return which layers hold the classes, and how."""
        heads = ["classifier", *([] if self.aux is None else ["aux.2"])]
        return dict.fromkeys(heads, ClassRows())

    def forward(self, batch: Batch | Tensor) -> dict[str, Tensor]:
        """Return "logits" (B, num_classes, H, W) and, in training, what `outputs` names."""
        x = model_input(batch, self.preprocess)
        low, _, middle, deep = self.backbone(x)
        features = self.aspp(deep)
        if self.low_level is not None and self.decoder is not None:
            low = self.low_level(low)
            joined = torch.cat([resize(features, low, self.align_corners), low], dim=1)
            features = self.decoder(joined)
        output = {"logits": resize(self.classifier(features), x, self.align_corners)}
        if self.aux is not None and self.training:
            output["aux"] = resize(self.aux(middle), x, self.align_corners)
        return output


def decoder_of(widths: list[int], kernel: int, separable: bool, norm: str) -> nn.Sequential:
    """Return a convolution with norm and ReLU from each of `widths` to the next.

    `(B, widths[0], H, W) -> (B, widths[-1], H, W)`.
    """
    pairs = list(pairwise(widths))
    if kernel == 1:
        return nn.Sequential(*(conv_norm_relu(a, b, norm=norm) for a, b in pairs))
    return nn.Sequential(*(conv3x3(a, b, 1, separable, norm) for a, b in pairs))


def check_arguments(
    backbone: str,
    decoder: list[int],
    low_level_width: int,
    kernel: int,
    activate_depthwise: bool,
    pattern: str,
) -> None:
    """Raise UserError with the way out for a value that is not offered; backbones check theirs."""
    if not decoder or min(decoder) < 1:
        raise UserError(
            f"decoder={decoder}: one width or more; for the encoder alone set "
            f"model.low_level_width=0"
        )
    if low_level_width < 0:
        raise UserError(
            f"low_level_width={low_level_width}: the channels that the decoder sees, 48, or 0 for "
            f"no decoder"
        )
    if kernel not in (1, 3):
        raise UserError(
            f"decoder_kernel={kernel}: the decoder's convolutions are 3x3 or 1x1: set 3 or 1"
        )
    if activate_depthwise and not backbone.startswith("xception"):
        raise UserError(
            f"activate_depthwise=true belongs to an Xception: set it to false for {backbone}"
        )
    if pattern != "uniform" and not backbone.startswith("resnet"):
        raise UserError(
            f"pattern={pattern} belongs to a ResNet: set model.pattern=uniform for {backbone}"
        )


def check_style(backbone: str, style: str) -> None:
    """Raise UserError for a ResNet's layout on an Xception; `make_staged` checks the others'."""
    if style != "torchvision" and backbone.startswith("xception"):
        raise UserError(
            f"style={style} belongs to a ResNet: set model.style=torchvision for {backbone}"
        )
