"""ImageNet classifiers that Detectron and detectron2 start from: backbones alone.

MSRA's ResNets in Caffe2's names (`R-50.pkl`, `R-101.pkl`) and ResNeXts (`X-101-32x8d.pkl`,
`X-101-64x4d.pkl`). Norms are a scale and a shift, with the statistics in them.
"""

from __future__ import annotations

from segtrain.weights import detectron
from segtrain.weights.detectors import affine_as_norm
from segtrain.weights.family import Family, Published, Values


def _backbone(values: Values) -> Published:
    name = detectron.depth(values)
    resnext = name.startswith("resnext")
    return Published(
        model="",
        arguments={"name": name, "style": "torchvision" if resnext else "msra"},
        input="detectron",
        values=affine_as_norm(values, r"(.*_bn)_s", r"\1_mean", r"\1_var"),
        names=detectron.BACKBONE_NAMES,
        left_out=detectron.LEFT_OUT,
    )


BACKBONE = Family(
    name="Detectron's ImageNet classifier",
    known_by=(r"conv1_w", r"res2_0_branch2a_w", r"res5_2_branch2c_w"),
    read=_backbone,
    confirmed=False,
)
