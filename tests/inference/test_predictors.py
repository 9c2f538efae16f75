"""What predictors tell of themselves: the folder of results and metrics.json are made of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segtrain.contracts import Predictor
from segtrain.errors import InternalError
from segtrain.inference.base import BasePredictor
from segtrain.inference.crf import DenseCRF
from segtrain.inference.instances import InstanceSegmentation
from segtrain.inference.mask_proposals import BoxProposals, MaskProposals
from segtrain.inference.proposals import Boxes, Proposals
from segtrain.inference.semantic import Semantic
from segtrain.inference.tile import OverlapTile
from segtrain.structures.samples import Batch

CRF = {
    "iterations": 10,
    "smooth_weight": 3.0,
    "smooth_std": 1.0,
    "color_weight": 4.0,
    "position_std": 67.0,
    "color_std": 3.0,
}


class Everything(nn.Module):
    """Has every method that one of the predictors asks for."""

    margin = 92

    def tile(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def features(self, batch: Batch) -> list[Tensor]:
        raise NotImplementedError

    def detect(self, features: list[Tensor], sizes: Tensor) -> list[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def masks(self, features: list[Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        raise NotImplementedError

    def propose(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    def propose_masks(self, batch: Batch, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        raise NotImplementedError


ANY = Everything()
SEMANTIC = {
    "mode": "whole",
    "window": None,
    "stride": 0.5,
    "scales": [1.0],
    "flip": False,
    "average": "probabilities",
    "window_batch": 4,
    "base": None,
    "pad": None,
    "crf": None,
}
BOXES = "50 of grid, 1.2 times, shorter side from 112 px"
PROPOSALS = {
    "size": 224,
    "merge": "max",
    "floor": "zero",
    "partner": None,
    "combine": "mean",
    "crf": None,
    "mode": "proposals",
    "proposals": BOXES,
}
EDGES = {"shorter": 800, "longest": 1333}


@pytest.mark.parametrize(
    ("make", "tag", "settings"),
    [
        (lambda: Semantic(nn.Identity(), stride=0.5), "", SEMANTIC),
        (
            lambda: Semantic(
                nn.Identity(),
                "slide",
                window=[8, 9],
                stride=0.5,
                scales=[0.5, 1, 1.75],
                flip=True,
                average="exp",
                base=520,
                crf=DenseCRF(),
                padding="black",
                overhang=True,
            ),
            "slide-scales_0.5_1_1.75-flip-base_520-exp-crf",
            {
                **SEMANTIC,
                "mode": "slide",
                "window": [8, 9],
                "scales": [0.5, 1.0, 1.75],
                "flip": True,
                "average": "exp",
                "base": 520,
                "crf": CRF,
                "padding": "black",
                "overhang": True,
            },
        ),
        (
            lambda: OverlapTile(ANY, views=7, crf=DenseCRF()),
            "tile_7_views-crf",
            {
                "batch": 1,
                "views": 7,
                "crf": CRF,
                "tile": [388, 388],
                "mode": "tile_7_views",
                "margin": 92,
            },
        ),
        (lambda: Proposals(nn.Identity(), Boxes()), "proposals", PROPOSALS),
        (
            lambda: Proposals(nn.Identity(), partner="fcn", combine="product", crf=DenseCRF()),
            "proposals_product-crf",
            {
                **PROPOSALS,
                "partner": "fcn",
                "combine": "product",
                "crf": CRF,
                "mode": "proposals_product",
            },
        ),
        (
            lambda: InstanceSegmentation(ANY, scales=[1.0, 2.0], flip=True),
            "scales_1_2-flip",
            {
                **EDGES,
                "score": 0.05,
                "overlap": 0.5,
                "detections": 100,
                "threshold": 0.5,
                "scales": [1.0, 2.0],
                "flip": True,
            },
        ),
        (lambda: MaskProposals(ANY), "", {"count": 1000, **EDGES, "threshold": 0.5}),
        (lambda: BoxProposals(ANY, count=9), "", {"count": 9, **EDGES}),
    ],
)
def test_tag_and_settings_are_those_of_the_arguments(
    make: Callable[[], Predictor], tag: str, settings: dict[str, Any]
) -> None:
    predictor = make()
    assert predictor.tag == tag
    # The order counts too: it is that of metrics.json.
    assert list(predictor.settings().items()) == list(settings.items())


def test_only_proposals_have_no_class() -> None:
    assert MaskProposals.class_agnostic
    assert BoxProposals.class_agnostic
    others = (BasePredictor, Semantic, OverlapTile, Proposals, InstanceSegmentation)
    assert not any(kind.class_agnostic for kind in others)


def test_a_predictor_needs_its_own_passes_unless_it_says_otherwise() -> None:
    predictor = InstanceSegmentation(ANY)
    assert not predictor.plain
    with pytest.raises(InternalError, match="InstanceSegmentation needs forward passes of its own"):
        predictor.labels({"logits": torch.zeros(1, 2, 4, 4)}, (4, 4))
