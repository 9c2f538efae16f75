"""Small blocks that the models share."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.errors import UserError
from segtrain.layers.depthwise import Depthwise
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import Preprocess
from segtrain.structures.samples import Batch


def model_input(batch: Batch | Tensor, preprocess: Preprocess) -> Tensor:
    """(B, 3, H, W) float: a `Batch` is normalised, a float tensor is taken as already normalised."""
    return preprocess(batch.images, batch.sizes) if isinstance(batch, Batch) else batch


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int = 1, rate: int = 1, norm: str = "batch"
) -> nn.Sequential:
    """Convolution without bias that keeps the size, normalisation, ReLU."""
    conv = nn.Conv2d(
        inputs, outputs, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False
    )
    return nn.Sequential(conv, norm_factory(norm)(outputs), nn.ReLU(inplace=True))


def separable_conv(inputs: int, outputs: int, rate: int = 1, norm: str = "batch") -> nn.Sequential:
    """Depthwise 3x3, norm, ReLU, pointwise 1x1, norm, ReLU (DeepLabv3+ head, arXiv:1802.02611, section 3.1)."""
    depthwise = (Depthwise(inputs, rate), norm_factory(norm)(inputs), nn.ReLU(inplace=True))
    return nn.Sequential(*depthwise, *conv_norm_relu(inputs, outputs, norm=norm))


def conv3x3(inputs: int, outputs: int, rate: int, separable: bool, norm: str) -> nn.Sequential:
    """A 3x3 with norm and ReLU, dense or separable."""
    if separable:
        return separable_conv(inputs, outputs, rate, norm)
    return conv_norm_relu(inputs, outputs, 3, rate, norm)


def resize(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """Bilinear to the height and width of `like`; nothing is computed where they already fit."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=align_corners)


def initialise(*parts: nn.Module) -> None:
    """He initialisation (arXiv:1502.01852) of new convolutions (no bias) by fan-in, which also suits depthwise ones."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")


def classifier(inputs: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution to logits, with small weights: the first loss is near log(num_classes)."""
    conv = nn.Conv2d(inputs, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def fcn_head(inputs: int, num_classes: int, norm: str = "batch") -> nn.Sequential:
    """The auxiliary head: 3x3 to 256, norm, ReLU, dropout, logits at the feature's size (PSPNet, arXiv:1612.01105)."""
    conv = conv_norm_relu(inputs, 256, 3, norm=norm)
    initialise(conv)
    return nn.Sequential(conv, nn.Dropout(0.1), classifier(256, num_classes))


def wide_layers(convs: Iterable[nn.Conv2d], norm: str, dropout: float) -> nn.Sequential:
    """A classifier's convolutions, fc6 and fc7, each with norm="batch" or "none", ReLU and dropout behind it."""
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, *([norm_factory(norm)(conv.out_channels)] if norm == "batch" else [])]
        layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def check_stem(stem: str, weights: str | None) -> None:
    """UserError where a ResNet's stem is not the one that its weights were trained with."""
    if weights is not None and stem != "torchvision":
        raise UserError(
            f"weights={weights} are torchvision's, which do not fit stem={stem}: set model.stem=torchvision, or "
            f"model.weights=null (and train.init=FILE for weights of your own)"
        )


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Give every batch norm PyTorch's `momentum`, which is 1 - decay: the 0.9997 of TensorFlow recipes is 0.0003 here."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum


def need_images(x: Tensor, least: int, where: str) -> None:
    """UserError for a training batch (B, ...) of fewer than `least` images: batch norm over one value has no variance."""
    if len(x) < least:
        raise UserError(
            f"a training batch of {len(x)} image per process leaves BatchNorm of {where} nothing to average: set "
            f"batch_size to at least {least} per process, or model.norm=group"
        )
