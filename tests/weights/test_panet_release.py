"""PANet's released network comes in, and computes what its release says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detector_files import (
    BLOCKS,
    CLASSES,
    KEPT,
    SIZE,
    Convention,
    Maker,
    Net,
    brought_in,
    exclusive,
    moved,
    photo,
    proposals,
    renamed,
    trunk,
    worst,
)
from torch import Tensor
from torchvision.ops import roi_align

from segtrain.errors import UserError
from segtrain.inference.maps import batch_of
from segtrain.weights.content import Weights
from segtrain.weights.families import recognise
from segtrain.weights.family import translate
from segtrain.weights.panet_release import PANET

HOW = Convention((102.9801, 115.9465, 122.7717), inclusive=True, aligned=False, samples=2)
WIDTH = 128  # the norms of 64 channels have 32 groups, too


def grouped(made: Maker, name: str, *shape: int, bias: bool = False) -> None:
    """A layer with a group norm behind it."""
    made.layer(name, *shape, bias=bias)
    made.norm(f"{name}.gn", shape[0], affine=True)


def random_panet(heavy: bool) -> Net:
    """PANet with random weights, in the names of `detector_files`."""
    made = Maker()
    made.trunk(BLOCKS, True, 1, 64, 57.0)
    wide = (WIDTH, WIDTH, 3, 3)
    for level in (2, 3, 4, 5):
        grouped(made, f"lateral{level}", WIDTH, 256 * 2 ** (level - 2), 1, 1)
        grouped(made, f"output{level}", *wide)
        grouped(made, f"maskread{level}", *wide)
        if heavy:
            grouped(made, f"boxread{level}", *wide)
        else:
            grouped(made, f"boxread{level}", 1024, WIDTH * 49, bias=True)
    for step in (2, 3, 4):
        grouped(made, f"down{step}", *wide, bias=True)
        grouped(made, f"merge{step}", *wide, bias=True)
    made.layer("rpn", *wide)
    made.layer("objectness", 3, WIDTH, 1, 1, gain=0.2)
    made.layer("deltas", 12, WIDTH, 1, 1, gain=0.1)
    if heavy:
        for number in (1, 2, 3):
            grouped(made, f"box{number}", *wide)
        made.layer("boxfc", 1024, WIDTH * 49)
    else:
        grouped(made, "boxfc", 1024, 1024, bias=True)
    made.layer("score", CLASSES + 1, 1024)
    made.layer("move", 4 * (CLASSES + 1), 1024, gain=0.2)
    for number in (1, 2, 3):
        grouped(made, f"mask{number}", *wide)
    grouped(made, "fuse1", *wide)
    grouped(made, "fuse2", WIDTH // 2, WIDTH, 3, 3)
    made.layer("fuse", 28 * 28, WIDTH // 2 * 14 * 14)
    made.layer("up", WIDTH, WIDTH, 2, 2)
    made.layer("mask", CLASSES + 1, WIDTH, 1, 1)
    return made.net


def names(heavy: bool) -> list[tuple[str, str]]:
    """The release's names; its modules go from coarse to fine."""
    ends = {"w": "weight", "b": "bias"}
    norms = {"scale": "weight", "shift": "bias"}
    body = "Conv_Body.conv_body."
    rules = [(r"stem\.w", f"{body}res1.conv1.weight")]
    for part, name in norms.items():
        rules += [(rf"stem\.{part}", f"{body}res1.bn1.{name}")]
        rules += [(rf"res(\d)\.(\d+)\.short\.{part}", rf"{body}res\1.\2.downsample.1.{name}")]
    rules += [(r"res(\d)\.(\d+)\.short\.w", rf"{body}res\1.\2.downsample.0.weight")]
    for letter, number in (("a", 1), ("b", 2), ("c", 3)):
        block = rf"res(\d)\.(\d+)\.{letter}\."
        rules += [(block + "w", rf"{body}res\1.\2.conv{number}.weight")]
        rules += [(block + part, rf"{body}res\1.\2.bn{number}.{n}") for part, n in norms.items()]
    # Layer -> where it stands and its place there; its norm has the next place.
    placed = {"lateral5": ("Conv_Body.conv_top.", 0)}
    for index, level in enumerate((4, 3, 2)):
        lateral = f"Conv_Body.topdown_lateral_modules.{index}.conv_lateral."
        placed[f"lateral{level}"] = (lateral, 0)
    for index, level in enumerate((5, 4, 3, 2)):
        placed[f"output{level}"] = (f"Conv_Body.posthoc_modules.{index}.", 0)
    for index in range(3):
        placed[f"down{index + 2}"] = (f"Conv_Body.panet_buttomup_conv1_modules.{index}.", 0)
        placed[f"merge{index + 2}"] = (f"Conv_Body.panet_buttomup_conv2_modules.{index}.", 0)
    for index in range(4):
        read = "Box_Head.conv1_head" if heavy else "Box_Head.fc1"
        placed[f"boxread{index + 2}"] = (f"{read}.{index}.", 0)
        placed[f"maskread{index + 2}"] = (f"Mask_Head.mask_conv1.{index}.", 0)
    for number in (1, 2, 3):
        placed[f"box{number}"] = ("Box_Head.convs.", 3 * (number - 1))
        if number < 3:
            placed[f"mask{number}"] = ("Mask_Head.conv_fcn.", 3 * (number - 1))
    placed["mask3"] = ("Mask_Head.mask_conv4.", 0)
    placed["fuse1"] = ("Mask_Head.mask_conv4_fc.", 0)
    placed["fuse2"] = ("Mask_Head.mask_conv5_fc.", 0)
    placed["fuse"] = ("Mask_Head.mask_fc.", 0)
    if not heavy:
        placed["boxfc"] = ("Box_Head.fc2.", 0)
    for layer, (where, place) in placed.items():
        rules += [(rf"{layer}\.{end}", f"{where}{place}.{name}") for end, name in ends.items()]
        rules += [(rf"{layer}\.gn\.{p}", f"{where}{place + 1}.{n}") for p, n in norms.items()]
    plain = {
        "rpn": "RPN.FPN_RPN_conv",
        "objectness": "RPN.FPN_RPN_cls_score",
        "deltas": "RPN.FPN_RPN_bbox_pred",
        "boxfc": "Box_Head.fc",
        "score": "Box_Outs.cls_score",
        "move": "Box_Outs.bbox_pred",
        "up": "Mask_Head.upconv",
        "mask": "Mask_Outs.classify",
    }
    for layer, where in plain.items():
        rules += [(rf"{layer}\.{end}", f"{where}.{name}") for end, name in ends.items()]
    return rules


def layer(net: Net, name: str, x: Tensor, relu: bool = True, **how: int) -> Tensor:
    """A layer with its group norm and ReLU."""
    weight, bias = net[f"{name}.w"], net.get(f"{name}.b")
    x = F.conv2d(x, weight, bias, **how) if weight.dim() == 4 else F.linear(x, weight, bias)
    if f"{name}.gn.scale" in net:
        x = F.group_norm(x, 32, net[f"{name}.gn.scale"], net[f"{name}.gn.shift"])
    return F.relu(x) if relu else x


def features(net: Net, image: Tensor) -> list[Tensor]:
    """N2 to N6 of an image."""
    maps = trunk(net, image, HOW)
    top = layer(net, "lateral5", maps[5], relu=False)
    pyramid = {5: layer(net, "output5", top, relu=False, padding=1)}
    for n in (4, 3, 2):
        top = layer(net, f"lateral{n}", maps[n], relu=False) + F.interpolate(top, scale_factor=2)
        pyramid[n] = layer(net, f"output{n}", top, relu=False, padding=1)
    levels = [pyramid[2]]
    for n in (2, 3, 4):
        down = layer(net, f"down{n}", levels[-1], stride=2, padding=1)
        levels.append(layer(net, f"merge{n}", down + pyramid[n + 1], padding=1))
    return [*levels, levels[-1][:, :, ::2, ::2]]


def regions(net: Net, name: str, maps: list[Tensor], boxes: Tensor, cells: int) -> Tensor:
    """What a head's first layers make of boxes (n, 4), read from every level: the largest."""
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
    made = []
    for n in (2, 3, 4, 5):
        x = roi_align(maps[n - 2], rois, cells, 1 / 2**n, 2, False)
        if net[f"{name}{n}.w"].dim() == 2:
            made.append(layer(net, f"{name}{n}", x.flatten(1)))
        else:
            made.append(layer(net, f"{name}{n}", x, padding=1))
    return torch.stack(made).amax(0)


@pytest.mark.slow
@pytest.mark.parametrize("heavy", [True, False])
def test_panet_computes_the_same(tmp_path: Path, heavy: bool) -> None:
    size = SIZE
    image = photo(*size)
    net = random_panet(heavy)
    path = tmp_path / "panet_mask_step179999.pth"
    state = renamed(net, names(heavy))
    torch.save({"step": 179999, "iters_per_epoch": 7, "model": state, "optimizer": {}}, path)
    model = brought_in(path, proposals=[KEPT, KEPT])
    with torch.inference_mode():
        batch = batch_of(image[None], size)
        maps = features(net, image)
        ours = model.features(batch)
        assert max(worst(mine, other) for mine, other in zip(ours, maps, strict=True)) < 1e-4

        expected, _ = proposals(net, maps, size, HOW)
        rpn = model.stages.rpn
        boxes, _ = rpn.propose(rpn(ours), batch.sizes)[0]
        assert abs(len(expected) - len(boxes)) <= 2
        nearest = (exclusive(expected, HOW)[:, None] - boxes).abs().amax(2).amin(1)
        assert (nearest < 1e-2).float().mean() > 0.98

        x = regions(net, "boxread", maps, expected, 7)
        for number in (1, 2, 3) if heavy else ():
            x = layer(net, f"box{number}", x, padding=1)
        x = layer(net, "boxfc", x.flatten(1))
        given = [exclusive(expected, HOW)]
        scores, deltas = model.stages.box_head(ours, given)
        assert worst(scores, F.linear(x, net["score.w"], net["score.b"])) < 1e-4
        moves = F.linear(x, net["move.w"], net["move.b"])
        assert worst(deltas, moves) < 1e-4

        x = regions(net, "maskread", maps, expected, 14)
        x = layer(net, "mask2", layer(net, "mask1", x, padding=1), padding=1)
        fused = layer(net, "fuse2", layer(net, "fuse1", x, padding=1), padding=1).flatten(1)
        fused = layer(net, "fuse", fused).reshape(-1, 1, 28, 28)
        x = layer(net, "mask3", x, padding=1)
        x = F.relu(F.conv_transpose2d(x, net["up.w"], net["up.b"], stride=2))
        logits = F.conv2d(x, net["mask.w"], net["mask.b"]) + fused
        assert worst(model.stages.mask_head(ours, given), logits) < 1e-4

        # All that is found: a box for each proposal and class, moved by the deltas of that class.
        found, found_boxes = model.detect(ours, batch.sizes)[0]
        of_class = moves.reshape(len(expected), -1, 4)[:, 1:] / torch.tensor([10.0, 10, 5, 5])
        moved_boxes = moved(expected[:, None].expand_as(of_class), of_class, size, HOW)
        pairs = (exclusive(moved_boxes, HOW)[:, None] - found_boxes).abs().amax((2, 3)).min(1)
        close = pairs.values < 1e-2
        assert close.float().mean() > 0.97
        assert worst(found[pairs.indices[close]], scores.softmax(1)[close, 1:]) < 1e-4


def few() -> dict[str, Tensor]:
    """The names of a file with tensors that are small where their size says nothing."""
    body = "Conv_Body.conv_body."
    values = {
        f"{body}res1.conv1.weight": torch.zeros(64, 3),
        f"{body}res1.bn1.weight": torch.ones(64),
        "Conv_Body.conv_top.0.weight": torch.zeros(5),
        "Conv_Body.topdown_lateral_modules.0.conv_lateral.0.weight": torch.zeros(4),
        "Conv_Body.posthoc_modules.3.0.weight": torch.zeros(2),
        "Conv_Body.panet_buttomup_conv1_modules.0.0.weight": torch.zeros(1),
        "RPN.FPN_RPN_cls_score.weight": torch.zeros(3, 16),
        "Box_Outs.cls_score.weight": torch.zeros(6, 4),
        "Box_Outs.bbox_pred.weight": torch.zeros(24, 4),
        "Mask_Outs.classify.weight": torch.zeros(6, 4),
    }
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            for conv in (1, 2, 3):
                values[f"{body}res{stage}.{block}.conv{conv}.weight"] = torch.zeros(64, 64)
    return values


def test_its_modules_go_from_coarse_to_fine() -> None:
    published = PANET.read(few())
    state = translate(published)
    assert published.num_classes == 5
    assert state["pyramid.lateral.3.0.weight"].numel() == 5
    assert state["pyramid.lateral.2.0.weight"].numel() == 4
    assert state["pyramid.output.0.0.weight"].numel() == 2
    assert torch.equal(state["backbone.stem.1.running_mean"], torch.zeros(64))


def test_what_is_none_of_ours_is_refused_in_a_line() -> None:
    faster = {key: value for key, value in few().items() if "Mask" not in key}
    with pytest.raises(UserError) as error:
        recognise("panet.pth", Weights("torch", faster, {}))
    assert str(error.value) == (
        "panet.pth: weights of PANet's release, but it draws no masks (Faster R-CNN): our "
        "detectors do"
    )
