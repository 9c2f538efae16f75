"""Refine labels by a fully connected CRF, as DeepLab and DeconvNet do after their networks.

The CRF and its mean field are those of Kraehenbuehl and Koltun, "Efficient Inference in Fully
Connected CRFs with Gaussian Edge Potentials", NIPS 2011.

Shapes: image (3, H, W) uint8 RGB, probabilities and marginals (K, H, W) fp32, N = H * W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segtrain.errors import UserError

if TYPE_CHECKING:
    from segtrain.inference.lattice import Lattice

# Probabilities are clipped here before the logarithm, as the usual Python binding does: a network
# that is certain would leave the CRF nothing to change.
MIN_PROBABILITY = 1e-5
# Sums of half-precision probabilities over many classes stay within this of one.
SUM_TOLERANCE = 0.02


class DenseCRF:
    """Move labels to the edges of the image: `crf(image, probabilities)` gives joint marginals.

    The energy of a labelling x is
    E(x) = sum_i -log p_i(x_i)
           + sum_{i<j} [x_i != x_j] (color_weight * k_color + smooth_weight * k_smooth), with
    k_color  = exp(-distance^2 / (2 position_std^2) - colour difference^2 / (2 color_std^2)), and
    k_smooth = exp(-distance^2 / (2 smooth_std^2)), both normalised symmetrically.

    Positions are in pixels of the full-size image, colours from 0 to 255. A weight of 0 leaves
    its term out. With `wrap`, three numbers in the order of RGB, these are subtracted from the
    colours, which become bytes again, -1 as 255: kazuto1011's deeplab-pytorch (main.py, crf) gives
    its CRF the network's input so, and its published number was made with it.

    The defaults are those of DeepLabv2's release for VOC 2012. The paper (arXiv:1606.00915, section
    4.1) fixes smooth_weight=3, smooth_std=3 and searches color_weight 3 to 6, position_std 30 to
    100 and color_std 3 to 6 on 100 validation images.

    Errors: UserError for values that are no weights or standard deviations.
    """

    def __init__(
        self,
        iterations: int = 10,
        smooth_weight: float = 3.0,
        smooth_std: float = 1.0,
        color_weight: float = 4.0,
        position_std: float = 67.0,
        color_std: float = 3.0,
        wrap: list[float] | None = None,
    ) -> None:
        self.iterations = iterations
        self.smooth_weight = smooth_weight
        self.smooth_std = smooth_std
        self.color_weight = color_weight
        self.position_std = position_std
        self.color_std = color_std
        self.wrap = None if wrap is None else [float(value) for value in wrap]
        if self.wrap is not None and len(self.wrap) != 3:
            raise UserError(f"inference.crf.wrap={wrap}: three numbers, red, green and blue")
        if iterations < 0:
            raise UserError(
                f"inference.crf.iterations={iterations}: a number of mean-field steps, "
                "10 in the papers"
            )
        weights = {"smooth_weight": smooth_weight, "color_weight": color_weight}
        for name, value in weights.items():
            if value < 0:
                raise UserError(f"inference.crf.{name}={value}: at least 0; 0 leaves the term out")
        deviations = {
            "smooth_std": smooth_std,
            "position_std": position_std,
            "color_std": color_std,
        }
        for name, value in deviations.items():
            if not 0 < value < float("inf"):
                raise UserError(f"inference.crf.{name}={value}: a standard deviation is above 0")

    @classmethod
    def deconvnet(cls) -> DenseCRF:
        """Return a CRF with the values of DeconvNet's release (ICCV 2015), not those of DeepLab."""
        return cls(
            smooth_weight=3.0, smooth_std=3.0, color_weight=5.0, position_std=20.0, color_std=3.0
        )

    def settings(self) -> dict[str, Any]:
        """Return the arguments as plain values for metrics.json, `wrap` only where it is given."""
        settings = {
            "iterations": self.iterations,
            "smooth_weight": self.smooth_weight,
            "smooth_std": self.smooth_std,
            "color_weight": self.color_weight,
            "position_std": self.position_std,
            "color_std": self.color_std,
        }
        return settings if self.wrap is None else settings | {"wrap": self.wrap}

    @torch.no_grad()
    def __call__(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """Return the marginals (K, H, W) fp32, on the device of the probabilities.

        The probabilities must sum to one in every pixel.
        """
        _check(image, probabilities)
        kernels = self._kernels(image.to(probabilities.device))
        log_probabilities = probabilities.float().clamp(MIN_PROBABILITY, 1).log()
        unary = log_probabilities.flatten(1).T.contiguous()  # (N, K), the negative energy
        marginals = unary.softmax(1)
        for _ in range(self.iterations):
            # Potts model: a label gains what its neighbours believe in it, which differs from
            # the penalty for other labels by a constant that the softmax ignores.
            energy = unary.clone()
            for weight, kernel in kernels:
                energy.add_(kernel.filter(marginals), alpha=weight)
            # Autocast leaves all of this in fp32: none of it is in its half-precision list.
            marginals = energy.softmax(1)
        return marginals.T.reshape(probabilities.shape)

    def _kernels(self, image: Tensor) -> list[tuple[float, Lattice]]:
        """Return the weight and lattice of each term, without those of weight 0."""
        # scipy, which the lattice needs, is imported by the first CRF: most inferences have none.
        from segtrain.inference.lattice import Lattice

        height, width = image.shape[-2:]
        rows = torch.arange(height, dtype=torch.float32, device=image.device)
        columns = torch.arange(width, dtype=torch.float32, device=image.device)
        position = torch.stack(
            [columns.expand(height, width), rows[:, None].expand(height, width)]
        ).flatten(1)
        kernels = []
        if self.smooth_weight:
            kernels.append((self.smooth_weight, Lattice(position / self.smooth_std)))
        if self.color_weight:
            colors = image.flatten(1).float()
            if self.wrap is not None:
                mean = torch.tensor(self.wrap, device=image.device).view(3, 1)
                colors = (colors - mean).trunc_().remainder_(256)
            features = torch.cat([position / self.position_std, colors / self.color_std])
            kernels.append((self.color_weight, Lattice(features)))
        return kernels


def _check(image: Tensor, probabilities: Tensor) -> None:
    """Refuse what would make the result worse without a word.

    That is scores instead of probabilities, colours from 0 to 1, and a padded canvas.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(
            f"the CRF takes an image (3, H, W) uint8 RGB, not {tuple(image.shape)} {image.dtype}"
        )
    if probabilities.ndim != 3 or probabilities.shape[1:] != image.shape[1:]:
        raise ValueError(
            "the CRF takes probabilities (K, H, W) of the image's own size "
            f"{tuple(image.shape[1:])}, not {tuple(probabilities.shape)}"
        )
    error = (probabilities.float().sum(0) - 1).abs().max()
    if not (probabilities.min() >= 0 and error < SUM_TOLERANCE):
        raise ValueError(
            "the CRF takes probabilities: values that are at least 0 and sum to one in every pixel"
        )
