"""Measure what the Cityscapes pixel-level benchmark measures (CVPR 2016, arXiv:1604.01685, sec. 4).

That is class IoU, category IoU, and iIoU = iTP / (iTP + FP + iFN), where every true object counts
as if it had the average size of its class: the pixels of an object are weighted by average size /
its own size, false positives are plain pixels. What counts is what cityscapesScripts counts
(evaluation/evalPixelLevelSemanticLabeling.py, version 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from segtrain.contracts import Prediction, Truth
from segtrain.errors import DataError, UserError
from segtrain.metrics.confusion import PROTOCOL, SemanticEvaluator, accuracy, percent, ruled, totals
from segtrain.structures.samples import Scene

# Categories and their evaluated classes; all in a row they are the 19 classes by train id
# (cityscapesscripts/helpers/labels.py).
CATEGORIES = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
CLASSES = tuple(name for members in CATEGORIES.values() for name in members)
INSTANCE_CATEGORIES = ("human", "vehicle")


class _Thing(NamedTuple):
    label_id: int  # instance maps hold label_id * 1000 + number
    size: float  # pixels of an average object in the training set


# The evaluated classes with instances; sizes from `avgClassSize` of the evaluation script.
INSTANCES = {
    "person": _Thing(24, 3462.4756337644),
    "rider": _Thing(25, 3930.4788056518),
    "car": _Thing(26, 12794.0202738185),
    "truck": _Thing(27, 27855.1264367816),
    "bus": _Thing(28, 35732.1511111111),
    "train": _Thing(31, 67583.7075812274),
    "motorcycle": _Thing(32, 6298.7200839748),
    "bicycle": _Thing(33, 4672.3249222261),
}
IDS_PER_LABEL = 1000  # instances of one label in one image
FIRST_INSTANCE_ID = IDS_PER_LABEL  # below it: no object, or a group of objects
END_INSTANCE_ID = 34 * IDS_PER_LABEL  # label ids run from 0 to 33
# What a prediction may hold beside train ids: caravan and trailer are not evaluated, yet right for
# the category vehicle.
OTHER_VEHICLE = 254
NOT_EVALUATED = 255


def _class_of_instance() -> np.ndarray:
    """Return the train id (34000,) uint8 of each instance id, NOT_EVALUATED for all others."""
    class_of = np.full(END_INSTANCE_ID, NOT_EVALUATED, np.uint8)
    for name, thing in INSTANCES.items():
        first = thing.label_id * IDS_PER_LABEL
        class_of[first : first + IDS_PER_LABEL] = CLASSES.index(name)
    return class_of


def _category_of_class() -> np.ndarray:
    """Return the category (256,) uint8 of each train id: 1 for human, 2 for vehicle, else 0."""
    category_of = np.zeros(256, np.uint8)
    for code, category in enumerate(INSTANCE_CATEGORIES, start=1):
        category_of[[CLASSES.index(name) for name in CATEGORIES[category]]] = code
    category_of[OTHER_VEHICLE] = INSTANCE_CATEGORIES.index("vehicle") + 1
    return category_of


CLASS_OF_INSTANCE = _class_of_instance()
CATEGORY_OF_CLASS = _category_of_class()


def instance_shares(prediction: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Return three sums (3, 8) float64 over the objects of one image, columns as in INSTANCES.

    They are the number of objects, the sum of the shares of their pixels that were predicted as
    their class, and the same for any class of their category.

    `prediction` is (H, W) uint8, `instances` (H, W) integers as in *_instanceIds.png.
    Errors: DataError for maps of different sizes, and for ids that are none.
    """
    if prediction.shape != instances.shape:
        raise DataError(
            f"the prediction has shape {prediction.shape}, the instance map {instances.shape}."
        )
    inside = instances >= FIRST_INSTANCE_ID
    ids = instances[inside]
    predicted = prediction[inside]
    if len(ids) and ids.max() >= END_INSTANCE_ID:
        raise DataError(
            f"the instance map holds {ids.max()}, but instances are 1000 * a label id of 0-33 + "
            "a number."
        )
    true = CLASS_OF_INSTANCE.take(ids)
    same_category = CATEGORY_OF_CLASS.take(predicted) == CATEGORY_OF_CLASS.take(true)
    sizes = _pixels_per_instance(ids)
    hits = _pixels_per_instance(ids[predicted == true])
    category_hits = _pixels_per_instance(ids[same_category])
    objects = (sizes > 0).sum(1)
    return np.stack([objects, _shares(hits, sizes).sum(1), _shares(category_hits, sizes).sum(1)])


def _pixels_per_instance(ids: np.ndarray) -> np.ndarray:
    """Count how often each instance id occurs (8, 1000), a row per class of INSTANCES."""
    counts = np.bincount(ids, minlength=END_INSTANCE_ID).reshape(-1, IDS_PER_LABEL)
    return counts[[thing.label_id for thing in INSTANCES.values()]]


def _shares(hits: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the share (8, 1000) of each id's pixels that were hit; 0 without pixels."""
    return np.divide(hits, sizes, out=np.zeros(sizes.shape), where=sizes > 0)


class CityscapesEvaluator(SemanticEvaluator):
    """Add category IoU to the numbers of the base, and iIoU where every target is a `Scene`.

    A prediction holds train ids; NOT_EVALUATED (255) and OTHER_VEHICLE (254) are labels of the
    benchmark that it does not evaluate: missed pixels, no false positives (but OTHER_VEHICLE is a
    vehicle in the iIoU of that category). Errors: UserError for other classes than the 19.
    """

    voids = 2

    def __init__(self, class_names: list[str]) -> None:
        if tuple(class_names) != CLASSES:
            wrong = next((name for name in class_names if name not in CLASSES), None)
            raise UserError(
                "metric=cityscapes: Cityscapes is measured with its 19 classes in the order of "
                f"their train ids, not with {len(class_names)}{f' and `{wrong}`' if wrong else ''};"
                " other sets take metric=semantic"
            )
        super().__init__(class_names)
        self.protocol = PROTOCOL + "; category IoU and iIoU as cityscapesScripts defines them"
        # Image id -> `instance_shares`, for the images whose instances are known.
        self.shares: dict[str, list[list[float]]] = {}

    def update(self, sample_id: str, prediction: Prediction, target: Truth) -> None:
        """Add one image: a label map (H, W), and a `Scene` or a mask (H, W) of train ids.

        Errors name the image.
        """
        super().update(sample_id, prediction, target)
        if isinstance(target, Scene):
            labels = torch.as_tensor(prediction).cpu().numpy().astype(np.uint8, copy=False)
            try:
                self.shares[sample_id] = instance_shares(labels, target.instances).tolist()
            except DataError as error:
                raise DataError(f"{sample_id}: {error}") from None

    def state(self) -> dict[str, Any]:
        """Return the state of the base and {"shares": {id: 3 lists of 8 floats}}."""
        return super().state() | {"shares": dict(self.shares)}

    def merge(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace the counts by the union of `states`.

        Errors: InternalError if two states share an image.
        """
        super().merge(states)
        self.shares = {name: value for state in states for name, value in state["shares"].items()}

    def names(self) -> list[str]:
        """Return every key that `compute` can give."""
        members = {
            "category_IoU": CATEGORIES,
            "iIoU": INSTANCES,
            "category_iIoU": INSTANCE_CATEGORIES,
        }
        single = [f"{mean}/{name}" for mean, names in members.items() for name in names]
        return [*super().names(), *members, *single]

    def compute(self) -> dict[str, float]:
        """Return the numbers of the base, category IoU, and iIoU by class and category.

        What never occurs has no key and is in no mean. iIoU needs the instances of every image.
        """
        result = super().compute() | _with_mean("category_IoU", self._category_iou())
        if len(self.shares) == len(self.images):
            classes, categories = self._instance_iou()
            result |= _with_mean("iIoU", classes) | _with_mean("category_iIoU", categories)
        return result

    def _category_iou(self) -> dict[str, float]:
        """Return the IoU of each category, nan for what never occurs."""
        values = {}
        for category, members in CATEGORIES.items():
            rows = [CLASSES.index(name) for name in members]
            intersection = int(self.matrix[rows][:, rows].sum())
            true = int(self.matrix[rows].sum())
            predicted = int(self.matrix[:, rows].sum())
            values[category] = _ratio(intersection, true + predicted - intersection)
        return values

    def _instance_iou(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the iIoU of each class and of each category, nan for what never occurs."""
        # fsum is exact until it rounds once, so neither sharding nor the order of the images can
        # change a bit.
        sums = [
            [math.fsum(cell) for cell in zip(*rows, strict=True)]
            for rows in zip(*self.shares.values(), strict=True)
        ]
        average_sizes = [thing.size for thing in INSTANCES.values()]
        # In pixels, as if every object had the average size of its class.
        objects, hits, category_hits = np.array(sums) * average_sizes
        classes = {}
        for index, name in enumerate(INSTANCES):
            own = [CLASSES.index(name)]
            false_positives = self._false_positives(own, own)
            classes[name] = _ratio(hits[index], objects[index] + false_positives)
        categories = {}
        for category in INSTANCE_CATEGORIES:
            own = [CLASSES.index(name) for name in CATEGORIES[category]]
            # The first column behind the classes is OTHER_VEHICLE, which is a vehicle here.
            predicted = [*own, len(CLASSES)] if category == "vehicle" else own
            members = [i for i, name in enumerate(INSTANCES) if name in CATEGORIES[category]]
            total = objects[members].sum() + self._false_positives(own, predicted)
            categories[category] = _ratio(category_hits[members].sum(), total)
        return classes, categories

    def _false_positives(self, own: list[int], predicted: list[int]) -> int:
        """Count pixels of other evaluated classes than `own` that have a `predicted` column."""
        others = [k for k in range(len(CLASSES)) if k not in own]
        return int(self.matrix[others][:, predicted].sum())

    def table(self) -> str:
        """Return text for the terminal: the classes, then the categories.

        A line has IoU, iIoU and for classes the accuracy in percent and the number of true pixels.
        """
        result = self.compute()
        pixels = self.matrix.sum(1).tolist()
        classes = [("class", "IoU %", "iIoU %", "Acc %", "pixels")]
        for name, class_accuracy, true in zip(CLASSES, accuracy(self.matrix), pixels, strict=True):
            class_iou = percent(result.get(f"IoU/{name}"))
            class_iiou = percent(result.get(f"iIoU/{name}"))
            classes.append((name, class_iou, class_iiou, percent(class_accuracy), f"{true:,}"))
        means = (percent(result["mIoU"]), percent(result.get("iIoU")), percent(result["mAcc"]))
        classes.append(("mean", *means, f"{int(self.matrix.sum()):,}"))
        categories = [("category", "IoU %", "iIoU %")]
        for name in CATEGORIES:
            category_iou = percent(result.get(f"category_IoU/{name}"))
            categories.append((name, category_iou, percent(result.get(f"category_iIoU/{name}"))))
        mean_iiou = percent(result.get("category_iIoU"))
        categories.append(("mean", percent(result["category_IoU"]), mean_iiou))
        return "\n".join([ruled(classes), "", ruled(categories), totals(result)])


def _ratio(part: float, whole: float) -> float:
    """Divide; nan where there is nothing to divide by."""
    return float(part) / float(whole) if whole else math.nan


def _with_mean(name: str, values: dict[str, float]) -> dict[str, float]:
    """Return {name: mean, name/<key>: value} of the values that are numbers; {} without any."""
    known = {f"{name}/{key}": value for key, value in values.items() if not math.isnan(value)}
    return {name: sum(known.values()) / len(known), **known} if known else {}
