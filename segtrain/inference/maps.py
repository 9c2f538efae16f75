"""Turn images into batches and score maps into labels, as every inference needs it."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.contracts import Network
from segtrain.errors import UserError
from segtrain.structures.samples import Batch


def batch_of(images: Tensor, size: tuple[int, int]) -> Batch:
    """Images (B, 3, H, W) that are real in their upper left `size`, without labels."""
    count = len(images)
    sizes = torch.tensor([size] * count, dtype=torch.int64, device=images.device)
    return Batch(images, sizes, [""] * count)


def logits_of(output: dict[str, Tensor]) -> Tensor:
    """Return the logits (B, K, h, w) float32 of a model's output. Errors: UserError without any."""
    if "logits" not in output:
        raise UserError(
            "inference: this model finds objects and gives no label map; take inference=instances "
            "(mask_rcnn, panet), mask_proposals (fpn) or box_proposals (box_rpn)"
        )
    return output["logits"].float()


def rescaled(image: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Resize an image (3, H, W) uint8 to `size`, by default as training does.

    Bilinear, with half-pixel centres, rounded to bytes. With `antialias` a smaller image is the
    mean of all the pixels it replaces, and one side is resized after the other, the one with the
    smaller factor first, with bytes in between too (MATLAB's imresize).
    """
    height, width = image.shape[1:]
    passes = [size]
    if antialias:
        rows_first = size[0] * width <= size[1] * height
        passes.insert(0, (size[0], width) if rows_first else (height, size[1]))
    for each in passes:
        if image.shape[1:] != each:
            pixels = resized(image[None].float(), each, antialias=antialias)[0]
            image = pixels.round_().clamp_(0, 255).to(torch.uint8)
    return image


def seen(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return an image (3, H, W) uint8 at `size`, and (4,) by how much it grew in x, y, x, y."""
    pixels = rescaled(image, size)
    growth = [size[1] / image.shape[2], size[0] / image.shape[1]] * 2
    return pixels, torch.tensor(growth, dtype=torch.float32, device=pixels.device)


def check_edges(shorter: int | None, longest: int) -> None:
    """Refuse edges of an image that cannot be; `shorter` None keeps its size. Errors: UserError."""
    if shorter is not None and not 1 <= shorter <= longest:
        raise UserError(
            f"inference.shorter={shorter}: the shorter edge in pixels, "
            f"at most inference.longest={longest}"
        )


def resized(
    maps: Tensor, size: tuple[int, int], align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """Return maps (B, C, h, w) at `size`, bilinearly; the same tensor where they have it."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(
        maps, size, mode="bilinear", align_corners=align_corners, antialias=antialias
    )


def normalised(model: nn.Module, image: Tensor) -> Tensor:
    """Return an image (3, H, W) uint8 as the backbone of `model` reads it, (C, H, W) float32."""
    sizes = torch.tensor([image.shape[1:]], device=image.device)
    return cast("Network", model).preprocess(image[None], sizes)[0]


def largest(scores: Tensor) -> Tensor:
    """Return the index (H, W) uint8 of the largest of the scores (K, H, W).

    Errors: UserError for more classes than a label map can hold.
    """
    if len(scores) > 255:
        raise UserError(
            f"The model has {len(scores)} classes; label maps hold at most 255 "
            "(and 255 for ignored)."
        )
    # On the CPU max takes 0.4 of the time of argmax and gives the same labels.
    return scores.max(0)[1].to(torch.uint8)


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model computes on; the CPU for one without parameters."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
