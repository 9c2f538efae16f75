"""The zoo test: every semantic model of conf/model, found by itself, made small so that it stays
quick.
"""

import pytest
import torch
from zoo import CLASSES, ZOO, batch_of, build

from segtrain.structures.samples import Batch

# One of each system in the quick tests: the others differ in values that zoo.py makes small, or in
# a trunk or a switch that tests/models has a module for.
QUICK = (
    "fcn",
    "parsenet",
    "deconvnet",
    "unet",
    "pspnet",
    "deeplab",
    "deeplabv3",
    "deeplabv3plus",
    "encnet",
    "semantic_fpn",
)


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ZOO],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return build(name)


def test_the_zoo_holds_the_nine_semantic_systems():
    systems = {
        "fcn",
        "parsenet",
        "deconvnet",
        "unet",
        "pspnet",
        "deeplab",
        "deeplabv3",
        "deeplabv3plus",
        "encnet",
    }
    assert systems | {"semantic_fpn"} <= set(ZOO)


@pytest.mark.parametrize(
    ("height", "width"),
    [(33, 51)] + [pytest.param(*size, marks=pytest.mark.slow) for size in ((65, 65), (47, 80))],
)
def test_logits_have_the_inputs_size_even_where_that_is_odd(model, height, width):
    assert model.eval()(batch_of(height, width))["logits"].shape == (2, CLASSES, height, width)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_gradients_reach_every_trainable_parameter_at_odd_sizes(name, precision):
    # only torchvision's FCN has such a head
    aux = {} if name in ("fcn", "fcn_alexnet") else {"aux": True}
    # Batch norm of DeconvNet's 1x1 code sees one value per image: of two, their gradients cancel
    # out in the bias before it.
    model = build(name, **aux).train()
    batch = batch_of(65, 49, images=3)
    if name == "unet_paper":  # its valid convolutions train on 16k + 60 pixels
        batch = batch_of(188, 204)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = model(batch)
    generator = torch.Generator().manual_seed(1)
    sum(
        (o.float() * torch.randn(o.shape, generator=generator)).sum() for o in output.values()
    ).backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert all(p.grad.isfinite().all() for p in trained.values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_evaluation_is_deterministic_and_images_do_not_see_each_other(model):
    batch = batch_of(49, 65)
    model.eval()
    with torch.no_grad():
        first = model(batch)["logits"]
        second = model(batch)["logits"]
        alone = Batch(batch.images[1:], batch.sizes[1:], ["1"], masks=batch.masks[1:])
        torch.testing.assert_close(model(alone)["logits"], first[1:], rtol=1e-4, atol=1e-5)
    assert torch.equal(first, second)


def test_a_batch_is_normalised_by_the_models_own_preprocess(model):
    batch = batch_of(33, 33)
    model.eval()
    with torch.no_grad():
        assert torch.equal(
            model(batch)["logits"], model(model.preprocess(batch.images, batch.sizes))["logits"]
        )


def test_a_state_dict_carries_everything_to_a_fresh_model(name, model):
    other = build(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
        batch = batch_of(33, 33)
        expected = model.eval()(batch)["logits"]
        assert not torch.allclose(other.eval()(batch)["logits"], expected)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(batch)["logits"], expected)


def test_bf16_stays_near_fp32(model):
    batch = batch_of(49, 49)
    model.eval()
    with torch.no_grad():
        exact = model(batch)["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(batch)["logits"].float()
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max() + 1e-3


def test_backbone_parameters_are_some_but_not_all(model):
    backbone = {id(p) for p in model.backbone_parameters()}
    everything = {id(p) for p in model.parameters()}
    assert backbone
    assert backbone < everything


def test_a_model_says_what_it_gives_in_training_and_what_it_learns_from(name, model):
    batch = batch_of(188, 188) if name == "unet_paper" else batch_of(65, 65)
    assert model.learns_from == "masks"
    assert set(model.train()(batch)) == set(model.outputs)
    assert any(True for _ in model.backbone.parameters())
    assert model.min_train_batch in (1, 2)
