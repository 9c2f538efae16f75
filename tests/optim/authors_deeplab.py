"""What the files of DeepLab's authors say of rates and decay: `TABLES` is experiment -> table."""

from __future__ import annotations

# Version 2 on ResNet-101, train.prototxt of DeepLab v2 for COCO-Stuff (nightrome/cocostuff10k, made
# from the authors' files): convolutions lr_mult 1, decay_mult 1; fc1_*_c0 to c3 10 and 1, their
# biases 20 and 0; all of BatchNorm and Scale 0. solver.prototxt: weight_decay 0.0005. kazuto1011's
# main.py has the same three groups, without batch norm.
RESNET = {
    r"backbone\..*:FrozenBatchNorm\.(weight|bias)": (0.0, 0.0),
    r"backbone\..*:Conv2d\.weight": (1.0, 0.0005),
    r"classifiers\.\d:Conv2d\.weight": (10.0, 0.0005),
    r"classifiers\.\d:Conv2d\.bias": (20.0, 0.0),
}
# On VGG16, the same repository: conv1_1 to fc7 1 and 1, biases 2 and 0; fc8 10 and 1, 20 and 0.
VGG = {
    r"(backbone|fc)\..*:Conv2d\.weight": (1.0, 0.0005),
    r"(backbone|fc)\..*:Conv2d\.bias": (2.0, 0.0),
    r"classifiers\.\d:Conv2d\.weight": (10.0, 0.0005),
    r"classifiers\.\d:Conv2d\.bias": (20.0, 0.0),
}

# Versions 3 and 3+, tensorflow/models, research/deeplab. train.py: weight_decay 0.0001 for ResNets,
# 0.00004 for Xceptions, last_layer_gradient_multiplier 1. utils/train_utils.py: what is named
# `biases` learns twice as fast, which only the logits have; gamma and beta of batch norm do not.
# slim's arg scopes and model.py: weights_regularizer for convolutions, none for biases, gamma and
# beta.
DENSE = {
    r".*:Conv2d\.weight": (1.0, 0.0001),
    r".*:BatchNorm2d\.(weight|bias)": (1.0, 0.0),
    r"classifier:Conv2d\.bias": (2.0, 0.0),
}
# The second stage. The paper (section 4.1) freezes the parameters of batch norm; the release's
# fine_tune_batch_norm=False freezes the statistics and trains gamma and beta. 85.7 is the paper's.
FROZEN = {
    r".*:FrozenBatchNorm\.(weight|bias)": (0.0, 0.0),
    r".*:Conv2d\.weight": (1.0, 0.0001),
    r"classifier:Conv2d\.bias": (2.0, 0.0),
}
# core/xception.py, regularize_depthwise False; model.py, _split_separable_conv2d,
# weights_regularizer None: no decay of depthwise weights.
SEPARABLE = {
    r".*:Conv2d\.weight": (1.0, 0.00004),
    r".*:Depthwise\.weight": (1.0, 0.0),
    r".*:BatchNorm2d\.(weight|bias)": (1.0, 0.0),
    r"classifier:Conv2d\.bias": (2.0, 0.0),
}

TABLES = {
    "deeplab_r101_voc": RESNET,
    "deeplab_r101_context": RESNET,
    "deeplab_r101_cityscapes": RESNET,
    "deeplab_r101_stuff": RESNET,
    "deeplab_r101_coco": RESNET,  # not published: VOC's
    "deeplab_vgg16_aspp_voc": VGG,
    "deeplab_vgg16_largefov_voc": VGG,
    "deeplabv3_r101_voc": DENSE,
    "deeplabv3_r101_cascade_voc": DENSE,
    "deeplabv3_r101_coco": DENSE,
    "deeplabv3_r101_cityscapes": DENSE,
    "deeplabv3_r101_trainval": FROZEN,
    "deeplabv3plus_voc": DENSE,
    "deeplabv3plus_x65_voc": SEPARABLE,
    "deeplabv3plus_x65_coco": SEPARABLE,
    "deeplabv3plus_x65_cityscapes": SEPARABLE,
    "deeplabv3plus_x71_cityscapes": SEPARABLE,
}
