"""The recipes of conf/experiment against one table, written from the papers and the authors'
releases, not from the yaml.

Each row is what a published number was made with. A group's rate is in the optimiser's own groups:
`backbone` is what the paper fine-tunes at the base rate, `head` what it starts new.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from recipes import classes_of, model_of
from recipes import composed as run_of

from segtrain.config import parts

CONF = Path(__file__).parents[2] / "conf" / "experiment"
EVERY = sorted(path.stem for path in CONF.glob("*.yaml"))
SIX = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


@dataclass(frozen=True)
class Recipe:
    """What must come out of composing an experiment; None: nothing is said about it."""

    model: str  # module:Class
    data: str  # class of the data set
    classes: int
    splits: tuple[str, str]  # trained on, measured on
    crop: tuple[int, int] | None  # None: the image is whole, see `edges`
    batch: int  # images per update
    steps: int
    lr: dict[str, float]  # of the groups named
    momentum: float
    decay: dict[str, float]  # of the groups named
    schedule: dict[str, Any]
    loss: dict[str, float]
    scale: tuple[float, float, float] | None  # lowest, highest, step; None: by a side's length
    flip: float = 0.5
    rotate: float = 0.0
    blur: float = 0.0
    test: dict[str, Any] = field(
        default_factory=lambda: {"mode": "whole", "scales": [1.0], "flip": False}
    )
    arguments: dict[str, Any] = field(default_factory=dict)  # of the model
    extra: dict[str, Any] = field(default_factory=dict)  # dotted keys of the composed config
    # lengths of the shorter edge, limit of the longer, any between
    edges: tuple[list[int], int, bool] | None = None


WHOLE = {"mode": "whole", "scales": [1.0], "flip": False}
POLY = {"_target_": "Poly", "power": 0.9, "end": 0.0, "warmup": 0}
CONSTANT = {"_target_": "Constant", "warmup": 0}
PIXEL = {"seg": 1.0}


def fcn(stride: int, rate: float, steps: int = 100_000, **changes: Any) -> Recipe:
    """FCN as released ("heavy"): one whole image, summed loss, a rate that makes up for the sum."""
    basic = {
        "model": "fcn:FCN",
        "data": "VOC",
        "classes": 21,
        "splits": ("sbd_train", "seg11valid"),
        "crop": (500, 500),
        "batch": 1,
        "steps": steps,
        "lr": {
            "backbone.weight": rate,
            "backbone.bias": 2 * rate,
            "head.weight": rate,
            "head.bias": 2 * rate,
        },
        "momentum": 0.99,
        "decay": {
            "backbone.weight": 5e-4,
            "backbone.bias": 0.0,
            "head.weight": 5e-4,
            "head.bias": 0.0,
        },
        "schedule": CONSTANT,
        "loss": PIXEL,
        "scale": (1.0, 1.0, 0.0),
        "flip": 0.0,
        "test": WHOLE,
        "arguments": {"backbone": "vgg16", "stride": stride, "pad": 100},
        "extra": {"loss.reduction": "sum"},
    }
    return Recipe(**{**basic, **changes})


def fcn_paper(stride: int, rate: float) -> Recipe:
    """FCN of the conference paper: mean loss, 20 images, 175 epochs of 8,498."""
    return fcn(stride, rate, 74_375, batch=20, momentum=0.9, extra={"loss.reduction": "mean"})


def fcn_context(stride: int, rate: float) -> Recipe:
    return fcn(stride, rate, 300_000, data="Context", classes=60, splits=("train", "val"))


def parsenet(**changes: Any) -> Recipe:
    basic = {
        "model": "parsenet:ParseNet",
        "data": "VOC",
        "classes": 21,
        "splits": ("train_aug", "val"),
        "crop": (500, 500),
        "batch": 8,
        "steps": 20_000,
        "lr": {"backbone.weight": 1e-3, "backbone.bias": 2e-3, "head.weight": 1e-3},
        "momentum": 0.9,
        "decay": {"backbone.weight": 5e-4, "backbone.bias": 0.0, "head.norm": 0.0},
        "schedule": POLY,
        "loss": PIXEL,
        "scale": (1.0, 1.0, 0.0),
        "flip": 0.0,
        "arguments": {"backbone": "vgg16", "norm": "none"},
    }
    return Recipe(**{**basic, **changes})


def deconvnet(stage: str, steps: int, milestones: list[float]) -> Recipe:
    """Two stages; 64 images as 8 x 8.

    Statistics of batch norm estimated afterwards over 500 batches.
    """
    return Recipe(
        "deconvnet:DeconvNet",
        "VOCCrops",
        21,
        ("trainval_aug", "val"),
        (224, 224),
        64,
        steps,
        {"backbone.weight": 0.01, "backbone.bias": 0.02, "head.weight": 0.01, "head.bias": 0.02},
        0.9,
        {
            "backbone.weight": 5e-4,
            "backbone.bias": 0.0,
            "head.weight": 5e-4,
            "head.bias": 0.0,
            "backbone.norm": 5e-4,
            "head.norm": 5e-4,
        },
        {"_target_": "Step", "gamma": 0.1, "milestones": milestones},
        PIXEL,
        (1.0, 1.0, 0.0),
        test={"size": 224, "merge": "max", "floor": "zero"},
        arguments={"backbone": "vgg16", "code": 4096, "bn_eps": 1e-9},
        extra={
            "dataset.stage": stage,
            "dataset.enlarge": 1.2,
            "train.accumulate": 8,
            "train.bn_batches": 500,
            "inference.boxes.count": 50,
            "inference.boxes.min_side": 112,
        },
    )


def pspnet(depth: int, data: str, **changes: Any) -> Recipe:
    """The authors' PyTorch release: ten times the lr outside the backbone, decay on everything."""
    voc = data == "VOC"
    crop = (473, 473) if voc else (713, 713)
    head = {"head.weight": 0.1, "head.bias": 0.1, "head.norm": 0.1}
    basic = {
        "model": "pspnet:PSPNet",
        "data": data,
        "classes": 21 if voc else 19,
        "splits": ("train_aug" if voc else "train", "val"),
        "crop": crop,
        "batch": 16,
        "steps": 33_050 if voc else 37_200,
        "lr": {"backbone.weight": 0.01, "backbone.norm": 0.01, **head},
        "momentum": 0.9,
        "decay": dict.fromkeys(
            ("backbone.weight", "backbone.norm", "head.weight", "head.bias", "head.norm"), 1e-4
        ),
        "schedule": POLY,
        "loss": {"seg": 1.0, "aux": 0.4},
        "scale": (0.5, 2.0, 0.0),
        "rotate": 10.0,
        "blur": 0.5,
        "test": {
            "mode": "slide",
            "window": list(crop),
            "stride": 2 / 3,
            "base": 512 if voc else 2048,
            "scales": [1.0],
            "flip": True,
            "average": "probabilities",
        },
        "arguments": {
            "backbone": f"resnet{depth}",
            "stem": "deep",
            "dropout": "channel",
            "head_init": "torch",
            "bins": [1, 2, 3, 6],
            "aux": True,
        },
        "extra": {
            "augment.color": 0.0,
            "augment.blur_sigma": [1.1, 1.1],
            "augment.blur_kernel": 5,
            "augment.padding": "middle",
        },
    }
    return Recipe(**{**basic, **changes})


def pspnet_caffe(data: str, **changes: Any) -> Recipe:
    """The paper's: no decay of norms, the head's biases at twenty times the rate, six scales."""
    voc = data == "VOC"
    own = {
        "lr": {"backbone.weight": 0.01, "head.weight": 0.1, "head.bias": 0.2, "head.norm": 0.1},
        "decay": {
            "backbone.weight": 1e-4,
            "backbone.norm": 0.0,
            "head.weight": 1e-4,
            "head.bias": 1e-4,
            "head.norm": 0.0,
        },
        "test": {
            "mode": "slide",
            "window": [473, 473] if voc else [713, 713],
            "base": 512 if voc else 2048,
            "scales": SIX,
            "flip": True,
            "average": "summed",
        },
        "arguments": {
            "backbone": "resnet101",
            "stem": "deep",
            "momentum": 0.05,
            "dropout": "element",
            "head_init": "he",
        },
    }
    return pspnet(101, data, **{**own, **changes})


def deeplab(data: str, classes: int, **changes: Any) -> Recipe:
    """DeepLab v2: ten times the rate for the classifier's weights, twenty for its biases.

    Frozen batch norm.
    """
    basic = {
        "model": "deeplab:DeepLab",
        "data": data,
        "classes": classes,
        "splits": ("train", "val"),
        "crop": (321, 321),
        "batch": 10,
        "steps": 20_000,
        "lr": {"backbone.weight": 2.5e-4, "head.weight": 2.5e-3, "head.bias": 5e-3},
        "momentum": 0.9,
        "decay": {"backbone.weight": 5e-4, "head.weight": 5e-4, "head.bias": 0.0},
        "schedule": POLY,
        "loss": {"seg": 1.0, "scale_100": 1.0, "scale_75": 1.0, "scale_50": 1.0},
        "scale": (0.5, 1.5, 0.25),
        "test": {**WHOLE, "pad": [513, 513]},
        "arguments": {
            "backbone": "resnet101",
            "head": "aspp",
            "dilations": [6, 12, 18, 24],
            "scales": [1.0, 0.75, 0.5],
            "norm": "frozen",
            "style": "caffe",
        },
        "extra": {
            "augment.blank": True,
            "eval.crf": False,
            "inference.crf.iterations": 10,
            "inference.crf.color_weight": 4.0,
            "inference.crf.position_std": 67.0,
            "inference.crf.color_std": 3.0,
            "inference.crf.smooth_weight": 3.0,
            "inference.crf.smooth_std": 1.0,
        },
    }
    return Recipe(**{**basic, **changes})


def deeplab_vgg16(head: str, dilations: list[int]) -> Recipe:
    return deeplab(
        "VOC",
        21,
        splits=("train_aug", "val"),
        loss=PIXEL,
        scale=(1.0, 1.0, 0.0),
        lr={"backbone.weight": 1e-3, "backbone.bias": 2e-3, "head.weight": 1e-2, "head.bias": 2e-2},
        arguments={"backbone": "vgg16", "head": head, "dilations": dilations, "scales": [1.0]},
    )


# DeepLab's TensorFlow release (eval.py, model.py).
RELEASED = {**WHOLE, "average": "resized", "resize": "aligned", "padding": "mean"}


def deeplabv3(model: str = "deeplabv3:DeepLabV3", **changes: Any) -> Recipe:
    """DeepLab v3 and v3+: 0.007, batch norm trained with decay 0.9997 (momentum 0.0003), scales in
    steps of 0.25.
    """
    basic = {
        "model": model,
        "data": "VOC",
        "classes": 21,
        "splits": ("train_aug", "val"),
        "crop": (513, 513),
        "batch": 16,
        "steps": 30_000,
        "lr": {"backbone.weight": 0.007, "head.weight": 0.007, "head.bias": 0.014},
        "momentum": 0.9,
        "decay": {
            "backbone.weight": 1e-4,
            "backbone.norm": 0.0,
            "head.weight": 1e-4,
            "head.bias": 0.0,
        },
        "schedule": POLY,
        "loss": PIXEL,
        "scale": (0.5, 2.0, 0.25),
        "test": {**RELEASED, "pad": [513, 513], "score_stride": 16},
        "arguments": {
            "backbone": "resnet101",
            "output_stride": 16,
            "multi_grid": [1, 2, 4],
            "momentum": 0.0003,
            "norm": "batch",
        },
        "extra": {"augment.blank": True},
    }
    return Recipe(**{**basic, **changes})


def xception(depth: int, **changes: Any) -> Recipe:
    plus = {
        "backbone": f"xception{depth}",
        "output_stride": 16,
        "separable": True,
        "momentum": 0.0003,
        "norm": "batch",
    }
    arguments = plus | changes.pop("arguments", {})
    decayed = {f"{part}.weight": 4e-5 for part in ("backbone", "head")}
    kept = ("backbone.depthwise", "backbone.norm", "head.depthwise", "head.norm", "head.bias")
    changes = {"test": {**RELEASED, "pad": [513, 513], "score_stride": 4}} | changes
    return deeplabv3(
        "deeplabv3plus:DeepLabV3Plus",
        decay=decayed | dict.fromkeys(kept, 0.0),
        arguments=arguments,
        **changes,
    )


STREETS: dict[str, Any] = {
    "data": "Cityscapes",
    "classes": 19,
    "splits": ("train", "val"),
    "crop": (769, 769),
    "steps": 90_000,
}
# An answer of a maintainer (tensorflow/models, issue 3677).
STREETS_PLUS = STREETS | {
    "lr": {"backbone.weight": 0.01, "head.weight": 0.01, "head.bias": 0.02},
    "test": {**RELEASED, "pad": [1025, 2049], "score_stride": 4},
}


# PyTorch-Encoding 0.5.0: the shorter side is 0.5 to 2 times 520, what is padded is black and 0.
ENCODING = {
    "augment.short_side": [260, 1040],
    "augment.blur_sigma": [0.0, 1.0],
    "augment.mean": [0, 0, 0],
    "augment.padding": "end",
    "augment.padding_label": None,
    "augment.rotate_share": 0.5,
}


def encnet(depth: int, **changes: Any) -> Recipe:
    """The authors' release: 80 epochs of 312 updates."""
    basic = {
        "model": "encnet:EncNet",
        "data": "Context",
        "classes": 59,
        "splits": ("train", "val"),
        "crop": (480, 480),
        "batch": 16,
        "steps": 24_960,
        "momentum": 0.9,
        "lr": {"backbone.weight": 1e-3, "head.weight": 1e-2, "head.bias": 1e-2, "head.norm": 1e-2},
        "decay": dict.fromkeys(
            ("backbone.weight", "backbone.norm", "head.weight", "head.bias", "head.norm"), 1e-4
        ),
        "schedule": POLY,
        "loss": {"seg": 1.0, "aux": 0.2, "se": 0.2},
        "scale": None,
        "blur": 0.5,
        "test": {
            "mode": "slide",
            "window": [480, 480],
            "stride": 2 / 3,
            "base": 520,
            "scales": SIX,
            "flip": True,
            "average": "exp",
        },
        "arguments": {
            "backbone": f"resnet{depth}",
            "stem": "deep",
            "codewords": 32,
            "lateral": True,
            "aux": True,
            "se": True,
            "dropout": "channel",
            "head_init": "torch",
        },
        "extra": ENCODING,
    }
    return Recipe(**{**basic, **changes})


EDGE_800 = ([800], 1333, False)
MULTITASK = dict.fromkeys(("rpn_class", "rpn_box", "class", "box", "mask"), 1.0) | {"dropped": 0.0}
WARM = {"_target_": "Step", "gamma": 0.1, "warmup": 500, "warmup_factor": 0.33333333}
COLD = {"_target_": "Step", "gamma": 0.1, "warmup": 0, "milestones": [0.75]}
X101 = {"batch": 8, "rate": 0.01}


def detector(
    model: str, steps: int, drops: list[int], batch: int = 16, rate: float = 0.02, **changes: Any
) -> Recipe:
    """Two-stage systems on COCO: biases at twice the rate and without decay.

    `drops` are the steps where the rate falls.
    """
    milestones = [pytest.approx(drop / steps, abs=1e-7) for drop in drops]
    basic = {
        "model": model,
        "data": "CocoInstances",
        "classes": 80,
        "splits": ("train2017", "val2017"),
        "crop": None,
        "batch": batch,
        "steps": steps,
        "lr": dict.fromkeys(("backbone.weight", "head.weight"), rate) | {"head.bias": 2 * rate},
        "momentum": 0.9,
        "decay": {"backbone.weight": 1e-4, "head.weight": 1e-4, "head.bias": 0.0},
        "schedule": {**WARM, "milestones": milestones},
        "loss": MULTITASK,
        "scale": None,
        "edges": EDGE_800,
        "test": {
            "shorter": 800,
            "longest": 1333,
            "score": 0.05,
            "overlap": 0.5,
            "detections": 100,
            "threshold": 0.5,
            "scales": [1.0],
            "flip": False,
        },
        "extra": {"dataset.keep_empty": False, "train.aspect_groups": True},
    }
    return Recipe(**{**basic, **changes})


# Detectron keeps 2,000 proposals of all images of a GPU together: of two, of about 1,000 each.
TWO_ON_A_GPU = {"proposals": [1000, 1000], "candidates": [2000, 1000]}


def mask_rcnn(backbone: str, steps: int, drops: list[int], **changes: Any) -> Recipe:
    """Detectron's: stem and conv2 frozen, 512 regions, with one image on a GPU 2,000 proposals in
    training and 1,000 in the test.
    """
    arguments = {
        "backbone": backbone,
        "trunk": "fpn",
        "weights": "imagenet",
        "norm": "frozen",
        "head_norm": "none",
        "freeze": None,
        "width": 256,
        "anchors": [32, 64, 128, 256, 512],
        "proposals": [2000, 1000],
        "regions": 512,
        "mask_head": "fcn",
        "class_agnostic_masks": False,
        "masks": "sigmoid",
        "roi": "align",
    } | changes.pop("arguments", {})
    return detector("mask_rcnn:MaskRCNN", steps, drops, arguments=arguments, **changes)


def mask_rcnn_paper(backbone: str, **changes: Any) -> Recipe:
    """160k steps, a tenth at 120k, no warm-up; as many at 8 images. Suppression from 0.3 on."""
    test = {"shorter": 800, "longest": 1333, "overlap": 0.3, "scales": [1.0], "flip": False}
    basic = {"schedule": COLD, "extra": {}, "test": test}
    return mask_rcnn(backbone, 160_000, [120_000], **basic, **changes)


def panet(backbone: str, norm: str, steps: int, drops: list[int], **changes: Any) -> Recipe:
    """The release's frozen batch norm and group norm, or the paper's synchronised batch norm.

    Tested at 1000, 1400 at most.
    """
    arguments = {
        "backbone": backbone,
        "weights": "imagenet",
        "norm": {"group": "frozen"}.get(norm, norm),
        "head_norm": norm,
        "bottom_up": True,
        "adaptive_pooling": True,
        "fusion": True,
        "box_head": "heavy",
        "regions": 512,
        "freeze": None if norm == "group" else 0,
    } | changes.pop("arguments", {})
    test = {
        "shorter": 1000,
        "longest": 1400,
        "overlap": 0.5,
        "scales": [1.0],
        "flip": False,
    } | changes.pop("test", {})
    return detector("panet:PANet", steps, drops, arguments=arguments, test=test, **changes)


def panet_paper(backbone: str, **changes: Any) -> Recipe:
    """120k steps at 0.02 and 40k at 0.002; the shorter edge anywhere in 400 to 1400."""
    basic = {"schedule": COLD, "edges": ([400, 1400], 1400, True), "extra": {"train.sync_bn": True}}
    return panet(backbone, "batch", 160_000, [120_000], **basic, **changes)


DETECTRON2 = {  # edges 640 to 800, warm-up from a thousandth, L1, biases as weights, 1,000 kept
    "lr": {"head.weight": 0.02, "head.bias": 0.02},
    "decay": {"backbone.weight": 1e-4, "head.weight": 1e-4, "head.bias": 1e-4},
    "edges": ([640, 672, 704, 736, 768, 800], 1333, False),
    "extra": {
        "dataset.keep_empty": False,
        "train.aspect_groups": True,
        "loss.rpn_beta": 0.0,
        "loss.box_beta": 0.0,
        "model.anchor_corners": "exact",
        "model.roi_samples": 0,
    },
}


def detectron2(steps: int, drops: list[int]) -> dict[str, Any]:
    """Return what differs from Detectron's recipes."""
    milestones = [pytest.approx(drop / steps, abs=1e-7) for drop in drops]
    schedule = {**WARM, "warmup": 1000, "warmup_factor": 0.001, "milestones": milestones}
    return {**DETECTRON2, "schedule": schedule}


def fpn(heads: list[int], size: int, times: int = 1) -> Recipe:
    """Mask proposals (appendix A): P2 to P6, 128 positions an image, one of four positive.

    The mask weighs ten times the score.
    """
    return detector(
        "fpn:FPN",
        80_000 * times,
        [],
        rate=0.03,
        data="CocoProposals",
        classes=1,
        splits=("train2014", "val2014"),
        lr={"backbone.weight": 0.03, "head.weight": 0.03},
        decay={"head.weight": 1e-4},
        schedule=COLD,
        loss={"object": 1.0, "mask": 10.0, "dropped": 0.0},
        test={"count": 1000, "shorter": 800, "longest": 1333},
        arguments={
            "backbone": "resnet50",
            "levels": 6,
            "heads": heads,
            "mask_size": size,
            "geometry": "paper",
            "width": 128,
            "hidden": 512,
        },
        extra={
            "model.sampling._target_": "segtrain.models.fpn.Sampling",
            "model.sampling.count": 128,
            "model.sampling.share": 0.25,
            "dataset.monitor": "segm/AR@1000",
            "dataset.val_first": 5000,
        },
    )


TABLE = {
    "mask_rcnn_r50_coco_1x": mask_rcnn(
        "resnet50", 90_000, [60_000, 80_000], arguments=TWO_ON_A_GPU
    ),
    "mask_rcnn_r50_coco_detectron2_1x": mask_rcnn(
        "resnet50",
        90_000,
        [],
        arguments=TWO_ON_A_GPU,
        **detectron2(90_000, [60_000, 80_000]),
    ),
    "mask_rcnn_r50_coco_detectron2_3x": mask_rcnn(
        "resnet50",
        270_000,
        [],
        arguments=TWO_ON_A_GPU,
        **detectron2(270_000, [210_000, 250_000]),
    ),
    "panet_r50_coco_detectron2_1x": panet(
        "resnet50",
        "group",
        90_000,
        [],
        test={"shorter": 800, "longest": 1333},
        arguments=TWO_ON_A_GPU,
        **detectron2(90_000, [60_000, 80_000]),
    ),
    "mask_rcnn_r50_coco_2x": mask_rcnn(
        "resnet50", 180_000, [120_000, 160_000], arguments=TWO_ON_A_GPU
    ),
    "mask_rcnn_r101_coco_1x": mask_rcnn(
        "resnet101", 90_000, [60_000, 80_000], arguments=TWO_ON_A_GPU
    ),
    "mask_rcnn_r101_coco_2x": mask_rcnn(
        "resnet101", 180_000, [120_000, 160_000], arguments=TWO_ON_A_GPU
    ),
    "mask_rcnn_x101_64x4d_coco_1x": mask_rcnn(
        "resnext101_64x4d", 180_000, [120_000, 160_000], **X101
    ),
    "mask_rcnn_x101_32x8d_coco_1x": mask_rcnn(
        "resnext101_32x8d", 180_000, [120_000, 160_000], **X101
    ),
    "mask_rcnn_r50_c4_coco_1x": mask_rcnn(
        "resnet50",
        180_000,
        [120_000, 160_000],
        arguments={"trunk": "c4", "roi_samples": 0},
        **X101,
    ),
    "mask_rcnn_r50_coco_paper": mask_rcnn_paper("resnet50"),
    "mask_rcnn_r101_coco_paper": mask_rcnn_paper("resnet101"),
    "mask_rcnn_x101_coco_paper": mask_rcnn_paper("resnext101_64x4d", **X101),
    "mask_rcnn_r50_c4_coco_paper": mask_rcnn_paper(
        "resnet50", arguments={"trunk": "c4", "regions": 64, "proposals": [2000, 300]}
    ),
    "mask_rcnn_r101_c4_coco_paper": mask_rcnn_paper(
        "resnet101", arguments={"trunk": "c4", "regions": 64, "proposals": [2000, 300]}
    ),
    # Detectron's configuration of the chain: 260k steps, a tenth of the lr at 200k and 240k.
    "mask_rcnn_x101_coco_2017": mask_rcnn(
        "resnext101_64x4d",
        260_000,
        [200_000, 240_000],
        edges=([640, 672, 704, 736, 768, 800], 1333, False),
        extra={},
        test={
            "shorter": 800,
            "scales": [edge / 800 for edge in range(400, 1201, 100)],
            "flip": True,
        },
        **X101,
    ),
    "mask_rcnn_r50_cityscapes": mask_rcnn(  # 24k steps of 8 images, a tenth at 18k (appendix A)
        "resnet50",
        24_000,
        [18_000],
        schedule=COLD,
        data="CityscapesInstance",
        classes=8,
        splits=("train", "val"),
        extra={},
        edges=([800, 1024], 2048, True),
        test={"shorter": 1024, "longest": 2048, "overlap": 0.3},
        **X101,
    ),
    "panet_r50_coco": panet(
        "resnet50",
        "group",
        180_000,
        [120_000, 160_000],
        arguments=TWO_ON_A_GPU,
        edges=([1200, 1200, 1000, 800, 600, 400], 1400, False),
        extra={
            "dataset.keep_empty": False,
            "train.aspect_groups": True,
            "loss.box_beta": pytest.approx(1 / 3),
        },
    ),
    "panet_r50_coco_paper": panet_paper("resnet50"),
    "panet_x101_coco": panet_paper("resnext101_64x4d"),
    "panet_x101_coco_2017": panet_paper(
        "resnext101_64x4d", test={"scales": [0.6, 0.8, 1.0, 1.2], "flip": True}
    ),
    "fpn_r50_5x5_coco": fpn([5], 14),
    "fpn_r50_7x7_coco": fpn([7], 14),
    "fpn_r50_coco": fpn([5, 7], 14),
    "fpn_r50_28_coco": fpn([5, 7], 28),
    "fpn_r50_28_coco_2x": fpn([5, 7], 28, times=2),
    "box_rpn_r50_coco": detector(
        "box_rpn:BoxRPN",
        90_000,
        [60_000, 80_000],
        data="CocoProposals",
        classes=1,
        loss={"rpn_class": 1.0, "rpn_box": 1.0, "dropped": 0.0},
        test={"count": 1000, "shorter": 800, "longest": 1333},
        arguments={
            "backbone": "resnet50",
            "weights": "imagenet",
            "norm": "frozen",
            "width": 256,
            "proposals": 1000,
        },
        extra={
            "dataset.keep_empty": False,
            "train.aspect_groups": True,
            "metric.kind": "bbox",
            "dataset.monitor": "bbox/AR@1000",
        },
    ),
    "fcn32s_voc": fcn(32, 1e-10),
    "fcn16s_voc": fcn(16, 1e-12),
    "fcn8s_voc": fcn(8, 1e-14),
    "fcn8s_once_voc": fcn(8, 1e-10, 300_000),
    "fcn32s_voc_paper": fcn_paper(32, 1e-4),
    "fcn16s_voc_paper": fcn_paper(16, 1e-6),
    "fcn8s_voc_paper": fcn_paper(8, 1e-8),
    "fcn_alexnet_voc": fcn(
        32,
        1e-4,
        batch=20,
        momentum=0.9,
        lr={"backbone.weight": 1e-4, "backbone.bias": 1e-4, "head.weight": 1e-4},
        decay={"backbone.weight": 5e-4, "backbone.bias": 5e-4, "head.weight": 5e-4},
        arguments={"backbone": "alexnet", "stride": 32},
        extra={"loss.reduction": "mean"},
    ),
    "fcn32s_context": fcn_context(32, 1e-10),
    "fcn16s_context": fcn_context(16, 1e-12),
    "fcn8s_context": fcn_context(8, 1e-14),
    "parsenet_voc": parsenet(),
    "parsenet_context": parsenet(data="Context", classes=60, splits=("train", "val")),
    "deconvnet_voc_stage1": deconvnet("objects", 20_000, [0.45, 0.9]),
    "deconvnet_voc": deconvnet("proposals", 40_000, [0.25, 0.5, 0.75]),
    "edeconvnet_voc": deconvnet("proposals", 40_000, [0.25, 0.5, 0.75]),
    "unet_em": Recipe(
        "unet:UNet",
        "Folder",
        2,
        ("train", "val"),
        (572, 572),
        1,
        20_000,
        {},
        0.99,
        {},
        {},
        PIXEL,
        (1.0, 1.0, 0.0),
        rotate=180.0,
        test={"views": 7},
        arguments={"padding": "valid", "in_channels": 1, "norm": "none", "width": 64},
        extra={"augment.elastic": 10.0},
    ),
    "pspnet50_voc": pspnet(50, "VOC"),
    "pspnet101_voc": pspnet(101, "VOC"),
    "pspnet50_cityscapes": pspnet(50, "Cityscapes"),
    "pspnet101_cityscapes": pspnet(101, "Cityscapes"),
    "pspnet101_voc_coco": pspnet_caffe(
        "VOC", steps=30_000, extra={"augment.color": 0.0, "augment.padding": "end"}
    ),
    "pspnet101_cityscapes_paper": pspnet_caffe(
        "Cityscapes",
        steps=90_000,
        rotate=0.0,
        blur=0.0,
        extra={"augment.color": 0.0, "augment.padding": "end"},
    ),
    "deeplab_r101_voc": deeplab("VOC", 21, splits=("train_aug", "val")),
    "deeplab_r101_coco": deeplab(
        "CocoThings",
        91,
        splits=("train2017", "val2017"),
        loss=PIXEL,
        arguments={
            "backbone": "resnet101",
            "head": "plain",
            "dilations": None,
            "scales": [1.0],
            "norm": "frozen",
            "style": "caffe",
        },
        extra={"augment.blank": True, "loss.shrink": {"seg": 8}},
    ),
    "deeplab_r101_context": deeplab("Context", 60),
    "deeplab_r101_stuff": deeplab(
        "CocoStuff",
        182,
        splits=("train2017", "val2017"),
        steps=100_000,
        test={**WHOLE, "pad": None},
        schedule=POLY | {"hold": 10},
        arguments={
            "backbone": "resnet101",
            "head": "aspp",
            "dilations": [6, 12, 18, 24],
            "scales": [1.0, 0.75, 0.5],
            "norm": "frozen",
            "style": "caffe",
            "align_corners": False,
            "upsample": False,
        },
        extra={
            "augment.blank": True,
            "loss.nearest": True,
            "eval.crf": False,
            "inference.crf.wrap": [122.675, 116.669, 104.008],
        },
    ),
    "deeplab_r101_cityscapes": deeplab(
        "Cityscapes",
        19,
        loss=PIXEL,
        test={"mode": "slide", "scales": [1.0], "flip": False},
        arguments={
            "backbone": "resnet101",
            "head": "aspp",
            "scales": [1.0],
            "norm": "frozen",
            "style": "caffe",
        },
    ),
    "deeplab_vgg16_largefov_voc": deeplab_vgg16("largefov", [12]),
    "deeplab_vgg16_aspp_voc": deeplab_vgg16("aspp", [6, 12, 18, 24]),
    "deeplabv3_r101_voc": deeplabv3(),
    "deeplabv3_r101_cascade_voc": deeplabv3(
        arguments={
            "variant": "cascade",
            "backbone": "resnet101",
            "multi_grid": [1, 2, 1],
            "output_stride": 16,
            "momentum": 0.0003,
        }
    ),
    "deeplabv3_r101_coco": deeplabv3(
        data="CocoVOC", splits=("train2017", "val2017"), steps=300_000
    ),
    "deeplabv3_r101_trainval": deeplabv3(
        splits=("trainval", "val"),
        lr={"backbone.weight": 1e-3, "head.weight": 1e-3, "head.bias": 2e-3},
        decay={"head.bias": 0.0},
        arguments={
            "norm": "frozen",
            "output_stride": 8,
            "backbone": "resnet101",
            "multi_grid": [1, 2, 4],
        },
        test={**RELEASED, "pad": [513, 513], "score_stride": 8},
    ),
    "deeplabv3_r101_cityscapes": deeplabv3(
        **STREETS, test={**RELEASED, "pad": [1025, 2049], "score_stride": 16}
    ),
    "deeplabv3plus_voc": deeplabv3(
        "deeplabv3plus:DeepLabV3Plus",
        arguments={
            "backbone": "resnet101",
            "separable": False,
            "multi_grid": [1, 2, 4],
            "momentum": 0.0003,
            "decoder": [256, 256],
        },
        test={**RELEASED, "pad": [513, 513], "score_stride": 4},
    ),
    "deeplabv3plus_x65_voc": xception(65),
    "deeplabv3plus_x65_coco": xception(
        65, data="CocoVOC", splits=("train2017", "val2017"), steps=300_000
    ),
    "deeplabv3plus_x65_cityscapes": xception(65, **STREETS_PLUS),
    "deeplabv3plus_x71_cityscapes": xception(
        71, arguments={"image_pooling": False}, **STREETS_PLUS
    ),
    "encnet_r50_context": encnet(50),
    "encnet_r101_context": encnet(101),
    "encnet_r101_context_paper": encnet(
        101,
        rotate=10.0,
        loss={"seg": 1.0, "se": 0.2, "se_aux": 0.2},
        arguments={
            "backbone": "resnet101",
            "stem": "deep",
            "codewords": 32,
            "aux": False,
            "se": True,
            "se_aux": True,
            "dropout": "channel",
            "head_init": "torch",
        },
        extra=ENCODING | {"augment.rotate_share": 1.0},
    ),
    "encnet_r101_voc": encnet(
        101,
        data="VOC",
        classes=21,
        splits=("sbd_trainval", "val"),
        steps=35_450,
        extra=ENCODING | {"augment.padding_label": 0},
    ),
}


@pytest.fixture(scope="module", params=sorted(TABLE))
def composed(request: pytest.FixtureRequest) -> tuple[Recipe, Any]:
    return TABLE[request.param], run_of(f"experiment={request.param}")


def test_every_experiment_of_a_paper_is_in_the_table() -> None:
    assert [name for name in EVERY if not name.endswith("_camvid") and name not in TABLE] == []


def class_of(node: dict) -> str:
    return node["_target_"].rsplit(".", 1)[1]


def test_data_crop_batch_and_length(composed: tuple[Recipe, Any]) -> None:
    recipe, run = composed
    assert class_of(run.dataset) == recipe.data
    assert classes_of(run.dataset) == recipe.classes
    assert (run.dataset["train_split"], run.dataset["val_split"]) == recipe.splits
    assert run.augment.get("crop") == (recipe.crop and list(recipe.crop))
    assert (run.train.batch_size, run.train.steps) == (recipe.batch, recipe.steps)


def test_augmentation(composed: tuple[Recipe, Any]) -> None:
    recipe, run = composed
    augment = parts.augment(run.augment)
    if recipe.edges is not None:
        assert (
            list(augment.shorter),
            augment.longest,
            augment.between,
        ) == recipe.edges
        assert augment.flip == recipe.flip
        return
    if augment.short_side is None:
        assert (*augment.scale, run.augment.get("scale_step", 0.0)) == recipe.scale
    else:
        assert recipe.scale is None
    assert (
        run.augment.get("flip", 0.5),
        run.augment.get("rotate", 0.0),
        run.augment.get("blur", 0.0),
    ) == (
        recipe.flip,
        recipe.rotate,
        recipe.blur,
    )


def test_model_and_its_arguments(composed: tuple[Recipe, Any]) -> None:
    recipe, run = composed
    module, name = recipe.model.split(":")
    assert run.model["_target_"] == f"segtrain.models.{module}.{name}"
    assert {key: run.model.get(key) for key in recipe.arguments} == recipe.arguments


def test_rates_decay_and_momentum_of_every_group(composed: tuple[Recipe, Any]) -> None:
    recipe, run = composed
    optimizer = parts.optimizer(run.optimizer, model_of(run))
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: groups[name]["lr"] for name in recipe.lr} == pytest.approx(recipe.lr)
    assert {name: groups[name]["weight_decay"] for name in recipe.decay} == pytest.approx(
        recipe.decay
    )
    assert {group["momentum"] for group in groups.values()} == {recipe.momentum}


def test_schedule_and_loss(composed: tuple[Recipe, Any]) -> None:
    recipe, run = composed
    named = {**run.schedule, "_target_": class_of(run.schedule)}
    assert {key: named.get(key) for key in recipe.schedule} == recipe.schedule
    criterion = parts.loss(run.loss)
    assert dict(criterion.weights) == pytest.approx(recipe.loss)


def test_protocol_of_the_number(composed: tuple[Recipe, Any]) -> None:
    recipe, run = composed
    found = {key: run.inference.get(key) for key in recipe.test}
    assert found.pop("stride", None) == pytest.approx(recipe.test.get("stride"), abs=1e-6)
    assert found == {key: value for key, value in recipe.test.items() if key != "stride"}


def test_further_settings(composed: tuple[Recipe, Any]) -> None:
    recipe, run = composed
    for dotted, expected in recipe.extra.items():
        first, *rest = dotted.split(".")
        value = getattr(run, first)
        for key in rest:
            value = value[key] if isinstance(value, dict) else getattr(value, key)
        assert value == expected, dotted
