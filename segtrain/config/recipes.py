"""The published recipe of a model on a data set, and what a run takes of it.

`segtrain model=pspnet dataset=voc` is a published recipe: the table below names it, and
`compose` puts its values below an experiment and below what is typed. A model's name fixes the
network, a group that is chosen keeps its own values. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from segtrain.config.files import load_yaml
from segtrain.config.headers import chosen_by
from segtrain.config.schema import CONF_DIR
from segtrain.errors import UserError

FOLDER = CONF_DIR / "experiment"
GROUP = "recipe"


class Row(NamedTuple):
    """A recipe, and the groups of which a run takes nothing from it."""

    recipe: str
    without: tuple[str, ...] = ()


# The recipe is of the same class but of another network: the run keeps its own network, and takes
# of the recipe's only what belongs to training.
NETWORK = ("model",)
# The recipe is of another system, whose loss does not fit either.
SYSTEM = ("model", "loss")
# It also counts other classes on the same images, by a data set of its own.
CLASSES = (*SYSTEM, "dataset")

# Model -> data set -> the recipe of the pair. It is of the same network where there is one, trained
# on the benchmark's own training split from ImageNet in one stage, by the authors' last code before
# another's. Else optimiser, rates, length and protocol are those of the nearest network on the same
# data. Networks that start from scratch are not here: they keep AdamW.
RECIPES: Mapping[str, Mapping[str, Row]] = {
    "box_rpn": {"coco_proposal": Row("box_rpn_r50_coco")},
    "deconvnet": {"voc_crops": Row("deconvnet_voc_stage1")},
    "deeplab": {
        "voc": Row("deeplab_r101_voc"),
        "context": Row("deeplab_r101_context"),
        "cityscapes": Row("deeplab_r101_cityscapes", SYSTEM),  # one scale instead of three
        "coco_things": Row("deeplab_r101_coco", SYSTEM),  # another classifier
        "coco_voc": Row("deeplab_r101_coco", CLASSES),
        "coco_stuff": Row("deeplab_r101_stuff"),
    },
    "deeplab_vgg16": {
        "voc": Row("deeplab_vgg16_aspp_voc"),
        "context": Row("deeplab_r101_context", SYSTEM),
        "cityscapes": Row("deeplab_r101_cityscapes", SYSTEM),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplab_r101_coco", CLASSES),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "deeplabv3": {
        "voc": Row("deeplabv3_r101_voc"),
        "context": Row("deeplab_r101_context", SYSTEM),
        "cityscapes": Row("deeplabv3_r101_cityscapes"),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3_r101_coco"),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "deeplabv3_cascade": {
        "voc": Row("deeplabv3_r101_cascade_voc"),
        "context": Row("deeplab_r101_context", SYSTEM),
        "cityscapes": Row("deeplabv3_r101_cityscapes", NETWORK),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3_r101_coco", NETWORK),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "deeplabv3_mobilenet": {
        "voc": Row("deeplabv3_r101_voc", NETWORK),
        "context": Row("deeplab_r101_context", SYSTEM),
        "cityscapes": Row("deeplabv3_r101_cityscapes", NETWORK),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3_r101_coco", NETWORK),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "deeplabv3plus": {
        "voc": Row("deeplabv3plus_voc", NETWORK),  # dense convolutions instead of separable ones
        "context": Row("deeplab_r101_context", SYSTEM),
        "cityscapes": Row("deeplabv3plus_x65_cityscapes", NETWORK),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3plus_x65_coco", NETWORK),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "deeplabv3plus_xception65": {
        "voc": Row("deeplabv3plus_x65_voc"),
        "context": Row("deeplab_r101_context", SYSTEM),
        "cityscapes": Row("deeplabv3plus_x65_cityscapes"),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3plus_x65_coco"),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "encnet": {
        "voc": Row("pspnet50_voc", SYSTEM),  # EncNet's own starts from COCO
        "context": Row("encnet_r50_context"),
        "cityscapes": Row("pspnet50_cityscapes", SYSTEM),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3_r101_coco", SYSTEM),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "fcn": {
        "voc": Row("fcn8s_once_voc"),
        "context": Row("fcn32s_context", NETWORK),  # FCN-8s is trained in stages there
        "cityscapes": Row("deeplab_r101_cityscapes", SYSTEM),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplab_r101_coco", CLASSES),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "fcn_resnet50": {
        "voc": Row("pspnet50_voc", SYSTEM),
        "context": Row("encnet_r50_context", SYSTEM),
        "cityscapes": Row("pspnet50_cityscapes", SYSTEM),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3_r101_coco", SYSTEM),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "fpn": {"coco_proposal": Row("fpn_r50_coco")},
    "mask_rcnn": {
        "coco_instance": Row("mask_rcnn_r50_coco_detectron2_1x"),
        "cityscapes_instance": Row("mask_rcnn_r50_cityscapes"),
    },
    "panet": {
        # Beside Mask R-CNN's; the release, a re-implementation, is experiment=panet_r50_coco.
        "coco_instance": Row("panet_r50_coco_detectron2_1x"),
        "cityscapes_instance": Row("mask_rcnn_r50_cityscapes", NETWORK),
    },
    "parsenet": {
        "voc": Row("parsenet_voc"),
        "context": Row("parsenet_context"),
        "cityscapes": Row("deeplab_r101_cityscapes", SYSTEM),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplab_r101_coco", CLASSES),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "pspnet": {
        "voc": Row("pspnet101_voc"),
        "context": Row("encnet_r101_context", SYSTEM),
        "cityscapes": Row("pspnet101_cityscapes"),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3_r101_coco", SYSTEM),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "semantic_fpn": {
        "voc": Row("pspnet50_voc", SYSTEM),
        "context": Row("encnet_r50_context", SYSTEM),
        "cityscapes": Row("pspnet50_cityscapes", SYSTEM),
        "coco_things": Row("deeplab_r101_coco", SYSTEM),
        "coco_voc": Row("deeplabv3_r101_coco", SYSTEM),
        "coco_stuff": Row("deeplab_r101_stuff", SYSTEM),
    },
    "unet_paper": {"isbi_em": Row("unet_em")},
}

# Of a model's values, those that say how it is trained and not what it computes.
OF_TRAINING = (
    "anchor_corners",
    "at_once",
    "candidates",
    "dropout",
    "head_init",
    "momentum",
    "proposals",
    "roi_samples",
    "upsample",
)
# And those that belong to the file of weights it starts from. Without that file a run has
# torchvision's trunk, which is what the model's own values say.
OF_THE_FILE = ("weights", "stem", "style", "input", "pattern")


class Taken(NamedTuple):
    """What a run takes of a recipe."""

    name: str
    node: dict[str, Any] | None  # for Hydra; None where the experiment is the recipe itself
    batch_size: int  # images per update in the recipe


def names() -> list[str]:
    """Return the names of all published recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.endswith("_camvid"))


def row_of(chosen: Mapping[str, str]) -> Row | None:
    """Return the recipe of the model and the data set among the `chosen` groups, if there is one.

    A recipe that is chosen by its name stands for its training alone, whatever the network.
    """
    if GROUP in chosen:
        return Row(chosen[GROUP], SYSTEM) if chosen[GROUP] != "null" else None
    return RECIPES.get(chosen.get("model", ""), {}).get(chosen.get("dataset", ""))


def taken(row: Row, chosen: Collection[str], own: Collection[str], from_file: bool) -> Taken:
    """Return what a run takes of a recipe.

    Of a group that is `chosen` it takes nothing, model and data set apart. `own` are the keys that
    the user has set: where they change the network, the recipe says nothing of it any more.
    `from_file` tells that the network starts from a file of weights: then the recipe's trunk is the
    one that fits.
    """
    body = load_yaml(FOLDER / f"{row.recipe}.yaml")
    left_out = {*chosen, *row.without} - ({"model", "dataset"} - {*row.without})
    node = {k: v for k, v in body.items() if k != "defaults" and k not in left_out}
    if "loss" not in row.without:  # it is of the run's system
        taken_of = {k: v for k, v in body.get("model", {}).items() if k != "weights"}
        if not from_file:
            taken_of = {k: v for k, v in taken_of.items() if k not in OF_THE_FILE}
        if row.without == NETWORK or _changes_the_network(own):
            kept = (*OF_TRAINING, *OF_THE_FILE)
            taken_of = {k: v for k, v in taken_of.items() if k in kept}
        node["model"] = taken_of
    node["defaults"] = [
        {f"override /{group}": name}
        for group, name in chosen_by(body).items()
        if group not in {*left_out, "model", "dataset"}
    ]
    return Taken(row.recipe, {**node, GROUP: row.recipe}, body["train"]["batch_size"])


def _changes_the_network(own: Collection[str]) -> bool:
    """Tell whether keys that the user has set make another network than its name stands for."""
    of_model = {key.removeprefix("model.") for key in own if key.startswith("model.")}
    return bool(of_model - {*OF_TRAINING, *OF_THE_FILE})


def itself(experiment: str) -> Taken:
    """Return what a run takes that names a recipe as its experiment: all of it, by Hydra."""
    return Taken(experiment, None, load_yaml(FOLDER / f"{experiment}.yaml")["train"]["batch_size"])


def scaled(at: Callable[[str], Any], recipe: Taken | None, own: Collection[str]) -> dict[str, Any]:
    """Return steps, rate and warm-up of a recipe for another batch, by key (`train.scale_recipe`).

    As many images are seen, in training and in the warm-up, and SGD's rate is in proportion to the
    batch (Goyal et al., 2017, arXiv:1706.02677) where the loss is a mean. `at` gives a run's value
    of a key; `own` are the keys and groups that the user has set: they are left out. Errors:
    UserError where there is no recipe, and for another optimizer than SGD.
    """
    if recipe is None:
        raise UserError(
            "train.scale_recipe=true: this run has no published recipe to scale; "
            "segtrain recipes lists those there are"
        )
    if not str(at("optimizer._target_")).endswith(".sgd"):
        raise UserError(
            "train.scale_recipe=true: the rule holds for SGD; with another optimizer set "
            "train.steps and optimizer.lr, and leave train.scale_recipe out"
        )
    batch_size = at("train.batch_size")
    if batch_size == "auto":
        raise UserError(
            "train.scale_recipe=true: scales to a batch that is known, and train.batch_size=auto "
            "is found when the run begins; begin one without the other, and give this one the "
            "number that it finds"
        )
    if type(batch_size) is not int or batch_size < 1:
        return {}  # it is named when the run is checked
    factor = recipe.batch_size / batch_size
    # The gradient of a loss that is a sum grows with the batch by itself.
    rate = 1.0 if at("loss.reduction") == "sum" else 1 / factor
    values = {
        "train.steps": round(at("train.steps") * factor),
        "optimizer.lr": at("optimizer.lr") * rate,
        "schedule.warmup": round((at("schedule.warmup") or 0) * factor),
    }
    return {k: v for k, v in values.items() if not {k, k.partition(".")[0]} & {*own}}
