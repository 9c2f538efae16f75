"""The encoding layer (Deep TEN, Zhang et al., CVPR 2017, arXiv:1612.02844).

EncNet uses it (arXiv:1803.08904).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segtrain.errors import UserError
from segtrain.layers.blocks import conv_norm_relu, initialise


class Encoding(nn.Module):
    """Add up the residuals of all positions to K codewords, softly assigned.

    `(B, D, H, W) -> (B, K, D)` fp32. With r_ik = x_i - d_k, the assignment is a_ik = softmax over k
    of s_k |r_ik|^2 and e_k = sum over i of a_ik r_ik. Codewords d (K, D) begin uniform in
    +-1 / sqrt(K D), smoothing factors s (K) uniform in (-1, 0): the nearer, the more weight.

    Nothing of size B x HW x K x D is built. |x - d|^2 is expanded into matrix products, which
    cancels digits where x and d are close against their size, so this is fp32 even inside autocast;
    e is then the sum of a x minus that of a, times d. Every position counts, padding included,
    whose features come from zeros: that of a crop in training, of a window that is larger than the
    scaled image in evaluation.
    """

    def __init__(self, channels: int, codewords: int) -> None:
        super().__init__()
        bound = (channels * codewords) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.smoothing = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the K encodings of each image."""
        # Autocast does not know the device "meta".
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            x = x.flatten(2).transpose(1, 2).to(self.codewords.dtype)  # (B, N, D)
            distances = (
                x.square().sum(2, keepdim=True)
                - 2 * (x @ self.codewords.T)
                + self.codewords.square().sum(1)
            )
            assignment = (self.smoothing * distances).softmax(2)  # (B, N, K)
            return assignment.transpose(1, 2) @ x - assignment.sum(1).unsqueeze(2) * self.codewords

    def extra_repr(self) -> str:
        """Return what stands in brackets when the model is printed."""
        return f"{self.codewords.shape[1]}, codewords={len(self.smoothing)}"


class ContextEncoding(nn.Module):
    """Describe the image by one vector: `(B, inputs, H, W) -> (B, width)`.

    It is 1x1, norm, ReLU, encoding, norm and ReLU per codeword, and the mean over codewords. The
    second norm has one mean and one variance per *codeword*: with norm="batch" over images and
    width, so one image is enough to train, with "group" over the width of each image.
    `codewords=0` is the mean over positions instead (EncNet, arXiv:1803.08904, its ablation over
    K).
    """

    def __init__(self, inputs: int, width: int, codewords: int, norm: str = "batch") -> None:
        super().__init__()
        if codewords < 0:
            raise UserError(
                f"codewords={codewords}: 1 or more (the paper: 32), or 0 for global average pooling"
            )
        self.project = conv_norm_relu(inputs, width, norm=norm)
        initialise(self.project)
        self.encoding = Encoding(width, codewords) if codewords else None
        self.norm: nn.Module = nn.Identity()
        if codewords:
            self.norm = (
                nn.GroupNorm(codewords, codewords) if norm == "group" else nn.BatchNorm1d(codewords)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the vector of each image."""
        x = self.project(x)
        if self.encoding is None:
            return x.mean((2, 3))
        return self.norm(self.encoding(x)).relu().mean(1)
