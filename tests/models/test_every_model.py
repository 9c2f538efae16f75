"""The zoo test: every semantic model of conf/model, found by itself, made small so that it stays
quick.
"""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from segtrain.structures.samples import Batch

CONF = Path(__file__).parents[2] / "conf" / "model"
CLASSES = 4
SMALLEST = {
    "vgg": "vgg11",
    "res": "resnet18",
    "xce": "xception41",
    "ale": "alexnet",
}  # by the first letters of the yaml's backbone
SMALL = {"weights": None, "code": 64, "width": 8}  # a network's width where it has no trunk


def node(name):
    """The composed yaml of a model: its own keys over those of the models in its defaults list."""
    raw = OmegaConf.load(CONF / f"{name}.yaml")
    parents = [
        entry for entry in raw.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"
    ]
    return OmegaConf.merge(*(node(parent) for parent in parents), raw)


def target(config):
    module, name = config["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def build(name, **changes):
    config = OmegaConf.to_container(node(name))
    cls = target(config)
    accepted = inspect.signature(cls).parameters
    assert set(config) - {"_target_"} <= set(accepted), (
        "the yaml names an argument that the class does not have"
    )
    arguments = {k: v for k, v in config.items() if k != "_target_"}
    if "backbone" in config:
        changes = {"backbone": SMALLEST[config["backbone"][:3]], **changes}
    arguments |= {k: v for k, v in (SMALL | changes).items() if k in config}
    torch.manual_seed(0)
    model = cls(CLASSES, **arguments)
    with (
        torch.no_grad()
    ):  # scores that start at zero (FCN) would pass on no gradient and hide what lies before them
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.01)
    return model


def loss_of(name):
    """The loss that a model's yaml, or that of a model it stands on, chooses."""
    found = ""
    for entry in OmegaConf.load(CONF / f"{name}.yaml").get("defaults", []):
        if isinstance(entry, str):
            found = loss_of(entry) if entry != "_self_" else found
        else:
            found = entry.get("override /loss@_global_.loss", found)
    return found


EVERY = sorted(path.stem for path in CONF.glob("*.yaml"))
INSTANCES = [
    name for name in EVERY if loss_of(name) in ("multitask", "mask_proposals", "rpn")
]  # tests/models/test_instance_models.py
ZOO = [name for name in EVERY if name not in INSTANCES]


@pytest.fixture(scope="module", params=ZOO)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return build(name)


def batch_of(height, width, images=2):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=g)
    target = torch.randint(0, CLASSES, (images, height, width), dtype=torch.uint8, generator=g)
    target[:, 0] = 255
    return Batch(
        pixels,
        torch.tensor([[height, width]] * images),
        [str(i) for i in range(images)],
        masks=target,
    )


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


@pytest.mark.parametrize(("height", "width"), [(65, 65), (47, 80), (33, 51)])
def test_logits_have_the_inputs_size_even_where_that_is_odd(model, height, width):
    assert model.eval()(batch_of(height, width))["logits"].shape == (2, CLASSES, height, width)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_every_trainable_parameter_at_odd_sizes(name, precision):
    aux = (
        {} if name in ("fcn", "fcn_alexnet") else {"aux": True}
    )  # only torchvision's FCN has such a head
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
