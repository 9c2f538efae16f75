"""Predict the instances of one image with a two-stage model: the best boxes, then their masks.

That is Mask R-CNN's inference (arXiv:1703.06870, section 3.1). With several views (scales,
mirrored) their detections compete in one suppression, and the masks of what remains are averaged,
as in Detectron's test-time augmentation. Masks are pasted one at a time at the image's own size.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from segtrain.errors import UserError, did_you_mean
from segtrain.inference.base import (
    BasePredictor,
    Detector,
    InclusiveDetector,
    inclusive,
    mask_shift,
    view_tags,
)
from segtrain.inference.maps import batch_of, check_edges, device_of, seen
from segtrain.inference.paste import segments
from segtrain.layers.regions import clip, moved_ends, up_to_last
from segtrain.structures.boxes import edge_size
from segtrain.structures.instances import Segments
from segtrain.structures.samples import Batch

# Pixels; a detection without a side has no mask to paste. torchvision leaves out boxes below the
# same size.
MIN_BOX_SIDE = 1e-2
PASTES = ("aligned", "box", "expanded")


class InstanceSegmentation(BasePredictor):
    """Wrap a model that has `features`, `detect` and `masks`. The caller sets eval and autocast.

    shorter     the shorter edge in pixels that an image is resized to; None keeps its size.
    longest     if the longer edge would exceed this many pixels, the image is shrunk further.
                The defaults, 800 and 1333, are those of Detectron's baselines.
    score       detections that do not exceed it are left out (Detectron's TEST.SCORE_THRESH).
    overlap     IoU above which the less confident of two detections of one class is left out
                (TEST.NMS of Detectron's baselines of Mask R-CNN).
    detections  the most that are kept of an image, over all classes: COCO's metric counts 100.
    threshold   the probability from which a pixel belongs to a mask.
    scales      factors of `shorter` and `longest`, one view each.
    flip        adds the mirrored view at every scale.
    paste       where masks are put. "aligned": where the model draws them, which is in their boxes,
                with roi=legacy half a pixel of its input to the right and below. "box": in their
                boxes whatever the model says (runs of before version 3). "expanded": as Detectron
                and torchvision do, for their published numbers, see inference/paste.py.

    Errors: UserError for other values, and for a model that finds no instances.
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
        paste: Literal["aligned", "box", "expanded"] = "aligned",
    ) -> None:
        if not isinstance(model, Detector):
            raise UserError(
                f"inference: {type(model).__name__} finds no instances; set inference=whole, "
                "or another model"
            )
        self.model = model
        self.detector: Detector = model  # the same object, typed by what is asked of it
        self.shorter = shorter
        self.longest = longest
        self.score = score
        self.overlap = overlap
        self.detections = detections
        self.threshold = threshold
        self.scales = [1.0] if scales is None else [float(scale) for scale in scales]
        self.flip = flip
        self.paste = paste
        self._check()

    @property
    def tag(self) -> str:
        """Return the views that are averaged, for the folder of results."""
        return "-".join(view_tags(self.scales, self.flip))

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as plain values for metrics.json.

        `paste` only where it is not the usual one, so that metrics of before it still compare.
        """
        settings: dict[str, Any] = {
            "shorter": self.shorter,
            "longest": self.longest,
            "score": self.score,
            "overlap": self.overlap,
            "detections": self.detections,
            "threshold": self.threshold,
            "scales": self.scales,
            "flip": self.flip,
        }
        return settings if self.paste == "aligned" else settings | {"paste": self.paste}

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Segments:
        """Predict the objects of an image (3, H, W) uint8 RGB at its own size, best first."""
        size = (image.shape[1], image.shape[2])
        image = image.to(device_of(self.model))
        views = [
            View(self.detector, image, shown, mirrored)
            for shown in self.sizes(size)
            for mirrored in self.mirrors()
        ]
        detected = [view.detect() for view in views]
        scores = torch.cat([view_scores for view_scores, _ in detected])
        boxes = torch.cat([view_boxes for _, view_boxes in detected])
        candidates, labels = torch.nonzero((scores > self.score) & has_sides(boxes), as_tuple=True)
        scores = scores[candidates, labels]
        boxes = boxes[candidates, labels]
        kept = batched_nms(boxes, scores, labels, self.overlap)[: self.detections]
        scores = scores[kept]
        boxes = boxes[kept]
        labels = labels[kept]
        masks = torch.stack([view.masks(boxes, labels) for view in views]).mean(0)
        expanded = self.paste == "expanded"
        regions = self.regions(boxes, views)
        return segments(size, boxes, masks, labels, scores, self.threshold, regions, expanded)

    def network_output(self, batch: Batch) -> object:
        """Return the boxes of a batch; masks are made for those that remain, image by image."""
        return self.detector.detect(self.detector.features(batch), batch.sizes)

    def regions(self, boxes: Tensor, views: list[View]) -> Tensor:
        """Return where the masks of boxes (N, 4) lie, (N, 4) in the image's own pixels."""
        if self.paste == "aligned":
            # Those of a mirrored view lie to the other side: their mean lies in between.
            return boxes + torch.stack([view.offset() for view in views]).mean(0)
        if self.paste == "expanded" and inclusive(self.model):
            return up_to_last(boxes)
        return boxes

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return (height, width) of each scale's view of an image of `size`."""
        shorter = min(size) if self.shorter is None else self.shorter
        longest = max(size) if self.shorter is None else self.longest
        return [
            edge_size(size, max(1, round(shorter * scale)), max(1, round(longest * scale)))
            for scale in self.scales
        ]

    def mirrors(self) -> tuple[bool, ...]:
        """Return for each view of a scale whether it is mirrored."""
        return (False, True) if self.flip else (False,)

    def _check(self) -> None:
        """Refuse arguments that make no sense. Errors: UserError."""
        check_edges(self.shorter, self.longest)
        if not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"inference.scales={self.scales}: give one or more positive factors, "
                "e.g. [0.75,1.0,1.25]."
            )
        if self.detections < 1:
            raise UserError(f"inference.detections={self.detections}: at least 1")
        if self.paste not in PASTES:
            near = did_you_mean(self.paste, PASTES)
            raise UserError(
                f"inference.paste={self.paste} is unknown.{near} Known: {', '.join(PASTES)}"
            )
        shares = {"score": self.score, "overlap": self.overlap, "threshold": self.threshold}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise UserError(f"inference.{name}={value}: between 0 and 1")


class View:
    """Show an image to the model once, and bring what it finds back to the image's own pixels."""

    def __init__(
        self, detector: Detector, image: Tensor, shown: tuple[int, int], mirrored: bool
    ) -> None:
        pixels, self.growth = seen(image, shown)
        batch = batch_of((pixels.flip(-1) if mirrored else pixels)[None], shown)
        self.detector = detector
        self.sizes = batch.sizes
        self.features = detector.features(batch)
        self.width = shown[1]
        self.mirrored = mirrored
        self.size = (image.shape[1], image.shape[2])
        self.inclusive = inclusive(detector)
        self.ends = moved_ends(self.growth, self.inclusive)

    def detect(self) -> tuple[Tensor, Tensor]:
        """Return probabilities (n, K) and boxes (n, K, 4) in the image's own pixels."""
        if self.inclusive and isinstance(self.detector, InclusiveDetector):
            scores, boxes = self.detector.detect(self.features, self.sizes, self.growth)[0]
        else:
            scores, boxes = self.detector.detect(self.features, self.sizes)[0]
        boxes = self.mirror(boxes + self.ends) / self.growth
        # The last pixel of an enlarged image lies beyond the last one of the image.
        return scores, clip(boxes, self.size, inclusive=True) if self.inclusive else boxes

    def masks(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """Return probabilities (N, M, M) inside boxes (N, 4) in the image's own pixels."""
        asked = self.mirror(boxes * self.growth) - self.ends
        masks = self.detector.masks(self.features, [asked], labels)
        return masks.flip(-1) if self.mirrored else masks

    def offset(self) -> Tensor:
        """Return (4,) how far masks lie from their boxes, in the image's own pixels."""
        moved = mask_shift(self.detector) - self.ends
        left, top, right, bottom = up_to_last(moved) if self.inclusive else moved
        sides = [-right, top, -left, bottom] if self.mirrored else [left, top, right, bottom]
        return torch.stack(sides) / self.growth

    def mirror(self, boxes: Tensor) -> Tensor:
        """Mirror boxes (..., 4) of the view where it is mirrored; there and back are the same."""
        if not self.mirrored:
            return boxes
        left, top, right, bottom = boxes.unbind(-1)
        return torch.stack([self.width - right, top, self.width - left, bottom], -1)


def has_sides(boxes: Tensor) -> Tensor:
    """Tell (...) whether a box (..., 4) has both sides; a box that is not a number has none."""
    return (boxes[..., 2:] - boxes[..., :2] >= MIN_BOX_SIDE).all(-1)
