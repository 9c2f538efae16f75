"""What a run says of itself beside its numbers.

Members: the views it trains on, the best score where it is not the last, a network that calls every
pixel one class.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import segtrain
from segtrain.engine.train import remarks, views

LONGEST = "augment.longest=288"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.crop=[96,128]"], "views  crops of 96 x 128 pixels (height x width)"),
        (
            ["model=mask_rcnn_r18", "dataset=coco_json", "augment.shorter=[192,224]", LONGEST],
            "views  whole images, shorter edge 192 or 224, longer edge at most 288 pixels "
            "(augment.shorter, augment.longest; dataset.crop does not count)",
        ),
    ],
    ids=["crops", "whole images"],
)
def test_a_run_says_what_it_sees_of_an_image(words: list[str], said: str) -> None:
    assert views(segtrain.compose(words)) == [said]


def said_of(metrics: dict[str, float], best: dict[str, float] | None = None) -> list[str]:
    kept: Any = SimpleNamespace(step=120, best=best, metrics=metrics)
    return remarks(segtrain.compose([]), kept)


def test_the_best_score_is_said_where_it_is_not_the_last() -> None:
    assert said_of({}, {"step": 24.0, "value": 0.3434}) == ["best   mIoU 0.3434 at step 24"]
    assert said_of({}, {"step": 120.0, "value": 0.3434}) == []


def test_a_network_that_finds_one_class_alone_is_named() -> None:
    nothing = {"mIoU": 0.4229, "IoU/background": 0.8458, "IoU/person": 0.0}
    assert said_of(nothing) == [
        "note   of 2 classes only `background` is found: a network that has learned nothing yet; "
        "train longer, or start from weights"
    ]
    assert said_of({**nothing, "IoU/person": 0.01}) == []
    assert said_of({"IoU/background": 0.9, "IoU/person": float("nan")}) == []  # nobody is there
    assert said_of({"segm/AP": 0.0}) == []
