"""The sizes of the semantic systems, beside the papers' and the authors' releases.

A wrong layer seldom keeps the count.

Trainable and frozen tensors, affine values of batch norm included; fixed bilinear kernels are not
counted.
"""

import pytest
import torch

import segtrain

RESNETS = {"stem": "deep", "weights": None}
TABLE = [
    ("fcn", 21, {"stride": 32}, 134_346_581),
    ("fcn", 21, {"stride": 16}, 134_357_354),
    ("fcn", 21, {"stride": 8}, 134_362_751),
    ("fcn", 60, {"stride": 32}, 134_506_364),
    ("fcn", 60, {"stride": 16}, 134_537_144),
    ("fcn", 60, {"stride": 8}, 134_552_564),
    ("fcn", 21, {"backbone": "alexnet", "stride": 32}, 56_954_261),
    ("fcn_resnet50", 21, {"aux": True}, 35_322_218),
    ("fcn_resnet50", 21, {"aux": True, "backbone": "resnet101"}, 54_314_346),
    ("fcn_resnet50", 21, {"aux": False}, 32_957_013),
    ("fcn_resnet50", 21, {"aux": False, "backbone": "resnet101"}, 51_949_141),
    ("parsenet", 21, {"fusion": "none"}, 20_505_429),
    ("parsenet", 21, {"l2": "none"}, 20_526_954),
    ("parsenet", 21, {}, 20_529_002),
    ("deconvnet", 21, {}, 251_805_653),
    ("unet_paper", 2, {}, 31_030_658),
    ("unet_paper", 21, {"in_channels": 3}, 31_033_045),
    ("unet_paper", 2, {"released": True}, 31_100_354),
    ("pspnet", 21, RESNETS | {"backbone": "resnet50", "aux": True}, 49_081_578),
    ("pspnet", 21, RESNETS | {"backbone": "resnet50", "aux": False}, 46_716_373),
    ("pspnet", 21, RESNETS | {"backbone": "resnet101", "aux": True}, 68_073_706),
    ("pspnet", 21, RESNETS | {"backbone": "resnet101", "aux": False}, 65_708_501),
    ("pspnet", 19, RESNETS | {"backbone": "resnet50", "aux": True}, 49_080_038),
    ("pspnet", 19, RESNETS | {"backbone": "resnet101", "aux": True}, 68_072_166),
    ("pspnet", 150, RESNETS | {"backbone": "resnet50", "aux": True}, 49_180_908),
    ("deeplab", 21, {"backbone": "resnet101"}, 44_048_532),
    ("deeplab", 60, {"backbone": "resnet101"}, 46_924_080),
    ("deeplab", 19, {"backbone": "resnet101"}, 43_901_068),
    ("deeplab_vgg16", 21, {"head": "aspp"}, 37_877_652),
    ("deeplab_vgg16", 21, {"head": "largefov"}, 20_505_429),
    ("deeplabv3", 21, {"backbone": "resnet50"}, 39_048_533),
    ("deeplabv3", 21, {"backbone": "resnet101"}, 58_040_661),
    ("deeplabv3", 21, {"backbone": "resnet50", "head": "torchvision", "aux": True}, 42_004_074),
    ("deeplabv3", 21, {"backbone": "resnet101", "head": "torchvision", "aux": True}, 60_996_202),
    ("deeplabv3", 21, {"backbone": "resnet50", "head": "torchvision", "aux": False}, 39_638_869),
    ("deeplabv3", 21, {"backbone": "resnet101", "head": "torchvision", "aux": False}, 58_630_997),
    ("deeplabv3_mobilenet", 21, {}, 2_113_557),  # 2.11 million in table 7 of arXiv:1801.04381
    ("deeplabv3plus", 21, {"backbone": "resnet50", "separable": False}, 40_352_181),
    ("deeplabv3plus", 21, {"backbone": "resnet101", "separable": False}, 59_344_309),
    ("deeplabv3plus", 21, {"backbone": "resnet50", "separable": True}, 26_696_133),
    ("deeplabv3plus", 21, {"backbone": "resnet101", "separable": True}, 45_688_261),
    ("deeplabv3plus_xception65", 21, {}, 41_055_413),
    ("deeplabv3plus_xception65", 21, {"separable": False}, 54_711_461),
    ("deeplabv3plus_xception65", 19, {}, 41_054_899),
    ("deeplabv3plus_xception65", 21, {"backbone": "xception41"}, 28_108_661),
    ("deeplabv3plus_xception65", 21, {"backbone": "xception71"}, 43_477_837),
    ("encnet", 59, RESNETS | {"backbone": "resnet50"}, 43_915_217),
    ("encnet", 59, RESNETS | {"backbone": "resnet101"}, 62_907_345),
    ("encnet", 59, RESNETS | {"backbone": "resnet50", "lateral": False}, 36_047_825),
    ("encnet", 59, RESNETS | {"backbone": "resnet101", "lateral": False}, 55_039_953),
    ("encnet", 21, RESNETS | {"backbone": "resnet101"}, 62_858_591),
    ("encnet", 59, RESNETS | {"backbone": "resnet50", "lateral": False, "aux": False}, 33_672_854),
    ("encnet", 59, RESNETS | {"backbone": "resnet101", "lateral": False, "aux": False}, 52_664_982),
]


@pytest.mark.parametrize(("name", "classes", "arguments", "count"), TABLE)
def test_a_system_has_the_published_number_of_parameters(name, classes, arguments, count):
    weights = {"weights": None} if "unet" not in name else {}
    with torch.device("meta"):
        model = segtrain.create_model(name, num_classes=classes, **weights | arguments)
    assert sum(p.numel() for p in model.parameters()) == count
