"""Score the boxes of an image one by one and merge their score maps (DeconvNet).

That is the inference of arXiv:1505.04366, section 4.4. Shapes: images (3, H, W) uint8 RGB, scores
(K, H, W) fp32, labels (H, W) uint8. Boxes are x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.contracts import Trained
from segtrain.data.proposals import boxes_of, grid, read_proposals
from segtrain.errors import UserError
from segtrain.inference.base import BasePredictor
from segtrain.inference.crf import DenseCRF
from segtrain.inference.maps import batch_of, device_of, largest, logits_of, rescaled, resized
from segtrain.inference.semantic import Semantic
from segtrain.structures import run_lengths
from segtrain.structures.boxes import corners, enlarged

# Boxes are resized to 224 pixels a side, which is small: several share a forward pass. How many is
# chosen by hand: few enough for any memory.
CROPS_PER_PASS = 8


class Boxes:
    """Choose the windows of an image that are scored: `boxes(image, sample_id)`, best first.

    source    "grid" (`data.proposals.grid`); a .json file of boxes in COCO's results form, looked
              up by the image's id; or a trained instance segmenter, a RUN whose boxes are taken:
              `detector` then holds what a command loaded.
    count     the most windows, the best of those that are large enough (paper: 50).
    enlarge   factor of a box's sides about its middle.
    min_side  the shorter side in pixels that an enlarged box needs; smaller ones are passed over
              and do not count (released code: 112). The grid's whole image is never passed over.

    Errors: UserError for other values.
    """

    def __init__(
        self, source: str = "grid", count: int = 50, enlarge: float = 1.2, min_side: int = 112
    ) -> None:
        self.source = source
        self.count = count
        self.enlarge = enlarge
        self.min_side = min_side
        if count < 1:
            raise UserError(f"inference.boxes.count={count}: at least 1 box per image, e.g. 50")
        if enlarge < 1:
            raise UserError(f"inference.boxes.enlarge={enlarge}: a factor from 1, e.g. 1.2")
        if min_side < 1:
            raise UserError(
                f"inference.boxes.min_side={min_side}: pixels, at least 1; "
                "the released code has 112"
            )
        if source != "grid" and not Path(source).exists():
            raise UserError(
                f"inference.boxes.source={source}: neither grid, nor a .json file or a run "
                "that is there"
            )
        self.stored = read_proposals(Path(source)) if Path(source).suffix == ".json" else None
        self.detector: Trained | None = None

    @property
    def run(self) -> str | None:
        """Return the run that is to be loaded for `detector`, if any."""
        return None if self.source == "grid" or self.stored is not None else self.source

    def __call__(self, image: Tensor, sample_id: str) -> np.ndarray:
        """Return the windows (N, 4) int64 of an image (3, H, W). Errors: UserError, DataError."""
        height, width = image.shape[-2:]
        if self.source == "grid":
            boxes = grid(height, width, self.count, self.min_side / self.enlarge)
            return enlarged(boxes, self.enlarge, height, width)
        if self.stored is None:
            boxes = self.detected(image)
        else:
            boxes = boxes_of(self.stored, sample_id, self.source)
        boxes = enlarged(boxes, self.enlarge, height, width)
        large = (boxes[:, 2:] - boxes[:, :2]).min(1) >= self.min_side
        inside = (boxes[:, :2] < (width, height)).all(1) & (boxes[:, 2:] > 0).all(1)
        return boxes[large & inside][: self.count]

    def detected(self, image: Tensor) -> np.ndarray:
        """Return the detector's boxes (N, 4), best first.

        Errors: UserError without a detector, or where it gives label maps.
        """
        if self.detector is None:
            raise UserError(
                f"inference.boxes.source={self.source}: a run is loaded by segeval and segpredict "
                "only; train with grid"
            )
        prediction = self.detector(image)
        if isinstance(prediction, Tensor):
            raise UserError(
                f"inference.boxes.source={self.source}: gives label maps; "
                "a detector gives instances"
            )
        objects = run_lengths.as_segments(prediction)
        boxes = corners(objects.boxes)
        if objects.scores is None:
            return boxes
        return boxes[np.argsort(-objects.scores, kind="stable")]


class Proposals(BasePredictor):
    """Score every box by itself and merge the score maps into one label map per image.

    Each box is cut from the image, which goes on in black, resized to `size` x `size` pixels,
    scored, and its scores resized back, both bilinearly. The caller sets eval mode and autocast.

    boxes     which boxes (`Boxes`).
    merge     "max" (the paper's result) or "mean" of the scores before the softmax, over the
              boxes that hold a pixel.
    floor     "zero": a maximum below 0 counts as 0, as in the released code, whose map starts
              there; "none": it stays. Where no box is, all classes score 0, and class 0,
              background, wins the tie.
    partner   a RUN of a semantic model (paper: FCN-8s) that is combined: `attach` loads it.
    combine   "mean" of both models' probabilities (paper), or "product" of the merged scores and
              the partner's scores cut off below at 0, before the softmax (released code).
    crf       refines the probabilities.

    Errors: UserError for other values.
    """

    def __init__(
        self,
        model: nn.Module,
        boxes: Boxes | None = None,
        size: int = 224,
        merge: Literal["max", "mean"] = "max",
        floor: Literal["zero", "none"] = "zero",
        partner: str | None = None,
        combine: Literal["mean", "product"] = "mean",
        crf: DenseCRF | None = None,
    ) -> None:
        self.model = model
        self.size = size
        self.merge = merge
        self.floor = floor
        self.boxes = Boxes() if boxes is None else boxes
        self.partner = partner
        self.combine = combine
        self.crf = crf
        self._partner: Semantic | None = None
        self._partner_order: list[int] = []  # the partner's class of each of the model's
        self.mode = "proposals" if partner is None else f"proposals_{combine}"
        self.proposals = (  # in words, for metrics.json
            f"{self.boxes.count} of {self.boxes.source}, {self.boxes.enlarge:g} times, "
            f"shorter side from {self.boxes.min_side} px"
        )
        if size < 1:
            raise UserError(
                f"inference.size={size}: pixels of a side that a box is resized to, e.g. 224"
            )
        for key, value, known in (
            ("merge", merge, ("max", "mean")),
            ("floor", floor, ("zero", "none")),
            ("combine", combine, ("mean", "product")),
        ):
            if value not in known:
                raise UserError(f"inference.{key}={value}: use {known[0]} or {known[1]}.")

    @property
    def tag(self) -> str:
        """Return how a partner is combined and whether a CRF refines, for the folder of results."""
        return self.mode if self.crf is None else f"{self.mode}-crf"

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as plain values for metrics.json; the boxes in words."""
        return {
            "size": self.size,
            "merge": self.merge,
            "floor": self.floor,
            "partner": self.partner,
            "combine": self.combine,
            "crf": None if self.crf is None else self.crf.settings(),
            "mode": self.mode,
            "proposals": self.proposals,
        }

    def attach(self, load: Callable[[str], Trained], class_names: Sequence[str]) -> None:
        """Load the runs that proposals and partner come from; `class_names` are the model's.

        The partner may have the same classes in another order: its scores are taken by name.
        Errors: UserError where the partner knows other classes.
        """
        if self.boxes.run is not None:
            self.boxes.detector = load(self.boxes.run)
        if self.partner is not None:
            loaded = load(self.partner)
            names = list(loaded.labels.names)
            if sorted(names) != sorted(class_names):
                raise UserError(
                    f"inference.partner={self.partner}: knows {len(loaded.labels.names)} classes "
                    f"of {loaded.labels.name}, not the {len(class_names)} of this model; "
                    "take a run on the same data set"
                )
            self._partner_order = [names.index(name) for name in class_names]
            self._partner = Semantic(loaded.network, average="logits")

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Predict an image (3, H, W) uint8 RGB: labels (H, W) uint8 on the model's device."""
        return largest(self.probabilities(image, sample_id))

    @torch.inference_mode()
    def probabilities(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Return the probabilities (K, H, W) fp32 of an image (3, H, W), refined by a CRF."""
        image = image.to(device_of(self.model))
        combined = self.combined(image, sample_id)
        return combined if self.crf is None else self.crf(image, combined)

    def combined(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Return the probabilities (K, H, W) fp32 of an image, the partner's in, before the CRF."""
        scores = self.scores(image, sample_id)
        if self.partner is None:
            return scores.softmax(0)
        if self._partner is None:
            raise UserError(
                f"inference.partner={self.partner}: it is loaded by segeval and segpredict only; "
                "train without"
            )
        other = self._partner.scores(image)[self._partner_order]
        if self.combine == "product":
            return (scores * other.clamp_(min=0)).softmax(0)
        return (scores.softmax(0) + other.softmax(0)) / 2

    @torch.inference_mode()
    def scores(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Return the model's merged scores (K, H, W) fp32 of an image, before any softmax."""
        image = image.to(device_of(self.model))
        height, width = image.shape[-2:]
        boxes = self.boxes(image, sample_id).tolist()
        if not boxes:
            # One pass over the whole image tells how many classes there are; all of them score 0.
            whole = cut(image, [0, 0, width, height], self.size)
            classes = self._crop_scores([whole]).shape[1]
            return torch.zeros((classes, height, width), device=image.device)
        start = 0.0 if self.merge == "mean" or self.floor == "zero" else float("-inf")
        total: Tensor | None = None
        count = torch.zeros((height, width), device=image.device)
        for first in range(0, len(boxes), CROPS_PER_PASS):
            batch = boxes[first : first + CROPS_PER_PASS]
            views = self._crop_scores([cut(image, box, self.size) for box in batch])
            if total is None:
                total = views.new_full((views.shape[1], height, width), start)
            for (x1, y1, x2, y2), view in zip(batch, views, strict=True):
                top = max(y1, 0)
                left = max(x1, 0)
                bottom = min(y2, height)
                right = min(x2, width)
                at_box_size = resized(view[None], (y2 - y1, x2 - x1))[0]
                inside = at_box_size[:, top - y1 : bottom - y1, left - x1 : right - x1]
                held = total[:, top:bottom, left:right]
                held.copy_(torch.maximum(held, inside) if self.merge == "max" else held + inside)
                count[top:bottom, left:right] += 1
        assert total is not None  # there is at least one box
        if self.merge == "mean":
            total /= count.clamp(min=1)
        return total.masked_fill_(count == 0, 0)

    def _crop_scores(self, crops: list[Tensor]) -> Tensor:
        """Return the scores (B, K, h, w) fp32 of crops (3, size, size) uint8."""
        return logits_of(self.model(batch_of(torch.stack(crops), (self.size, self.size))))


def cut(image: Tensor, box: list[int], size: int) -> Tensor:
    """Cut a box from an image (3, H, W) uint8, black beyond it, and resize it to `size` squared.

    It is resized bilinearly, as in training. A box holds at least one pixel of the image.
    """
    x1, y1, x2, y2 = box
    height, width = image.shape[-2:]
    part = F.pad(image, (-x1, x2 - width, -y1, y2 - height))  # negative padding cuts
    return rescaled(part, (size, size))
