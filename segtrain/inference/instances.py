"""Instances of one image from a two-stage model: the best boxes, then the masks of these (Mask R-CNN, arXiv:1703.06870, 3.1).

Several views (scales, mirrored): their detections compete in one suppression, the masks of what remains are averaged, as in
Detectron's test-time augmentation. Masks are pasted one at a time at the image's own size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from segtrain.errors import UserError
from segtrain.inference.base import BasePredictor, Detector, tag_of
from segtrain.inference.maps import batch_of, check_edges, device_of, seen
from segtrain.inference.paste import segments
from segtrain.structures.boxes import edge_size
from segtrain.structures.instances import Segments

SMALLEST = 1e-2  # pixels that a detection's sides must have


class InstanceSegmentation(BasePredictor):
    """Wraps a model that has `features`, `detect` and `masks`. The caller sets eval mode and autocast.

    shorter, longest   the shorter edge in pixels that an image is resized to, and the most that its longer edge may have;
                       shorter None keeps the image's size
    score              detections that do not exceed it are left out
    overlap            IoU above which the less sure of two detections of one class is left out
    detections         at most so many an image, over all classes
    threshold          of a mask's probability
    scales             factors of `shorter` and `longest`, one view each
    flip               adds the mirrored view at every scale
    """

    def __init__(
        self,
        model: nn.Module,
        shorter: int | None = 800,
        longest: int = 1333,
        score: float = 0.05,
        overlap: float = 0.5,
        detections: int = 100,
        threshold: float = 0.5,
        scales: list[float] | None = None,
        flip: bool = False,
    ) -> None:
        if not isinstance(model, Detector):
            raise UserError(
                f"inference: {type(model).__name__} finds no instances; set inference=whole, or another model"
            )
        self.model = model
        self.detector: Detector = model
        self.shorter, self.longest = shorter, longest
        self.score, self.overlap, self.detections, self.threshold = (
            score,
            overlap,
            detections,
            threshold,
        )
        self.scales = [1.0] if scales is None else [float(scale) for scale in scales]
        self.flip = flip
        self._check()

    @property
    def tag(self) -> str:
        """Return the views that are averaged, for the folder of results."""
        return "-".join(tag_of(scales=self.scales, flip=self.flip))

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as plain values for metrics.json."""
        return {
            "shorter": self.shorter,
            "longest": self.longest,
            "score": self.score,
            "overlap": self.overlap,
            "detections": self.detections,
            "threshold": self.threshold,
            "scales": self.scales,
            "flip": self.flip,
        }

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Segments:
        """(3, H, W) uint8 RGB -> its objects at the image's own size, best first."""
        size = (image.shape[1], image.shape[2])
        views = [
            View(self.detector, image.to(device_of(self.model)), shown, mirrored)
            for shown in self.sizes(size)
            for mirrored in self.mirrors()
        ]
        found = [view.detect() for view in views]
        scores, boxes = (torch.cat([part[i] for part in found]) for i in (0, 1))
        which, labels = torch.nonzero((scores > self.score) & wide(boxes), as_tuple=True)
        scores, boxes = scores[which, labels], boxes[which, labels]
        kept = batched_nms(boxes, scores, labels, self.overlap)[: self.detections]
        scores, boxes, labels = scores[kept], boxes[kept], labels[kept]
        masks = torch.stack([view.masks(boxes, labels) for view in views]).mean(0)
        return segments(size, boxes, masks, labels, scores, self.threshold)

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) of each scale's view."""
        shorter, longest = (
            (min(size), max(size)) if self.shorter is None else (self.shorter, self.longest)
        )
        return [
            edge_size(size, max(1, round(shorter * s)), max(1, round(longest * s)))
            for s in self.scales
        ]

    def mirrors(self) -> tuple[bool, ...]:
        """Whether a view is mirrored, of each view of a scale."""
        return (False, True) if self.flip else (False,)

    def _check(self) -> None:
        check_edges(self.shorter, self.longest)
        if not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"inference.scales={self.scales}: give one or more positive factors, e.g. [0.75,1.0,1.25]."
            )
        if self.detections < 1:
            raise UserError(f"inference.detections={self.detections}: at least 1")
        shares = {"score": self.score, "overlap": self.overlap, "threshold": self.threshold}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise UserError(f"inference.{name}={value}: between 0 and 1")


class View:
    """The image as it is shown to the model once, and the way back to its own pixels."""

    def __init__(
        self, model: Detector, image: Tensor, shown: tuple[int, int], mirrored: bool
    ) -> None:
        pixels, self.factor = seen(image, shown)
        batch = batch_of((pixels.flip(-1) if mirrored else pixels)[None], shown)
        self.model, self.sizes, self.features = model, batch.sizes, model.features(batch)
        self.width, self.mirrored = shown[1], mirrored

    def detect(self) -> tuple[Tensor, Tensor]:
        """(probabilities (n, K), boxes (n, K, 4) in the image's own pixels)."""
        scores, boxes = self.model.detect(self.features, self.sizes)[0]
        return scores, self.turned(boxes) / self.factor

    def masks(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """(N, M, M) probabilities in boxes (N, 4) in the image's own pixels."""
        masks = self.model.masks(self.features, [self.turned(boxes * self.factor)], labels)
        return masks.flip(-1) if self.mirrored else masks

    def turned(self, boxes: Tensor) -> Tensor:
        """Boxes (..., 4) of the view mirrored, where it is: both ways the same."""
        if not self.mirrored:
            return boxes
        left, top, right, bottom = boxes.unbind(-1)
        return torch.stack([self.width - right, top, self.width - left, bottom], -1)


def wide(boxes: Tensor) -> Tensor:
    """(...) whether a box (..., 4) has sides; not where one is not a number."""
    return (boxes[..., 2:] - boxes[..., :2] >= SMALLEST).all(-1)
