"""detectron2's Mask R-CNN with a pyramid and with C4, and its proposals of boxes.

Its background is the last class, and boxes and masks have no rows for it. With C4 its anchors go
size by size, ratio by ratio within a size.

Files do not say whether a stage strides in its 1x1 (MSRA's ResNets) or in its 3x3 (torchvision's).
It goes with what the network reads, which is told by `pixel_mean` and `pixel_std` where the file
has them, else by the statistics of the first norm: MSRA's read bytes minus the mean, torchvision's
divide by the deviation. Without either, and for ResNeXts, it is what the model zoo has: MSRA's
ResNets, and ResNeXts of the other kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segtrain.weights import resnets
from segtrain.weights.detectors import (
    ASSUMED,
    MEASURED,
    MEASURED_PROPOSALS,
    background_first,
    need_masks,
    need_rows,
    norm_of,
    reads_bytes,
    refuse,
    turned,
    widened,
    with_background,
)
from segtrain.weights.family import Family, Published, Unfit, Values, width

BOTTOM_UP = r"backbone\.(?:bottom_up\.)?"
BLOCK = (
    rf"(?:{BOTTOM_UP}|roi_heads\.)"
    r"res(?P<stage>[2-5])\.(?P<block>\d+)\.conv(?P<conv>\d)\.weight"
)
STEM = BOTTOM_UP + r"stem\.conv1\.weight"
STAGES = (2, 3, 4, 5)
LEFT_OUT = {
    r"pixel_(mean|std)$": "what the network reads is a setting of its own (model.input)",
    r"(proposal_generator\.)?anchor_generator\.": "anchors are computed",
}
OTHERS = {
    r"sem_seg_head\.": "it labels pixels too (Panoptic FPN), which no model of ours does with one "
    "network",
    r"roi_heads\.keypoint_head\.": "it finds keypoints, which no model of ours does",
    r"roi_heads\.box_head\.0\.": "its box heads form a cascade, ours is one",
    r".*conv2_offset\.": "its convolutions are deformable, which no backbone of ours has",
}
# Means of the three channels, to a whole number, and whether they are divided by deviations -> what
# the network reads.
READS: dict[tuple[tuple[int, ...], bool], str] = {
    ((104, 116, 124), False): "detectron2",
    ((103, 116, 123), False): "detectron",
    ((104, 116, 124), True): "detectron2_x101",
    ((124, 116, 104), True): "imagenet",
}
MSRA = ("detectron2", "detectron")
# C4: our anchor 5 r + s, of ratio r and size s, is theirs 3 s + r.
C4_RATIOS = 3
C4_SIZES = 5
C4_ORDER = [C4_RATIOS * s + r for r in range(C4_RATIOS) for s in range(C4_SIZES)]


def trunk_names(prefix: str, to: str, stages: dict[int, str]) -> list[tuple[str, str]]:
    """Return rules for the stem and the `stages`, each with our name of it."""
    names = [
        (prefix + r"stem\.conv1\.norm\.", f"{to}stem.1."),
        (prefix + r"stem\.conv1\.", f"{to}stem.0."),
    ]
    for number, stage in stages.items():
        block = rf"{prefix}res{number}\.(\d+)\."
        names += [
            (block + r"shortcut\.norm\.", rf"{stage}\1.downsample.1."),
            (block + r"shortcut\.", rf"{stage}\1.downsample.0."),
            (block + r"conv(\d)\.norm\.", rf"{stage}\1.bn\2."),
            (block + r"conv(\d)\.", rf"{stage}\1.conv\2."),
        ]
    return names


def rpn_names(to: str) -> list[tuple[str, str]]:
    """Return rules for the region proposals."""
    head = r"proposal_generator\.rpn_head\."
    return [
        (head + r"conv\.conv(\d)\.", rf"{to}head.conv.\1.0."),  # where there are several
        (head + r"conv\.", f"{to}head.conv.0.0."),
        (head + r"objectness_logits\.", f"{to}head.cls_logits."),
        (head + r"anchor_deltas\.", f"{to}head.bbox_pred."),
    ]


# A norm stands in its convolution there, and behind it here.
LAYERS = ((r"norm\.", 1), ("", 0))
FPN_NAMES = [
    *trunk_names(BOTTOM_UP, "backbone.", {n: f"backbone.stages.{n - 2}." for n in STAGES}),
    *(
        (rf"backbone\.fpn_{name}{n}\.{there}", f"pyramid.{name}.{n - 2}.{here}.")
        for name in ("lateral", "output")
        for n in STAGES
        for there, here in LAYERS
    ),
]
PREDICTOR_NAMES = [
    (r"roi_heads\.box_predictor\.cls_score\.", "stages.box_head.predict.score."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", "stages.box_head.predict.box."),
    (r"roi_heads\.mask_head\.deconv\.", "stages.mask_head.predict.0."),
    (r"roi_heads\.mask_head\.predictor\.", "stages.mask_head.predict.2."),
]
MASK_RCNN_NAMES = [
    *FPN_NAMES,
    *rpn_names("stages.rpn."),
    *(
        (rf"roi_heads\.{name}{n}\.{there}", f"stages.{head}.convs.{3 * (n - 1) + here}.")
        for head, name in (("box_head", r"box_head\.conv"), ("mask_head", r"mask_head\.mask_fcn"))
        for n in (1, 2, 3, 4)
        for there, here in LAYERS
    ),
    *PREDICTOR_NAMES,
]
TWO_FC_NAMES = [(rf"roi_heads\.box_head\.fc{n}\.", f"stages.box_head.fc{n + 5}.") for n in (1, 2)]
HEAVY_NAMES = [(r"roi_heads\.box_head\.fc1\.", "stages.box_head.fc.")]
C4_NAMES = [
    *trunk_names(BOTTOM_UP, "backbone.", {n: f"backbone.stages.{n - 2}." for n in (2, 3, 4)}),
    *trunk_names(r"roi_heads\.", "", {5: "stages.box_head.stage."})[2:],
    *rpn_names("stages.rpn."),
    *PREDICTOR_NAMES,
]


def _reads(values: Values, trunk: str, resnext: bool) -> tuple[str, bool]:
    """Return what the network reads, and whether that is only assumed. Errors: Unfit."""
    if "pixel_mean" in values and "pixel_std" in values:
        mean = tuple(round(float(value)) for value in values["pixel_mean"].flatten())
        divided = bool((values["pixel_std"] != 1).any())
        if (mean, divided) in READS:
            return READS[mean, divided], False
        raise Unfit(
            f"it reads pixels minus {', '.join(map(str, mean))}"
            f"{', divided by their deviations' if divided else ''}, which is no input of ours"
        )
    if resnext:
        return "detectron2_x101", False
    if norm_of(values, f"{trunk}stem.conv1.norm") == "group":
        return "detectron2", False
    told = reads_bytes(values, f"{trunk}stem.conv1.weight", f"{trunk}stem.conv1.norm.running_var")
    return "imagenet" if told is False else "detectron2", told is None


def _boxes(values: Values) -> Published:
    """Return Mask R-CNN, or the proposals of boxes where it has no heads. Errors: Unfit."""
    refuse(values, OTHERS)
    pyramid = "backbone.fpn_lateral2.weight" in values
    if any(key.startswith("roi_heads.") for key in values):
        return _mask_rcnn(values, pyramid)
    if not pyramid:
        raise Unfit("its proposals come from one map (C4): ours come from a pyramid")
    if _rpn_convs(values) > 1:
        raise Unfit("its region proposals have several convolutions, ours without heads have one")
    arguments, reads, notes = _trunk(values, pyramid)
    return Published(
        model="box_rpn",
        arguments=arguments,
        input=reads,
        values=values,
        names=[*FPN_NAMES, *rpn_names("rpn.")],
        left_out=LEFT_OUT,
        measured=MEASURED_PROPOSALS,
        notes=notes,
    )


def _rpn_convs(values: Values) -> int:
    head = "proposal_generator.rpn_head.conv.conv"
    return max(1, sum(key.startswith(head) and key.endswith(".weight") for key in values))


def _trunk(values: Values, pyramid: bool) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Return settings of backbone, pyramid and anchors, what is read, and notes. Errors: Unfit."""
    trunk = "backbone.bottom_up." if pyramid else "backbone."
    depth = resnets.depth(values, BLOCK, STAGES)
    backbone = widened(depth, values, f"{trunk}res2.0.conv2.weight")
    resnext = backbone.startswith("resnext")
    reads, assumed = _reads(values, trunk, resnext)
    grouped = norm_of(values, f"{trunk}stem.conv1.norm") == "group"
    arguments = {
        "backbone": backbone,
        # Its ResNets with group norms stride in the 3x3, though they read bytes.
        "style": "msra" if reads in MSRA and not resnext and not grouped else "torchvision",
        "norm": "group" if grouped else "frozen",
        "anchor_corners": "exact",
    }
    if pyramid:
        arguments["width"] = width(values, "backbone.fpn_lateral2.weight")
        arguments["head_norm"] = norm_of(values, "backbone.fpn_lateral2.norm")
    return arguments, reads, (ASSUMED,) if assumed else ()


def _mask_rcnn(values: Values, pyramid: bool) -> Published:
    need_masks(values, "roi_heads.mask_head.predictor.weight")
    if not pyramid and "roi_heads.box_head.fc1.weight" in values:
        raise Unfit("its fifth stage is dilated and has no pyramid (DC5): ours has one, or is C4")
    classes = width(values, "roi_heads.box_predictor.cls_score.weight") - 1
    need_rows(
        values,
        "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.mask_head.predictor.weight",
        classes,
    )
    heavy = "roi_heads.box_head.conv1.weight" in values
    arguments, reads, notes = _trunk(values, pyramid)
    arguments |= {
        "trunk": "fpn" if pyramid else "c4",
        "roi_samples": 0,
        "box_head": "heavy" if heavy else "two_fc",
        "rpn_convs": _rpn_convs(values),
    }
    turns = {
        r"roi_heads\.box_predictor\.cls_score\..*": background_first,
        r"roi_heads\.box_predictor\.bbox_pred\..*": with_background(4),
        r"roi_heads\.mask_head\.predictor\..*": with_background(1),
    }
    if not pyramid:
        turns |= {
            r"proposal_generator\.rpn_head\.objectness_logits\..*": _c4_anchors(1),
            r"proposal_generator\.rpn_head\.anchor_deltas\..*": _c4_anchors(4),
        }
    box_names = HEAVY_NAMES if heavy else TWO_FC_NAMES
    return Published(
        model="mask_rcnn",
        arguments=arguments,
        input=reads,
        values=turned(values, turns),
        names=[*MASK_RCNN_NAMES, *box_names] if pyramid else C4_NAMES,
        left_out=LEFT_OUT,
        num_classes=classes,
        classes="coco",
        measured=MEASURED,
        notes=notes,
    )


def _c4_anchors(each: int) -> Callable[[Tensor], Tensor]:
    """Return what brings the channels of anchors, `each` an anchor, in our order."""
    order = (torch.tensor(C4_ORDER)[:, None] * each + torch.arange(each)).flatten()

    def turn(rows: Tensor) -> Tensor:
        if len(rows) != len(order):
            raise Unfit(
                f"it has {len(rows) // each} anchors at every place: with C4 ours are 5 sizes in 3 "
                "ratios"
            )
        return rows[order]

    return turn


DETECTRON2 = Family(
    name="detectron2",
    known_by=(STEM, r"proposal_generator\.rpn_head\.objectness_logits\.weight"),
    read=_boxes,
)
