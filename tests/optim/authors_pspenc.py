"""What the files of PSPNet's and EncNet's authors say about rates and decay.

`TABLES` is experiment -> table, see published_rates.py.
"""

from __future__ import annotations

# semseg's tool/train.py: the stages of the ResNet are groups at the base rate, pyramid, classifier
# and auxiliary head at ten times. One weight decay on all, 0.0001 (config/*/*_pspnet*.yaml).
SEMSEG = {
    r"backbone\..*": (1.0, 0.0001),
    r"(pyramid|fuse|aux)\..*": (10.0, 0.0001),
    r"classifier:.*": (10.0, 0.0001),
}

# The Caffe release's evaluation/prototxt/pspnet101_{VOC2012_473,cityscapes_713}.prototxt: lr_mult 1
# in the trunk, 10 in the head, 20 for the bias of conv6; decay_mult 0 for scale and shift of every
# BN, else 1, the bias of conv6 too. The decay of 0.0001 is the paper's (section 5.1). These are
# networks for testing, without the auxiliary head: its rows are argued as the main head's.
CAFFE = {
    r"backbone\..*:Conv2d\.weight": (1.0, 0.0001),
    r"backbone\..*:BatchNorm2d\..*": (1.0, 0.0),
    r"(pyramid|fuse|aux)\..*:Conv2d\.weight": (10.0, 0.0001),
    r"(pyramid|fuse|aux)\..*:BatchNorm2d\..*": (10.0, 0.0),
    r"aux\..*:Conv2d\.bias": (20.0, 0.0001),
    r"classifier:Conv2d\.weight": (10.0, 0.0001),
    r"classifier:Conv2d\.bias": (20.0, 0.0001),
}

# PyTorch-Encoding's experiments/segmentation/train.py: model.pretrained at the base rate,
# model.head and model.auxlayer at ten times; one weight decay (option.py: 0.0001) on everything,
# codewords and smoothing factors too.
HEAD = r"reduce|lateral|fuse|context|gate|classifier|se|aux"
ENCODING = {
    r"backbone\..*": (1.0, 0.0001),
    rf"({HEAD})[.:].*": (10.0, 0.0001),
}

TABLES = {
    "pspnet50_voc": SEMSEG,
    "pspnet101_voc": SEMSEG,
    "pspnet50_cityscapes": SEMSEG,
    "pspnet101_cityscapes": SEMSEG,
    "pspnet101_voc_coco": CAFFE,
    "pspnet101_cityscapes_paper": CAFFE,
    "encnet_r50_context": ENCODING,
    "encnet_r101_context": ENCODING,
    "encnet_r101_voc": ENCODING,
    # The paper's second SE-loss has no code of the authors: as every new layer.
    "encnet_r101_context_paper": ENCODING | {r"se_aux\..*": (10.0, 0.0001)},
}
