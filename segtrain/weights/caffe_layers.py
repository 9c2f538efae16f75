"""Facts about Caffe that its releases share: what the blobs of a layer are, names, and pools.

The blobs of a layer follow from its type, which the shapes tell apart:

    Convolution, InnerProduct, Deconvolution   weight, bias (or weight alone)
    BatchNorm                                  mean, variance, and what both are to be divided by
    Scale                                      weight, bias
    BN (PSPNet's fork)                         scale, shift, mean, variance
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from segtrain.weights import resnets
from segtrain.weights.family import Unfit, Values

# Convolutions of the five blocks -> the network.
VGGS = {(1, 1, 2, 2, 2): "vgg11", (2, 2, 2, 2, 2): "vgg13", (2, 2, 3, 3, 3): "vgg16"}
BLOCKS = (1, 2, 3, 4, 5)
DEEPEST = 4  # convolutions of a block of the deepest VGG
# A block of an MSRA ResNet: its stage, and a to z, or a, b1, b2 and so on.
RESIDUAL = r"(?P<stage>[2-5])(?P<block>[a-z]\d*)_branch"
DOWNSAMPLE = ("downsample.0", "downsample.1")


def torch_layers(values: Values) -> dict[str, Tensor]:
    """Return the blobs NAME/0, NAME/1, ... as NAME.weight, NAME.bias, NAME.running_mean, ...

    Biases and the like become vectors: files of 2014 write four dimensions for everything.
    """
    layers: dict[str, list[Tensor]] = {}
    for key, value in values.items():
        layers.setdefault(key.rpartition("/")[0], []).append(value)
    state: dict[str, Tensor] = {}
    for name, blobs in layers.items():
        state |= {f"{name}.{part}": value for part, value in _parts(name, blobs).items()}
    return state


def _parts(name: str, blobs: list[Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one layer by torch's names."""
    flat = [blob.flatten() for blob in blobs]
    if len(blobs) == 4:
        names = ("weight", "bias", "running_mean", "running_var")
        return dict(zip(names, flat, strict=True))
    if len(blobs) == 3 and len(flat[2]) == 1:
        factor = flat[2].item()
        mean, variance = (blob * (1 / factor if factor else 0.0) for blob in flat[:2])
        return {"running_mean": mean, "running_var": variance}
    if len(blobs) > 2:
        raise Unfit(f"the layer {name} has {len(blobs)} blobs, which none of ours has")
    parts = {"weight": flat[0] if _vectors(flat) else blobs[0]}
    return parts if len(blobs) == 1 else {**parts, "bias": flat[1]}


def _vectors(flat: list[Tensor]) -> bool:
    """Tell a layer with one number per channel from a convolution."""
    return len(flat) == 2 and len(flat[0]) == len(flat[1])


def as_convolution(state: dict[str, Tensor], layer: str, side: int) -> None:
    """Make a fully connected layer over maps of `side` x `side` a convolution of that size.

    Its columns are in the order (C, H, W). What is a convolution already stays.
    """
    weight = state[f"{layer}.weight"]
    if weight.dim() == 4 and weight.shape[:2] != (1, 1):
        return
    matrix = weight.reshape(weight.shape[-2:])
    if matrix.shape[1] % side**2:
        raise Unfit(f"{layer} reads {matrix.shape[1]} values, which are no maps of {side}x{side}")
    state[f"{layer}.weight"] = matrix.reshape(len(matrix), -1, side, side)


def vgg(values: Values) -> str:
    """Return which VGG the layers conv1_1 to conv5_3 are. Errors: Unfit."""
    counts = [
        sum(f"conv{block}_{i}.weight" in values for i in range(1, DEEPEST + 1)) for block in BLOCKS
    ]
    if (name := VGGS.get(tuple(counts))) is None:
        raise Unfit(f"its blocks have {', '.join(map(str, counts))} convolutions, no VGG of ours")
    return name


def vgg_names(to: str = "backbone.blocks.", step: int = 2) -> list[tuple[str, str]]:
    """Return rules for a VGG's convolutions; `step` layers of ours stand for one of them."""
    return [
        (rf"conv{block}_{i}\.", f"{to}{block - 1}.{step * (i - 1)}.")
        for block in BLOCKS
        for i in range(1, DEEPEST + 1)
    ]


def msra_names(state: Values, to: str = "backbone.") -> list[tuple[str, str]]:
    """Return rules for the layers of an MSRA ResNet: res, bn and scale of each branch."""
    rules = [(r"conv1\.", f"{to}stem.0."), (r"(bn_|scale_)conv1\.", f"{to}stem.1.")]
    for key in state:
        match = re.fullmatch(rf"res({RESIDUAL}(?P<branch>1|2[abc]))\.weight", key)
        if match is None:
            continue
        block = f"{to}stages.{int(match['stage']) - 2}.{block_number(match['block'])}."
        number = {"2a": 1, "2b": 2, "2c": 3}.get(match["branch"])
        conv, norm = (f"conv{number}", f"bn{number}") if number else DOWNSAMPLE
        rules += [
            (rf"res{match[1]}\.", f"{block}{conv}."),
            (rf"(bn|scale){match[1]}\.", f"{block}{norm}."),
        ]
    return rules


def msra(state: Values, names: list[tuple[str, str]]) -> str:
    """Return which MSRA ResNet it is whose names the rules `names` make ours. Errors: Unfit."""
    return resnets.translated_depth(state, names)


def block_number(letters: str) -> int:
    """Return the number of a block: 0 of "a", 2 of "c", 22 of "b22"."""
    return int(letters[1:]) if letters[1:] else ord(letters) - ord("a")


def without_bias(state: dict[str, Tensor], conv: str, norm: str) -> None:
    """Take a convolution's bias into the mean of the batch norm behind it, where it has one."""
    bias = state.pop(f"{conv}.bias", None)
    if bias is not None:
        state[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - bias


def bilinear_per_channel(weight: Tensor) -> Tensor | None:
    """Return the kernels (C, 1, k, k) of a deconvolution that keeps its channels apart.

    None for one that mixes them. `weight` is (C, C, k, k), or (C, 1, k, k) in C groups.
    """
    channels = len(weight)
    if weight.shape[1] == 1:
        return weight
    if weight.shape[1] != channels:
        return None
    own = weight.diagonal().permute(2, 0, 1).unsqueeze(1)
    apart = torch.count_nonzero(weight) == torch.count_nonzero(own)
    return own.contiguous() if apart else None


def is_bilinear(kernels: Tensor) -> bool:
    """Tell whether all kernels (C, 1, k, k) interpolate linearly by (k + 1) // 2."""
    size = kernels.shape[-1]
    ramp = 1 - (torch.arange(size) - (size - 1) / 2).abs() / ((size + 1) // 2)
    return torch.allclose(kernels, (ramp[:, None] * ramp).expand_as(kernels), atol=1e-5)
