"""Fully connected CRF by mean field (Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian
Edge Potentials", NIPS 2011), as DeepLab and DeconvNet use it after their networks.

Shapes: image (3, H, W) uint8 RGB, probabilities and marginals (K, H, W) fp32, N = H * W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segtrain.errors import UserError
from segtrain.inference.lattice import Lattice

LEAST = (
    1e-5  # probabilities are clipped here before the logarithm, as the usual Python binding does
)


class DenseCRF:
    """Moves labels to the edges of the image: `crf(image, probabilities)` gives the marginals of all pixels jointly.

    E(x) = sum_i -log p_i(x_i) + sum_{i<j} [x_i != x_j] (color_weight * k_color + smooth_weight * k_smooth), with
    k_color  = exp(-distance^2 / (2 position_std^2) - colour difference^2 / (2 color_std^2)), and
    k_smooth = exp(-distance^2 / (2 smooth_std^2)), both normalised symmetrically.

    Positions in pixels of the full-size image, colours 0 to 255. A weight of 0 leaves its term out. The defaults are those
    of DeepLabv2's release for VOC 2012. The paper (arXiv:1606.00915, section 4.1) fixes smooth_weight=3, smooth_std=3 and
    searches color_weight 3 to 6, position_std 30 to 100 and color_std 3 to 6 on 100 validation images.

    Raises `UserError` for values that are no weights or standard deviations.
    """

    def __init__(
        self,
        iterations: int = 10,
        smooth_weight: float = 3.0,
        smooth_std: float = 1.0,
        color_weight: float = 4.0,
        position_std: float = 67.0,
        color_std: float = 3.0,
    ) -> None:
        if iterations < 0:
            raise UserError(
                f"inference.crf.iterations={iterations}: a number of mean-field steps, 10 in the papers"
            )
        for name, value in (("smooth_weight", smooth_weight), ("color_weight", color_weight)):
            if value < 0:
                raise UserError(f"inference.crf.{name}={value}: at least 0; 0 leaves the term out")
        for name, value in (
            ("smooth_std", smooth_std),
            ("position_std", position_std),
            ("color_std", color_std),
        ):
            if not 0 < value < float("inf"):
                raise UserError(f"inference.crf.{name}={value}: a standard deviation is above 0")
        self.iterations = iterations
        self.smooth_weight, self.smooth_std = smooth_weight, smooth_std
        self.color_weight, self.position_std, self.color_std = color_weight, position_std, color_std

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as plain values for metrics.json."""
        return {
            "iterations": self.iterations,
            "smooth_weight": self.smooth_weight,
            "smooth_std": self.smooth_std,
            "color_weight": self.color_weight,
            "position_std": self.position_std,
            "color_std": self.color_std,
        }

    @classmethod
    def deconvnet(cls) -> DenseCRF:
        """The values of DeconvNet's release (Noh et al., ICCV 2015): not those of DeepLab."""
        return cls(
            smooth_weight=3.0, smooth_std=3.0, color_weight=5.0, position_std=20.0, color_std=3.0
        )

    @torch.no_grad()
    def __call__(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """(3, H, W) uint8 RGB and (K, H, W) that sum to one -> marginals (K, H, W) fp32 on the probabilities' device."""
        _check(image, probabilities)
        kernels = self._kernels(image.to(probabilities.device))
        unary = (
            probabilities.float().clamp(LEAST, 1).log().flatten(1).T.contiguous()
        )  # (N, K), minus the energy
        marginals = unary.softmax(1)
        for _ in range(self.iterations):
            # Potts: a label gains what its neighbours believe in it, which differs by a constant from the penalty
            energy = unary.clone()
            for weight, kernel in kernels:
                energy.add_(kernel.filter(marginals), alpha=weight)
            marginals = energy.softmax(
                1
            )  # nothing here is in autocast's list of half-precision operations
        return marginals.T.reshape(probabilities.shape)

    def _kernels(self, image: Tensor) -> list[tuple[float, Lattice]]:
        """The weights and lattices of both terms, without those of weight 0."""
        high, wide = image.shape[-2:]
        rows = torch.arange(high, dtype=torch.float32, device=image.device)[:, None].expand(
            high, wide
        )
        columns = torch.arange(wide, dtype=torch.float32, device=image.device).expand(high, wide)
        place = torch.stack([columns, rows]).flatten(1)
        kernels = []
        if self.smooth_weight:
            kernels.append((self.smooth_weight, Lattice(place / self.smooth_std)))
        if self.color_weight:
            colors = image.flatten(1).float() / self.color_std
            kernels.append(
                (self.color_weight, Lattice(torch.cat([place / self.position_std, colors])))
            )
        return kernels


def _check(image: Tensor, probabilities: Tensor) -> None:
    """Scores instead of probabilities, colours from 0 to 1 and a padded canvas make the result worse without a word."""
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(
            f"the CRF takes an image (3, H, W) uint8 RGB, not {tuple(image.shape)} {image.dtype}"
        )
    if probabilities.ndim != 3 or probabilities.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"the CRF takes probabilities (K, H, W) of the image's own size {tuple(image.shape[1:])}, "
            f"not {tuple(probabilities.shape)}"
        )
    if not (probabilities.min() >= 0 and (probabilities.float().sum(0) - 1).abs().max() < 0.02):
        raise ValueError(
            "the CRF takes probabilities: values that are at least 0 and sum to one in every pixel"
        )
