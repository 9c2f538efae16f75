"""What PANet's release says about rates and decay: `TABLES` is experiment -> table."""

from __future__ import annotations

# core/config.py: RESNETS.FREEZE_AT 2, so the stem and conv2 do not train; batch norm never does.
FROZEN = {
    r"backbone\.(stem|stages\.0)\..*": (0.0, 0.0),
    r"backbone\.stages\.[123]\..*:FrozenBatchNorm\..*": (0.0, 0.0),
}
TRAINED = r"(backbone\.stages\.[123]|pyramid|path|stages)\..*:(Conv2d|ConvTranspose2d|Linear)"
NORM = r"(pyramid|path|stages)\..*:GroupNorm"
# tools/train_net_step.py: whatever has "bias" in its name is a bias, group norm's too, and trains
# at 2x without decay (BIAS_DOUBLE_LR, BIAS_WEIGHT_DECAY); group norm's scales have
# WEIGHT_DECAY_GN, 0.
RELEASE = FROZEN | {
    rf"{TRAINED}\.weight": (1.0, 0.0001),
    rf"{TRAINED}\.bias": (2.0, 0.0),
    rf"{NORM}\.weight": (1.0, 0.0),
    rf"{NORM}\.bias": (2.0, 0.0),
}
# The paper (section 4.2) freezes nothing, and names one decay, 0.0001. It says nothing of biases,
# which are as in the release here, and of batch norm, which is not decayed here, as the release's
# group norm.
EVERY = r".*:(Conv2d|ConvTranspose2d|Linear)"
PAPER = {
    rf"{EVERY}\.weight": (1.0, 0.0001),
    rf"{EVERY}\.bias": (2.0, 0.0),
    r".*:BatchNorm2d\.(weight|bias)": (1.0, 0.0),
}
# detectron2's config/defaults.py: biases as weights, WEIGHT_DECAY_NORM 0.
DETECTRON2 = FROZEN | {
    rf"{TRAINED}\.(weight|bias)": (1.0, 0.0001),
    rf"{NORM}\.(weight|bias)": (1.0, 0.0),
}

TABLES = {
    "panet_r50_coco": RELEASE,
    "panet_r50_coco_paper": PAPER,
    "panet_x101_coco": PAPER,
    "panet_x101_coco_2017": PAPER,
    "panet_r50_coco_detectron2_1x": DETECTRON2,
}
