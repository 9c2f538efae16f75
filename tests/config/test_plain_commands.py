"""A model and a data set compose their published recipe: `segtrain model=pspnet dataset=voc`.

Every pair of the table is composed, and compared with its recipe part by part.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from recipes import classes_of, composed, model_of

import segtrain
from segtrain.config import recipes
from segtrain.config.recipe_line import recipe_line
from segtrain.config.suggest import groups
from segtrain.errors import UserError

PAIRS = [(model, data) for model, rows in recipes.RECIPES.items() for data in rows]
# The four commands that gave days of AdamW, and one of another system's recipe.
QUICK = (
    ("deeplabv3plus", "cityscapes"),
    ("mask_rcnn", "coco_instance"),
    ("pspnet", "voc"),
    ("encnet", "context"),
    ("fcn_resnet50", "cityscapes"),
)
SAMPLE = [pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS]
GROUPS = ("dataset", "metric", "loss", "optimizer", "schedule", "augment", "inference")


def of_training(run: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(run)["train"].items() if key != "init"}


@pytest.mark.parametrize(("model", "data"), SAMPLE)
def test_the_plain_command_equals_the_recipe_of_the_pair(model: str, data: str) -> None:
    row = recipes.RECIPES[model][data]
    plain = composed(f"model={model}", f"dataset={data}")
    recipe = composed(f"experiment={row.recipe}")
    # The crop is the data set's.
    of_data = {"crop": None} if "dataset" in row.without else {}
    for group in GROUPS:
        if group not in row.without:
            ours = {**getattr(plain, group), **of_data}
            assert ours == {**getattr(recipe, group), **of_data}, group
    assert of_training(plain) == of_training(recipe)
    assert plain.recipe == recipe.recipe == row.recipe
    if "model" not in row.without:
        ours, theirs = (
            {key: value for key, value in run.model.items() if key not in recipes.OF_THE_FILE}
            for run in (plain, recipe)
        )
        assert ours == theirs


@pytest.mark.parametrize(("model", "data"), SAMPLE)
def test_a_recipe_never_changes_the_network(model: str, data: str) -> None:
    plain = composed(f"model={model}", f"dataset={data}")
    alone = composed(f"model={model}", f"dataset={data}", "recipe=null")
    alone.dataset = plain.dataset  # a recipe may leave the background out
    assert classes_of(alone.dataset) == classes_of(plain.dataset)
    shapes = [
        {name: tuple(value.shape) for name, value in model_of(run).state_dict().items()}
        for run in (plain, alone)
    ]
    assert shapes[0] == shapes[1]
    trunk = [{key: run.model.get(key) for key in recipes.OF_THE_FILE} for run in (plain, alone)]
    assert trunk[0] == trunk[1]


@pytest.mark.parametrize(("model", "data"), QUICK)
def test_no_published_pair_is_trained_with_adamw(model: str, data: str) -> None:
    run = composed(f"model={model}", f"dataset={data}")
    assert run.optimizer["_target_"] == "segtrain.optim.optimizers.sgd"


def test_mask_rcnn_has_its_warm_up_and_pspnet_its_rates() -> None:
    mask_rcnn = composed("model=mask_rcnn", "dataset=coco_instance")
    assert (mask_rcnn.schedule["warmup"], mask_rcnn.schedule["warmup_factor"]) == (1000, 0.001)
    assert (mask_rcnn.optimizer["lr"], mask_rcnn.train.steps) == (0.02, 90000)
    pspnet = composed("model=pspnet", "dataset=voc")
    assert (pspnet.optimizer["lr"], pspnet.optimizer["head_factor"]) == (0.01, 10.0)
    assert (pspnet.train.steps, pspnet.dataset["crop"]) == (33050, [473, 473])


def test_the_table_names_what_there_is() -> None:
    known = groups()
    for model, data in PAIRS:
        row = recipes.RECIPES[model][data]
        assert model in known["model"]
        assert data in known["dataset"]
        assert row.recipe in recipes.names()
        assert row.without in ((), recipes.NETWORK, recipes.SYSTEM, recipes.CLASSES)


@pytest.mark.parametrize("model", ["deeplabv3plus_r18", "pspnet_r18", "unet", "deconvnet_vgg11"])
def test_from_scratch_it_stays_adamw(model: str) -> None:
    run = composed(f"model={model}", "dataset=voc")
    assert run.recipe is None
    assert run.optimizer["_target_"] == "segtrain.optim.optimizers.adamw"


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (("optimizer=adamw",), ("optimizer", "lr"), 0.001),
        (("optimizer=sgd",), ("optimizer", "head_factor"), 1.0),
        (("schedule=constant",), ("schedule", "power"), None),
        (("augment=none",), ("augment", "color"), None),
        (("inference=slide",), ("inference", "base_side"), "long"),
        (("loss=hard_pixel", "model.aux=false"), ("loss", "weights"), {"seg": 1.0}),
    ],
)
def test_a_group_that_is_chosen_takes_nothing_of_the_recipe(
    words: tuple[str, ...], key: tuple[str, str], value: object
) -> None:
    group, name = key
    run = composed("model=pspnet", "dataset=voc", *words)
    alone = composed("model=pspnet", "dataset=voc", "recipe=null", *words)
    node = getattr(run, group)
    assert node.get(name) == value
    assert {**node, "crop": None, "window": None, "views": None} == {
        **getattr(alone, group),
        "crop": None,
        "window": None,
        "views": None,
    }
    assert run.train.steps == 33050  # of the groups that were not chosen it takes all


def test_what_is_typed_counts_more() -> None:
    run = composed("model=pspnet", "dataset=voc", "optimizer.lr=0.02", "train.steps=7")
    assert (run.optimizer["lr"], run.optimizer["head_factor"], run.train.steps) == (0.02, 10.0, 7)


OWN = """# @package _global_
defaults:
  - override /schedule: cosine

optimizer:
  lr: 0.003
train:
  steps: 500
"""


def test_a_recipe_lies_below_an_experiment_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(OWN)
    place = f"hydra.searchpath=[{tmp_path / 'conf'}]"
    words = [place, "model=pspnet", "dataset=voc", "experiment=mine"]
    run = segtrain.compose([*words, "train.steps=9"])
    assert run.schedule["_target_"].endswith("Cosine")
    assert (run.optimizer["lr"], run.optimizer["head_factor"], run.train.steps) == (0.003, 10.0, 9)
    (folder / "mine.yaml").write_text(
        OWN.replace(
            "defaults:", "defaults:\n  - override /dataset: voc\n  - override /model: pspnet"
        )
    )
    assert segtrain.compose([place, "experiment=mine"]).recipe == "pspnet101_voc"
    scaled = segtrain.compose([*words, "train.batch_size=8", "train.scale_recipe=true"])
    assert (scaled.optimizer["lr"], scaled.train.steps) == (0.003, 500)  # both are the user's


def test_recipe_chooses_another_or_none() -> None:
    other = composed("model=unet", "dataset=voc", "recipe=pspnet101_voc")
    assert other.recipe == "pspnet101_voc"
    assert other.model == composed("model=unet", "dataset=voc").model
    assert other.loss == composed("model=unet", "dataset=voc").loss
    assert other.optimizer["lr"] == 0.01
    assert composed("model=pspnet", "dataset=voc", "recipe=null").train.steps == 30000
    assert composed("experiment=fcn8s_voc").recipe == "fcn8s_voc"


def test_a_file_of_weights_brings_the_recipes_trunk() -> None:
    run = composed("model=pspnet", "dataset=voc", "model.weights=resnet101_v2.pth")
    assert (run.model["stem"], run.model["weights"]) == ("deep", "resnet101_v2.pth")


def test_a_network_of_ones_own_takes_only_how_it_is_trained() -> None:
    run = composed("model=deeplabv3", "dataset=voc", "model.head=torchvision")
    assert (run.model["multi_grid"], run.model["momentum"]) == (None, 0.0003)
    same = composed("model=deeplabv3", "dataset=voc", "model.momentum=0.1", "model.weights=null")
    assert (same.model["multi_grid"], same.model["momentum"]) == ([1, 2, 4], 0.1)


def test_scale_recipe_keeps_the_images_and_the_rate_of_each() -> None:
    words = ("model=mask_rcnn", "dataset=coco_instance", "train.scale_recipe=true")
    run = composed(*words, "train.batch_size=4")
    # 90,000 x 16 / 4, 0.02 x 4 / 16, 1,000 x 16 / 4
    assert (run.train.steps, run.optimizer["lr"]) == (360000, 0.005)
    assert run.schedule["warmup"] == 4000
    own = composed(*words, "train.batch_size=4", "optimizer.lr=0.01", "schedule.warmup=10")
    assert (own.train.steps, own.optimizer["lr"], own.schedule["warmup"]) == (360000, 0.01, 10)
    same = composed(*words)
    assert (same.train.steps, same.optimizer["lr"], same.schedule["warmup"]) == (90000, 0.02, 1000)
    summed = composed("model=fcn", "dataset=voc", "train.scale_recipe=true", "train.batch_size=4")
    # The loss is a sum over the images: four of them give four times the gradient by themselves.
    assert (summed.train.steps, summed.optimizer["lr"]) == (75000, 1e-10)
    whole = composed("experiment=pspnet101_voc", "train.scale_recipe=true", "train.batch_size=32")
    assert (whole.train.steps, whole.optimizer["lr"]) == (16525, 0.02)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=unet", "dataset=voc", "train.scale_recipe=true"), "no published recipe to scale"),
        (
            ("model=pspnet", "dataset=voc", "optimizer=adamw", "train.scale_recipe=true"),
            "the rule holds for SGD",
        ),
        (("model=unet", "dataset=voc", "recipe=pspnet101"), "no such recipe.*pspnet101_voc"),
        (("experiment=pspnet101_voc", "recipe=pspnet50_voc"), "is a recipe itself"),
    ],
)
def test_what_makes_no_sense_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        segtrain.compose(list(words))


LINES = {
    ("model=deeplabv3", "dataset=voc"): "recipe deeplabv3_r101_voc, published 77.21 mIoU; nothing "
    "differs here",
    ("model=deeplabv3plus", "dataset=cityscapes"): "recipe deeplabv3plus_x65_cityscapes, published "
    "78.79 mIoU; here another network (published with Xception-65): model.backbone=resnet101 "
    "(there xception65): 78.79 is not this run's number",
    ("model=pspnet", "dataset=voc", "train.batch_size=8"): "recipe pspnet101_voc, published 79.07 "
    "mIoU; here torchvision's ImageNet weights (published from ImageNet, on a trunk with a deep "
    "stem: model.weights=FILE), train.batch_size=8 (there 16): 79.07 is not this run's number",
    ("model=fcn_resnet50", "dataset=cityscapes", "optimizer=adamw"): "recipe pspnet50_cityscapes, "
    "published 77.30 mIoU; here another network (published with PSPNet, ResNet-50, as in the "
    "authors' PyTorch code), another optimizer (adamw, there sgd): 77.30 is not this run's number",
}


@pytest.mark.parametrize("words", list(LINES))
def test_the_first_line_names_recipe_number_and_differences(words: tuple[str, ...]) -> None:
    assert recipe_line(composed(*words)) == LINES[words]


def test_without_a_recipe_there_is_no_line() -> None:
    assert recipe_line(composed()) is None


def test_only_where_data_lie_is_no_difference() -> None:
    run = composed("model=deeplabv3", "dataset=voc", "dataset.root=/data", "train.threads=1")
    line = recipe_line(run)
    assert line is not None
    assert re.search("nothing differs here$", line)
