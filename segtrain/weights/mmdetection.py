"""mmdetection's Mask R-CNN with a pyramid and its proposals of boxes, from version 2 on.

The background is the last class, and boxes and masks have no rows for it. The files of its styles
"pytorch" and "caffe" have the same names. They are told apart by what the backbone reads: "caffe"
reads bytes minus the mean and strides in the 1x1 (MSRA's ResNets), "pytorch" divides by the
deviation and strides in the 3x3. The statistics of the first norm say which; without them it is
"pytorch". Proposals of version 1 have the names of later ones and are taken for these.
"""

from __future__ import annotations

from segtrain.weights import resnets
from segtrain.weights.detectors import (
    ASSUMED,
    MEASURED,
    MEASURED_PROPOSALS,
    background_first,
    need_masks,
    need_rows,
    reads_bytes,
    refuse,
    turned,
    widened,
    with_background,
)
from segtrain.weights.family import Family, Published, Unfit, Values, width

BACKBONE = r"backbone\."
BLOCK = BACKBONE + r"layer(?P<stage>[1-4])\.(?P<block>\d+)\.conv(?P<conv>\d)\.weight"
LEFT_OUT = {r"data_preprocessor\.": "what the network reads is a setting of its own (model.input)"}
OTHERS = {
    r"bbox_head\.": "it is of mmdetection 1, whose anchors, rounded around the middle of a cell, "
    "are none of ours",
    r"backbone\.(stem|patch_embed|s1)\.": "its backbone is no ResNet with a stem of 7x7",
    r"backbone\.layer\d\.\d+\.conv2(_offset|\.conv_offset)": "its convolutions are deformable, "
    "which no backbone of ours has",
    r"roi_head\.shared_head\.": "it reads regions from one map (C4), which is brought in from "
    "detectron2 and Detectron only",
    r"roi_head\.bbox_head\.0\.": "its box heads form a cascade, ours is one",
    r"roi_head\.bbox_head\.shared_convs\.": "its box head has convolutions, ours is two fully "
    "connected layers",
    r"roi_head\.mask_iou_head\.": "it scores its masks (Mask Scoring R-CNN), which ours does not",
    r"roi_head\.semantic_head\.": "it labels pixels too, which no model of ours does with one "
    "network",
    r"neck\.fpn_convs\.4\.": "its pyramid makes its coarsest level by a convolution of its own, "
    "ours takes every other cell",
    r"neck\.(lateral|fpn)_convs\.\d\.(bn|gn)\.": "its pyramid has norms, which our Mask R-CNN has "
    "only with norms in its mask head",
}
VERSION = (
    "proposals of mmdetection 1 have the names of later ones, and other anchors; taken is a later "
    "version"
)
PYRAMID_NAMES = [
    *resnets.names(BACKBONE),
    (r"neck\.lateral_convs\.(\d)\.conv\.", r"pyramid.lateral.\1.0."),
    (r"neck\.fpn_convs\.(\d)\.conv\.", r"pyramid.output.\1.0."),
]


def _rpn_names(to: str) -> list[tuple[str, str]]:
    return [
        (r"rpn_head\.rpn_conv\.(?=weight|bias)", f"{to}head.conv.0.0."),
        (r"rpn_head\.rpn_cls\.", f"{to}head.cls_logits."),
        (r"rpn_head\.rpn_reg\.", f"{to}head.bbox_pred."),
    ]


MASK_RCNN_NAMES = [
    *PYRAMID_NAMES,
    *_rpn_names("stages.rpn."),
    *((rf"roi_head\.bbox_head\.shared_fcs\.{n}\.", f"stages.box_head.fc{6 + n}.") for n in (0, 1)),
    (r"roi_head\.bbox_head\.fc_cls\.", "stages.box_head.predict.score."),
    (r"roi_head\.bbox_head\.fc_reg\.", "stages.box_head.predict.box."),
    *(
        (rf"roi_head\.mask_head\.convs\.{n}\.conv\.", f"stages.mask_head.convs.{3 * n}.")
        for n in range(4)
    ),
    (r"roi_head\.mask_head\.upsample\.", "stages.mask_head.predict.0."),
    (r"roi_head\.mask_head\.conv_logits\.", "stages.mask_head.predict.2."),
]


def _boxes(values: Values) -> Published:
    """Return Mask R-CNN, or the proposals of boxes where it has no heads. Errors: Unfit."""
    refuse(values, OTHERS)
    heads = any(key.startswith("roi_head.") for key in values)
    if heads:
        need_masks(values, "roi_head.mask_head.conv_logits.weight")
    anchors = width(values, "rpn_head.rpn_cls.weight")
    if anchors != 3:
        raise Unfit(f"its region proposals have {anchors} outputs at every place, ours have 3")
    depth = resnets.depth(values, BLOCK)
    backbone = widened(depth, values, "backbone.layer1.0.conv2.weight")
    caffe = reads_bytes(values, "backbone.conv1.weight", "backbone.bn1.running_var")
    reads = "detectron2" if caffe else "imagenet"
    notes = (ASSUMED,) if caffe is None else ()
    if backbone == "resnext101_32x8d":  # the one that detectron2's weights start
        reads = "detectron2_x101"
        notes = ()
    arguments = {
        "backbone": backbone,
        "style": "msra" if reads == "detectron2" else "torchvision",
        "width": width(values, "neck.lateral_convs.0.conv.weight"),
        "anchor_corners": "exact",
    }
    if not heads:
        return Published(
            model="box_rpn",
            arguments=arguments,
            input=reads,
            values=values,
            names=[*PYRAMID_NAMES, *_rpn_names("rpn.")],
            left_out=LEFT_OUT,
            measured=MEASURED_PROPOSALS,
            notes=(*notes, VERSION),
        )
    classes = width(values, "roi_head.bbox_head.fc_cls.weight") - 1
    need_rows(
        values,
        "roi_head.bbox_head.fc_reg.weight",
        "roi_head.mask_head.conv_logits.weight",
        classes,
    )
    return Published(
        model="mask_rcnn",
        arguments={**arguments, "roi_samples": 0},
        input=reads,
        values=turned(
            values,
            {
                r"roi_head\.bbox_head\.fc_cls\..*": background_first,
                r"roi_head\.bbox_head\.fc_reg\..*": with_background(4),
                r"roi_head\.mask_head\.conv_logits\..*": with_background(1),
            },
        ),
        names=MASK_RCNN_NAMES,
        left_out=LEFT_OUT,
        num_classes=classes,
        classes="coco",
        measured=MEASURED,
        notes=notes,
    )


MMDETECTION = Family(
    name="mmdetection",
    known_by=(r"neck\.lateral_convs\.0\.conv\.weight", r"rpn_head\.rpn_cls\.weight"),
    read=_boxes,
)
