"""What a loss reads of a model, so that a model that makes less can be refused before step 1."""

import pytest
import torch
from torch import Tensor, nn

import segtrain
from segtrain.config import parts
from segtrain.contracts import Loss, LossTerm
from segtrain.losses.base import BaseLoss
from segtrain.losses.border_weight import BorderCrossEntropy
from segtrain.losses.combined import Combined
from segtrain.losses.multitask import MultiTask
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.losses.semantic_encoding import SemanticEncodingLoss
from segtrain.structures.samples import Batch

REGIONS = {"rpn_class": 1.0, "rpn_box": 1.0, "class": 1.0, "box": 1.0, "mask": 1.0}


@pytest.mark.parametrize(
    ("loss", "needs"),
    [
        (PixelCrossEntropy(), {"logits"}),
        (PixelCrossEntropy({"seg": 1.0, "aux": 0.4}), {"logits", "aux"}),
        (PixelCrossEntropy({"seg": 1.0, "scale_50": 1.0}), {"logits", "scale_50"}),
        (PixelCrossEntropy({"aux": 1.0}), {"aux"}),
        (SemanticEncodingLoss(), {"se"}),
        (SemanticEncodingLoss({"se": 0.2, "se_aux": 0.2}), {"se", "se_aux"}),
        (BorderCrossEntropy(), {"logits"}),
        (MultiTask(REGIONS), set(REGIONS)),
        (MultiTask({"object": 1.0, "mask": 10.0}), {"object", "mask"}),
        (
            Combined({"pixel": PixelCrossEntropy(), "semantic": SemanticEncodingLoss()}),
            {"logits", "se"},
        ),
    ],
)
def test_a_loss_needs_the_outputs_that_its_terms_read(loss: Loss, needs: set[str]) -> None:
    assert set(loss.needs) == needs


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("border", {"logits"}),
        ("deeplab", {"logits", "scale_100", "scale_75", "scale_50"}),
        ("encnet", {"logits", "aux", "se"}),
        ("encnet_paper", {"logits", "se", "se_aux"}),
        ("hard_pixel", {"logits"}),
        ("mask_proposals", {"object", "mask"}),
        ("multitask", set(REGIONS)),
        ("pixel", {"logits"}),
        ("pixel_aux", {"logits", "aux"}),
        ("pixel_sum", {"logits"}),
        ("rpn", {"rpn_class", "rpn_box"}),
    ],
)
def test_every_loss_of_conf_says_what_it_needs(name: str, needs: set[str]) -> None:
    assert set(parts.loss(segtrain.compose([f"loss={name}"]).loss).needs) == needs


class Brightness(BaseLoss):
    """A loss of somebody else's package: weights, needs and `forward` are all it takes."""

    def __init__(self) -> None:
        super().__init__({"bright": 1.0}, needs=["glow"])

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        return {"bright": LossTerm(output["glow"].sum(), torch.tensor(2.0))}


def test_a_loss_of_one_s_own_needs_no_counts_and_can_be_combined() -> None:
    combined = Combined({"pixel": PixelCrossEntropy(), "own": Brightness()})
    batch = Batch(
        torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
        torch.tensor([[2, 2]]),
        ["a"],
        masks=torch.zeros(1, 2, 2, dtype=torch.uint8),
    )
    assert set(combined.needs) == {"logits", "glow"}
    assert isinstance(Brightness(), Loss)
    assert Brightness().counts(batch) == {}
    assert combined.counts(batch) == {"seg": 4}
    output = {"logits": torch.zeros(1, 2, 2, 2), "glow": torch.ones(3)}
    assert combined(output, batch)["bright"] == (3, 2)


def test_a_module_without_weights_is_no_loss() -> None:
    assert not isinstance(nn.Identity(), Loss)
