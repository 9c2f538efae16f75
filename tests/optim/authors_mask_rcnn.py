"""What Detectron and detectron2 say about rates and decay: `TABLES` is experiment -> table."""

from __future__ import annotations

# core/config.py: TRAIN.FREEZE_AT 2, so the stem and conv2 do not train; batch norm never does.
FROZEN = {
    r"backbone\.(stem|stages\.0)\..*": (0.0, 0.0),
    r"(backbone\.stages\.[123]|stages)\..*:FrozenBatchNorm\..*": (0.0, 0.0),
}
TRAINED = r"(backbone\.stages\.[123]|pyramid|stages)\..*:(Conv2d|ConvTranspose2d|Linear)"
# modeling/optimizer.py: the gradients of biases are doubled, and biases do not decay;
# SOLVER.WEIGHT_DECAY is 0.0001 in each configuration.
DETECTRON = FROZEN | {
    rf"{TRAINED}\.weight": (1.0, 0.0001),
    rf"{TRAINED}\.bias": (2.0, 0.0),
}
# config/defaults.py: BIAS_LR_FACTOR 1, WEIGHT_DECAY_BIAS as WEIGHT_DECAY, BACKBONE.FREEZE_AT 2.
DETECTRON2 = FROZEN | {rf"{TRAINED}\.(weight|bias)": (1.0, 0.0001)}

TABLES = {
    "mask_rcnn_r50_coco_1x": DETECTRON,
    "mask_rcnn_r50_coco_2x": DETECTRON,
    "mask_rcnn_r101_coco_1x": DETECTRON,
    "mask_rcnn_r101_coco_2x": DETECTRON,
    "mask_rcnn_r50_c4_coco_1x": DETECTRON,
    "mask_rcnn_x101_32x8d_coco_1x": DETECTRON,
    "mask_rcnn_x101_64x4d_coco_1x": DETECTRON,
    "mask_rcnn_x101_coco_2017": DETECTRON,
    # The paper names one decay, 0.0001, and nothing of biases and of what is frozen: Detectron is
    # its authors' code.
    "mask_rcnn_r50_coco_paper": DETECTRON,
    "mask_rcnn_r101_coco_paper": DETECTRON,
    "mask_rcnn_r50_c4_coco_paper": DETECTRON,
    "mask_rcnn_r101_c4_coco_paper": DETECTRON,
    "mask_rcnn_x101_coco_paper": DETECTRON,
    "mask_rcnn_r50_cityscapes": DETECTRON,
    "mask_rcnn_r50_coco_detectron2_1x": DETECTRON2,
    "mask_rcnn_r50_coco_detectron2_3x": DETECTRON2,
}
