"""Detectron's (Caffe2's) Mask R-CNN with a pyramid and with C4, and its proposals of boxes.

Its norms are a scale and a shift, the statistics are in them; those of its `gn_baselines` are group
norms, with a box head of convolutions. The background is the first class,
and anchors go ratio by ratio, as with us. ResNets stride in the 1x1, as MSRA's do;
ResNeXts and those with group norms do not.
"""

from __future__ import annotations

import re

from segtrain.weights import resnets
from segtrain.weights.detectors import (
    MEASURED,
    MEASURED_PROPOSALS,
    PASTED,
    affine_as_norm,
    need_masks,
    need_rows,
    refuse,
    widened,
)
from segtrain.weights.family import Family, Published, Unfit, Values, width

CONVS = {"a": 1, "b": 2, "c": 3}  # branch2a, branch2b and branch2c of a block
BLOCK = r"res(?P<stage>[2-5])_(?P<block>\d+)_branch2(?P<conv>\d)_w"
STAGES = (2, 3, 4, 5)
LEFT_OUT = {
    r"(fc1000|pred)_[wb]$": "the classifier of the backbone's own training, kept and not used",
    r"conv1_b$": "a bias of the backbone's own training, kept and not used",
}
OTHERS = {
    r"(conv_fcn\d|kps_)": "it finds keypoints, which no model of ours does",
    r"_\[mask\]_res5": "its mask head has a fifth stage of its own: ours shares that of the boxes",
}
NORMED_PYRAMID = re.compile(r"fpn_res2_\d+_sum_gn_s")
# What a norm's tensors are called. `mean` and `var` are those that `affine_as_norm` adds; those
# behind them are of ImageNet's classifiers, by the names that detectron2 reads.
NORM = {
    **{"s": "weight", "b": "bias", "mean": "running_mean", "var": "running_var"},
    **{"gamma": "weight", "beta": "bias", "rm": "running_mean", "riv": "running_var"},
    **{"running_mean": "running_mean", "running_var": "running_var"},
}


def _layer(pattern: str, name: str) -> list[tuple[str, str]]:
    """Return rules for a layer's weight and bias."""
    return [(rf"{pattern}_w$", f"{name}.weight"), (rf"{pattern}_b$", f"{name}.bias")]


def _norm(pattern: str, name: str) -> list[tuple[str, str]]:
    return [(rf"{pattern}_[bg]n_{end}$", f"{name}.{ours}") for end, ours in NORM.items()]


def _normed(pattern: str, name: str, place: int = 0) -> list[tuple[str, str]]:
    """Return rules for a layer at `place` and the group norm behind it."""
    return [
        *_norm(pattern, f"{name}.{place + 1}"),
        *_layer(pattern, f"{name}.{place}"),
    ]


def _stage(number: int, to: str) -> list[tuple[str, str]]:
    """Return rules for a stage of the backbone."""
    block = rf"res{number}_(\d+)_branch"
    rules = [
        *_norm(block + "1", rf"{to}.\1.downsample.1"),
        *_layer(block + "1", rf"{to}.\1.downsample.0"),
    ]
    for letter, conv in CONVS.items():
        rules += _norm(f"{block}2{letter}", rf"{to}.\1.bn{conv}")
        rules += _layer(f"{block}2{letter}", rf"{to}.\1.conv{conv}")
    return rules


def _rpn(to: str) -> list[tuple[str, str]]:
    """Return rules for the region proposals; with a pyramid they are named by its finest level."""
    return [
        *_layer("conv_rpn(?:_fpn2)?", f"{to}.head.conv.0.0"),
        *_layer("rpn_cls_logits(?:_fpn2)?", f"{to}.head.cls_logits"),
        *_layer("rpn_bbox_pred(?:_fpn2)?", f"{to}.head.bbox_pred"),
    ]


STEM_NAMES = [*_norm("(?:res_)?conv1", "backbone.stem.1"), *_layer("conv1", "backbone.stem.0")]
BACKBONE_NAMES = [
    *STEM_NAMES,
    *(rule for n in STAGES for rule in _stage(n, f"backbone.stages.{n - 2}")),
]
FPN_NAMES = [
    *BACKBONE_NAMES,
    # The number behind the stage's is that of its last block.
    *(
        rule
        for n in STAGES
        for rule in (
            *_normed(rf"fpn_inner_res{n}_\d+_sum(?:_lateral)?", f"pyramid.lateral.{n - 2}"),
            *_normed(rf"fpn_res{n}_\d+_sum", f"pyramid.output.{n - 2}"),
        )
    ),
]
PREDICTOR_NAMES = [
    *_layer("cls_score", "stages.box_head.predict.score"),
    *_layer("bbox_pred", "stages.box_head.predict.box"),
    *_layer("conv5_mask", "stages.mask_head.predict.0"),
    *_layer("mask_fcn_logits", "stages.mask_head.predict.2"),
]
MASK_RCNN_NAMES = [
    *FPN_NAMES,
    *_rpn("stages.rpn"),
    *(
        rule
        for n in range(4)
        for rule in (
            *_normed(f"head_conv{n + 1}", "stages.box_head.convs", 3 * n),
            *_normed(rf"_(?:\[mask\]|mask)_fcn{n + 1}", "stages.mask_head.convs", 3 * n),
        )
    ),
    *PREDICTOR_NAMES,
]
TWO_FC_NAMES = [*_layer("fc6", "stages.box_head.fc6"), *_layer("fc7", "stages.box_head.fc7")]
HEAVY_NAMES = _layer("fc6", "stages.box_head.fc")
C4_NAMES = [
    *STEM_NAMES,
    *(rule for n in STAGES[:3] for rule in _stage(n, f"backbone.stages.{n - 2}")),
    *_stage(5, "stages.box_head.stage"),
    *_rpn("stages.rpn"),
    *PREDICTOR_NAMES,
]


def depth(values: Values) -> str:
    """Return which ResNet or ResNeXt it is. Errors: Unfit."""
    numbered = {
        re.sub(r"(?<=branch2)[abc](?=_w$)", lambda letter: str(CONVS[letter[0]]), key): value
        for key, value in values.items()
    }
    return widened(resnets.depth(numbered, BLOCK, STAGES), values, "res2_0_branch2b_w")


def _boxes(values: Values) -> Published:
    """Return Mask R-CNN, or the proposals of boxes where it has no heads. Errors: Unfit."""
    refuse(values, OTHERS)
    pyramid = "rpn_cls_logits_fpn2_w" in values
    heads = "cls_score_w" in values
    if heads:
        need_masks(values, "mask_fcn_logits_w")
    elif not pyramid:
        raise Unfit("its proposals come from one map (C4): ours come from a pyramid")
    backbone = depth(values)
    grouped = "conv1_gn_s" in values
    arguments = {
        "backbone": backbone,
        "style": "torchvision" if grouped or backbone.startswith("resnext") else "msra",
        "norm": "group" if grouped else "frozen",
        "anchor_corners": "quantised",
        "inclusive_boxes": True,
    }
    if pyramid:
        arguments["width"] = width(values, "rpn_cls_logits_fpn2_w", 1)
        arguments["head_norm"] = "group" if any(map(NORMED_PYRAMID.match, values)) else "none"
    values = affine_as_norm(values, r"(.*_bn)_s", r"\1_mean", r"\1_var")
    if not heads:
        return Published(
            model="box_rpn",
            arguments=arguments,
            input="detectron",
            values=values,
            names=[*FPN_NAMES, *_rpn("rpn")],
            left_out=LEFT_OUT,
            measured=MEASURED_PROPOSALS,
        )
    outputs = width(values, "cls_score_w")
    need_rows(values, "bbox_pred_w", "mask_fcn_logits_w", outputs)
    heavy = "head_conv1_w" in values
    arguments |= {
        "trunk": "fpn",
        "roi": "legacy",
        "roi_samples": 2,
        "box_head": "heavy" if heavy else "two_fc",
    }
    box_names = HEAVY_NAMES if heavy else TWO_FC_NAMES
    if not pyramid:
        arguments |= {"trunk": "c4", "roi_samples": 0}
    return Published(
        model="mask_rcnn",
        arguments=arguments,
        input="detectron",
        values=values,
        names=[*MASK_RCNN_NAMES, *box_names] if pyramid else C4_NAMES,
        left_out=LEFT_OUT,
        num_classes=outputs - 1,
        classes="coco",
        measured=(*MEASURED, PASTED),
    )


DETECTRON = Family(
    name="Detectron",
    known_by=(r"res2_0_branch2a_w", r"rpn_cls_logits(_fpn2)?_w"),
    read=_boxes,
)
