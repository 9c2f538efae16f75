"""Small blocks that several models share. Maps are (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.errors import UserError
from segtrain.layers.depthwise import Depthwise
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import Preprocess
from segtrain.structures.samples import Batch

# What a dropout of heads drops: single numbers | whole channels (`Dropout2d`).
Dropped = Literal["element", "channel"]
# How the new layers of a head begin: by He's rule, but the layers to classes with small weights |
# all convolutions by He's rule (Caffe's "msra") | as torch makes them.
HeadInit = Literal["small", "he", "torch"]


def model_input(batch: Batch | Tensor, preprocess: Preprocess) -> Tensor:
    """Return the network's input (B, 3, H, W) float.

    The images of a `Batch` are normalised; a float tensor is taken as already normalised.
    """
    if not isinstance(batch, Batch):
        return batch
    if batch.inside is None:
        return preprocess(batch.images, batch.sizes)
    return preprocess(batch.images, batch.sizes, batch.inside)


def input_of_objects(batch: Batch, preprocess: Preprocess) -> Tensor:
    """Return the input of a network of objects, which a tensor alone does not make.

    Errors: UserError for a tensor: boxes are cut at the images' real sizes, which a `Batch` tells.
    """
    if not isinstance(batch, Batch):
        raise UserError(
            f"a network of objects reads a segtrain.structures.samples.Batch, not a "
            f"{type(batch).__name__}; segtrain.load(RUN)(image) predicts an image"
        )
    return model_input(batch, preprocess)


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, norm: str = "batch"
) -> nn.Sequential:
    """Return a convolution without bias that keeps the size, normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, norm_factory(norm)(outputs), nn.ReLU(inplace=True))


def separable_conv(
    inputs: int, outputs: int, dilation: int = 1, norm: str = "batch"
) -> nn.Sequential:
    """Return depthwise 3x3, norm, ReLU, pointwise 1x1, norm, ReLU.

    DeepLabv3+'s heads are made of these (arXiv:1802.02611, section 3.1).
    """
    depthwise = (Depthwise(inputs, dilation), norm_factory(norm)(inputs), nn.ReLU(inplace=True))
    return nn.Sequential(*depthwise, *conv_norm_relu(inputs, outputs, norm=norm))


def conv3x3(inputs: int, outputs: int, dilation: int, separable: bool, norm: str) -> nn.Sequential:
    """Return a 3x3 with norm and ReLU, dense or separable."""
    if separable:
        return separable_conv(inputs, outputs, dilation, norm)
    return conv_norm_relu(inputs, outputs, 3, dilation, norm)


def resize(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """Interpolate bilinearly to the height and width of `like`.

    Nothing is computed where they already fit.
    """
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=align_corners)


def initialise(*parts: nn.Module) -> None:
    """Initialise the weights of new convolutions by He's rule (arXiv:1502.01852).

    Fan-in also suits depthwise convolutions, whose fan-out counts all channels.
    """
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")


def classifier(inputs: int, num_classes: int) -> nn.Conv2d:
    """Return a 1x1 convolution to logits.

    Its weights are small, so that the first loss is near log(num_classes).
    """
    conv = nn.Conv2d(inputs, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def head_dropout(dropout: Dropped) -> nn.Module:
    """Return a dropout of 0.1. Errors: UserError for an unknown name."""
    if dropout not in get_args(Dropped):
        known = ", ".join(get_args(Dropped))
        raise UserError(f"model.dropout={dropout} is unknown. Known: {known}")
    return nn.Dropout2d(0.1) if dropout == "channel" else nn.Dropout(0.1)


def initialise_head(init: HeadInit, *parts: nn.Module | None) -> None:
    """Begin the new layers of `parts`, which are as "small" has them, as `init` says.

    Errors: UserError for an unknown name.
    """
    if init not in get_args(HeadInit):
        raise UserError(
            f"model.head_init={init} is unknown. Known: {', '.join(get_args(HeadInit))}"
        )
    new = [part for part in parts if part is not None]
    if init == "he":
        initialise(*new)
    if init == "torch":
        for layer in (layer for part in new for layer in part.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()


def fcn_head(
    inputs: int, num_classes: int, norm: str = "batch", dropout: Dropped = "element"
) -> nn.Sequential:
    """Return the auxiliary head of PSPNet (arXiv:1612.01105).

    It is 3x3 to 256, norm, ReLU, dropout, and logits at the feature's size. The dropout of 0.1 is
    that of semseg, the PyTorch release of PSPNet's author.
    """
    conv = conv_norm_relu(inputs, 256, 3, norm=norm)
    initialise(conv)
    return nn.Sequential(conv, head_dropout(dropout), classifier(256, num_classes))


def wide_layers(convs: Iterable[nn.Conv2d], norm: str, dropout: float) -> nn.Sequential:
    """Return a classifier's fc6 and fc7 as layers of a network.

    Behind each of the convolutions come norm="batch" or "none", ReLU and dropout.
    """
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, *([norm_factory(norm)(conv.out_channels)] if norm == "batch" else [])]
        layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def check_stem(stem: str, weights: object) -> None:
    """Raise UserError where a ResNet's stem is not the one that its weights were trained with."""
    if weights == "imagenet" and stem != "torchvision":
        raise UserError(
            f"weights={weights} are torchvision's, which do not fit stem={stem}: set "
            f"model.stem=torchvision, or model.weights=null (or model.weights=FILE, or "
            f"train.init=FILE for weights of your own)"
        )


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Give every batch norm PyTorch's `momentum`, which is 1 - decay.

    The decay of 0.9997 of TensorFlow recipes is 0.0003 here.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum


def need_images(x: Tensor, least: int, where: str) -> None:
    """Raise UserError for a training batch (B, ...) of fewer than `least` images.

    Batch norm over one value has no variance.
    """
    if len(x) < least:
        raise UserError(
            f"a training batch of {len(x)} image per process leaves BatchNorm of {where} nothing "
            f"to average: set batch_size to at least {least} per process, or model.norm=group"
        )
