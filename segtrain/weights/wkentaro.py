"""FCN of wkentaro/pytorch-fcn: `fcn8s_from_caffe.pth`, and the files of its training.

The authors' networks with Caffe's names, on VGG16, which is padded by 100.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segtrain.weights.family import Family, Published, Unfit, Values, width

# The deconvolution that ends at the image's size -> pixels between the scores that it reads.
STRIDES = {"upscore.weight": 32, "upscore16.weight": 16, "upscore8.weight": 8}
DEPTHS = (2, 2, 3, 3, 3)  # convolutions of VGG16's blocks
AT_ONCE = (
    "FCN-8s learned at once (fcn8s-atonce_from_caffe.pth) has the same names and shapes: for it, "
    "add model.at_once=true"
)
TOLERANCE = 1e-4  # of float32, and of Caffe's filler


def _fcn(values: Values) -> Published:
    stride = next((number for key, number in STRIDES.items() if key in values), None)
    if stride is None:
        raise Unfit(f"it has none of {', '.join(STRIDES)}")
    for key, kernel in values.items():
        if key.startswith("upscore") and not _bilinear(kernel):
            raise Unfit(f"{key} is no bilinear interpolation, which ours is")
    num_classes = width(values, "score_fr.weight")
    convolutions = [
        (rf"conv{block}_{number}\.", f"backbone.blocks.{block - 1}.{2 * number - 2}.")
        for block, depth in enumerate(DEPTHS, 1)
        for number in range(1, depth + 1)
    ]
    return Published(
        model="fcn",
        arguments={
            "backbone": "vgg16",
            "head": "fcn",
            "stride": stride,
            "norm": "none",
            "width": width(values, "fc7.weight"),
        },
        input="fcn",
        values=values,
        names=[
            *convolutions,
            (r"fc6\.", "head.fc.0."),
            (r"fc7\.", "head.fc.3."),
            (r"score_fr\.", "head.score_fr."),
            (r"score_pool(\d)\.", r"head.score.pool\1."),
        ],
        left_out={"upscore": "bilinear interpolation, which is fixed in our network"},
        num_classes=num_classes,
        classes="voc" if num_classes == 21 else None,
        measured=("inference=whole",),
        notes=(AT_ONCE,) if stride == 8 else (),
    )


def _bilinear(kernel: Tensor) -> bool:
    """Return whether a deconvolution (K, K, k, k) interpolates each of the K maps by itself."""
    side = kernel.shape[-1]
    ramp = 1 - (torch.arange(side) - (side - 1) / 2).abs() / ((side + 1) // 2)
    expected = torch.eye(len(kernel))[:, :, None, None] * ramp[:, None] * ramp
    return kernel.shape == expected.shape and torch.allclose(
        kernel.float(), expected, rtol=0, atol=TOLERANCE
    )


FCN = Family(
    name="wkentaro's FCN",
    known_by=(r"conv5_3\.weight", r"fc7\.weight", r"score_fr\.weight", r"upscore\d*\.weight"),
    read=_fcn,
)
