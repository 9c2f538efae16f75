"""Aligned Xceptions with dilated late blocks (DeepLabv3+, arXiv:1802.02611, section 3.3, figure 4).

Xception (arXiv:1610.02357) as the MSRA team made it deeper for the COCO challenge of 2017, with
strided separable convolutions in place of its max-pools. A block is three separable convolutions,
the stride in the last; a separable convolution is a depthwise 3x3 and a pointwise 1x1, each with
norm. Two orders of activation are in use:

front    ReLU, depthwise, norm, pointwise, norm          entry flow, middle flow, first block of the
                                                         exit flow
inside   depthwise, norm, ReLU, pointwise, norm, ReLU    last block of the exit flow

By the paper every depthwise convolution has its ReLU; in the authors' released code and weights
only those of the last block do, and so here, unless `activate_depthwise` gives it to all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.errors import UserError, did_you_mean
from segtrain.layers.depthwise import Depthwise
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import goes_with, preprocess
from segtrain.weights import backbone_file


class Shape(NamedTuple):
    """What a block looks like before anything is dilated."""

    widths: tuple[int, int, int]
    stride: int
    skip: Literal["conv", "sum", "none"]


ENTRY = {
    "xception41": ((128, 2), (256, 2), (728, 2)),
    "xception65": ((128, 2), (256, 2), (728, 2)),
    "xception71": ((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
}
MIDDLE_BLOCKS = {"xception41": 8, "xception65": 16, "xception71": 16}
EXIT = (Shape((728, 1024, 1024), 2, "conv"), Shape((1536, 1536, 2048), 1, "none"))


class Xception(nn.Module):
    """Give four maps: `(B, 3, H, W) -> [x4, x8, x16, x32]`.

    They are 256, 728, 1024 and 2048 wide (`channels[i]`) at the strides `strides[i]`.

    The first three are what the second separable convolution of a block gives before the third one
    strides, with norm and *without* ReLU (the end points of the authors' decoders); x32 is the end
    of the network, with ReLU. The 256 channels at stride 4 are DeepLabv3+'s low-level feature:
    entry block 2, in Xception-71 entry block 3.

    output_stride      16 takes the stride of the first exit block and dilates the last by 2; 8
                       takes that of the last entry block too: middle flow and first exit block
                       dilated by 2, the last by 4. The weights are the same.
    multi_grid         factors on the dilations of the last block's three convolutions; the paper
                       uses none.
    momentum, eps      of the norms. The paper's decay of 0.9997 is a momentum of 0.0003.
    weights            a file of TensorFlow's release; None starts from scratch.

    Odd sizes round up. `preprocess` gives RGB in [-1, 1]. Convolutions start by He's rule (fan-in,
    without the factor 2 where no ReLU stands in front); the authors' truncated normals of deviation
    0.09 differ in scale, which the norms take out. Errors: UserError.
    """

    def __init__(
        self,
        name: str = "xception65",
        output_stride: Literal[8, 16, 32] = 32,
        multi_grid: list[int] | None = None,
        norm: Literal["batch", "group", "frozen"] = "batch",
        momentum: float = 0.1,
        eps: float = 1e-3,
        weights: Literal["imagenet"] | Path | None = None,
        activate_depthwise: bool = False,
    ) -> None:
        super().__init__()
        named, file = backbone_file.split(weights)
        check_arguments(name, output_stride, multi_grid, named)
        make_norm = norm_factory(norm, momentum, eps)
        self.preprocess = preprocess(goes_with("xception", named))
        self.channels = [256, 728, 1024, 2048]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        stem: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 32, 2), (32, 64, 1)):
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            stem += [conv, make_norm(outputs), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem)
        self.taps: list[int] = []  # blocks whose second convolution gives one of the maps
        entry = [Shape((width, width, width), stride, "conv") for width, stride in ENTRY[name]]
        shapes = [*entry, *[Shape((728, 728, 728), 1, "sum")] * MIDDLE_BLOCKS[name], *EXIT]
        blocks: list[nn.Module] = []
        width = 64
        nominal_stride = 2  # before a block, if no stride were taken away
        dilation = 1
        for number, shape in enumerate(shapes):
            grid = [*(multi_grid or []), 1, 1, 1][:3] if shape.skip == "none" else [1, 1, 1]
            stride = shape.stride if nominal_stride < output_stride else 1
            blocks.append(
                Block(
                    width,
                    shape,
                    stride,
                    [dilation * factor for factor in grid],
                    make_norm,
                    activate_depthwise,
                )
            )
            if shape.stride == 2 and nominal_stride >= 4:
                self.taps.append(number)
            # A stride that is denied here becomes dilation from the next block on.
            dilation *= shape.stride // stride
            nominal_stride *= shape.stride
            width = shape.widths[-1]
        self.entry = nn.ModuleList(blocks[: len(entry)])
        self.middle = nn.ModuleList(blocks[len(entry) : -len(EXIT)])
        self.exit = nn.ModuleList(blocks[-len(EXIT) :])
        if file is not None:
            self.preprocess = preprocess(backbone_file.fill(self, file, name=name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the four maps, fine to coarse."""
        x = self.stem(x)
        features = []
        for number, block in enumerate((*self.entry, *self.middle, *self.exit)):
            x, before_stride = block(x)
            if number in self.taps:
                features.append(before_stride)
        return [*features, x]


class Block(nn.Module):
    """Three separable convolutions and a way around them: `(B, inputs, H, W) -> (output, second)`.

    `output` (B, widths[2], ceil(H / stride), ceil(W / stride)); `second` (B, widths[1], H, W), what
    goes into the third. skip "conv" is a 1x1 with the stride, and norm; "sum" is the input itself;
    both take the input without ReLU. "none" is no way around.
    """

    def __init__(
        self,
        inputs: int,
        shape: Shape,
        stride: int,
        dilations: list[int],
        make_norm: Callable[[int], nn.Module],
        activate_depthwise: bool,
    ) -> None:
        super().__init__()
        self.skip = shape.skip
        front = shape.skip != "none"
        widths = [inputs, *shape.widths]
        strides = [1, 1, stride]
        convs = [
            Separable(
                widths[i],
                widths[i + 1],
                strides[i],
                dilations[i],
                make_norm,
                front,
                activate_depthwise or not front,
            )
            for i in range(3)
        ]
        self.convs = nn.ModuleList(convs)
        if shape.skip == "conv":
            conv = nn.Conv2d(inputs, widths[-1], 1, stride, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            self.shortcut = nn.Sequential(conv, make_norm(widths[-1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output and what its third convolution reads."""
        first, second, third = self.convs
        before = second(first(x))
        y = third(before)
        if self.skip == "none":
            return y, before
        return y + (self.shortcut(x) if self.skip == "conv" else x), before


class Separable(nn.Module):
    """Depthwise 3x3, norm, pointwise 1x1, norm.

    `(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))`. With `front` a ReLU
    stands before it and none behind, otherwise one behind and none before. `between` puts a ReLU
    between the two convolutions.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        dilation: int,
        make_norm: Callable[[int], nn.Module],
        front: bool,
        between: bool,
    ) -> None:
        super().__init__()
        self.front = front
        self.between = between
        self.depthwise = Depthwise(inputs, dilation, stride)
        self.depthwise_norm = make_norm(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_norm = make_norm(outputs)
        nn.init.kaiming_normal_(self.depthwise.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.pointwise.weight, nonlinearity="relu" if between else "linear")

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved map."""
        if self.front:
            x = F.relu(x)  # never in place: x also goes around the block, or to the decoder
        x = self.depthwise_norm(self.depthwise(x))
        if self.between:
            x = F.relu(x)
        x = self.pointwise_norm(self.pointwise(x))
        return x if self.front else F.relu(x)


def check_arguments(
    name: str, output_stride: int, multi_grid: list[int] | None, weights: str | None
) -> None:
    """Raise UserError with the way out for a value that is not offered."""
    if name not in ENTRY:
        near = did_you_mean(name, ENTRY)
        raise UserError(f"backbone `{name}` is unknown.{near} Known: {', '.join(ENTRY)}")
    if output_stride not in (8, 16, 32):
        raise UserError(f"output_stride={output_stride}: an Xception offers 8, 16 and 32")
    if len(multi_grid or []) > 3 or min(multi_grid or [1]) < 1:
        raise UserError(
            f"multi_grid={multi_grid}: an Xception takes up to three factors of 1 or more, for its "
            f"last three convolutions"
        )
    if weights is not None:
        raise UserError(
            f"weights={weights}: torchvision has none for {name}: start from scratch with "
            f"model.weights=null, or from a checkpoint with train.init=FILE"
        )
