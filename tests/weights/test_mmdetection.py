"""mmdetection's Mask R-CNN and RPN come in, and compute what mmdetection says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detector_files import Convention, Net, check, random_net, renamed
from torch import Tensor

from segtrain.errors import UserError
from segtrain.weights.content import Weights
from segtrain.weights.families import read_published, recognise
from segtrain.weights.family import translate
from segtrain.weights.mmdetection import MMDETECTION

NORM = {"scale": "weight", "shift": "bias", "mean": "running_mean", "var": "running_var"}
# Its style "pytorch" reads RGB divided by the deviation; the statement reads BGR.
PYTORCH = Convention(std=(57.375, 57.12, 58.395), stride_first=False)
CAFFE = Convention()


def names() -> list[tuple[str, str]]:
    """mmdetection's names, from version 2 on."""
    rules = [(r"stem\.w", "backbone.conv1.weight")]
    rules += [(rf"stem\.{part}", f"backbone.bn1.{name}") for part, name in NORM.items()]
    for stage in (2, 3, 4, 5):
        layer = f"backbone.layer{stage - 1}"
        for letter, number in (("a", 1), ("b", 2), ("c", 3)):
            block = rf"res{stage}\.(\d+)\.{letter}\."
            rules += [(block + "w", rf"{layer}.\1.conv{number}.weight")]
            rules += [(block + part, rf"{layer}.\1.bn{number}.{n}") for part, n in NORM.items()]
        block = rf"res{stage}\.(\d+)\.short\."
        rules += [(block + "w", rf"{layer}.\1.downsample.0.weight")]
        rules += [(block + part, rf"{layer}.\1.downsample.1.{n}") for part, n in NORM.items()]
    heads = {
        "rpn": "rpn_head.rpn_conv",
        "objectness": "rpn_head.rpn_cls",
        "deltas": "rpn_head.rpn_reg",
        "fc1": "roi_head.bbox_head.shared_fcs.0",
        "fc2": "roi_head.bbox_head.shared_fcs.1",
        "class": "roi_head.bbox_head.fc_cls",
        "box": "roi_head.bbox_head.fc_reg",
        "up": "roi_head.mask_head.upsample",
        "mask": "roi_head.mask_head.conv_logits",
    }
    heads |= {f"mask{n + 1}": f"roi_head.mask_head.convs.{n}.conv" for n in range(4)}
    heads |= {f"lateral{n + 2}": f"neck.lateral_convs.{n}.conv" for n in range(4)}
    heads |= {f"output{n + 2}": f"neck.fpn_convs.{n}.conv" for n in range(4)}
    for end, name in (("w", "weight"), ("b", "bias")):
        rules += [(rf"{part}\.{end}", f"{head}.{name}") for part, head in heads.items()]
    return rules


def written(path: Path, net: Net) -> Path:
    """A file as mmdetection saves it: the background is the last class."""
    net = dict(net)
    for end in "wb" if "class.w" in net else "":
        net[f"class.{end}"] = torch.cat([net[f"class.{end}"], net.pop(f"background.{end}")])
    state = renamed(net, names())
    for key in list(state):
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    torch.save({"meta": {"mmdet_version": "2.0.0", "epoch": 12}, "state_dict": state}, path)
    return path


@pytest.mark.slow
def test_mask_rcnn_of_style_pytorch_computes_the_same(tmp_path: Path) -> None:
    net = random_net(deviation=1.0)
    path = written(tmp_path / "mask_rcnn_r50_fpn.pth", net)
    check(path, net | {"stem.w": net["stem.w"].flip(1)}, PYTORCH)
    assert read_published(path).published.input == "imagenet"


@pytest.mark.slow
def test_mask_rcnn_of_style_caffe_computes_the_same(tmp_path: Path) -> None:
    net = random_net()
    path = written(tmp_path / "mask_rcnn_r50_caffe_fpn.pth", net)
    check(path, net, CAFFE)
    assert read_published(path).published.input == "detectron2"


@pytest.mark.slow
def test_proposals_of_boxes_compute_the_same(tmp_path: Path) -> None:
    net = random_net(heads=False)
    check(written(tmp_path / "rpn_r50_caffe_fpn.pth", net), net, CAFFE)


def few(variance: float = 1.0) -> dict[str, Tensor]:
    """The names of a file with tensors that are small where their size says nothing."""
    values = {
        "backbone.conv1.weight": torch.ones(2, 1, 1, 1),
        "backbone.bn1.running_var": torch.full((2,), variance),
        "neck.lateral_convs.0.conv.weight": torch.zeros(16, 8),
        "rpn_head.rpn_cls.weight": torch.zeros(3, 16),
    }
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            for conv in (1, 2, 3):
                values[f"backbone.layer{stage}.{block}.conv{conv}.weight"] = torch.zeros(64, 64)
    values["roi_head.bbox_head.fc_cls.weight"] = torch.arange(3.0)[:, None] + 1
    values["roi_head.bbox_head.fc_reg.weight"] = torch.arange(8.0)[:, None] + 1
    values["roi_head.mask_head.conv_logits.weight"] = torch.arange(2.0)[:, None] + 1
    return values


def refusal(values: dict[str, Tensor]) -> str:
    with pytest.raises(UserError) as error:
        recognise("model.pth", Weights("torch", values, {}))
    return str(error.value).removeprefix("model.pth: weights of mmdetection, but ")


def test_the_background_comes_first_and_boxes_and_masks_get_rows_for_it() -> None:
    state = translate(MMDETECTION.read(few()))
    head = "stages.box_head.predict."
    assert state[f"{head}score.weight"][:, 0].tolist() == [3, 1, 2]
    assert state[f"{head}box.weight"][:, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert state["stages.mask_head.predict.2.weight"][:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("variance", "style", "reads"), [(0.5, "torchvision", "imagenet"), (2000, "msra", "detectron2")]
)
def test_the_first_norm_tells_the_styles_apart(variance: float, style: str, reads: str) -> None:
    published = MMDETECTION.read(few(variance))
    assert (published.arguments["style"], published.input) == (style, reads)


def test_what_is_none_of_ours_is_refused_in_a_line() -> None:
    zero = torch.zeros(1)
    first = {key.replace("roi_head.", ""): value for key, value in few().items()}
    assert refusal(first).startswith("it is of mmdetection 1, whose anchors")
    assert refusal(few() | {"roi_head.bbox_head.0.fc_cls.weight": zero}).startswith("its box heads")
    softmax = few() | {"rpn_head.rpn_cls.weight": torch.zeros(6, 16)}
    assert refusal(softmax) == "its region proposals have 6 outputs at every place, ours have 3"
    deep = few() | {"backbone.layer4.3.conv1.weight": zero}
    assert refusal(deep).startswith("its backbone has 3, 4, 6, 4 blocks in the four stages")
    narrow = few() | {"backbone.layer1.0.conv2.weight": torch.zeros(128, 4, 3, 3)}
    assert "whose first 3x3 is 128 wide in 32 groups" in refusal(narrow)
