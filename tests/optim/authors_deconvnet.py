"""What the files of DeconvNet's authors say about rates and decay: `TABLES` is experiment -> table.

Source: training/00*/stage_*_train.prototxt and solver.prototxt of github.com/HyeonwooNoh/DeconvNet.
"""

from __future__ import annotations

DECAY = 0.0005  # weight_decay of both solvers

# All 30 layers have `blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0`; their batch norms
# have nothing, and so the 1 of Caffe's net.cpp.
STAGE = {
    r".*:(Conv2d|ConvTranspose2d)\.weight": (1.0, DECAY),
    r".*:(Conv2d|ConvTranspose2d)\.bias": (2.0, 0.0),
    r".*:BatchNorm2d\.(weight|bias)": (1.0, DECAY),
}

TABLES = {"deconvnet_voc_stage1": STAGE, "deconvnet_voc": STAGE, "edeconvnet_voc": STAGE}
