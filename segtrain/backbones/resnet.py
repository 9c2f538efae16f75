"""ResNet trunks (He et al., CVPR 2016, arXiv:1512.03385) with dilated late stages, built from torchvision's.

Where the output stride asks for it, a stage loses its stride and its 3x3 convolutions are dilated. Two patterns are in
use, with the same weights and different results:

pattern "uniform"  *every* 3x3 of the stage, the first block included (PSPNet, DeepLab v2; the rates of v3 and v3+ are the same)
pattern "delayed"  the first block keeps the rate of the stage before (EncNet; torchvision's replace_stride_with_dilation)

And three layouts:

style "torchvision"  7x7 stem, a stage's stride sits in the 3x3 of its first block
style "deep"         three 3x3 as stem (64, 64, 128 wide), else the same (PSPNet, EncNet)
style "caffe"        7x7 stem and a max-pool that rounds up, the stride sits in the first 1x1 (DeepLab v2, Mask R-CNN)

The TensorFlow releases of DeepLab v3 and v3+ put the stride into the last block of the stage before; which block strides
does not change rates or sizes, and we keep torchvision's, whose weights exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from segtrain.backbones.classifier import start
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import imagenet
from segtrain.weights.torchvision_weights import download

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
STYLES = ("torchvision", "deep", "caffe")
PATTERNS = ("uniform", "delayed")


class ResNet(nn.Module):
    """`(B, 3, H, W) -> [c2, c3, c4, c5]`: the outputs of the four stages, `channels[i]` wide at stride `strides[i]`.

    Odd sizes round up: stride s gives ceil(H / s); style "caffe" gives one row more at stride 4 where ceil(H / 2) is even.
    `multi_grid` multiplies the rates of the last stage's blocks, its first n entries for n blocks (blocks beyond the list
    keep the plain rate). `weights="imagenet"` is torchvision's IMAGENET1K_V1, for style="torchvision" with norm "batch" or
    "frozen"; `preprocess` is what those weights were trained with. `momentum` is PyTorch's (1 - decay). Raises UserError
    for a value that is not offered and for weights that cannot be had.
    """

    def __init__(
        self,
        name: str,
        output_stride: Literal[8, 16, 32] = 32,
        multi_grid: list[int] | None = None,
        norm: Literal["batch", "group", "frozen", "none"] = "batch",
        weights: Literal["imagenet"] | None = None,
        momentum: float = 0.1,
        style: Literal["torchvision", "deep", "caffe"] = "torchvision",
        pattern: Literal["uniform", "delayed"] = "uniform",
    ) -> None:
        super().__init__()
        check_arguments(name, output_stride, norm, weights, style, pattern)
        make_norm = norm_factory(norm, momentum)
        trunk = getattr(torchvision.models, name)(norm_layer=make_norm)
        if weights is not None:
            trunk.load_state_dict(download(name))
        if style == "deep":
            deepen(trunk, make_norm)
        if style == "caffe":
            trunk.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
            for stage in (trunk.layer2, trunk.layer3, trunk.layer4):
                stride_first(stage[0])
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        stages = [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
        self.stages = nn.ModuleList(stages)
        self.channels: list[int] = [channels_of(stage[-1]) for stage in stages]
        self.strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
        for stage, stride, before in zip(stages, (4, 8, 16, 32), (4, 4, 8, 16), strict=True):
            rate = max(stride // output_stride, 1)
            grid = list(multi_grid or [])[: len(stage)] if stage is trunk.layer4 else []
            rates = [rate * factor for factor in grid] + [rate] * (len(stage) - len(grid))
            if max(rates) > 1:
                first = (
                    rates[0] // rate * max(before // output_stride, 1)
                    if pattern == "delayed"
                    else rates[0]
                )
                dilate(stage, rates, first, keep_stride=rate == 1)
        self.preprocess = imagenet()

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def check_arguments(
    name: str, output_stride: int, norm: str, weights: str | None, style: str, pattern: str
) -> None:
    """UserError with the way out for a combination that is not offered."""
    if name not in NAMES:
        raise UserError(
            f"backbone `{name}` is unknown.{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}"
        )
    if output_stride not in (8, 16, 32):
        raise UserError(f"output_stride={output_stride}: a ResNet offers 8, 16 and 32")
    if style not in STYLES:
        raise UserError(
            f"style={style} is unknown.{did_you_mean(style, STYLES)} Known: {', '.join(STYLES)}"
        )
    if pattern not in PATTERNS:
        raise UserError(
            f"pattern={pattern} is unknown.{did_you_mean(pattern, PATTERNS)} Known: {', '.join(PATTERNS)}"
        )
    if weights not in (None, "imagenet"):
        raise UserError(
            f"weights={weights}: {name} offers `imagenet`, or null to start from scratch"
        )
    if weights is not None and norm not in ("batch", "frozen"):
        raise UserError(
            f"weights={weights} needs norm=batch, got norm={norm}: use norm=batch or weights=null"
        )
    if weights is not None and style != "torchvision":
        raise UserError(
            f"weights={weights} are torchvision's, which do not fit a {style} ResNet: use style=torchvision, or "
            f"weights=null (and train.init=FILE for weights of your own)"
        )


def channels_of(block: nn.Module) -> int:
    """Channels that a residual block gives."""
    assert isinstance(block, (BasicBlock, Bottleneck))
    conv = block.conv3 if isinstance(block, Bottleneck) else block.conv2
    return conv.out_channels


def deepen(trunk: torchvision.models.ResNet, make_norm: Callable[[int], nn.Module]) -> None:
    """Replace the 7x7 stem by 3x3 64 stride 2, 3x3 64, 3x3 128, and the first stage by one that reads 128 channels."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 64, 2), (64, 64, 1), (64, 128, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            make_norm(outputs),
            nn.ReLU(inplace=True),
        ]
    trunk.conv1, trunk.bn1 = nn.Sequential(*layers[:-2]), layers[-2]  # ty: ignore[invalid-assignment]
    trunk.inplanes = 128
    block = Bottleneck if isinstance(trunk.layer1[0], Bottleneck) else BasicBlock
    trunk.layer1 = trunk._make_layer(block, 64, len(trunk.layer1))
    start(trunk.conv1)
    start(trunk.layer1)


def stride_first(block: nn.Module) -> None:
    """Move a bottleneck's stride from its 3x3 to its first 1x1."""
    if isinstance(block, Bottleneck):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def dilate(stage: nn.Sequential, rates: list[int], first: int, keep_stride: bool) -> None:
    """Give block i the rate `rates[i]` in its 3x3 convolutions, the very first one `first`; take the stride away."""
    for index, (block, rate) in enumerate(zip(stage, rates, strict=True)):
        convs = [conv for conv in block.modules() if isinstance(conv, nn.Conv2d)]
        for conv in convs if not keep_stride else ():
            conv.stride = (1, 1)
        wide = [conv for conv in convs if conv.kernel_size == (3, 3)]
        for conv in wide:
            conv.dilation = conv.padding = (rate, rate)
        if index == 0:
            wide[0].dilation = wide[0].padding = (first, first)


def freeze_parts(trunk: ResNet, freeze: int | None, weights: str | None) -> None:
    """The stem and the first `freeze` - 1 stages get no gradient; None: 2 with `weights`, as in Detectron, else 0.

    Errors: UserError.
    """
    count = (2 if weights else 0) if freeze is None else freeze
    if not 0 <= count <= 5:
        raise UserError(
            f"model.freeze={count}: 0 for nothing, 1 for the stem, up to 5 for the whole trunk"
        )
    for part in [trunk.stem, *trunk.stages][:count]:
        part.requires_grad_(False)
