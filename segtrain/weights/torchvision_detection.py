"""torchvision's `maskrcnn_resnet50_fpn` and `maskrcnn_resnet50_fpn_v2`.

Its 91 outputs are COCO's official ids, 0 is background and ten ids are of no class; their rows are
left out. A file with another number of outputs is of a user's own classes, background first.

torchvision sets the eps of version 1's frozen norms to 0 where it loads its published weights, and
so for all that is trained from them. Ours have 1e-5, which is taken off the variances. Files that
torchvision trained from ImageNet's weights alone have 1e-5 there too: in them a norm with a tiny
variance becomes a little larger here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segtrain.weights import resnets
from segtrain.weights.detectors import (
    MEASURED,
    NORM_EPS,
    PASTED,
    need_masks,
    need_rows,
    refuse,
    turned,
    widened,
)
from segtrain.weights.family import Family, Published, Values, width

BODY = r"backbone\.body\."
BLOCK = BODY + r"layer(?P<stage>[1-4])\.(?P<block>\d+)\.conv(?P<conv>\d)\.weight"
NO_CLASS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # official ids that COCO gave to nothing
COCO_OUTPUTS = 91
COCO_ROWS = [row for row in range(COCO_OUTPUTS) if row not in NO_CLASS]
OTHERS = {r"roi_heads\.keypoint_": "it finds keypoints, which no model of ours does"}
SECOND = "rpn.head.conv.1.0.weight"  # only version 2's region proposals have a second convolution
ONLY_SECOND = {
    r"roi_heads\.box_head\.[0-3]\.": "its box head has convolutions and its region proposals one, "
    "which is neither version of torchvision's Mask R-CNN",
}
# What version 2 has beside or instead of version 1's layers: norms, and another box head.
NAMES_OF_SECOND = [
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.", r"pyramid.lateral.\1.1."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.", r"pyramid.output.\1.1."),
    (r"rpn\.head\.conv\.1\.0\.", "stages.rpn.head.conv.1.0."),
    (r"roi_heads\.box_head\.5\.", "stages.box_head.fc."),
    *(
        (rf"roi_heads\.{head}\.{i}\.{part}\.", f"stages.{head}.convs.{3 * i + part}.")
        for head in ("box_head", "mask_head")
        for i in range(4)
        for part in (0, 1)
    ),
]


def _of_coco(each: int) -> Callable[[Tensor], Tensor]:
    """Return what takes the rows, `each` a class, of the 80 classes and the background.

    Rows of another number of classes stay as they are.
    """
    kept = (torch.tensor(COCO_ROWS)[:, None] * each + torch.arange(each)).flatten()
    return lambda rows: rows[kept] if len(rows) == COCO_OUTPUTS * each else rows


def _mask_rcnn(values: Values) -> Published:
    second = SECOND in values
    refuse(values, OTHERS if second else OTHERS | ONLY_SECOND)
    need_masks(values, "roi_heads.mask_predictor.mask_fcn_logits.weight")
    outputs = width(values, "roi_heads.box_predictor.cls_score.weight")
    need_rows(
        values,
        "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.mask_predictor.mask_fcn_logits.weight",
        outputs,
    )
    depth = resnets.depth(values, BLOCK)
    return Published(
        model="mask_rcnn",
        arguments={
            "backbone": widened(depth, values, "backbone.body.layer1.0.conv2.weight"),
            "width": width(values, "rpn.head.cls_logits.weight", 1),
            "roi": "legacy",
            **({"head_norm": "batch", "box_head": "heavy", "rpn_convs": 2} if second else {}),
        },
        input="imagenet",
        values=turned(
            values,
            {
                r"roi_heads\.box_predictor\.cls_score\..*": _of_coco(1),
                r"roi_heads\.box_predictor\.bbox_pred\..*": _of_coco(4),
                r"roi_heads\.mask_predictor\.mask_fcn_logits\..*": _of_coco(1),
                BODY + r".*running_var": lambda variance: variance - (0 if second else NORM_EPS),
            },
        ),
        names=[
            *resnets.names(BODY),
            *(NAMES_OF_SECOND if second else ()),
            # Before torchvision 0.13 these layers stood in no `Sequential` of their own.
            (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?", r"pyramid.lateral.\1.0."),
            (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?", r"pyramid.output.\1.0."),
            (r"rpn\.head\.conv\.(?:0\.0\.)?", "stages.rpn.head.conv.0.0."),
            (r"rpn\.", "stages.rpn."),
            (r"roi_heads\.box_head\.", "stages.box_head."),
            (r"roi_heads\.box_predictor\.cls_score\.", "stages.box_head.predict.score."),
            (r"roi_heads\.box_predictor\.bbox_pred\.", "stages.box_head.predict.box."),
            *(
                (
                    rf"roi_heads\.mask_head\.(?:mask_fcn{i + 1}|{i}\.0)\.",
                    f"stages.mask_head.convs.{3 * i}.",
                )
                for i in range(4)
            ),
            (r"roi_heads\.mask_predictor\.conv5_mask\.", "stages.mask_head.predict.0."),
            (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "stages.mask_head.predict.2."),
        ],
        num_classes=(len(COCO_ROWS) if outputs == COCO_OUTPUTS else outputs) - 1,
        classes="coco",
        measured=(*MEASURED, PASTED),
    )


MASK_RCNN = Family(
    name="torchvision detection",
    known_by=(BODY + r"conv1\.weight", r"roi_heads\.box_predictor\.cls_score\.weight"),
    read=_mask_rcnn,
)
