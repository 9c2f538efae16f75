"""DeepLabv3 (Chen et al., 2017, arXiv:1706.05587) on a ResNet or a MobileNet-v2.

Its dilated convolutions stand side by side (ASPP) or in cascade.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from segtrain.backbones.resnet import BasicBlock, Bottleneck, dilate
from segtrain.backbones.staged import make_staged
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.aspp import ASPP, DILATIONS, aspp_dilations, check_aspp
from segtrain.layers.blocks import (
    classifier,
    conv_norm_relu,
    fcn_head,
    initialise,
    model_input,
    resize,
    set_momentum,
)
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import Input, chosen
from segtrain.models.base import SegmentationModel
from segtrain.structures.class_rows import ClassRows
from segtrain.structures.samples import Batch

WIDTH = 256
MULTI_GRID = {"aspp": [1, 2, 4], "cascade": [1, 2, 1]}  # tables 5 and 3


class DeepLabV3(SegmentationModel):
    """See an image at several scales by convolutions of several dilations.

    `forward(batch)` gives "logits" (B, num_classes, H, W) at the input's size and, in training with
    `aux`, "aux" of the same shape.

    variant        "aspp" (section 3.3): a 1x1, a 3x3 per dilation, the image's mean, joined by 1x1
                   to 256. "cascade" (section 3.2): copies of the last stage, "block4", as block5 to
                   block`blocks`, each dilated twice as much as the one before.
    head           "paper", or "torchvision": one 3x3 more before the classifier, dropout 0.5
                   instead of 0.1, dilations that grow from a stage's second block on (pattern
                   "delayed"), corners not aligned. Weights of one are not the other's.
    pattern        of the ResNet's dilations, see backbones/resnet.py; None: what goes with `head`.
    output_stride  8, 16 or 32, with a cascade also 64, 128 and 256, which block5, 6 and 7 reach
                   with strides (table 1). It may differ between training and evaluation: the
                   weights are the same, all dilations follow.
    multi_grid     factors on the dilations of a block's units, in block4 to block7; None: the best
                   of the paper's, (1, 2, 4) with ASPP and (1, 2, 1) in cascade, and none with
                   torchvision's head or a MobileNet-v2.
    dilations      of ASPP, at output stride 16; None: 6, 12, 18. At output stride 8 they are twice
                   as large. []: none but the 1x1 and the image's mean, as in TensorFlow's releases
                   on a MobileNet-v2.
    relu6          cuts off at 6 what is activated behind the backbone, as TensorFlow's 8-bit
                   releases do.
    image_pooling  the branch with the image's mean. It needs `min_train_batch` = 2 images in
                   training with norm="batch".
    norm           of all parts. "frozen", for a second stage of training, keeps the statistics of
                   train.init; from scratch it is none at all.
    momentum       PyTorch's, of every batch norm: 0.0003 is the paper's decay of 0.9997, for 30,000
                   steps.
    backbone_momentum  of the backbone's, where it is another: 0.05 for a ResNet in the authors'
                   release, which keeps the paper's decay in the head alone. The paper speaks of
                   one decay.
    aux            an FCN head on the third stage (torchvision's; the paper has none).
    style          a ResNet's layout, see `ResNet`: "caffe" in kazuto1011's deeplab-pytorch,
                   "tensorflow" in the authors' beta variants.
    align_corners  of the resize to the input's size; None: as the head's release.
    aspp_width, project_kernel   channels of ASPP's branches, and the size of the convolution that
                   joins them: 512 and 3 in mmsegmentation.

    The blocks of a cascade start from noise, block4 and those before from `weights`.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Literal[
            "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2"
        ] = "resnet101",
        variant: Literal["aspp", "cascade"] = "aspp",
        head: Literal["paper", "torchvision"] = "paper",
        output_stride: Literal[8, 16, 32, 64, 128, 256] = 16,
        multi_grid: list[int] | None = None,
        dilations: list[int] | None = None,
        image_pooling: bool = True,
        blocks: Literal[4, 5, 6, 7] = 7,
        norm: Literal["batch", "group", "frozen"] = "batch",
        momentum: float = 0.1,
        weights: Literal["imagenet"] | Path | None = None,
        aux: bool = False,
        relu6: bool = False,
        input: Input = None,
        pattern: Literal["uniform", "delayed"] | None = None,
        style: Literal["torchvision", "deep", "deep32", "caffe", "tensorflow"] = "torchvision",
        align_corners: bool | None = None,
        aspp_width: int = WIDTH,
        project_kernel: Literal[1, 3] = 1,
        backbone_momentum: float | None = None,
    ) -> None:
        super().__init__()
        check_arguments(backbone, variant, head, output_stride, blocks, pattern)
        check_aspp(aspp_width, project_kernel)
        foreign = head == "torchvision"
        if multi_grid is None and not backbone.startswith("mobilenet"):
            multi_grid = [1] if foreign else MULTI_GRID[variant]
        stride = output_stride if output_stride == 8 or output_stride == 16 else 32
        if pattern is None:
            pattern = "delayed" if foreign else "uniform"
        self.backbone = make_staged(backbone, stride, multi_grid, norm, weights, style, pattern)
        self.preprocess = chosen(input, self.backbone.preprocess)
        self.align_corners = not foreign if align_corners is None else align_corners
        *_, middle, deep = self.backbone.channels
        if variant == "aspp":
            own = DILATIONS if dilations is None else dilations
            scaled = aspp_dilations(output_stride, own)
            dropout = 0.5 if foreign else 0.1
            self.context: nn.Module = ASPP(
                deep, scaled, aspp_width, False, norm, dropout, image_pooling, project_kernel
            )
            deep = aspp_width
        else:
            stages = [
                more_of(self.backbone.stages[3], n, output_stride, multi_grid or [], norm)
                for n in range(5, blocks + 1)
            ]
            self.context = nn.Sequential(*stages)
        self.refine = conv_norm_relu(deep, deep, 3, norm=norm) if foreign else nn.Identity()
        self.classifier = classifier(deep, num_classes)
        self.aux = fcn_head(middle, num_classes, norm) if aux else None
        initialise(self.context, self.refine)
        set_momentum(self, momentum)
        if backbone_momentum is not None:
            set_momentum(self.backbone, backbone_momentum)
        if relu6:
            bound(self.context, self.refine)

    @property
    def min_train_batch(self) -> int:
        """Return how many images one process needs in a training batch."""
        return self.context.min_train_batch if isinstance(self.context, ASPP) else 1

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
        *_, middle, deep = self.backbone(x)
        logits = self.classifier(self.refine(self.context(deep)))
        output = {"logits": resize(logits, x, self.align_corners)}
        if self.aux is not None and self.training:
            output["aux"] = resize(self.aux(middle), x, self.align_corners)
        return output


def bound(*parts: nn.Module) -> None:
    """Cut every ReLU of `parts` off at 6."""
    for layer in [layer for part in parts for layer in part.modules()]:
        for name, child in layer.named_children():
            if type(child) is nn.ReLU:
                layer.register_module(name, nn.ReLU6(inplace=True))


def more_of(
    stage: nn.Module, number: int, output_stride: int, multi_grid: list[int], norm: str
) -> nn.Sequential:
    """Return block`number` (5, 6 or 7), with as many units as `stage` has, all shortcuts plain.

    It maps the stage's channels to the stage's channels. Its own output stride would be 2^number x
    2. What `output_stride` denies it of that becomes dilation: at 16, the units of block5, 6, 7 are
    dilated by 4, 8, 16 (block4: 2), times their entry of `multi_grid`.
    """
    assert isinstance(stage, nn.Sequential)
    first = stage[0]
    assert isinstance(first, (BasicBlock, Bottleneck))
    own = 2 ** (number + 1)
    stride = 2 if own <= output_stride else 1
    dilation = max(own // output_stride, 1)
    make_norm = norm_factory(norm)
    units = []
    for index in range(len(stage)):
        step = stride if index == 0 else 1
        shortcut = nn.MaxPool2d(1, step) if step > 1 else None  # takes every second value
        width = first.conv1.out_channels
        units.append(type(first)(first.channels, width, make_norm, step, shortcut))
    block = nn.Sequential(*units)
    factors = [*multi_grid, *[1] * len(units)][: len(units)]
    dilate(
        block, [dilation * factor for factor in factors], dilation * factors[0], keep_stride=True
    )
    return block


def check_arguments(
    backbone: str,
    variant: str,
    head: str,
    output_stride: int,
    blocks: int,
    pattern: str | None,
) -> None:
    """Raise UserError with the way out for a combination that is not offered."""
    for name, value, known in (
        ("variant", variant, ("aspp", "cascade")),
        ("head", head, ("paper", "torchvision")),
    ):
        if value not in known:
            near = did_you_mean(value, known)
            raise UserError(f"{name}={value} is unknown.{near} Known: {', '.join(known)}")
    if blocks not in (4, 5, 6, 7):
        raise UserError(
            f"blocks={blocks}: the number of the cascade's last block, 4 (no copy) to 7"
        )
    if variant == "cascade" and backbone.startswith("mobilenet"):
        raise UserError(
            f"variant=cascade copies a ResNet's blocks: set model.variant=aspp for {backbone}"
        )
    if variant == "cascade" and head == "torchvision":
        raise UserError(
            "head=torchvision belongs to variant=aspp: set model.head=paper for a cascade"
        )
    if pattern is not None and backbone.startswith("mobilenet"):
        raise UserError(
            f"pattern={pattern} belongs to a ResNet: set model.pattern=null for {backbone}"
        )
    if variant == "cascade" and pattern == "delayed":
        raise UserError(
            "pattern=delayed belongs to variant=aspp: set model.pattern=uniform for a cascade"
        )
    strides = [2**n for n in range(3, 6 if variant == "aspp" else blocks + 2)]
    if output_stride not in strides:
        cascade = "; 64, 128 and 256 belong to a cascade of 5, 6 and 7 blocks"
        offered = ", ".join(map(str, strides))
        raise UserError(
            f"output_stride={output_stride}: variant={variant} offers {offered}"
            f"{cascade if output_stride in (64, 128, 256) else ''}"
        )
