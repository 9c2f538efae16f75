"""What every system offers, and that one hands its backbone and pyramid to another."""

from __future__ import annotations

import torch
from torch import nn

from segtrain.checkpoints.match import init_from
from segtrain.models.base import SegmentationModel
from segtrain.models.box_rpn import BoxRPN
from segtrain.models.deeplab import DeepLab
from segtrain.models.deeplabv3plus import DeepLabV3Plus
from segtrain.models.encnet import EncNet
from segtrain.models.fcn import FCN
from segtrain.models.fpn import FPN
from segtrain.models.mask_rcnn import MaskRCNN
from segtrain.models.panet import PANet
from segtrain.models.parsenet import ParseNet
from segtrain.models.semantic_fpn import SemanticFPN


def on_meta(cls: type[SegmentationModel], *args: object, **kwargs: object) -> SegmentationModel:
    """Return a model without memory."""
    with torch.device("meta"):
        return cls(*args, **kwargs)


def part(model: nn.Module, name: str) -> dict[str, torch.Size]:
    """Return names and shapes of the tensors of `model.name`."""
    return {key: value.shape for key, value in model.get_submodule(name).state_dict().items()}


def test_a_mask_rcnn_takes_backbone_and_pyramid_of_a_semantic_fpn_and_says_so() -> None:
    """ResNet-18 has 20 convolutions and as many norms of 5 tensors; the pyramid 8 convolutions."""
    torch.manual_seed(0)
    semantic = SemanticFPN(5, "resnet18", width=32, channels=16)
    network = MaskRCNN(3, "resnet18", norm="batch", width=32, regions=16)
    state, match = init_from(network.state_dict(), semantic.state_dict(), [], [])
    assert match.parts() == {"backbone": (120, 120), "pyramid": (16, 16), "stages": (0, 26)}
    assert match.table().splitlines()[:4] == [
        f"136 tensors fit, {26 + len(match.unused)} differ",
        "  backbone: 120 of 120 tensors",
        "  pyramid: 16 of 16 tensors",
        "  stages: 0 of 26 tensors",
    ]
    assert {key.split(".")[0] for key in match.unused} == {"heads", "classifier"}
    network.load_state_dict(state)
    for name in ("backbone", "pyramid"):
        theirs = semantic.get_submodule(name).state_dict()
        for key, value in network.get_submodule(name).state_dict().items():
            assert torch.equal(value, theirs[key])


def test_a_pyramid_of_another_width_stays_new_beside_the_backbone() -> None:
    semantic = on_meta(SemanticFPN, 5, "resnet18", width=16, channels=16)
    network = on_meta(MaskRCNN, 3, "resnet18", width=32, regions=16)
    _, match = init_from(network.state_dict(), semantic.state_dict(), [], [])
    assert match.parts()["backbone"] == (120, 120)
    assert match.parts()["pyramid"] == (0, 16)


def test_systems_on_one_backbone_class_name_its_tensors_alike() -> None:
    residual = [
        on_meta(SemanticFPN, 5, "resnet18"),
        on_meta(FCN, 5, "resnet18"),
        on_meta(DeepLab, 5, "resnet18"),
        on_meta(DeepLabV3Plus, 5, "resnet18"),
        on_meta(EncNet, 5, "resnet18", stem="torchvision"),
        on_meta(MaskRCNN, 5, "resnet18"),
        on_meta(PANet, 5, "resnet18"),
        on_meta(FPN, 5, "resnet18"),
        on_meta(BoxRPN, 5, "resnet18"),
    ]
    assert all(part(model, "backbone") == part(residual[0], "backbone") for model in residual)
    plain = [on_meta(FCN, 5, "vgg11", width=8), on_meta(ParseNet, 5, "vgg11")]
    assert part(plain[0], "backbone") == part(plain[1], "backbone")


def test_pyramids_of_one_width_name_their_tensors_alike() -> None:
    systems = (SemanticFPN, FPN, BoxRPN, MaskRCNN)
    pyramids = [part(on_meta(cls, 5, "resnet18", width=32), "pyramid") for cls in systems]
    assert all(pyramid == pyramids[0] for pyramid in pyramids)
    panet = on_meta(PANet, 5, "resnet18", width=32, head_norm="none")
    assert part(panet, "pyramid") == pyramids[0]
