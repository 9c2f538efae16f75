"""What backbones that once were classifiers share.

How they start, and how torchvision's weights get into them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from segtrain.errors import UserError


def start(module: nn.Module) -> None:
    """Initialise convolutions by He's rule (arXiv:1502.01852, fan-out), their biases with 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def check_imagenet(name: str, weights: str | None, norm: str) -> None:
    """Raise UserError for weights that a backbone with batch norm does not offer."""
    if weights not in (None, "imagenet"):
        raise UserError(
            f"weights={weights}: {name} offers `imagenet`, or null to start from scratch"
        )
    if weights is not None and norm not in ("batch", "frozen"):
        raise UserError(
            f"weights={weights} needs norm=batch, got norm={norm}: use norm=batch or weights=null"
        )


def load_layers(module: nn.Module, names: Iterable[str], state: dict[str, Tensor]) -> None:
    """Fill the convolutions and batch norms of `module` from a foreign state dict.

    In their order they are called `names` in `state`.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    for layer, name in zip(layers, names, strict=True):
        prefix = f"{name}."
        # One by one: files as old as vgg16_bn's may lack num_batches_tracked, which a batch norm
        # then adds itself.
        layer.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )


def shapes(inputs: int, side: int, numbers: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of what `fully_convolutional` reads of a classifier."""
    sixth, seventh = (f"classifier.{number}" for number in numbers)
    return {
        f"{sixth}.weight": (4096, inputs * side * side),
        f"{sixth}.bias": (4096,),
        f"{seventh}.weight": (4096, 4096),
        f"{seventh}.bias": (4096,),
    }


def fully_convolutional(
    inputs: int,
    side: int,
    width: int,
    kernel: int,
    state: dict[str, Tensor] | None,
    numbers: tuple[int, int],
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return (fc6, fc7), a classifier's fully connected layers as convolutions.

    They are (inputs -> width, k x k, no padding) and (width -> width, 1x1). `state` holds them as
    classifier.N for both `numbers`, 4096 wide and, the first, over inputs x side x side. A smaller
    `kernel` or `width` takes evenly spaced taps and filters. Without `state` both start new.
    """
    fc6 = nn.Conv2d(inputs, width, kernel)
    fc7 = nn.Conv2d(width, width, 1)
    if state is None:
        for layer in (fc6, fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))
        return fc6, fc7
    sixth, seventh = (f"classifier.{number}" for number in numbers)
    filters = torch.linspace(0, 4095, width).round().long()
    taps = torch.linspace(0, side - 1, kernel).round().long()
    with torch.no_grad():
        first = state[f"{sixth}.weight"].view(4096, inputs, side, side)
        fc6.weight.copy_(first[filters][:, :, taps][:, :, :, taps])
        fc6.get_parameter("bias").copy_(state[f"{sixth}.bias"][filters])
        fc7.weight.copy_(state[f"{seventh}.weight"][filters][:, filters, None, None])
        fc7.get_parameter("bias").copy_(state[f"{seventh}.bias"][filters])
    return fc6, fc7
