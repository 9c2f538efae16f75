"""Images with their annotations, alone and as batches.

Shapes: B images, H x W pixels. Train ids run from 0 to K - 1; `IGNORE` marks pixels that neither
train nor count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segtrain.structures.instances import Instances, Segments

IGNORE = 255  # the largest value of a byte, so that it can be no class


class Fault(NamedTuple):
    """A sample that cannot be used, by its index in the data set, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class Sample:
    """One image and its annotation, on the host.

    A data set gives either a label map or objects, so exactly one of `mask` and `instances` is set.
    `truth` is what the metric compares with, where that is more than they say; it is not read in
    training.
    """

    id: str
    image: np.ndarray  # (H, W, 3) uint8 RGB
    mask: np.ndarray | None = None  # (H, W) uint8 of train ids and IGNORE
    instances: Instances | None = None
    truth: Scene | Segments | None = None
    # Those that `mask` is drawn from, where their file says more of them; read by `verify` alone.
    objects: Segments | None = None
    # Top, left, bottom, right of what is no padding, where a network shall see exactly zero around
    # it. None: the image is taken as it is.
    inside: tuple[int, int, int, int] | None = None
    faults: tuple[Fault, ...] = ()  # of the samples whose place this one takes

    @property
    def annotation(self) -> np.ndarray | Instances:
        """Return the mask or the instances, whichever the data set gives."""
        if self.mask is not None:
            return self.mask
        assert self.instances is not None, f"{self.id}: a sample has a mask or instances"
        return self.instances


@dataclass(frozen=True)
class Scene:
    """A semantic truth that also tells instances apart."""

    mask: np.ndarray  # (H, W) uint8 of train ids and IGNORE
    instances: np.ndarray  # (H, W), a number for each instance as its file holds it, 0 for none

    def renumbered(self, train_ids: np.ndarray) -> Scene:
        """Return the scene with other train ids: `train_ids` (256,) uint8 old -> new."""
        return replace(self, mask=train_ids[self.mask])


# What a metric compares a prediction of one image with; a label map is a tensor once it is batched.
Truth = Tensor | np.ndarray | Instances | Scene | Segments


class Target(NamedTuple):
    """What one image is labelled with: the `mask` or `instances` of its sample."""

    mask: np.ndarray | None = None
    instances: Instances | None = None


class Files(NamedTuple):
    """The files that a sample is read from."""

    image: Path
    annotation: Path | None = None  # None: unlabelled, or one file holds those of all images


@dataclass(frozen=True)
class Batch:
    """Images of one or more samples, padded at the right and bottom to the size of the largest.

    `masks` or `instances` is set, as in the samples; neither is where nobody knows the labels, as
    in prediction.
    """

    images: Tensor  # (B, 3, H, W) uint8 RGB
    sizes: Tensor  # (B, 2) int64, the real height and width of each image
    ids: list[str]
    masks: Tensor | None = None  # (B, H, W) uint8 of train ids and IGNORE
    instances: list[Instances] | None = None  # one entry for each image
    mask_maps: Tensor | None = None  # (B, H, W) fp32, what the loss makes of masks on the host
    truths: list[Scene | Segments | None] | None = None  # those of the samples
    # (B, 4) int64, top, left, bottom, right: a network sees exactly zero around it. None: around
    # `sizes` alone.
    inside: Tensor | None = None
    faults: tuple[Fault, ...] = ()  # those of the samples

    def to(self, device: torch.device) -> Batch:
        """Return the batch with images, sizes and labels on `device`.

        `truths` stay on the host, where the metric reads them. Copies from pinned memory are
        asynchronous.
        """
        masks = self.masks
        instances = self.instances
        maps = self.mask_maps
        inside = self.inside
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            inside=None if inside is None else inside.to(device, non_blocking=True),
            masks=None if masks is None else masks.to(device, non_blocking=True),
            instances=None if instances is None else [each.to(device) for each in instances],
            mask_maps=None if maps is None else maps.to(device, non_blocking=True),
        )

    def split(self, parts: int) -> list[Batch]:
        """Return the batch in `parts` equal pieces, each padded to the largest image of its own.

        That is what the loader gives for as many micro-batches, except for `faults`.
        """
        if parts == 1:
            return [self]
        size = len(self.ids) // parts
        return [self._piece(start, start + size) for start in range(0, size * parts, size)]

    def _piece(self, start: int, stop: int) -> Batch:
        here = slice(start, stop)
        height, width = self.sizes[here].amax(0).tolist()

        def cut(pixels: Tensor | None) -> Tensor | None:
            return None if pixels is None else pixels[here, ..., :height, :width].contiguous()

        images = cut(self.images)
        assert images is not None
        return Batch(
            images,
            self.sizes[here],
            self.ids[here],
            masks=cut(self.masks),
            instances=None if self.instances is None else self.instances[here],
            mask_maps=cut(self.mask_maps),
            truths=None if self.truths is None else self.truths[here],
            inside=None if self.inside is None else self.inside[here],
        )

    def pin_memory(self) -> Batch:
        """Return the same batch in page-locked memory. The DataLoader calls this where it pins."""
        masks = self.masks
        instances = self.instances
        maps = self.mask_maps
        inside = self.inside
        return replace(
            self,
            images=self.images.pin_memory(),
            sizes=self.sizes.pin_memory(),
            inside=None if inside is None else inside.pin_memory(),
            masks=None if masks is None else masks.pin_memory(),
            instances=None if instances is None else [each.pin_memory() for each in instances],
            mask_maps=None if maps is None else maps.pin_memory(),
        )
