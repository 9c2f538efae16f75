"""Predict one label map per image: whole or in windows, at several scales, mirrored, with a CRF.

Shapes: images (3, H, W) uint8 RGB, scores (K, H, W) fp32, labels (H, W) uint8. Scores are resized
to the image; neither the image nor the truth is ever resized to the scores.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.inference.base import BasePredictor, BoxProposer, Detector, MaskProposer, view_tags
from segtrain.inference.crf import DenseCRF
from segtrain.inference.maps import batch_of, device_of, largest, logits_of, rescaled, resized

AVERAGES = ("probabilities", "logits", "summed", "exp")

# Subtracted before a stride in pixels is rounded up: 480 * 2/3 is to be 320 also where a config
# writes 0.666666667.
STRIDE_TOLERANCE = 1e-6


class Semantic(BasePredictor):
    """Wrap a model that returns `logits` (B, K, h, w). The caller sets eval mode and autocast.

    mode          "whole" shows the image at once; "slide" shows overlapping windows and averages
                  the scores of each pixel over those that hold it (PSPNet, CVPR 2017).
    window        (height, width) of the sliding window in pixels; only for "slide".
    stride        step of the window as a fraction of its side; pixels are rounded up
                  (473 * 2/3 -> 316, as in PSPNet's release).
    scales        factors of the image's sides; the scores of all scales are averaged at the
                  image's own size.
    flip          adds the mirrored view of the image, or of every window.
    average       what is averaged over windows, scales and mirror images: the softmax
                  "probabilities" (DeepLab) or the "logits". Two more add the mirrored logits
                  before anything else: "summed" takes the softmax of the sum (PSPNet's Caffe
                  release), "exp" its exponential (EncNet's), which lets a confident view outvote
                  several that are not.
    window_batch  windows per forward pass; memory grows with it.
    base          the long side in pixels at scale 1, the short side in proportion; None keeps the
                  image's own.
    pad           (height, width) that a smaller image is padded to with the mean at scale 1; only
                  for "whole" (DeepLab: 513).
    crf           refines the probabilities at the image's own size.

    Errors: UserError for arguments that make no sense together.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Literal["whole", "slide"] = "whole",
        window: list[int] | None = None,
        stride: float = 2 / 3,
        scales: list[float] | None = None,
        flip: bool = False,
        average: Literal["probabilities", "logits", "summed", "exp"] = "probabilities",
        window_batch: int = 4,
        base: int | None = None,
        pad: list[int] | None = None,
        crf: DenseCRF | None = None,
    ) -> None:
        self.model = model
        self.mode = mode
        self.window = None if window is None else [int(side) for side in window]
        self.stride = stride
        self.scales = [1.0] if scales is None else [float(scale) for scale in scales]
        self.flip = flip
        self.average = average
        self.window_batch = window_batch
        self.base = base
        self.pad = None if pad is None else [int(side) for side in pad]
        self.crf = crf
        self._check()

    @property
    def plain(self) -> bool:
        """Tell whether one pass over the untouched image is all there is."""
        changed = self.flip or self.base is not None or self.pad is not None or self.crf is not None
        return self.mode == "whole" and self.scales == [1.0] and not changed

    @property
    def tag(self) -> str:
        """Return what differs from one look at the whole image, for the folder of results."""
        words: list[str] = [] if self.mode == "whole" else [self.mode]
        words += view_tags(self.scales, self.flip)
        if self.base is not None:
            words.append(f"base_{self.base}")
        if self.average != "probabilities":
            words.append(self.average)
        if self.crf is not None:
            words.append("crf")
        return "-".join(words)

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as plain values for metrics.json."""
        return {
            "mode": self.mode,
            "window": self.window,
            "stride": self.stride,
            "scales": self.scales,
            "flip": self.flip,
            "average": self.average,
            "window_batch": self.window_batch,
            "base": self.base,
            "pad": self.pad,
            "crf": None if self.crf is None else self.crf.settings(),
        }

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Predict an image (3, H, W) uint8 RGB: labels (H, W) uint8 on the model's device."""
        height, width = image.shape[-2:]
        if self.crf is not None:
            scores = self.scores(image)
            probabilities = scores.softmax(0) if self.average == "logits" else scores
            return largest(self.crf(image, probabilities))
        if not self.plain:
            return largest(self.scores(image))
        images = image.to(device_of(self.model))[None]
        return self.labels(self.model(batch_of(images, (height, width))), (height, width))

    def labels(self, output: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Return labels (H, W) uint8 from the `logits` (1, K, h, w) of one image of `size`.

        They are those of `__call__` when `plain`. Logits smaller than the image are resized to
        it; larger ones are those of a padded batch and lose the padding.
        """
        logits = logits_of(output)
        if logits.shape[0] != 1:
            raise ValueError(f"labels() takes the output of one image, got {logits.shape[0]}")
        padded = (max(size[0], logits.shape[2]), max(size[1], logits.shape[3]))
        return largest(resized(logits, padded)[0, :, : size[0], : size[1]])

    @torch.inference_mode()
    def scores(self, image: Tensor) -> Tensor:
        """Return the mean scores (K, H, W) fp32 of an image (3, H, W) uint8 RGB, without the CRF.

        They are logits where `average` says so, else probabilities that sum to one.
        """
        image = image.to(device_of(self.model))
        size = (image.shape[1], image.shape[2])
        total: Tensor | None = None
        for scale in self.scales:
            scaled = rescaled(image, scaled_size(size, scale, self.base))
            view = self._slide(scaled) if self.mode == "slide" else self._whole(scaled, scale)
            view = resized(view[None], size)[0]
            total = view if total is None else total.add_(view)
        assert total is not None  # _check refuses an empty list of scales
        if self.average == "exp":
            return total.div_(total.sum(0)).float()
        return total.div_(len(self.scales))

    def _whole(self, image: Tensor, scale: float) -> Tensor:
        """Return scores (K, H, W) of a scaled image that is shown at once.

        The canvas it is padded to grows with the scale as in DeepLab's release: 513 -> 769 at 1.5.
        """
        canvas = (1, 1) if self.pad is None else [int((side - 1) * scale) + 1 for side in self.pad]
        padded = (max(image.shape[1], canvas[0]), max(image.shape[2], canvas[1]))
        return self._views(image[None], padded)[0]

    def _slide(self, image: Tensor) -> Tensor:
        """Return scores (K, H, W) of a scaled image, the mean over the windows of a pixel."""
        assert self.window is not None  # _check refuses slide without a window
        height, width = image.shape[-2:]
        corners = [
            (top, left)
            for top in window_starts(height, self.window[0], self.stride)
            for left in window_starts(width, self.window[1], self.stride)
        ]
        # A window larger than the image shows all of it, padded.
        crop_height = min(self.window[0], height)
        crop_width = min(self.window[1], width)
        total: Tensor | None = None
        count = image.new_zeros((height, width), dtype=torch.float32)
        for first in range(0, len(corners), self.window_batch):
            batch = corners[first : first + self.window_batch]
            crops = torch.stack(
                [image[:, top : top + crop_height, left : left + crop_width] for top, left in batch]
            )
            views = self._views(crops, (self.window[0], self.window[1]))
            if total is None:
                total = views.new_zeros((views.shape[1], height, width))
            for (top, left), view in zip(batch, views, strict=True):
                rows = slice(top, top + crop_height)
                columns = slice(left, left + crop_width)
                total[:, rows, columns] += view
                count[rows, columns] += 1
        assert total is not None  # an image has at least one window
        return total.div_(count)

    def _views(self, crops: Tensor, padded: tuple[int, int]) -> Tensor:
        """Return scores (B, K, h, w) of crops (B, 3, h, w) padded to `padded`, and of their mirror.

        A crop is mirrored before it is padded: models expect the padding at the right.
        """
        logits = self._logits(crops, padded)
        if not self.flip:
            return self._scores_of(logits)
        mirrored = self._logits(crops.flip(-1), padded).flip(-1)
        if self.average in ("summed", "exp"):
            return self._scores_of(logits + mirrored)
        return self._scores_of(logits).add_(self._scores_of(mirrored)).div_(2)

    def _logits(self, crops: Tensor, padded: tuple[int, int]) -> Tensor:
        """Return the logits (B, K, h, w) fp32 of one forward pass."""
        height, width = crops.shape[-2:]
        images = F.pad(crops, (0, padded[1] - width, 0, padded[0] - height))
        logits = logits_of(self.model(batch_of(images, (height, width))))
        return resized(logits, padded)[..., :height, :width]

    def _scores_of(self, logits: Tensor) -> Tensor:
        """Return what is averaged, always a new tensor, so that adding to it in place is safe."""
        if self.average == "exp":
            # In single precision a sum of two logits would overflow from 89 on.
            return logits.double().exp()
        return logits.clone() if self.average == "logits" else logits.softmax(1)

    def _check(self) -> None:
        """Refuse a model of objects and arguments that make no sense. Errors: UserError."""
        if isinstance(self.model, Detector | MaskProposer | BoxProposer):
            logits_of({})  # says which inference to take
        if self.mode not in ("whole", "slide"):
            raise UserError(f"inference.mode={self.mode}: use whole or slide.")
        if self.average not in AVERAGES:
            raise UserError(f"inference.average={self.average}: use one of {', '.join(AVERAGES)}.")
        if self.mode == "slide" and (
            self.window is None or len(self.window) != 2 or min(self.window) < 1
        ):
            raise UserError(
                f"inference.window={self.window}: mode=slide needs [height, width] in pixels, "
                "e.g. [713, 713]."
            )
        if self.mode == "whole" and self.window is not None:
            raise UserError(
                f"inference.window={self.window} has no effect with mode=whole; "
                "set inference.mode=slide."
            )
        if not 0 < self.stride <= 1:
            raise UserError(
                f"inference.stride={self.stride}: the step is a fraction of the window, "
                "above 0 and at most 1."
            )
        if not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"inference.scales={self.scales}: give one or more positive factors, "
                "e.g. [0.75,1.0,1.25]."
            )
        if self.base is not None and self.base < 1:
            raise UserError(
                f"inference.base={self.base}: the long side in pixels, e.g. 520; "
                "null keeps the image's own."
            )
        if self.pad is not None and self.mode == "slide":
            raise UserError(
                f"inference.pad={self.pad} has no effect with mode=slide: "
                "windows are padded to their size."
            )
        if self.pad is not None and (len(self.pad) != 2 or min(self.pad) < 1):
            raise UserError(
                f"inference.pad={self.pad}: give [height, width] in pixels, e.g. [513, 513]."
            )
        if self.window_batch < 1:
            raise UserError(
                f"inference.window_batch={self.window_batch}: at least 1 window per forward pass."
            )


def window_starts(length: int, window: int, stride: float) -> list[int]:
    """Return the first pixels of the windows that cover `length` pixels.

    The last window is shifted inside; one that holds everything begins at 0.
    """
    last = max(length - window, 0)
    step = max(1, math.ceil(window * stride - STRIDE_TOLERANCE))
    return [min(i * step, last) for i in range(math.ceil(last / step) + 1)]


def scaled_size(size: tuple[int, int], scale: float, base: int | None = None) -> tuple[int, int]:
    """Return (height, width) of an image of `size` at `scale`.

    `scale` multiplies both sides, or the long side `base` with the short one in proportion. The
    latter rounds halves up, as EncNet's release does.
    """
    if base is not None:
        long = max(1, math.floor(base * scale + 0.5))
        short = max(1, math.floor(min(size) * long / max(size) + 0.5))
        return (long, short) if size[0] > size[1] else (short, long)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
