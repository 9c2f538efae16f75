"""What FPN's authors say about rates and decay: `TABLES` is experiment -> table."""

from __future__ import annotations

# Detectron's modeling/optimizer.py: the gradient of a bias is doubled and its weight does not
# decay. configs/12_2017_baselines/rpn_R-50-FPN_1x.yaml: WEIGHT_DECAY 0.0001. TRAIN.FREEZE_AT 2 is
# the stem and conv2; norms are affine layers that do not train.
HELD = {
    r"backbone\.(layers\.)?(stem\.0|stages\.0\..*):Conv2d\.weight": (0.0, 0.0),
    r"backbone\..*:.*Norm.*\.(weight|bias)": (0.0, 0.0),
}
LEARNED = {
    r"backbone\.(layers\.)?stages\.[1-3]\..*:Conv2d\.weight": (1.0, 0.0001),
}
BOXES = {
    **HELD,
    **LEARNED,
    r"(pyramid|rpn)\..*:Conv2d\.weight": (1.0, 0.0001),
    r"(pyramid|rpn)\..*:Conv2d\.bias": (2.0, 0.0),
}

# The mask proposals were never released. The paper's section 5.1 has the decay, 0.0001. What is
# held, and the biases at 1x without decay, are ours: no text says what the authors did.
MASKS = {
    **HELD,
    **LEARNED,
    r"(pyramid|heads)\..*:(Conv2d|Linear)\.weight": (1.0, 0.0001),
    r"(pyramid|heads)\..*:(Conv2d|Linear)\.bias": (1.0, 0.0),
}

TABLES = {
    "box_rpn_r50_coco": BOXES,
    "fpn_r50_5x5_coco": MASKS,
    "fpn_r50_7x7_coco": MASKS,
    "fpn_r50_coco": MASKS,
    "fpn_r50_28_coco": MASKS,
    "fpn_r50_28_coco_2x": MASKS,
}
