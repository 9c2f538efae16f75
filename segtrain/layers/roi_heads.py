"""What the heads of several instance systems share: how their layers start, boxes and masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BoxPredictor(nn.Module):
    """Score classes and boxes: `(N, inputs) -> (scores (N, outputs), deltas (N, 4 outputs))`.

    It computes in float32: the eight bits of bfloat16 would tie too many scores.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.score = nn.Linear(inputs, outputs)
        self.box = nn.Linear(inputs, 4 * outputs)
        # Fast R-CNN's (arXiv:1504.08083, section 2.3).
        for layer, std in ((self.score, 0.01), (self.box, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores and the deltas."""
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x.float()), self.box(x.float())


def upsampled_masks(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return a transposed 2x2 of stride 2 and a ReLU, then a 1x1 to logits."""
    up = he_initialised(nn.ConvTranspose2d(inputs, width, 2, 2))
    last = he_initialised(nn.Conv2d(width, outputs, 1))
    if outputs == 1:  # a fan-out of 1 would start with logits of 8; detectron2 has this deviation
        nn.init.normal_(last.weight, std=0.001)
    return nn.Sequential(up, nn.ReLU(), last)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a fully connected layer with uniform weights of variance 1 / inputs, bias 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return layer


def he_initialised(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    """Return `layer`, initialised by fan-out as He proposed (arXiv:1502.01852), bias 0."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
