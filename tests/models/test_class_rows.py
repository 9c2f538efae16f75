"""Every system says where it holds its classes, and there they are matched by name."""

from __future__ import annotations

import copy
from typing import Any

import instance_zoo
import pytest
import torch
import zoo
from omegaconf import OmegaConf
from torch import nn
from zoo import EVERY, INSTANCES, ZOO, node, target

from segtrain.checkpoints.match import init_from
from segtrain.layers.roi_heads import BoxPredictor
from segtrain.structures.class_rows import ClassRows, rows_of

# What a model's yaml leaves out of the heads that a system can have.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("fcn", {"learned_upsampling": "all"}),
    ("fcn", {"learned_upsampling": "intermediate"}),
    ("fcn", {"stride": 32, "learned_upsampling": "all"}),
    ("fcn_resnet50", {"aux": True}),
    ("deeplab", {"head": "largefov"}),
    ("deeplabv3", {"aux": True}),
    ("deeplabv3_cascade", {"aux": True}),
    ("deeplabv3plus", {"aux": True}),
    ("deeplabv3plus", {"low_level_width": 0}),
    ("pspnet", {"aux": False}),
    ("encnet", {"se_aux": True, "aux": True}),
    ("encnet", {"se": False, "aux": False}),
    ("parsenet", {"fusion": "early"}),
    ("parsenet", {"fusion": "none"}),
    ("mask_rcnn", {"trunk": "c4"}),
    ("mask_rcnn", {"mask_head": "mlp"}),
    ("mask_rcnn", {"class_agnostic_masks": True}),
    ("mask_rcnn", {"class_agnostic_masks": True, "mask_head": "mlp"}),
    ("mask_rcnn", {"masks": "softmax"}),
    ("mask_rcnn", {"box_head": "heavy", "rpn_convs": 2, "inclusive_boxes": True}),
    ("panet", {"box_head": "two_fc", "fusion": False}),
]
CASES = [*((name, {}) for name in EVERY), *VARIANTS]
QUICK = [("encnet_r18", {}), ("mask_rcnn_r18", {})]


def on_meta(name: str, classes: int, **changes: Any) -> nn.Module:
    """Build a model of conf/model without memory and without weights of others."""
    config: Any = OmegaConf.to_container(node(name))
    cls = target(config)
    arguments = {k: v for k, v in config.items() if k not in ("_target_", "sampling")}
    arguments |= {"weights": None} if "weights" in arguments else {}
    with torch.device("meta"):
        return cls(classes, **arguments | changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case not in QUICK)],
)
def test_the_tensors_that_grow_with_the_classes_are_those_that_the_model_names(
    name: str, changes: dict[str, Any]
) -> None:
    few = on_meta(name, 4, **changes)
    many = on_meta(name, 9, **changes)
    shapes = {key: value.shape for key, value in many.state_dict().items()}
    layout = few.class_rows()
    assert layout == many.class_rows()
    grown = {key for key, value in few.state_dict().items() if value.shape != shapes[key]}
    assert {key for key in shapes if rows_of(layout, key)} == grown
    for layer in layout:
        assert any(key.startswith(layer) for key in grown)
    for key, value in few.state_dict().items():
        if rows := rows_of(layout, key):
            groups = 5 if rows.background else 4
            assert value.shape[0] % groups == 0
            assert shapes[key][0] == value.shape[0] // groups * (groups + 5)
            assert shapes[key][1:] == value.shape[1:]


THEIRS = ["road", "car", "sky", "tree"]
OURS = ["tree", "road", "bus", "sky"]  # bus is new, car is gone
OF = [3, 0, None, 2]  # THEIRS of each of OURS


def distinct(model: nn.Module) -> nn.Module:
    """Give every parameter noise, so that no two classes have equal rows."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=g)
            parameter += noise * 0.02 / max(parameter[0].numel(), 1) ** 0.5
    return model


def by_name(source: nn.Module, names: list[str], source_names: list[str]) -> nn.Module:
    """Return a network like `source` with other weights, after it took those of `source`."""
    network = copy.deepcopy(source)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=g))
    layout = network.class_rows()
    state, match = init_from(network.state_dict(), source.state_dict(), names, source_names, layout)
    assert not match.reshaped
    assert set(match.rows) == {key for key in state if rows_of(layout, key)}
    assert set(match.rows.values()) <= {(len({*names} & {*source_names}), len(names))}
    assert match.unnamed == match.unsaid == []
    assert match.doubt() is None
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("unet_32", {}),
        *(
            pytest.param(name, changes, marks=pytest.mark.slow)
            for name, changes in CASES
            if name in ZOO and (name, changes) != ("unet_32", {})
        ),
    ],
)
def test_a_semantic_model_scores_each_class_as_its_namesake_did(
    name: str, changes: dict[str, Any]
) -> None:
    source = distinct(zoo.build(name, **changes))
    network = by_name(source, OURS, THEIRS)
    batch = zoo.batch_of(65, 65) if name != "unet_paper" else zoo.batch_of(188, 188)
    for training in (False, True):
        outputs = []
        for model in (source, network):
            torch.manual_seed(5)  # dropout
            outputs.append(copy.deepcopy(model).train(training)(batch))
        theirs, ours = outputs
        assert ours.keys() == theirs.keys()
        for output, scores in theirs.items():
            assert scores.shape[1] == 4
            for mine, old in enumerate(OF):
                if old is not None:
                    torch.testing.assert_close(
                        ours[output][:, mine], scores[:, old], rtol=1e-4, atol=1e-4
                    )
            assert not torch.allclose(ours[output][:, 2], scores[:, 1], atol=1e-3)


DETECTORS = [(name, {}) for name in INSTANCES if "fpn" not in name and "rpn" not in name]
DETECTORS += [(name, changes) for name, changes in VARIANTS if name in ("mask_rcnn", "panet")]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mask_rcnn_r18", {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in DETECTORS
            if case != ("mask_rcnn_r18", {})
        ),
    ],
)
@torch.inference_mode()
def test_a_detector_scores_boxes_and_masks_each_class_as_its_namesake_did(
    name: str, changes: dict[str, Any]
) -> None:
    """In another order the three classes are the second, third and first of the source."""
    source = distinct(instance_zoo.build(name, **changes)).eval()
    order = torch.tensor([1, 2, 0])
    network = by_name(source, ["b", "c", "a"], ["a", "b", "c"]).eval()
    batch = instance_zoo.batch_of()
    seen = [model.features(batch) for model in (source, network)]
    theirs, ours = (
        model.detect(features, batch.sizes)
        for model, features in zip((source, network), seen, strict=True)
    )
    for (old_scores, old_boxes), (scores, boxes) in zip(theirs, ours, strict=True):
        torch.testing.assert_close(scores, old_scores[:, order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(boxes, old_boxes[:, order], rtol=1e-4, atol=1e-2)
        assert not torch.allclose(scores, old_scores, atol=1e-5)
    regions = [torch.tensor([[4.0, 6.0, 40.0, 44.0]] * 3), torch.zeros(0, 4)]
    old_masks = source.masks(seen[0], regions, order)
    masks = network.masks(seen[1], regions, torch.arange(3))
    torch.testing.assert_close(masks, old_masks, rtol=1e-4, atol=1e-5)


def test_box_rows_are_four_for_each_class_and_background_comes_first() -> None:
    """Written out: row 0 is background, rows 4c + 4 to 4c + 7 are the box of class c."""
    torch.manual_seed(0)
    theirs = BoxPredictor(2, 4)
    ours = BoxPredictor(2, 3)
    heads = {"score": ClassRows(background="first"), "box": ClassRows(background="first")}
    state, match = init_from(
        ours.state_dict(), theirs.state_dict(), ["dog", "cat"], ["cat", "cow", "dog"], heads
    )
    assert match.rows == dict.fromkeys(
        ("score.weight", "score.bias", "box.weight", "box.bias"), (2, 2)
    )
    assert state["score.weight"].tolist() == theirs.score.weight[[0, 3, 1]].tolist()
    rows = [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7]
    assert state["box.weight"].tolist() == theirs.box.weight[rows].tolist()
    assert state["box.bias"].tolist() == theirs.box.bias[rows].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fpn_r18", "box_rpn"])
def test_a_model_of_proposals_takes_everything_whatever_the_classes(name: str) -> None:
    source = distinct(instance_zoo.build(name))
    network = by_name(source, ["b", "c", "a"], ["a", "b", "c"])
    for key, value in network.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
