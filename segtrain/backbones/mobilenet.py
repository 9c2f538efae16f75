"""MobileNet-v2 (Sandler et al., CVPR 2018, arXiv:1801.04381) with dilated late blocks.

Names within a block, initial values and results are those of torchvision, whose weights load. Its
last convolution, 1280 wide, belongs to the classifier and is left out, as in DeepLab.

Where the output stride asks for it, a block loses its stride, and the blocks *behind* it are
dilated instead, as in TensorFlow's DeepLab, whose published weights were trained so. (A ResNet of
pattern "uniform" dilates the block that lost its stride, too.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor, nn

from segtrain.backbones.classifier import check_imagenet, start
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.depthwise import Depthwise
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import goes_with, preprocess
from segtrain.weights import backbone_file, mobilenets
from segtrain.weights.family import renamed
from segtrain.weights.torchvision_weights import download

NAMES = ("mobilenet_v2",)
STEM_WIDTH = 32


class Group(NamedTuple):
    """Blocks of one width, of which the first has the stride (a row of the paper's table 2)."""

    expansion: int
    width: int
    blocks: int
    stride: int


STEM = Group(1, 16, 1, 1)
# A stage begins with its stride; its last map is one of the four that the network gives.
STAGES = (
    (Group(6, 24, 2, 2),),
    (Group(6, 32, 3, 2),),
    (Group(6, 64, 4, 2), Group(6, 96, 3, 1)),
    (Group(6, 160, 3, 2), Group(6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, narrow: `(B, inputs, H, W) -> (B, width, h, w)`.

    It is 1x1 to `expansion` times the inputs (none for 1), norm, ReLU6, depthwise 3x3 with the
    stride, norm, ReLU6, and 1x1 to `width` with norm and no activation. h is ceil(H / stride). The
    input is added where stride and width leave it as it is.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        expansion: int,
        stride: int,
        dilation: int,
        adds: bool,
        make_norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.adds = adds
        inner = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers.append(
                with_norm_relu6(nn.Conv2d(inputs, inner, 1, bias=False), make_norm(inner))
            )
        layers.append(with_norm_relu6(Depthwise(inner, dilation, stride), make_norm(inner)))
        self.conv = nn.Sequential(*layers, nn.Conv2d(inner, width, 1, bias=False), make_norm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolutions make of the input, and where it `adds`, their sum."""
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """Give the outputs of the four stages: `(B, 3, H, W) -> [c2, c3, c4, c5]`.

    c(i) is 24, 32, 96 and 320 wide (`channels[i - 2]`) at stride `strides[i - 2]`, without an
    activation. Odd sizes round up: stride s gives ceil(H / s). It pads alike on all sides;
    TensorFlow's SAME does so on odd sizes only (513).

    output_stride  32, 16 or 8: the first block of the last, or of the last two, stages does not
                   stride, and the depthwise convolutions behind it are dilated. The weights are the
                   same.
    weights        "imagenet" is torchvision's IMAGENET1K_V1, a path a published file; both need
                   norm "batch" or "frozen". `preprocess` is what those weights were trained with.
    momentum       PyTorch's, which is 1 - decay.

    Raises UserError for a value that is not offered and for weights that cannot be had.
    """

    def __init__(
        self,
        name: str = "mobilenet_v2",
        output_stride: Literal[8, 16, 32] = 32,
        norm: Literal["batch", "group", "frozen", "none"] = "batch",
        weights: Literal["imagenet"] | Path | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        named, file = backbone_file.split(weights)
        check_arguments(name, output_stride, norm, named)
        make_norm = norm_factory(norm, momentum)
        stem = nn.Conv2d(3, STEM_WIDTH, 3, 2, 1, bias=False)
        inputs = STEM.width
        first = make_stage(STEM_WIDTH, (STEM,), False, 1, make_norm)
        self.stem = nn.Sequential(with_norm_relu6(stem, make_norm(STEM_WIDTH)), *first)
        self.stages = nn.ModuleList()
        dilation = 1
        for groups, stride in zip(STAGES, (4, 8, 16, 32), strict=True):
            dense = stride > output_stride
            self.stages.append(make_stage(inputs, groups, dense, dilation, make_norm))
            # A stride that is denied here becomes dilation from the next block on.
            dilation *= 2 if dense else 1
            inputs = groups[-1].width
        self.channels = [groups[-1].width for groups in STAGES]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        self.preprocess = preprocess(goes_with("mobilenet", named))
        start(self)
        if named is not None:
            self.load_state_dict(from_torchvision(download(name)))
        if file is not None:
            self.preprocess = preprocess(backbone_file.fill(self, file, name=name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of each stage, fine to coarse."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def with_norm_relu6(conv: nn.Conv2d, norm: nn.Module) -> nn.Sequential:
    """Return the convolution, its normalisation, and a ReLU cut off at 6."""
    return nn.Sequential(conv, norm, nn.ReLU6(inplace=True))


def make_stage(
    inputs: int,
    groups: tuple[Group, ...],
    dense: bool,
    dilation: int,
    make_norm: Callable[[int], nn.Module],
) -> nn.Sequential:
    """Return the blocks of `groups`, the first of which reads `inputs` channels.

    It is dilated by `dilation`, and so are the others. A `dense` stage does not stride: all but its
    first block are dilated twice as much.
    """
    blocks: list[nn.Module] = []
    for expansion, width, count, stride in groups:
        for number in range(count):
            own = stride if number == 0 else 1
            adds = own == 1 and inputs == width
            rate = dilation * 2 if dense and blocks else dilation
            step = 1 if dense else own
            blocks.append(InvertedResidual(inputs, width, expansion, step, rate, adds, make_norm))
            inputs = width
    return nn.Sequential(*blocks)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's state dict under our names, without its classifier."""
    names = {key: renamed(key, mobilenets.NAMES) for key in state}
    return {name.removeprefix("backbone."): state[key] for key, name in names.items() if name}


def check_arguments(name: str, output_stride: int, norm: str, weights: str | None) -> None:
    """Raise UserError with the way out for a combination that is not offered."""
    if name not in NAMES:
        near = did_you_mean(name, NAMES)
        raise UserError(f"backbone `{name}` is unknown.{near} Known: {', '.join(NAMES)}")
    if output_stride not in (8, 16, 32):
        raise UserError(f"output_stride={output_stride}: a MobileNet-v2 offers 8, 16 and 32")
    check_imagenet(name, weights, norm)
