"""ResNets (He et al., CVPR 2016, arXiv:1512.03385) with dilated late stages.

Names, initial values and results are those of torchvision, whose weights load. Its blocks are
written here once more because importing torchvision takes seconds.

Where the output stride asks for it, a stage loses its stride and its 3x3 convolutions are dilated.
Two patterns are in use, with the same weights and different results:

pattern "uniform"  *every* 3x3 of the stage, the first block included (PSPNet, DeepLab v2; those of
                   v3 and v3+ are the same)
pattern "delayed"  the first block keeps the dilation of the stage before (EncNet; torchvision's
                   replace_stride_with_dilation)

And seven layouts:

style "torchvision"  7x7 stem, a stage's stride sits in the 3x3 of its first block
style "deep"         three 3x3 as stem (64, 64, 128 wide), else the same (PSPNet, EncNet)
style "deep32"       the same, half as wide: 32, 32, 64 (OpenMMLab's ResNetV1c)
style "msra"         7x7 stem, the stride sits in the first 1x1 (Detectron's and detectron2's Mask
                     R-CNN, but for their ResNeXts; PANet's release)
style "deep_msra"    three 3x3 as stem, the stride sits in the first 1x1 (PSPNet's ResNet-50 of its
                     Caffe release)
style "caffe"        as "msra" with a max-pool that rounds up, as Caffe does (DeepLab v2)
style "tensorflow"   three 3x3 as stem, the stride sits in the last block of the stage before (the
                     beta variants of TensorFlow's DeepLab): the first three maps are half as large

Which block strides changes neither dilations nor the last map's size. So DeepLab v3 and v3+ are
here on torchvision's layout, whose weights exist.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from segtrain.backbones.classifier import check_imagenet, start
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import goes_with, preprocess
from segtrain.weights import backbone_file, resnets
from segtrain.weights.family import renamed
from segtrain.weights.torchvision_weights import download

STYLES = ("torchvision", "deep", "deep32", "deep_msra", "caffe", "msra", "tensorflow")
Style = Literal["torchvision", "deep", "deep32", "deep_msra", "caffe", "msra", "tensorflow"]
# Channels behind each of the three 3x3 of a stem.
DEEP_STEMS = {
    "deep": (64, 64, 128),
    "deep_msra": (64, 64, 128),
    "tensorflow": (64, 64, 128),
    "deep32": (32, 32, 64),
}
PATTERNS = ("uniform", "delayed")
STAGE_WIDTHS = (64, 128, 256, 512)  # of the 3x3 of a block; its output is `expansion` times that
IMAGENET_CLASSES = 1000

MakeNorm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Add two 3x3 convolutions with norm to their input: `(B, inputs, H, W) -> (B, width, h, w)`.

    The first one has the stride. `downsample` brings the input to the size of the sum, None leaves
    it as it is. A basic block has no groups.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        make_norm: MakeNorm,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        assert (groups, width_per_group) == (1, 64)
        self.channels = width
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = make_norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3)
        self.bn2 = make_norm(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of the input and what the convolutions make of it."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """Add 1x1, 3x3 and 1x1 with norm to their input: `(B, inputs, H, W) -> (B, 4 * width, h, w)`.

    The 3x3 has the stride, as in torchvision; the paper has it in the first 1x1 (`stride_first`).
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        make_norm: MakeNorm,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        inner = int(width * (width_per_group / 64)) * groups
        self.channels = width * self.expansion
        self.conv1 = conv(inputs, inner, 1)
        self.bn1 = make_norm(inner)
        self.conv2 = conv(inner, inner, 3, stride, groups)
        self.bn2 = make_norm(inner)
        self.conv3 = conv(inner, self.channels, 1)
        self.bn3 = make_norm(self.channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified sum of the input and what the convolutions make of it."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


Block = BasicBlock | Bottleneck


class Shape(NamedTuple):
    """What makes one ResNet another than the next."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]  # blocks of each stage
    groups: int = 1
    width_per_group: int = 64


SHAPES = {
    "resnet18": Shape(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Shape(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Shape(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Shape(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Shape(Bottleneck, (3, 8, 36, 3)),
    "resnext101_32x8d": Shape(Bottleneck, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": Shape(Bottleneck, (3, 4, 23, 3), 64, 4),
}


class ResNet(nn.Module):
    """Give the outputs of the four stages: `(B, 3, H, W) -> [c2, c3, c4, c5]`.

    c(i) is `channels[i - 2]` wide at stride `strides[i - 2]`. Odd sizes round up: stride s gives
    ceil(H / s). Style "caffe" gives one row more at stride 4 where ceil(H / 2) is even.

    output_stride  32, 16 or 8: the last, or the last two, stages are dilated instead of striding.
    multi_grid     factors on the dilations of the last stage's blocks: its first n entries for n
                   blocks. Blocks beyond the list keep the plain dilation.
    weights        "imagenet" is torchvision's IMAGENET1K_V1, for style="torchvision"; a path is a
                   published file of this name and style (weights/families.py). Both need norm
                   "batch" or "frozen". `preprocess` is what those weights were trained with.
    momentum       PyTorch's, which is 1 - decay.

    Raises UserError for a value that is not offered and for weights that cannot be had.
    """

    def __init__(
        self,
        name: str,
        output_stride: Literal[8, 16, 32] = 32,
        multi_grid: list[int] | None = None,
        norm: Literal["batch", "group", "frozen", "none"] = "batch",
        weights: Literal["imagenet"] | Path | None = None,
        momentum: float = 0.1,
        style: Style = "torchvision",
        pattern: Literal["uniform", "delayed"] = "uniform",
    ) -> None:
        super().__init__()
        named, file = backbone_file.split(weights)
        check_arguments(name, output_stride, norm, named, style, pattern)
        make_norm = norm_factory(norm, momentum)
        shape = SHAPES[name]
        pool = nn.MaxPool2d(3, 2, 1, ceil_mode=style == "caffe")
        stem = [conv(3, 64, 7, 2), make_norm(64), nn.ReLU(inplace=True)]
        stages = [make_stage(shape, index, make_norm) for index in range(4)]
        self.stem = nn.Sequential(*stem, pool)
        self.stages = nn.ModuleList(stages)
        self.channels = [width * shape.block.expansion for width in STAGE_WIDTHS]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        self.preprocess = preprocess(goes_with("resnet", named))
        # torchvision makes its classifier before it initialises the convolutions. That takes random
        # numbers: without them, a seed would start another network than it always has.
        nn.Linear(self.channels[-1], IMAGENET_CLASSES)
        start(self)
        if named is not None:
            self.load_state_dict(from_torchvision(download(name)))
        if style in DEEP_STEMS:
            widths = DEEP_STEMS[style]
            self.stem, self.stages[0] = deep_start(shape, make_norm, pool, widths)
        if style in ("caffe", "msra", "deep_msra"):
            for stage in stages[1:]:
                stride_first(stage)
        self.dilate_stages(output_stride, multi_grid or [], pattern)
        if style == "tensorflow":
            stride_last(self.stages)
            self.strides = [*self.strides[1:], self.strides[-1]]
        if file is not None:
            self.preprocess = preprocess(backbone_file.fill(self, file, name=name, style=style))

    def dilate_stages(
        self,
        output_stride: int,
        multi_grid: list[int],
        pattern: Literal["uniform", "delayed"],
    ) -> None:
        """Take the strides beyond `output_stride` away and dilate instead."""
        for index, (stride, before) in enumerate(((4, 4), (8, 4), (16, 8), (32, 16))):
            stage = self.stages[index]
            assert isinstance(stage, nn.Sequential)
            dilation = max(stride // output_stride, 1)
            factors = multi_grid[: len(stage)] if index == 3 else []
            factors = factors + [1] * (len(stage) - len(factors))
            dilations = [dilation * factor for factor in factors]
            first = dilations[0]
            if pattern == "delayed":
                first = factors[0] * max(before // output_stride, 1)
            if max(dilations) > 1:
                dilate(stage, dilations, first, keep_stride=dilation == 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of each stage, fine to coarse."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size, up to its stride."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def make_stage(
    shape: Shape, index: int, make_norm: MakeNorm, first_inputs: int = 64
) -> nn.Sequential:
    """Return stage `index` (0 to 3), whose first block strides by 2 in all stages but the first.

    `first_inputs` are the channels that the stem gives to stage 0.
    """
    expansion = shape.block.expansion
    width = STAGE_WIDTHS[index]
    outputs = width * expansion
    inputs = first_inputs if index == 0 else STAGE_WIDTHS[index - 1] * expansion
    stride = 1 if index == 0 else 2
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(conv(inputs, outputs, 1, stride), make_norm(outputs))
    groups = (shape.groups, shape.width_per_group)
    blocks = [shape.block(inputs, width, make_norm, stride, downsample, *groups)]
    blocks += [
        shape.block(outputs, width, make_norm, 1, None, *groups)
        for _ in range(1, shape.depths[index])
    ]
    return nn.Sequential(*blocks)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's state dict under our names, without its classifier."""
    names = resnets.names(to="")
    return {
        renamed(key, names) or key: value
        for key, value in state.items()
        if not key.startswith("fc.")
    }


def deep_start(
    shape: Shape, make_norm: MakeNorm, pool: nn.Module, widths: tuple[int, int, int]
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return (stem, first stage): three 3x3 to `widths`, the first of stride 2; what reads them."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, stride in zip(widths, (2, 1, 1), strict=True):
        layers += [conv(inputs, outputs, 3, stride), make_norm(outputs), nn.ReLU(inplace=True)]
        inputs = outputs
    stage = make_stage(shape, 0, make_norm, first_inputs=inputs)
    convolutions = nn.Sequential(*layers[:-2])
    start(convolutions)
    start(stage)
    return nn.Sequential(convolutions, *layers[-2:], pool), stage


def stride_first(stage: nn.Sequential) -> None:
    """Move the stride of a stage from the 3x3 of its first block to the first 1x1.

    A basic block has no 1x1 and stays.
    """
    block = stage[0]
    if isinstance(block, Bottleneck):
        block.conv1.stride = block.conv2.stride
        block.conv2.stride = (1, 1)


def stride_last(stages: nn.ModuleList) -> None:
    """Move the stride of each stage from its first block to the last one of the stage before.

    There the shortcut takes every second value.
    """
    for before, stage in pairwise(stages):
        assert isinstance(before, nn.Sequential)
        assert isinstance(stage, nn.Sequential)
        first = stage[0]
        last = before[-1]
        assert isinstance(first, Bottleneck)
        assert isinstance(last, Bottleneck)
        if first.conv2.stride == (1, 1):
            continue  # the output stride took it away
        assert isinstance(first.downsample, nn.Sequential)
        shortcut = first.downsample[0]
        assert isinstance(shortcut, nn.Conv2d)
        last.conv2.stride = first.conv2.stride
        last.downsample = nn.MaxPool2d(1, 2)
        first.conv2.stride = shortcut.stride = (1, 1)


def dilate(stage: nn.Sequential, dilations: list[int], first: int, keep_stride: bool) -> None:
    """Dilate the 3x3 convolutions of block i by `dilations[i]`, the very first one by `first`.

    Without `keep_stride` the stage strides no more.
    """
    for index, (block, dilation) in enumerate(zip(stage, dilations, strict=True)):
        convs = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
        for layer in convs if not keep_stride else ():
            layer.stride = (1, 1)
        wide = [layer for layer in convs if layer.kernel_size == (3, 3)]
        for position, layer in enumerate(wide):
            own = first if index == position == 0 else dilation
            layer.dilation = (own, own)
            layer.padding = (own, own)


def check_arguments(
    name: str, output_stride: int, norm: str, weights: str | None, style: str, pattern: str
) -> None:
    """Raise UserError with the way out for a combination that is not offered."""
    if name not in SHAPES:
        near = did_you_mean(name, SHAPES)
        raise UserError(f"backbone `{name}` is unknown.{near} Known: {', '.join(SHAPES)}")
    if output_stride not in (8, 16, 32):
        raise UserError(f"output_stride={output_stride}: a ResNet offers 8, 16 and 32")
    if style not in STYLES:
        near = did_you_mean(style, STYLES)
        raise UserError(f"style={style} is unknown.{near} Known: {', '.join(STYLES)}")
    if pattern not in PATTERNS:
        near = did_you_mean(pattern, PATTERNS)
        raise UserError(f"pattern={pattern} is unknown.{near} Known: {', '.join(PATTERNS)}")
    if style == "tensorflow" and SHAPES[name].block is not Bottleneck:
        raise UserError(f"style=tensorflow: {name} has no such weights; use resnet50 or resnet101")
    check_imagenet(name, weights, norm)
    if weights is not None and style != "torchvision":
        raise UserError(
            f"weights={weights} are torchvision's, which do not fit a {style} ResNet: use "
            f"style=torchvision, or weights=null (and train.init=FILE for weights of your own)"
        )
