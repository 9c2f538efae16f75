"""From the bytes of a batch to what a network was trained on.

The input belongs to the weights: a wrong mean costs more than a wrong architecture. So every model
takes `input`, a name of `INPUTS` or the values themselves; None is what goes with its weights
(`goes_with`). A run decides once, and its checkpoints tell what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segtrain.errors import UserError, did_you_mean

InputName = Literal[
    "imagenet",
    "caffe",
    "features",
    "fcn",
    "deeplab_caffe",
    "detectron",
    "detectron2",
    "detectron2_x101",
    "tensorflow",
    "unit",
    "grey",
]
Input = InputName | dict[str, Any] | None  # what a model's argument `input` takes

ORDERS = ("rgb", "bgr", "grey")
LARGEST = 1e6  # of a mean, deviation or scale: by hand, far above what images of 16 bits need
BYTES = {"std": [1.0, 1.0, 1.0], "order": "bgr", "scale": 255.0}  # Caffe's: BGR minus the mean

# The arguments of `Preprocess` for each name, and whose weights read it.
INPUTS: dict[str, dict[str, Any]] = {
    # torchvision, semseg, PyTorch-Encoding, mmsegmentation (the same numbers times 255)
    "imagenet": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    # the VGG group's Caffe models, PSPNet's release
    "caffe": {"mean": [103.939, 116.779, 123.68], **BYTES},
    # the VGG group's convolutions as torchvision offers them: RGB, with a rounded mean
    "features": {"mean": [123.0, 117.0, 104.0], "std": [1.0, 1.0, 1.0], "scale": 255.0},
    # FCN's release
    "fcn": {"mean": [104.00699, 116.66877, 122.67892], **BYTES},
    # DeepLab v2's release, and kazuto1011's
    "deeplab_caffe": {"mean": [104.008, 116.669, 122.675], **BYTES},
    # Detectron, PANet's release
    "detectron": {"mean": [102.9801, 115.9465, 122.7717], **BYTES},
    # detectron2
    "detectron2": {"mean": [103.53, 116.28, 123.675], **BYTES},
    # detectron2's ResNeXt-101, the one of its trunks that divides
    "detectron2_x101": {
        **BYTES,
        "mean": [103.53, 116.28, 123.675],
        "std": [57.375, 57.12, 58.395],
    },
    # x / 127.5 - 1: TensorFlow's DeepLab, and torchvision's GoogLeNet, whose `transform_input`
    # turns ImageNet's normalisation into it
    "tensorflow": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    # x / 255
    "unit": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    # one channel in [0, 1], the mean of RGB, for microscopy (U-Net, arXiv:1505.04597)
    "grey": {"mean": [0.0], "std": [1.0], "order": "grey"},
}

# Trunk and its weights, or a style for which there are none, where that is not "imagenet".
OTHERS = {
    ("vgg", "features"): "features",
    ("googlenet", "imagenet"): "tensorflow",
    ("xception", None): "tensorflow",
    ("deeplab", "caffe"): "deeplab_caffe",
}


class Preprocess(nn.Module):
    """Normalise images (B, 3, H, W) uint8 RGB to (B, C, H, W) float32, channels last.

    `mean` and `std` are in the channel order `order` ("rgb", "bgr", or "grey": one channel, the
    mean of RGB) and in units of a pixel range [0, `scale`], where `scale` is 1 (torchvision) or 255
    (Caffe). Pixels beyond `sizes` (B, 2), height and width, become exactly zero: they are padding,
    whatever the loader wrote there. So do those outside `inside` (B, 4), top, left, bottom and
    right, where it is given.
    """

    def __init__(
        self, mean: list[float], std: list[float], order: str = "rgb", scale: float = 1.0
    ) -> None:
        super().__init__()
        self.mean = list(mean)
        self.std = list(std)
        self.order = order
        self.scale = scale
        # Buffers follow the model to its device, so the step copies nothing. They are no weights:
        # checkpoints leave them out.
        # x * factor + offset equals (x * scale / 255 - mean) / std in one pass over the pixels.
        factor = torch.tensor([scale / 255 / s for s in std], dtype=torch.float64)
        offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=torch.float64)
        self.factor: Tensor
        self.offset: Tensor
        self.register_buffer("factor", factor.float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", offset.float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor, inside: Tensor | None = None) -> Tensor:
        """Return the normalised images, on their device."""
        pixels = images.flip(1) if self.order == "bgr" else images
        pixels = pixels.to(torch.float32, memory_format=torch.channels_last)
        if self.order == "grey":
            pixels = pixels.mean(1, keepdim=True)
        height, width = images.shape[-2:]
        y = torch.arange(height, device=images.device)
        x = torch.arange(width, device=images.device)
        rows = y >= sizes[:, :1]  # (B, H)
        columns = x >= sizes[:, 1:]  # (B, W)
        if inside is not None:
            rows = rows | (y < inside[:, :1]) | (y >= inside[:, 2:3])
            columns = columns | (x < inside[:, 1:2]) | (x >= inside[:, 3:])
        padding = (rows[:, :, None] | columns[:, None, :]).unsqueeze(1)
        return torch.addcmul(self.offset, pixels, self.factor).masked_fill_(padding, 0)

    @property
    def channels(self) -> int:
        """Return the channels of what it gives."""
        return len(self.mean)

    def record(self) -> dict[str, Any]:
        """Return it as plain values, of which `preprocess` makes the same one again."""
        return {"mean": self.mean, "std": self.std, "order": self.order, "scale": self.scale}

    def same(self, other: Preprocess) -> bool:
        """Tell whether `other` gives the same numbers, however it writes them."""
        return (
            self.order == other.order
            and torch.allclose(self.factor.cpu(), other.factor.cpu(), rtol=1e-5)
            and torch.allclose(self.offset.cpu(), other.offset.cpu(), rtol=1e-5)
        )

    def told(self) -> str:
        """Return its name in `INPUTS`, or its values in a line."""
        for name, arguments in INPUTS.items():
            if Preprocess(**arguments).record() == self.record():
                return name
        return f"{{{self.extra_repr()}}}".replace("=", ": ")

    def extra_repr(self) -> str:
        """Return what stands in brackets when the model is printed."""
        return f"mean={self.mean}, std={self.std}, order={self.order}, scale={self.scale:g}"


def goes_with(trunk: str, weights: str | None) -> str:
    """Name the input that a trunk ("vgg", "resnet") was trained on, or starts on from scratch.

    `weights` are those of its argument of this name, or a style for which there are none.
    """
    return OTHERS.get((trunk, weights), "imagenet")


def preprocess(value: object, where: str = "model.input") -> Preprocess:
    """Return the preprocessing that a name of `INPUTS`, or a mapping of its arguments, stands for.

    A mapping has `mean` and `std`, and may have `order` and `scale`. It may come from a stranger's
    checkpoint: `where` names it in messages. Errors: UserError.
    """
    if isinstance(value, str):
        if value not in INPUTS:
            near = did_you_mean(value, INPUTS)
            raise UserError(
                f"{where}={_shown(value)}: no such input.{near} Known: {', '.join(INPUTS)}"
            )
        return Preprocess(**INPUTS[value])
    if not isinstance(value, Mapping):
        raise UserError(
            f"{where}: expected a name ({', '.join(INPUTS)}) or a mapping with mean and std"
        )
    known = ("mean", "std", "order", "scale")
    for key in value:
        if key not in known:
            raise UserError(f"{where}: has no `{_shown(str(key))}`; it takes {', '.join(known)}")
    order = value.get("order", "rgb")
    if order not in ORDERS:
        raise UserError(f"{where}.order: {order!r:.40} is none of {', '.join(ORDERS)}")
    channels = channels_of(order)
    mean = _numbers(value.get("mean"), channels, -LARGEST, f"{where}.mean")
    std = _numbers(value.get("std"), channels, 1 / LARGEST, f"{where}.std")
    (scale,) = _numbers([value.get("scale", 1.0)], 1, 1 / LARGEST, f"{where}.scale")
    return Preprocess(mean, std, order, scale)


def channels_of(order: str) -> int:
    """Return the channels that an order has."""
    return 1 if order == "grey" else 3


def _shown(text: str) -> str:
    """Return text of a stranger in a few characters that print."""
    return repr(text)[1:-1][:40]


def _numbers(values: object, count: int, least: float, where: str) -> list[float]:
    """Return a list of `count` numbers of plain size. Errors: UserError."""
    fit = isinstance(values, list | tuple) and len(values) == count
    # NaN is within no bounds. Integers of any length are compared as they are.
    if not fit or not all(type(v) in (int, float) and least <= v <= LARGEST for v in values):
        raise UserError(
            f"{where}: expected {count} numbers from {least:g} to {LARGEST:g}, got {values!r:.80}"
        )
    return [float(value) for value in values]


def chosen(value: object, usual: Preprocess, where: str = "model.input") -> Preprocess:
    """Return the preprocessing of a model's `input`; None is `usual`, what goes with its weights.

    Errors: UserError, also where it gives another number of channels than the network reads.
    """
    if value is None:
        return usual
    made = preprocess(value, where)
    if made.channels != usual.channels:
        raise UserError(
            f"{where}: gives {made.channels} channels, the network reads {usual.channels}"
        )
    return made


def preprocess_of(network: nn.Module) -> Preprocess | None:
    """Return the preprocessing of a network; None where it normalises in a way of its own."""
    own = dict(network.named_children()).get("preprocess")
    plain = type(own) is Preprocess and own.channels == channels_of(own.order)
    return own if plain else None


def record_of(network: nn.Module) -> dict[str, Any] | None:
    """Return what a checkpoint of a network tells of its input; None where it is its own affair."""
    own = preprocess_of(network)
    return None if own is None else own.record()


def take_input(network: nn.Module, record: object, where: str) -> None:
    """Give a network the input that its weights were trained on, as their checkpoint tells it.

    Where either normalises in a way of its own, it stays as it is. `record` may come from a
    stranger. Errors: UserError naming `where`.
    """
    own = preprocess_of(network)
    if own is not None and record is not None:
        network.add_module("preprocess", chosen(record, own, where).to(own.factor.device))


def mirrored(pixels: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Cut the window (..., height, width) at row `top` and column `left` of mirrored `pixels`.

    `pixels` (..., H, W) are continued by mirroring at the border pixels, which are not repeated
    (numpy's "reflect"), as often as it takes: a window may lie outside altogether.
    """
    for axis, first, length in ((-2, top, height), (-1, left, width)):
        period = max(2 * (pixels.shape[axis] - 1), 1)
        index = torch.arange(first, first + length, device=pixels.device) % period
        pixels = pixels.index_select(axis, torch.minimum(index, period - index))
    return pixels
