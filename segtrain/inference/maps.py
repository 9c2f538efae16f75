"""Between images, batches, score maps and labels: what every inference needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.structures.samples import Batch


def batch_of(images: Tensor, size: tuple[int, int]) -> Batch:
    """Images (B, 3, H, W) that are real in their upper left `size`, without labels."""
    count = len(images)
    sizes = torch.tensor([size] * count, dtype=torch.int64, device=images.device)
    return Batch(images, sizes, [""] * count)


def logits_of(output: dict[str, Tensor]) -> Tensor:
    """(B, K, h, w) float32 of a model's output. Errors: UserError for a model that gives none."""
    if "logits" not in output:
        raise UserError(
            "inference: this model finds objects and gives no label map; take inference=instances (mask_rcnn, panet), "
            "mask_proposals (fpn) or box_proposals (box_rpn)"
        )
    return output["logits"].float()


def rescaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 resized: bilinear, half-pixel centres, no antialiasing, as in training."""
    if image.shape[1:] == size:
        return image
    return resized(image[None].float(), size)[0].round_().clamp_(0, 255).to(torch.uint8)


def seen(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the image (3, h, w) as the model sees it at `size`, and (4,) its growth in x, y, x, y."""
    pixels = rescaled(image, size)
    growth = [size[1] / image.shape[2], size[0] / image.shape[1]] * 2
    return pixels, torch.tensor(growth, dtype=torch.float32, device=pixels.device)


def check_edges(shorter: int | None, longest: int) -> None:
    """UserError for edges of an image that cannot be; `shorter` None keeps the image's size."""
    if shorter is not None and not 1 <= shorter <= longest:
        raise UserError(
            f"inference.shorter={shorter}: the shorter edge in pixels, at most inference.longest={longest}"
        )


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) at `size`; untouched, not copied, where they have it."""
    return (
        maps
        if maps.shape[-2:] == size
        else F.interpolate(maps, size, mode="bilinear", align_corners=False)
    )


def largest(scores: Tensor) -> Tensor:
    """(K, H, W) -> (H, W) uint8 index of the largest score."""
    if len(scores) > 255:
        raise UserError(
            f"The model has {len(scores)} classes; label maps hold at most 255 (and 255 for ignored)."
        )
    return scores.max(0)[1].to(
        torch.uint8
    )  # max is 2.5 times faster than argmax on the CPU, with the same labels


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes; the CPU for one without parameters."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
