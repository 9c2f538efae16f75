"""VGG (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556).

Its fully connected layers are offered as convolutions. Two layouts stand on the same weights:

layout "plain"     five blocks, each ended by a 2x2 max-pool of stride 2 that rounds up (FCN)
layout "largefov"  3x3 pools, the last two of stride 1, conv5 dilated by 2: output stride 8
                   (DeepLab-LargeFOV, arXiv:1412.7062)

Blocks and pools are apart (`blocks[i]`, `pools[i]`): DeconvNet pools by itself, to keep the
positions of the maxima.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from segtrain.backbones import classifier
from segtrain.errors import UserError, did_you_mean
from segtrain.layers.norm import norm_factory
from segtrain.layers.preprocess import goes_with, preprocess
from segtrain.weights import backbone_file
from segtrain.weights.torchvision_weights import download

DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
}  # convolutions per block
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Give what each of the five pools gives: `(B, 3, H, W) -> [p1, ..., p5]`.

    p(i) is `channels[i - 1]` wide at stride `strides[i - 1]`.

    norm      "none" (the papers) or "batch" after every convolution: plain VGG does not start
              without pre-training.
    weights   "imagenet": torchvision's classifier of this norm; "features": the convolutions of the
              authors' Caffe model (vgg16 without norm only; RGB 0..255 minus the mean); a path:
              a published file of this name and norm. `preprocess` goes with them.
    pad       zero padding of the very first convolution in pixels; FCN: 100.
    """

    def __init__(
        self,
        name: str = "vgg16",
        norm: Literal["none", "batch"] = "none",
        weights: Literal["imagenet", "features"] | Path | None = None,
        layout: Literal["plain", "largefov"] = "plain",
        pad: int = 1,
    ) -> None:
        super().__init__()
        named, file = backbone_file.split(weights)
        check_arguments(name, norm, named)
        make_norm = norm_factory(norm)
        self.channels = list(WIDTHS)
        self.strides = [2, 4, 8, 16, 32] if layout == "plain" else [2, 4, 8, 8, 8]
        self.blocks = nn.ModuleList()
        self.pools = nn.ModuleList()
        inputs = 3
        for number, (depth, width) in enumerate(zip(DEPTHS[name], WIDTHS, strict=True), 1):
            large = layout == "largefov"
            dilation = 2 if large and number == 5 else 1
            layers: list[nn.Module] = []
            for _ in range(depth):
                padding = pad if inputs == 3 else dilation
                layers.append(nn.Conv2d(inputs, width, 3, padding=padding, dilation=dilation))
                layers += [make_norm(width)] if norm == "batch" else []
                layers.append(nn.ReLU(inplace=True))
                inputs = width
            self.blocks.append(nn.Sequential(*layers))
            stride = 1 if large and number >= 4 else 2
            self.pools.append(
                nn.MaxPool2d(3, stride, 1) if large else nn.MaxPool2d(2, 2, ceil_mode=True)
            )
        self.preprocess = preprocess(goes_with("vgg", named))
        if file is not None:
            self.preprocess = preprocess(backbone_file.fill(self, file, name=name, norm=norm))
        elif named is None:
            classifier.start(self.blocks)
        else:
            state = classifier_weights(name, norm, named)
            # torchvision numbers all layers in a row, activations and pools included, in our order.
            numbers = sorted(
                {int(key.split(".")[1]) for key in state if key.startswith("features.")}
            )
            classifier.load_layers(self.blocks, [f"features.{number}" for number in numbers], state)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return what each pool gives, fine to coarse."""
        pooled = []
        for block, pool in zip(self.blocks, self.pools, strict=True):
            x = pool(block(x))
            pooled.append(x)
        return pooled


def check_arguments(name: str, norm: str, weights: str | None) -> None:
    """Raise UserError with the way out for a combination that is not offered."""
    if name not in DEPTHS:
        near = did_you_mean(name, DEPTHS)
        raise UserError(f"backbone `{name}` is unknown.{near} Known: {', '.join(DEPTHS)}")
    if norm not in ("none", "batch"):
        raise UserError(f"norm={norm}: a VGG offers none and batch")
    if weights not in (None, "imagenet", "features"):
        raise UserError(
            f"weights={weights}: {name} offers imagenet and features, or null to start from scratch"
        )
    if weights == "features" and (name, norm) != ("vgg16", "none"):
        raise UserError(
            "weights=features exist for backbone=vgg16 with norm=none only: use weights=imagenet "
            "or null"
        )


def classifier_weights(name: str, norm: str, weights: str) -> dict[str, Tensor]:
    """Return torchvision's state dict of this network."""
    version = "IMAGENET1K_FEATURES" if weights == "features" else "IMAGENET1K_V1"
    return download(f"{name}_bn" if norm == "batch" else name, version)


def classifier_state(name: str, norm: str, weights: str | Path | None) -> dict[str, Tensor] | None:
    """Return fc6 and fc7 of `weights`, as classifier.0 and .3; None where they have neither."""
    named, file = backbone_file.split(weights)
    if file is not None:
        return backbone_file.classifier_of(file, classifier.shapes(512, 7, (0, 3)))
    return classifier_weights(name, norm, named) if named == "imagenet" else None


def fully_convolutional(
    name: str = "vgg16",
    norm: str = "none",
    weights: str | Path | None = None,
    width: int = 4096,
    kernel: int = 7,
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return (fc6, fc7), the classifier's fully connected layers as convolutions.

    They are (512 -> width, k x k, no padding) and (width -> width, 1x1). With weights="imagenet"
    they are torchvision's, reshaped (out, 512, 7, 7). A smaller `kernel` or `width` takes evenly
    spaced taps and filters of them, as DeepLab-LargeFOV does to go from 7x7 to 3x3 and from 4096 to
    1024 (arXiv:1412.7062, section 4.1). torchvision's "features" come without a classifier: then,
    and without weights, they start new.
    """
    state = classifier_state(name, norm, weights)
    return classifier.fully_convolutional(512, 7, width, kernel, state, (0, 3))
