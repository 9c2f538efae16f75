"""detectron2's Mask R-CNN and RPN come in, and compute what detectron2 says."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from detector_files import Convention, Net, check, random_net, renamed
from torch import Tensor

from segtrain.errors import UserError
from segtrain.weights.content import Weights
from segtrain.weights.detectron2 import DETECTRON2
from segtrain.weights.families import read_published, recognise
from segtrain.weights.family import translate

NORM = {"scale": "weight", "shift": "bias", "mean": "running_mean", "var": "running_var"}
NORM |= {"gain": "weight", "offset": "bias"}
CONVS = {"a": "conv1", "b": "conv2", "c": "conv3", "short": "shortcut"}


def names(trunk: str) -> list[tuple[str, str]]:
    """detectron2's names; `trunk` is where its backbone stands."""
    ends = {"w": "weight", "b": "bias"}
    rules = [(rf"stem\.{part}", f"{trunk}stem.conv1.norm.{name}") for part, name in NORM.items()]
    rules += [(r"stem\.w", f"{trunk}stem.conv1.weight")]
    for stages, where in (
        ("[2345]" if "bottom_up" in trunk else "[234]", trunk),
        ("5", "roi_heads."),
    ):
        for letter, conv in CONVS.items():
            block = rf"res({stages})\.(\d+)\.{letter}\."
            rules += [
                (block + part, rf"{where}res\1.\2.{conv}.norm.{name}")
                for part, name in NORM.items()
            ]
            rules += [(block + "w", rf"{where}res\1.\2.{conv}.weight")]
    for part, name in NORM.items():
        rules += [
            (rf"(lateral|output)(\d)\.{part}", rf"backbone.fpn_\1\2.norm.{name}"),
            (rf"boxconv(\d)\.{part}", rf"roi_heads.box_head.conv\1.norm.{name}"),
            (rf"mask(\d)\.{part}", rf"roi_heads.mask_head.mask_fcn\1.norm.{name}"),
        ]
    for end, name in ends.items():
        rules += [
            (rf"boxconv(\d)\.{end}", rf"roi_heads.box_head.conv\1.{name}"),
            (rf"(lateral|output)(\d)\.{end}", rf"backbone.fpn_\1\2.{name}"),
            (rf"rpn\.{end}", f"proposal_generator.rpn_head.conv.{name}"),
            (rf"objectness\.{end}", f"proposal_generator.rpn_head.objectness_logits.{name}"),
            (rf"deltas\.{end}", f"proposal_generator.rpn_head.anchor_deltas.{name}"),
            (rf"fc(\d)\.{end}", rf"roi_heads.box_head.fc\1.{name}"),
            (rf"class\.{end}", f"roi_heads.box_predictor.cls_score.{name}"),
            (rf"box\.{end}", f"roi_heads.box_predictor.bbox_pred.{name}"),
            (rf"mask(\d)\.{end}", rf"roi_heads.mask_head.mask_fcn\1.{name}"),
            (rf"up\.{end}", f"roi_heads.mask_head.deconv.{name}"),
            (rf"mask\.{end}", f"roi_heads.mask_head.predictor.{name}"),
        ]
    return rules


def release(net: Net) -> Net:
    """A network as detectron2 names and orders it: the background is the last class."""
    net = dict(net)
    for end in "wb":
        background = net.pop(f"background.{end}", None)
        if background is not None:
            net[f"class.{end}"] = torch.cat([net[f"class.{end}"], background])
    return renamed(net, names("backbone.bottom_up." if "lateral2.w" in net else "backbone."))


def written(path: Path, state: Net) -> Path:
    """A file as those of the model zoo are."""
    arrays = {key: value.numpy() for key, value in state.items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.slow
def test_mask_rcnn_with_a_pyramid_computes_the_same(tmp_path: Path) -> None:
    net = random_net()
    state = release(net) | {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675])[:, None, None],
        "pixel_std": torch.ones(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    }
    path = written(tmp_path / "model_final.pkl", state)
    check(path, net, Convention())
    published = read_published(path).published
    assert published.input == "detectron2"
    assert published.num_classes == 5


@pytest.mark.slow
def test_mask_rcnn_with_c4_computes_the_same(tmp_path: Path) -> None:
    net = random_net(pyramid=None)
    check(written(tmp_path / "c4.pkl", release(net)), net, Convention(size_first=True))


@pytest.mark.slow
def test_group_norms_and_a_box_head_of_convolutions_compute_the_same(tmp_path: Path) -> None:
    net = random_net(pyramid=64, grouped=True)
    check(written(tmp_path / "gn.pkl", release(net)), net, Convention(stride_first=False))


@pytest.mark.slow
def test_resnext_strides_in_its_3x3_and_reads_pixels_divided(tmp_path: Path) -> None:
    blocks = {2: 3, 3: 4, 4: 23, 5: 3}
    net = random_net(groups=32, group=8, blocks=blocks, deviation=1.0)
    how = Convention(std=(57.375, 57.12, 58.395), stride_first=False, groups=32)
    check(written(tmp_path / "x101.pkl", release(net)), net, how)


@pytest.mark.slow
def test_torchvisions_kind_of_resnet_is_told_by_its_first_norm(tmp_path: Path) -> None:
    net = random_net(deviation=1.0)
    # It reads RGB: the statement reads BGR, so its first layer is turned.
    turned = net | {"stem.w": net["stem.w"].flip(1)}
    how = Convention((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), stride_first=False)
    check(written(tmp_path / "r50.pkl", release(net)), turned, how)


@pytest.mark.slow
def test_proposals_of_boxes_compute_the_same(tmp_path: Path) -> None:
    net = random_net(heads=False)
    check(written(tmp_path / "rpn.pkl", release(net)), net, Convention())


def few(c4: bool = False) -> dict[str, Tensor]:
    """The names of a file with tensors that are small where their size says nothing."""
    trunk = "backbone." if c4 else "backbone.bottom_up."
    values = {f"{trunk}stem.conv1.weight": torch.zeros(64, 3, 7, 7)}
    for stage, blocks in {2: 3, 3: 4, 4: 6, 5: 3}.items():
        for block in range(blocks):
            for conv in (1, 2, 3):
                where = "roi_heads." if c4 and stage == 5 else trunk
                values[f"{where}res{stage}.{block}.conv{conv}.weight"] = torch.zeros(64, 64)
    if not c4:
        values["backbone.fpn_lateral2.weight"] = torch.zeros(16, 8)
    count = 15 if c4 else 3
    values["proposal_generator.rpn_head.objectness_logits.weight"] = torch.arange(count).float()
    values["proposal_generator.rpn_head.anchor_deltas.weight"] = torch.arange(4 * count).float()
    values["roi_heads.box_predictor.cls_score.weight"] = torch.arange(3.0)[:, None] + 1
    values["roi_heads.box_predictor.bbox_pred.weight"] = torch.arange(8.0)[:, None] + 1
    values["roi_heads.mask_head.predictor.weight"] = torch.arange(2.0)[:, None] + 1
    return values


def refusal(values: dict[str, Tensor]) -> str:
    with pytest.raises(UserError) as error:
        recognise("model.pkl", Weights("pickle", values, {}))
    return str(error.value).removeprefix("model.pkl: weights of detectron2, but ")


def test_the_background_comes_first_and_boxes_and_masks_get_rows_for_it() -> None:
    state = translate(DETECTRON2.read(few()))
    head = "stages.box_head.predict."
    assert state[f"{head}score.weight"][:, 0].tolist() == [3, 1, 2]
    assert state[f"{head}box.weight"][:, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert state["stages.mask_head.predict.2.weight"][:, 0].tolist() == [0, 1, 2]


def test_norms_and_convolutions_of_heads_are_read_off() -> None:
    zero = torch.zeros(1)
    extra = {
        "backbone.fpn_lateral2.norm.weight": zero,
        "backbone.fpn_lateral2.norm.running_var": zero,
        "roi_heads.box_head.conv1.weight": zero,
        "roi_heads.box_head.conv2.norm.bias": zero,
        "roi_heads.box_head.fc1.weight": zero,
        "proposal_generator.rpn_head.conv.conv0.weight": zero,
        "proposal_generator.rpn_head.conv.conv1.weight": zero,
    }
    published = DETECTRON2.read(few() | extra)
    told = {key: published.arguments[key] for key in ("head_norm", "box_head", "rpn_convs")}
    assert told == {"head_norm": "batch", "box_head": "heavy", "rpn_convs": 2}
    state = translate(published)
    assert {
        "pyramid.lateral.0.1.weight",
        "stages.box_head.convs.0.weight",
        "stages.box_head.convs.4.bias",
        "stages.box_head.fc.weight",
        "stages.rpn.head.conv.1.0.weight",
    } <= state.keys()


def test_anchors_of_c4_go_ratio_by_ratio() -> None:
    state = translate(DETECTRON2.read(few(c4=True)))
    order = [0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14]
    assert state["stages.rpn.head.cls_logits.weight"].tolist() == order
    boxes = state["stages.rpn.head.bbox_pred.weight"].reshape(15, 4)
    assert boxes[:, 0].tolist() == [4 * anchor for anchor in order]
    assert boxes[1].tolist() == [12, 13, 14, 15]


def test_the_style_goes_with_what_the_network_reads() -> None:
    def told(**changes: list[float]) -> tuple[object, str]:
        extra = {key: torch.tensor(value) for key, value in changes.items()}
        published = DETECTRON2.read(few() | extra)
        return published.arguments["style"], published.input

    assert told() == ("msra", "detectron2")  # what the zoo has
    bgr = [103.53, 116.28, 123.675]
    assert told(pixel_mean=bgr, pixel_std=[1, 1, 1]) == ("msra", "detectron2")
    rgb = [123.675, 116.28, 103.53]
    assert told(pixel_mean=rgb, pixel_std=[58.395, 57.12, 57.375]) == ("torchvision", "imagenet")
    with pytest.raises(Exception, match="it reads pixels minus 1, 2, 3, which is no input of ours"):
        told(pixel_mean=[1.0, 2.0, 3.0], pixel_std=[1, 1, 1])


def test_what_is_none_of_ours_is_refused_in_a_line() -> None:
    zero = torch.zeros(1)
    assert refusal(few() | {"sem_seg_head.p2.weight": zero}).startswith("it labels pixels too")
    assert refusal(few() | {"roi_heads.box_head.0.fc1.weight": zero}).startswith(
        "its box heads form"
    )
    faster = {key: value for key, value in few().items() if "mask_head" not in key}
    assert refusal(faster) == "it draws no masks (Faster R-CNN): our detectors do"
    rpn = {key: value for key, value in few(c4=True).items() if "roi_heads" not in key}
    assert refusal(rpn) == "its proposals come from one map (C4): ours come from a pyramid"
    deep = few() | {"backbone.bottom_up.res4.6.conv1.weight": zero}
    assert refusal(deep).startswith("its backbone has 3, 4, 7, 3 blocks in the four stages")
    wide = few() | {"backbone.bottom_up.res2.0.conv2.weight": torch.zeros(128, 4, 3, 3)}
    assert "first 3x3 is 128 wide in 32 groups, which is none of ours" in refusal(wide)
