"""From the bytes of a batch to what a network was trained on.

Pretrained weights bring a `Preprocess` of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Preprocess(nn.Module):
    """Normalise images (B, 3, H, W) uint8 RGB to (B, C, H, W) float32, channels last.

    `mean` and `std` are in the channel order `order` ("rgb", "bgr", or "grey": one channel, the
    mean of RGB) and in units of a pixel range [0, `scale`], where `scale` is 1 (torchvision) or 255
    (Caffe). Pixels beyond `sizes` (B, 2), height and width, become exactly zero: they are padding,
    whatever the loader wrote there.
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

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Return the normalised images, on their device."""
        pixels = images.flip(1) if self.order == "bgr" else images
        pixels = pixels.to(torch.float32, memory_format=torch.channels_last)
        if self.order == "grey":
            pixels = pixels.mean(1, keepdim=True)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) >= sizes[:, :1]  # (B, H)
        columns = torch.arange(width, device=images.device) >= sizes[:, 1:]  # (B, W)
        padding = (rows[:, :, None] | columns[:, None, :]).unsqueeze(1)
        return torch.addcmul(self.offset, pixels, self.factor).masked_fill_(padding, 0)

    def extra_repr(self) -> str:
        """Return what stands in brackets when the model is printed."""
        return f"mean={self.mean}, std={self.std}, order={self.order}, scale={self.scale:g}"


def imagenet() -> Preprocess:
    """Return what torchvision's ImageNet weights read: RGB in [0, 1]."""
    return Preprocess([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def caffe_vgg() -> Preprocess:
    """Return what the VGG group's Caffe models read: BGR in [0, 255], minus the mean."""
    return Preprocess([103.939, 116.779, 123.68], [1.0, 1.0, 1.0], order="bgr", scale=255.0)


def unit_grey() -> Preprocess:
    """Return one grey channel in [0, 1], for microscopy (U-Net, arXiv:1505.04597)."""
    return Preprocess([0.0], [1.0], order="grey")


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
