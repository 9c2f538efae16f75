"""Detectron's Mask R-CNN and RPN come in, and compute what Detectron says."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from detector_files import Convention, Net, check, random_net, renamed
from torch import Tensor

from segtrain.errors import UserError
from segtrain.weights.content import Weights
from segtrain.weights.detectron import DETECTRON
from segtrain.weights.families import recognise
from segtrain.weights.family import translate

MEAN = (102.9801, 115.9465, 122.7717)
PYRAMID = Convention(MEAN, inclusive=True, aligned=False, samples=2)
C4 = Convention(MEAN, inclusive=True, aligned=False, samples=0)
LAST = {2: 2, 3: 3, 4: 5, 5: 2}  # number of a stage's last block in a ResNet-50


def names(pyramid: bool, grouped: bool) -> list[tuple[str, str]]:
    """Detectron's names of blobs."""
    level = "_fpn2" if pyramid else ""
    rules = [(r"stem\.w", "conv1_w")]
    for part, end in (("scale", "s"), ("shift", "b")):
        rules += [(rf"stem\.{part}", f"res_conv1_bn_{end}")]
        rules += [(rf"res(\d)\.(\d+)\.short\.{part}", rf"res\1_\2_branch1_bn_{end}")]
        rules += [(rf"res(\d)\.(\d+)\.([abc])\.{part}", rf"res\1_\2_branch2\3_bn_{end}")]
    rules += [(r"res(\d)\.(\d+)\.short\.w", r"res\1_\2_branch1_w")]
    rules += [(r"res(\d)\.(\d+)\.([abc])\.w", r"res\1_\2_branch2\3_w")]
    for stage, block in LAST.items():
        inner = f"fpn_inner_res{stage}_{block}_sum{'_lateral' if stage < 5 else ''}"
        rules += [(rf"lateral{stage}\.(.)", rf"{inner}_\1")]
        rules += [(rf"output{stage}\.(.)", rf"fpn_res{stage}_{block}_sum_\1")]
    for part, end in (("gain", "s"), ("offset", "b")):
        rules += [(rf"stem\.{part}", f"conv1_gn_{end}")]
        rules += [(rf"res(\d)\.(\d+)\.short\.{part}", rf"res\1_\2_branch1_gn_{end}")]
        rules += [(rf"res(\d)\.(\d+)\.([abc])\.{part}", rf"res\1_\2_branch2\3_gn_{end}")]
        rules += [(rf"boxconv(\d)\.{part}", rf"head_conv\1_gn_{end}")]
        rules += [(rf"mask(\d)\.{part}", rf"_mask_fcn\1_gn_{end}")]
        for stage, block in LAST.items():
            inner = f"fpn_inner_res{stage}_{block}_sum{'_lateral' if stage < 5 else ''}"
            rules += [(rf"lateral{stage}\.{part}", f"{inner}_gn_{end}")]
            rules += [(rf"output{stage}\.{part}", f"fpn_res{stage}_{block}_sum_gn_{end}")]
    masks = "_mask" if grouped else "_[mask]"
    return [
        *rules,
        (r"boxconv(\d)\.(.)", r"head_conv\1_\2"),
        (r"rpn\.(.)", rf"conv_rpn{level}_\1"),
        (r"objectness\.(.)", rf"rpn_cls_logits{level}_\1"),
        (r"deltas\.(.)", rf"rpn_bbox_pred{level}_\1"),
        (r"fc1\.(.)", r"fc6_\1"),
        (r"fc2\.(.)", r"fc7_\1"),
        (r"class\.(.)", r"cls_score_\1"),
        (r"box\.(.)", r"bbox_pred_\1"),
        (r"mask(\d)\.(.)", rf"{masks}_fcn\1_\2"),
        (r"up\.(.)", r"conv5_mask_\1"),
        (r"mask\.(.)", r"mask_fcn_logits_\1"),
    ]


def release(net: Net) -> Net:
    """A network as Detectron names and orders it: the background is the first class."""
    net = dict(net)
    for end in "wb" if "class.w" in net else "":
        net[f"class.{end}"] = torch.cat([net.pop(f"background.{end}"), net[f"class.{end}"]])
        for head, each in (("box", 4), ("mask", 1)):  # whatever the training left there
            rows = net[f"{head}.{end}"]
            net[f"{head}.{end}"] = torch.cat([torch.ones(each, *rows.shape[1:]), rows])
    return renamed(net, names("lateral2.w" in net, "stem.gain" in net))


def written(path: Path, state: Net) -> Path:
    """A file as Detectron's are, with what else it keeps."""
    blobs = {key: value.numpy() for key, value in state.items()}
    blobs |= {f"{key}_momentum": value for key, value in blobs.items()}
    blobs |= {"fc1000_w": blobs["conv1_w"][0], "fc1000_b": blobs["conv1_w"][0, 0, 0]}
    blobs |= {"conv1_b": blobs["fc1000_b"], "pred_w": blobs["fc1000_w"]}
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "MODEL: {}"}, protocol=2))
    return path


@pytest.mark.slow
def test_mask_rcnn_with_a_pyramid_computes_the_same(tmp_path: Path) -> None:
    net = random_net(affine=True)
    check(written(tmp_path / "model_final.pkl", release(net)), net, PYRAMID)


@pytest.mark.slow
def test_mask_rcnn_with_c4_computes_the_same(tmp_path: Path) -> None:
    net = random_net(pyramid=None, affine=True)
    check(written(tmp_path / "model_final.pkl", release(net)), net, C4)


@pytest.mark.slow
def test_group_norms_and_a_box_head_of_convolutions_compute_the_same(tmp_path: Path) -> None:
    net = random_net(pyramid=64, grouped=True)
    how = Convention(MEAN, stride_first=False, inclusive=True, aligned=False, samples=2)
    check(written(tmp_path / "model_final.pkl", release(net)), net, how)


@pytest.mark.slow
def test_proposals_of_boxes_compute_the_same(tmp_path: Path) -> None:
    net = random_net(heads=False, affine=True)
    check(written(tmp_path / "model_final.pkl", release(net)), net, PYRAMID)


def few() -> dict[str, Tensor]:
    """The names of a file with tensors that are small where their size says nothing."""
    values = {"conv1_w": torch.zeros(64, 3), "res_conv1_bn_s": torch.ones(64)}
    for stage, last in LAST.items():
        for block in range(last + 1):
            for conv in "abc":
                values[f"res{stage}_{block}_branch2{conv}_w"] = torch.zeros(64, 64)
    values["rpn_cls_logits_fpn2_w"] = torch.zeros(3, 16)
    values["cls_score_w"] = torch.arange(3.0)[:, None]
    values["bbox_pred_w"] = torch.arange(12.0)[:, None]
    values["mask_fcn_logits_w"] = torch.arange(3.0)[:, None]
    return values


def refusal(values: dict[str, Tensor]) -> str:
    with pytest.raises(UserError) as error:
        recognise("model.pkl", Weights("pickle", values, {}))
    return str(error.value).removeprefix("model.pkl: weights of Detectron, but ")


def test_scales_and_shifts_become_norms_that_do_the_same() -> None:
    published = DETECTRON.read(few())
    state = translate(published)
    assert published.arguments["style"] == "msra"
    assert published.num_classes == 2
    assert state["stages.box_head.predict.score.weight"][:, 0].tolist() == [0, 1, 2]
    x = torch.arange(64.0)
    mean, var = (state[f"backbone.stem.1.running_{name}"] for name in ("mean", "var"))
    assert torch.equal((x - mean) / (var + 1e-5).sqrt(), x)


def test_a_resnext_strides_in_its_3x3() -> None:
    wide = {"res2_0_branch2b_w": torch.zeros(256, 4, 3, 3)}
    deep = {f"res4_{n}_branch2a_w": torch.zeros(1) for n in range(6, 23)}
    arguments = DETECTRON.read(few() | wide | deep).arguments
    assert arguments["backbone"] == "resnext101_64x4d"
    assert arguments["style"] == "torchvision"


def test_what_is_none_of_ours_is_refused_in_a_line() -> None:
    zero = torch.zeros(1)
    assert refusal(few() | {"kps_score_w": zero}).startswith("it finds keypoints")
    c4 = {key.replace("_fpn2", ""): value for key, value in few().items()}
    rpn = {key: value for key, value in c4.items() if not key.startswith(("cls", "mask"))}
    assert refusal(rpn) == "its proposals come from one map (C4): ours come from a pyramid"
    faster = {key: value for key, value in few().items() if not key.startswith("mask")}
    assert refusal(faster) == "it draws no masks (Faster R-CNN): our detectors do"
    agnostic = few() | {"bbox_pred_w": torch.zeros(8, 1)}
    assert refusal(agnostic).startswith("its boxes or masks are the same for all classes")
    deep = few() | {"res5_3_branch2a_w": zero}
    assert refusal(deep).startswith("its backbone has 3, 4, 6, 4 blocks in the four stages")
