"""The numbers of the Cityscapes pixel-level benchmark (Cordts et al., CVPR 2016, section 4; arXiv:1604.01685).

Class IoU, category IoU, and iIoU = iTP / (iTP + FP + iFN), where every true object counts as if it had the average size of its
class: the pixels of an object are weighted by average size / its own size, false positives are plain pixels. What counts is
what cityscapesScripts counts (evaluation/evalPixelLevelSemanticLabeling.py, version 2.3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segtrain.errors import DataError, UserError
from segtrain.metrics.confusion import PROTOCOL, SemanticEvaluator, accuracy, percent, ruled, totals
from segtrain.structures.instances import Instances, Segments
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
FIRST_INSTANCE, END_INSTANCE = 1000, 34_000  # below the first: no object, or a group of them
# What a prediction may hold beside train ids: caravan and trailer are not evaluated, yet right for the category vehicle.
OTHER_VEHICLE, NOT_EVALUATED = 254, 255


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Train id of the class of each instance id, NOT_EVALUATED for others; category of each train id, 1 and 2 or 0."""
    class_of, category_of = np.full(END_INSTANCE, NOT_EVALUATED, np.uint8), np.zeros(256, np.uint8)
    for name, thing in INSTANCES.items():
        class_of[thing.label_id * 1000 : (thing.label_id + 1) * 1000] = CLASSES.index(name)
    for code, category in enumerate(INSTANCE_CATEGORIES, start=1):
        category_of[[CLASSES.index(name) for name in CATEGORIES[category]]] = code
    category_of[OTHER_VEHICLE] = INSTANCE_CATEGORIES.index("vehicle") + 1
    return class_of, category_of


CLASS_OF_INSTANCE, CATEGORY_OF_CLASS = _tables()


def found_instances(prediction: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """(3, 8) float64 of one image, columns as in INSTANCES: objects; sum over them of the share of an object's pixels that
    was predicted as its class; the same for any class of its category.

    `prediction` (H, W) uint8, `instances` (H, W) integers as in *_instanceIds.png. Errors: DataError.
    """
    if prediction.shape != instances.shape:
        raise DataError(
            f"the prediction has shape {prediction.shape}, the instance map {instances.shape}."
        )
    inside = instances >= FIRST_INSTANCE
    ids, said = instances[inside], prediction[inside]
    if len(ids) and ids.max() >= END_INSTANCE:
        raise DataError(
            f"the instance map holds {ids.max()}, but instances are 1000 * a label id of 0-33 + a number."
        )
    true = CLASS_OF_INSTANCE.take(ids)
    same_category = CATEGORY_OF_CLASS.take(said) == CATEGORY_OF_CLASS.take(true)
    sizes, hits, category_hits = (
        _per_instance(chosen) for chosen in (ids, ids[said == true], ids[same_category])
    )
    shares = [
        np.divide(part, sizes, out=np.zeros(sizes.shape), where=sizes > 0)
        for part in (hits, category_hits)
    ]
    return np.stack([(sizes > 0).sum(1), *(share.sum(1) for share in shares)])


def _per_instance(ids: np.ndarray) -> np.ndarray:
    """(8, 1000) how often each instance id occurs, a row per class of INSTANCES."""
    counts = np.bincount(ids, minlength=END_INSTANCE).reshape(-1, 1000)
    return counts[[thing.label_id for thing in INSTANCES.values()]]


class CityscapesEvaluator(SemanticEvaluator):
    """Adds category IoU to the numbers of the base, and iIoU where every target is a `Scene`. See `contracts.Evaluator`.

    A prediction holds train ids; NOT_EVALUATED (255) and OTHER_VEHICLE (254) are labels of the benchmark that it does not
    evaluate: missed pixels, no false positives (but OTHER_VEHICLE is a vehicle in the iIoU of that category).
    """

    voids = 2

    def __init__(self, class_names: list[str]) -> None:
        if tuple(class_names) != CLASSES:
            wrong = next((name for name in class_names if name not in CLASSES), None)
            raise UserError(
                f"metric: Cityscapes is measured with its 19 classes in the order of their train ids, not with "
                f"{len(class_names)}{f' and `{wrong}`' if wrong else ''}; other sets take SemanticEvaluator"
            )
        super().__init__(class_names)
        self.protocol = PROTOCOL + "; category IoU and iIoU as cityscapesScripts defines them"
        self.found: dict[
            str, list[list[float]]
        ] = {}  # id -> `found_instances`, of images whose instances are known

    def update(
        self,
        sample_id: str,
        prediction: Tensor | Instances | Segments,
        target: Tensor | np.ndarray | Instances | Scene | Segments,
    ) -> None:
        """Add one image: a label map (H, W), and a `Scene` or a mask (H, W) of train ids. Errors name the image."""
        super().update(sample_id, prediction, target)
        if isinstance(target, Scene):
            labels = torch.as_tensor(prediction).cpu().numpy().astype(np.uint8, copy=False)
            try:
                self.found[sample_id] = found_instances(labels, target.instances).tolist()
            except DataError as error:
                raise DataError(f"{sample_id}: {error}") from None

    def state(self) -> dict:
        """The state of the base and {"found": {id: 3 lists of 8 floats}}."""
        return super().state() | {"found": dict(self.found)}

    def merge(self, states: list[dict]) -> None:
        """Replace the counts by the union of `states`. Raises `InternalError` if two states share an image."""
        super().merge(states)
        self.found = {name: value for state in states for name, value in state["found"].items()}

    def names(self) -> list[str]:
        """Every key of `compute`."""
        means = ["category_IoU", "iIoU", "category_iIoU"]
        named = {
            "category_IoU": CATEGORIES,
            "iIoU": INSTANCES,
            "category_iIoU": INSTANCE_CATEGORIES,
        }
        return [
            *super().names(),
            *means,
            *(f"{mean}/{name}" for mean in means for name in named[mean]),
        ]

    def compute(self) -> dict[str, float]:
        """See `names`. What never occurs has no key and is in no mean; iIoU needs the instances of every image."""
        result = super().compute() | _with_mean("category_IoU", self._category_iou())
        if len(self.found) == len(self.images):
            classes, categories = self._instance_iou()
            result |= _with_mean("iIoU", classes) | _with_mean("category_iIoU", categories)
        return result

    def _category_iou(self) -> dict[str, float]:
        values = {}
        for category, members in CATEGORIES.items():
            rows = [CLASSES.index(name) for name in members]
            hit = int(self.matrix[rows][:, rows].sum())
            values[category] = _ratio(
                hit, int(self.matrix[rows].sum()) + int(self.matrix[:, rows].sum()) - hit
            )
        return values

    def _instance_iou(self) -> tuple[dict[str, float], dict[str, float]]:
        """iIoU by class and by category, nan for what never occurs."""
        # fsum is exact until it rounds once, so neither sharding nor the order of the images can change a bit.
        sums = [
            [math.fsum(cell) for cell in zip(*rows, strict=True)]
            for rows in zip(*self.found.values(), strict=True)
        ]
        objects, found, category_found = np.array(sums) * [
            thing.size for thing in INSTANCES.values()
        ]
        classes, categories = {}, {}
        for i, name in enumerate(INSTANCES):
            own = [CLASSES.index(name)]
            classes[name] = _ratio(found[i], objects[i] + self._false_positives(own, own))
        for category in INSTANCE_CATEGORIES:
            own = [CLASSES.index(name) for name in CATEGORIES[category]]
            said = (
                [*own, len(CLASSES)] if category == "vehicle" else own
            )  # the first column behind: OTHER_VEHICLE
            members = [i for i, name in enumerate(INSTANCES) if name in CATEGORIES[category]]
            total = objects[members].sum() + self._false_positives(own, said)
            categories[category] = _ratio(category_found[members].sum(), total)
        return classes, categories

    def _false_positives(self, own: list[int], said: list[int]) -> int:
        """Pixels of other evaluated classes than `own` that were predicted as one of `said`."""
        others = [k for k in range(len(CLASSES)) if k not in own]
        return int(self.matrix[others][:, said].sum())

    def table(self) -> str:
        """Text for the terminal: classes with IoU, iIoU and accuracy in percent and true pixels, then the categories."""
        result = self.compute()
        pixels = [f"{count:,}" for count in self.matrix.sum(1).tolist()]
        classes = [("class", "IoU %", "iIoU %", "Acc %", "pixels")]
        for name, found, count in zip(CLASSES, accuracy(self.matrix), pixels, strict=True):
            values = percent(result.get(f"IoU/{name}")), percent(result.get(f"iIoU/{name}"))
            classes.append((name, *values, percent(found), count))
        means = percent(result["mIoU"]), percent(result.get("iIoU")), percent(result["mAcc"])
        classes.append(("mean", *means, f"{int(self.matrix.sum()):,}"))
        categories = [("category", "IoU %", "iIoU %")]
        for name in CATEGORIES:
            values = (
                percent(result.get(f"{kind}/{name}")) for kind in ("category_IoU", "category_iIoU")
            )
            categories.append((name, *values))
        categories.append(
            ("mean", percent(result["category_IoU"]), percent(result.get("category_iIoU")))
        )
        return "\n".join([ruled(classes), "", ruled(categories), totals(result)])


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan


def _with_mean(name: str, values: dict[str, float]) -> dict[str, float]:
    """{name: mean, name/<key>: value} of the values that are numbers; {} without any."""
    known = {f"{name}/{key}": value for key, value in values.items() if not math.isnan(value)}
    return {name: sum(known.values()) / len(known), **known} if known else {}
