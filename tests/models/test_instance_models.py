"""The zoo test of instance systems.

Every one of conf/model, found by itself, made small so that it stays quick.
"""

import pytest
import torch
from instance_zoo import batch_of, build, composed, loss, target
from zoo import INSTANCES

from segtrain.config import instantiate as parts
from segtrain.structures.instances import Segments

# Two stages and one in the quick tests; a small twin differs in values that this file makes small
# anyway.
QUICK = ("mask_rcnn", "fpn")
ZOO = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in INSTANCES]


@pytest.fixture(scope="module", params=ZOO)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return build(name)


def test_the_zoo_holds_the_three_instance_systems():
    assert {"mask_rcnn", "panet", "fpn"} <= set(INSTANCES)


@pytest.mark.parametrize("objects", ["some", "none"])
def test_gradients_reach_every_trainable_parameter_also_without_objects(name, model, objects):
    """DDP need not look for unused parameters.

    Without objects the masks' gradients are there, and zero.
    """
    batch = batch_of() if objects == "some" else batch_of(boxes=([], []))
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(name, model, batch)
    value.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    still = [n for n, p in trained.items() if not p.grad.abs().max() > 0]
    assert bool(still) == (objects == "none")


@pytest.mark.parametrize(
    "case", ["crowd only", "500 objects", "a box that is not a number", "an empty image"]
)
def test_a_hard_image_trains_on(name, model, case):
    boxes = [(8, 10, 40, 50)] * 500 if case == "500 objects" else [(8, 10, 40, 50)]
    hard = target(
        boxes if case != "an empty image" else [], 70, 90, crowd=[0] if case == "crowd only" else []
    )
    if case == "a box that is not a number":
        hard.boxes[0, 2] = float("nan")
    batch = batch_of(boxes=([(50, 20, 80, 60)], []))
    batch.instances[1] = hard
    model.train().zero_grad(set_to_none=True)
    value = loss(name, model, batch)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_loss_is_the_same_whenever_it_is_measured(name, model):
    batch = batch_of()
    model.eval()
    with torch.no_grad():
        assert torch.equal(loss(name, model, batch), loss(name, model, batch))


@pytest.mark.parametrize(("height", "width"), [(65, 65), (47, 80), (33, 51)])
def test_predictions_have_the_images_size_even_where_that_is_odd(name, model, height, width):
    settings = {**composed(name).inference, "shorter": 64, "longest": 96}
    predictor = parts.build(settings, "inference", model=model.eval())
    image = batch_of(height, width, boxes=([],)).images[0]
    first = predictor(image)
    second = predictor(image)
    assert isinstance(first, Segments)
    assert first.size == (height, width)
    assert len(first) > 0
    assert first.masks == second.masks
    assert (first.scores == second.scores).all()
    assert (first.scores[:-1] >= first.scores[1:]).all()
    corners = first.boxes[:, :2] + first.boxes[:, 2:]
    assert (first.boxes >= 0).all()
    assert (corners <= [width + 1e-6, height + 1e-6]).all()


def test_a_state_dict_carries_everything_to_a_fresh_model(name, model):
    other = build(name)
    batch = batch_of()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
        expected = loss(name, model.eval(), batch)
        assert not torch.allclose(loss(name, other.eval(), batch), expected)
        other.load_state_dict(model.state_dict())
        assert torch.equal(loss(name, other.eval(), batch), expected)


def test_backbone_parameters_are_some_but_not_all(model):
    backbone = {id(p) for p in model.backbone_parameters()}
    everything = {id(p) for p in model.parameters()}
    assert backbone
    assert backbone < everything


def test_a_model_says_what_it_gives_in_training_and_that_it_learns_from_instances(name, model):
    assert model.learns_from == "instances"
    assert model.min_train_batch == 1
    given = set(model.train()(batch_of()))
    assert given == {f"{name}{end}" for name in model.outputs for end in ("", "_target")}
