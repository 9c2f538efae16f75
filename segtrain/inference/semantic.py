"""Predict one label map per image: whole or in windows, at several scales, mirrored, with a CRF.

Shapes: images (3, H, W) uint8 RGB, scores (K, H, W) fp32, labels (H, W) uint8. Scores are resized
to the image; neither the image nor the truth is ever resized to the scores.

What a network is shown is a *canvas*: the image at a scale, padded where that is too small. It is
one of two things. Bytes, which go into a `Batch` as in training: the model normalises them and
blanks the padding. Or floats that are normalised here, for the protocols of releases that pad or
resize otherwise than a `Batch` can say.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.inference.base import BasePredictor, BoxProposer, Detector, MaskProposer, view_tags
from segtrain.inference.crf import DenseCRF
from segtrain.inference.maps import (
    batch_of,
    device_of,
    largest,
    logits_of,
    normalised,
    rescaled,
    resized,
)
from segtrain.inference.windows import (
    BASE_SIDES,
    SIDES,
    Sides,
    canvas_size,
    covered,
    laid,
    scaled_size,
    window_starts,
)

AVERAGES = ("probabilities", "logits", "summed", "exp", "resized")
RESIZES = ("bytes", "floats", "aligned", "antialiased")
PADDINGS = ("training", "mean", "middle", "black")
# The protocol of training and of the papers; releases differ in these.
USUAL = {
    "resize": "bytes",
    "padding": "training",
    "overhang": False,
    "base_side": "long",
    "sides": "half_up",
    "score_stride": None,
}


class Semantic(BasePredictor):
    """Wrap a model that returns `logits` (B, K, h, w). The caller sets eval mode and autocast.

    mode          "whole" shows the image at once; "slide" shows overlapping windows and averages
                  the scores of each pixel over those that hold it (PSPNet, CVPR 2017).
    window        (height, width) of the sliding window in pixels; only for "slide".
    stride        step of the window as a fraction of its side; pixels are rounded up
                  (473 * 2/3 -> 316, as in PSPNet's release), with `overhang` down.
    scales        factors of the image's sides; the scores of all scales are averaged at the
                  image's own size.
    flip          adds the mirrored view of the image, or of every window.
    average       what is averaged over windows, scales and mirror images: the softmax
                  "probabilities" or the "logits". Two more add the mirrored logits before anything
                  else: "summed" takes the softmax of the sum (PSPNet's Caffe release), "exp" its
                  exponential (EncNet's), which lets a confident view outvote several that are not.
                  "resized" resizes the logits of every view to the image before the softmax
                  (DeepLab's TensorFlow release); only for "whole".
    window_batch  windows per forward pass; memory grows with it.
    base          the `base_side` in pixels at scale 1, the other side in proportion; None keeps the
                  image's own.
    pad           (height, width) that a smaller image is padded to at scale 1; only for "whole"
                  (DeepLab: 513).
    crf           refines the probabilities at the image's own size.
    resize        of the image, and of the scores back to it, bilinearly. "bytes": between pixel
                  centres, the image rounded to bytes, as in training. "floats": not rounded
                  (semseg). "aligned": not rounded, corners on corners (PyTorch-Encoding, DeepLab's
                  TensorFlow release); an image with `pad` is then padded first, and its canvas is
                  scaled. "antialiased": as "bytes", but a smaller image is the mean of all the
                  pixels it replaces (PSPNet's Caffe release, torchvision).
    padding       where and with what a canvas or a window is filled. "training": with the mean, at
                  the right and bottom, of the mirrored view too, as batches in training have it.
                  In the others the padded view is mirrored as it is: "mean" at the right and
                  bottom (PSPNet's Caffe release, DeepLab's), "middle" with the mean on all sides
                  (semseg), "black" at the right and bottom (PyTorch-Encoding).
    overhang      whether the last window hangs over the image, and is padded, instead of moving
                  inside (PyTorch-Encoding); not with padding="training".
    base_side     the side that `base` gives: "long", or "short" (torchvision).
    sides         how whole pixels follow from `base`, see `windows.scaled_size`.
    score_stride  with average="resized", the pixels between the scores of the network, 4 behind
                  DeepLabv3+'s decoder: scales below 1 pass through the scores of scale 1, as
                  DeepLab's TensorFlow release resizes them there first; None resizes them once.

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
        average: Literal["probabilities", "logits", "summed", "exp", "resized"] = "probabilities",
        window_batch: int = 4,
        base: int | None = None,
        pad: list[int] | None = None,
        crf: DenseCRF | None = None,
        resize: Literal["bytes", "floats", "aligned", "antialiased"] = "bytes",
        padding: Literal["training", "mean", "middle", "black"] = "training",
        overhang: bool = False,
        base_side: Literal["long", "short"] = "long",
        sides: Sides = "half_up",
        score_stride: int | None = None,
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
        self.resize = resize
        self.padding = padding
        self.overhang = overhang
        self.base_side: Literal["long", "short"] = base_side
        self.sides: Sides = sides
        self.score_stride = score_stride
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
        """Return the arguments, as plain values for metrics.json.

        Those of `USUAL` only where they are not usual, so that metrics of before them still
        compare.
        """
        unusual = {key: vars(self)[key] for key in USUAL if vars(self)[key] != USUAL[key]}
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
            **unusual,
        }

    @torch.inference_mode()
    def __call__(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Predict an image (3, H, W) uint8 RGB: labels (H, W) uint8 on the model's device."""
        height, width = image.shape[-2:]
        if self.crf is not None:
            return largest(self.probabilities(image))
        if not self.plain:
            return largest(self.scores(image))
        images = image.to(device_of(self.model))[None]
        return self.labels(self.model(batch_of(images, (height, width))), (height, width))

    @torch.inference_mode()
    def probabilities(self, image: Tensor, sample_id: str = "") -> Tensor:
        """Return the probabilities (K, H, W) fp32 of an image (3, H, W), refined by a CRF."""
        scores = self.scores(image)
        found = scores.softmax(0) if self.average == "logits" else scores
        return found if self.crf is None else self.crf(image, found)

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
        total: Tensor | None = None
        for scale in self.scales:
            view = self._at_scale(image, scale)
            total = view if total is None else total.add_(view)
        assert total is not None  # _check refuses an empty list of scales
        if self.average == "exp":
            return total.div_(total.sum(0)).float()
        return total.div_(len(self.scales))

    def _at_scale(self, image: Tensor, scale: float) -> Tensor:
        """Return the scores (K, H, W) of an image (3, H, W) uint8 that is shown at one scale."""
        height, width = image.shape[1:]
        size = (height, width)
        if self.pad is not None and self.resize == "aligned":
            # The canvas is what is resized, there and back, and its padding is cut off last.
            size = covered(size, (self.pad[0], self.pad[1]))
            canvas, _, _ = laid(normalised(self.model, image), size, self._colour(image))
            shown = self._resized(canvas[None], canvas_size(size, scale))[0]
        else:
            shown = self._shown(
                image, scaled_size(size, scale, self.base, self.base_side, self.sides)
            )
        view = self._slide(shown) if self.mode == "slide" else self._whole(shown, scale, size)
        return self._resized(view[None], size)[0, :, :height, :width]

    def _shown(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return an image (3, H, W) uint8 at `size`: bytes, or floats that are normalised."""
        if self.resize in ("floats", "aligned"):
            return self._resized(normalised(self.model, image)[None], size)[0]
        pixels = rescaled(image, size, antialias=self.resize == "antialiased")
        return pixels if self.padding == "training" else normalised(self.model, pixels)

    def _resized(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps (B, C, h, w) at `size`."""
        return resized(maps, size, self.resize == "aligned", self.resize == "antialiased")

    def _laid(self, image: Tensor, canvas: tuple[int, int]) -> tuple[Tensor, int, int]:
        """Return what is shown on its canvas, and the row and column at which it begins."""
        return laid(image, canvas, self._colour(image), self.padding == "middle")

    def _colour(self, image: Tensor) -> Tensor | float:
        """Return what pads an image: the mean is zero once normalised, and bytes are blanked."""
        if self.padding != "black":
            return 0
        black = torch.zeros((3, 1, 1), dtype=torch.uint8, device=image.device)
        return normalised(self.model, black)

    def _whole(self, image: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
        """Return scores (K, h, w) of a scaled image (C, h, w) that is shown at once.

        With average="resized" they are already at `size`.
        """
        height, width = image.shape[-2:]
        least = (1, 1) if self.pad is None else canvas_size((self.pad[0], self.pad[1]), scale)
        canvas, top, left = self._laid(image, covered((height, width), least))
        logits = [
            each[..., top : top + height, left : left + width]
            for each in self._logits(canvas[None], (height, width))
        ]
        if self.average == "resized":
            if self.score_stride is not None and scale < 1:
                grid = canvas_size(size, 1 / self.score_stride)
                logits = [self._resized(each, grid) for each in logits]
            logits = [self._resized(each, size) for each in logits]
        return self._combined(logits)[0]

    def _slide(self, image: Tensor) -> Tensor:
        """Return scores (K, h, w) of a scaled image (C, h, w), the mean over a pixel's windows."""
        assert self.window is not None  # _check refuses slide without a window
        height, width = image.shape[-2:]
        window_height, window_width = self.window
        tops = window_starts(height, window_height, self.stride, self.overhang)
        lefts = window_starts(width, window_width, self.stride, self.overhang)
        ends = (tops[-1] + window_height, lefts[-1] + window_width)
        canvas, top, left = self._laid(image, covered((height, width), ends))
        corners = [(row, column) for row in tops for column in lefts]
        # A window larger than the image shows all of it, padded.
        real = (min(window_height, height), min(window_width, width))
        total: Tensor | None = None
        count = torch.zeros(canvas.shape[-2:], device=image.device)
        for first in range(0, len(corners), self.window_batch):
            batch = corners[first : first + self.window_batch]
            windows = torch.stack(
                [canvas[:, y : y + window_height, x : x + window_width] for y, x in batch]
            )
            views = self._combined(self._logits(windows, real))
            if total is None:
                total = views.new_zeros((views.shape[1], *canvas.shape[-2:]))
            for (y, x), view in zip(batch, views, strict=True):
                rows = slice(y, y + view.shape[-2])
                columns = slice(x, x + view.shape[-1])
                total[:, rows, columns] += view
                count[rows, columns] += 1
        assert total is not None  # an image has at least one window
        rows = slice(top, top + height)
        columns = slice(left, left + width)
        return total[:, rows, columns].div_(count[rows, columns])

    def _logits(self, windows: Tensor, real: tuple[int, int]) -> list[Tensor]:
        """Return the logits of windows (B, C, h, w) and, with `flip`, those of their mirror images.

        The latter are mirrored back. With padding="training" both cover only the upper left `real`
        (height, width): what is mirrored there is the image without its padding, which models
        expect at the right. Otherwise they cover the whole window.
        """
        if self.padding != "training":
            real = (windows.shape[2], windows.shape[3])
        logits = [self._forward(windows, real)]
        if self.flip:
            mirrored = torch.zeros_like(windows)
            mirrored[..., : real[0], : real[1]] = windows[..., : real[0], : real[1]].flip(-1)
            logits.append(self._forward(mirrored, real).flip(-1))
        return logits

    def _forward(self, windows: Tensor, real: tuple[int, int]) -> Tensor:
        """Return the logits (B, K, *real) fp32 of one forward pass."""
        shown = batch_of(windows, real) if windows.dtype == torch.uint8 else windows
        logits = resized(logits_of(self.model(shown)), (windows.shape[2], windows.shape[3]))
        return logits[..., : real[0], : real[1]]

    def _combined(self, logits: list[Tensor]) -> Tensor:
        """Return scores (B, K, h, w) from the logits of a view and, if given, of its mirror image.

        They are always a new tensor, so that adding to it in place is safe.
        """
        if self.average in ("summed", "exp"):
            return self._scores_of(logits[0] + logits[1] if len(logits) > 1 else logits[0])
        total = self._scores_of(logits[0])
        for each in logits[1:]:
            total.add_(self._scores_of(each))
        return total.div_(len(logits)) if len(logits) > 1 else total

    def _scores_of(self, logits: Tensor) -> Tensor:
        """Return what is averaged, always a new tensor."""
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
        choices = {
            "average": (self.average, AVERAGES),
            "resize": (self.resize, RESIZES),
            "padding": (self.padding, PADDINGS),
            "base_side": (self.base_side, BASE_SIDES),
            "sides": (self.sides, SIDES),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise UserError(f"inference.{name}={value}: use one of {', '.join(known)}.")
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
        if self.average == "resized" and self.mode == "slide":
            raise UserError(
                "inference.average=resized resizes the logits of whole images; with mode=slide "
                "take probabilities, logits, summed or exp."
            )
        if self.score_stride is not None and (self.score_stride < 1 or self.average != "resized"):
            raise UserError(
                f"inference.score_stride={self.score_stride}: pixels between scores, at least 1, "
                "and only with inference.average=resized."
            )
        if self.overhang and (self.padding == "training" or self.mode == "whole"):
            raise UserError(
                f"inference.overhang=true with inference.mode={self.mode} inference.padding="
                f"{self.padding}: needs mode=slide and padding=black, mean or middle."
            )
        if self.padding == "middle" and self.resize == "aligned" and self.pad is not None:
            raise UserError(
                "inference.padding=middle: with resize=aligned the canvas that `pad` makes is "
                "scaled from its upper left corner; take padding=mean or black."
            )
        if self.window_batch < 1:
            raise UserError(
                f"inference.window_batch={self.window_batch}: at least 1 window per forward pass."
            )
