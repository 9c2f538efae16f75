"""PANet as its authors released it (ShuLiu1993/PANet, on Detectron.pytorch).

The norms of its backbone are a scale and a shift, the statistics are in them; all others are group
norms. The background is the first class, as with us. The published file without masks
(`..._1x_det`) is Faster R-CNN, which is none of ours.
"""

from __future__ import annotations

from segtrain.weights import resnets
from segtrain.weights.detectors import (
    PASTED,
    affine_as_norm,
    need_masks,
    need_rows,
    refuse,
    widened,
)
from segtrain.weights.family import Family, Published, Values, width

BODY = r"Conv_Body\.conv_body\."
BLOCK = BODY + r"res(?P<stage>[2-5])\.(?P<block>\d+)\.conv(?P<conv>\d)\.weight"
STAGES = (2, 3, 4, 5)
OTHERS = {
    BODY + r"res1\.gn1\.": "its backbone has group norms, which the release of PANet has not",
    r"(Keypoint_|Mask_Head\.res5)": "its heads are others than those of the release of PANet",
}
# Of its config: edges of 1000 and 1400 pixels.
MEASURED = ("inference=instances", "inference.shorter=1000", "inference.longest=1400", PASTED)
LEVELS = 4
TRUNK_NAMES = [
    (BODY + r"res1\.conv1\.", "backbone.stem.0."),
    (BODY + r"res1\.bn1\.", "backbone.stem.1."),
    *((rf"{BODY}res{n}\.", f"backbone.stages.{n - 2}.") for n in STAGES),
]
# Its top-down modules go from coarse to fine, ours from fine to coarse.
PYRAMID_NAMES = [
    (r"Conv_Body\.conv_top\.", f"pyramid.lateral.{LEVELS - 1}."),
    *(
        (
            rf"Conv_Body\.topdown_lateral_modules\.{n}\.conv_lateral\.",
            f"pyramid.lateral.{LEVELS - 2 - n}.",
        )
        for n in range(LEVELS - 1)
    ),
    *(
        (rf"Conv_Body\.posthoc_modules\.{n}\.", f"pyramid.output.{LEVELS - 1 - n}.")
        for n in range(LEVELS)
    ),
    (r"Conv_Body\.panet_buttomup_conv1_modules\.", "path.down."),
    (r"Conv_Body\.panet_buttomup_conv2_modules\.", "path.merge."),
]
RPN_NAMES = [
    (r"RPN\.FPN_RPN_conv\.", "stages.rpn.head.conv.0.0."),
    (r"RPN\.FPN_RPN_cls_score\.", "stages.rpn.head.cls_logits."),
    (r"RPN\.FPN_RPN_bbox_pred\.", "stages.rpn.head.bbox_pred."),
]
HEAVY_NAMES = [
    (r"Box_Head\.conv1_head\.", "stages.box_head.first.layers."),
    *(
        (rf"Box_Head\.convs\.{3 * n + layer}\.", f"stages.box_head.shared.{n}.{layer}.")
        for n in range(3)
        for layer in range(2)
    ),
    (r"Box_Head\.fc\.", "stages.box_head.shared.4."),
]
TWO_FC_NAMES = [
    (r"Box_Head\.fc1\.(\d)\.0\.", r"stages.box_head.first.layers.\1.1."),
    (r"Box_Head\.fc1\.(\d)\.1\.", r"stages.box_head.first.layers.\1.3."),
    (r"Box_Head\.fc2\.0\.", "stages.box_head.shared.1."),
    (r"Box_Head\.fc2\.1\.", "stages.box_head.shared.3."),
]
OUTPUT_NAMES = [
    (r"Box_Outs\.cls_score\.", "stages.box_head.predict.score."),
    (r"Box_Outs\.bbox_pred\.", "stages.box_head.predict.box."),
    (r"Mask_Head\.upconv\.", "stages.mask_head.predict.0."),
    (r"Mask_Outs\.classify\.", "stages.mask_head.predict.2."),
]
MASK_NAMES = [
    (r"Mask_Head\.mask_conv1\.", "stages.mask_head.first.layers."),
    *(
        (rf"Mask_Head\.conv_fcn\.{3 * n + layer}\.", f"stages.mask_head.shared.{n}.{layer}.")
        for n in range(2)
        for layer in range(2)
    ),
    # Without fusion the third convolution stands beside the other two.
    *((rf"Mask_Head\.conv_fcn\.{6 + n}\.", f"stages.mask_head.last.{n}.") for n in range(2)),
    (r"Mask_Head\.mask_conv4\.", "stages.mask_head.last."),
    (r"Mask_Head\.mask_conv4_fc\.", "stages.mask_head.fusion.convs.0."),
    (r"Mask_Head\.mask_conv5_fc\.", "stages.mask_head.fusion.convs.1."),
    (r"Mask_Head\.mask_fc\.0\.", "stages.mask_head.fusion.cells."),
]


def _panet(values: Values) -> Published:
    refuse(values, OTHERS)
    need_masks(values, "Mask_Outs.classify.weight")
    depth = resnets.depth(values, BLOCK, STAGES)
    backbone = widened(depth, values, "Conv_Body.conv_body.res2.0.conv2.weight")
    outputs = width(values, "Box_Outs.cls_score.weight")
    need_rows(values, "Box_Outs.bbox_pred.weight", "Mask_Outs.classify.weight", outputs)
    heavy = "Box_Head.conv1_head.0.0.weight" in values
    return Published(
        model="panet",
        arguments={
            "backbone": backbone,
            "style": "torchvision" if backbone.startswith("resnext") else "msra",
            "head_norm": "group",
            "width": width(values, "RPN.FPN_RPN_cls_score.weight", 1),
            "fusion": "Mask_Head.mask_fc.0.weight" in values,
            "box_head": "heavy" if heavy else "two_fc",
            "anchor_corners": "quantised",
            "roi": "legacy",
            "inclusive_boxes": True,
        },
        input="detectron",
        values=affine_as_norm(
            values,
            rf"({BODY}.*(?:bn\d|downsample\.1)\.)weight",
            r"\1running_mean",
            r"\1running_var",
        ),
        names=[
            *TRUNK_NAMES,
            *PYRAMID_NAMES,
            *RPN_NAMES,
            *(HEAVY_NAMES if heavy else TWO_FC_NAMES),
            *MASK_NAMES,
            *OUTPUT_NAMES,
        ],
        num_classes=outputs - 1,
        classes="coco",
        measured=MEASURED,
    )


PANET = Family(
    name="PANet's release",
    known_by=(
        BODY + r"res1\.conv1\.weight",
        r"Conv_Body\.panet_buttomup_conv1_modules\.0\.0\.weight",
    ),
    read=_panet,
)
