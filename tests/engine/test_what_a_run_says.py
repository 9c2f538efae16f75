"""What a run says of itself beside its numbers.

Members: the views it trains on, the best score where it is not the last, a network that calls every
pixel one class, crops too small for dilations of DeepLabv3+, DeepLabv3 and DeepLab.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import segtrain
from segtrain.config import parts as config_parts
from segtrain.engine.field_of_view import blind_branches
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


@pytest.mark.parametrize(
    ("model", "crop", "image", "blind"),
    [
        # 160 pixels are 10 features, 360 x 480 are 23 x 30
        ("deeplabv3plus_r18", (160, 160), (360, 480), "12, 18"),
        ("deeplabv3plus_r18", (161, 321), (360, 480), "12, 18"),  # 11 x 21: none below or above
        ("deeplabv3plus_r18", (289, 289), (360, 480), ""),  # 19 features
        ("deeplabv3plus_r18", (64, 64), (64, 64), ""),  # images are no larger than the crops
        ("deeplabv3_r18", (96, 96), (160, 320), "6, 12, 18"),
        ("deeplabv3_r18", (96, 96), (160, 288), "6, 12"),  # 18 features: 18 reaches none
        ("deeplab_r18", (161, 161), (320, 320), "24"),  # 21 features at stride 8
        ("unet", (64, 64), (500, 500), ""),
    ],
)
def test_crops_too_small_for_dilations_are_named(
    model: str, crop: tuple[int, int], image: tuple[int, int], blind: str
) -> None:
    run = segtrain.compose(
        [f"model={model}", f"dataset.crop=[{crop[0]},{crop[1]}]", "augment=standard", "recipe=null"]
    )
    with torch.device("meta"):
        network = config_parts.model(
            {**run.model, **({"weights": None} if "weights" in run.model else {})},
            2,
            torch.device("meta"),
        )
    said = blind_branches(run, network, image)
    assert f"of dilation {blind} see little but padding" in said if blind else said == ""


@pytest.mark.parametrize("own", [{"crop": 256}, {"crop": [64, 64]}, {"shorter": 800, "longest": 9}])
def test_nothing_is_said_of_an_augmentation_of_somebody_elses(own: dict[str, Any]) -> None:
    run = segtrain.compose([])
    run.augment.clear()
    run.augment.update({"_target_": "mylab.parts.Views", **own})
    assert views(run) == []
    assert blind_branches(run, torch.nn.Conv2d(1, 1, 3, dilation=12), (500, 500)) == ""
