"""Several losses as one: terms, counts and weights are those of its parts."""

import pytest
import torch

import segtrain
from segtrain.config import instantiate, parts
from segtrain.errors import UserError
from segtrain.losses.combined import Combined
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.losses.semantic_encoding import SemanticEncodingLoss
from segtrain.structures.samples import Batch

PIXEL = {"_target_": "segtrain.losses.pixel.PixelCrossEntropy", "weights": {"seg": 1.0, "aux": 0.2}}
SEMANTIC = {
    "_target_": "segtrain.losses.semantic_encoding.SemanticEncodingLoss",
    "weights": {"se": 0.2},
}
COMBINED = "segtrain.losses.combined.Combined"


def case():
    g = torch.Generator().manual_seed(0)
    output = {name: torch.randn(2, 5, 7, 6, generator=g) for name in ("logits", "aux")}
    output["se"] = torch.randn(2, 5, generator=g)
    targets = torch.randint(0, 5, (2, 7, 6), generator=g).byte()
    targets[:, 0] = 255
    return output, Batch(
        torch.zeros(2, 3, 7, 6, dtype=torch.uint8),
        torch.tensor([[7, 6]] * 2),
        ["a", "b"],
        masks=targets,
    )


def test_terms_counts_and_weights_are_those_of_the_parts():
    output, batch = case()
    pixel = PixelCrossEntropy({"seg": 1.0, "aux": 0.2})
    semantic = SemanticEncodingLoss()
    loss = Combined({"pixel": pixel, "semantic": semantic})
    assert loss.weights == {"seg": 1.0, "aux": 0.2, "se": 0.2}
    assert (
        loss.counts(batch)
        == pixel.counts(batch) | semantic.counts(batch)
        == {"seg": 72, "aux": 72, "se": 2}
    )
    assert loss(output, batch) == pixel(output, batch) | semantic(output, batch)


def test_device_and_mode_reach_the_parts():
    output, batch = case()
    loss = Combined(
        {"pixel": PixelCrossEntropy({"seg": 1.0, "aux": 0.2}), "semantic": SemanticEncodingLoss()}
    )
    del output["aux"], output["se"]
    with pytest.raises(UserError, match="no output `aux`"):
        loss(output, batch)
    assert list(loss.eval()(output, batch)) == ["seg"]
    assert loss.to("meta").losses[0].table.device.type == "meta"


def test_a_config_composes_losses_and_reaches_into_them_by_name():
    run = segtrain.compose(["loss=encnet", "loss.parts.pixel.weights.aux=0.4"])
    loss = parts.loss(run.loss)
    assert isinstance(loss, Combined)
    assert loss.weights == {"seg": 1.0, "aux": 0.4, "se": 0.2}
    paper = parts.loss(segtrain.compose(["loss=encnet_paper"]).loss)
    assert paper.weights == {"seg": 1.0, "se": 0.2, "se_aux": 0.2}


@pytest.mark.parametrize("name", ["pixel", "pixel_aux", "pixel_sum", "hard_pixel"])
def test_the_other_configs_of_this_loss_can_be_built(name):
    loss = parts.loss(segtrain.compose([f"loss={name}"]).loss)
    assert loss.reduction == ("sum" if name == "pixel_sum" else "mean")
    assert loss.hard == (0.25 if name == "hard_pixel" else None)
    assert loss.weights == ({"seg": 1.0, "aux": 0.4} if name == "pixel_aux" else {"seg": 1.0})


def test_a_wrong_value_inside_a_part_is_named_with_its_place():
    wrong = {**PIXEL, "reduction": "summ"}
    with pytest.raises(UserError, match=r"loss\.parts\.pixel\.reduction.*Did you mean `sum`"):
        instantiate.check(
            {"_target_": COMBINED, "parts": {"pixel": wrong, "semantic": SEMANTIC}}, "loss"
        )


def test_two_parts_with_one_term_are_refused():
    node = {
        "_target_": COMBINED,
        "parts": {"one": PIXEL, "two": {**SEMANTIC, "weights": {"aux": 1.0}}},
    }
    with pytest.raises(
        UserError, match=r"loss\.parts\.two has the term `aux`, and so has loss\.parts\.one"
    ):
        instantiate.build(node, "loss")


@pytest.mark.parametrize(
    "part", [1.0, {"a": 1}, {"_target_": "segtrain.optim.optimizers.sgd", "lr": 1.0}, None]
)
def test_what_is_no_loss_is_refused(part):
    with pytest.raises(UserError, match=r"loss\.parts\.x"):
        instantiate.build({"_target_": COMBINED, "parts": {"x": part}}, "loss")


def test_no_part_at_all_is_refused():
    with pytest.raises(UserError, match="empty"):
        Combined({})


def test_classes_are_named_to_every_part():
    run = segtrain.compose(["loss=encnet", "loss.parts.pixel.class_weights={traffic light:3}"])
    loss = parts.loss(run.loss, "cpu", ["road", "traffic light"])
    assert loss.losses[0].table[:2].tolist() == [1, 3]
