"""Measure average precision and recall of objects (COCO, Lin et al., ECCV 2014).

This is the home of hotcoco's evaluator. The numbers are pycocotools' on the same annotations and
results files, to the last bit. What that takes:
- Objects are sized by `Segments.areas`: a truth by its annotated area, a detection by what
  pycocotools' loadRes makes of the file: width * height of a box that the file gives, else the
  pixels of its mask. Boxes that the file gives are sized by width * height in `bbox/` whatever
  `areas` says.
- `Instances` count as two results files, one of masks (sized by their pixels) and one of boxes.
- Equal scores rank by image, then by index within the image. Images go by id: as numbers where all
  ids are numbers, as in COCO, else as text. So any sharding gives the same numbers.

N objects, T = 10 IoU thresholds 0.50:0.05:0.95, R = 101 recall points, K classes, A = 4 size
ranges, M = 3 limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from hotcoco import COCO, COCOeval

from segtrain.contracts import Prediction, Truth
from segtrain.errors import DataError, InternalError, NothingToMeasure
from segtrain.metrics.base import BaseEvaluator, aligned, lowest, union
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments

Kind = Literal["segm", "bbox"]
Record = dict[str, Any]  # plain lists, numbers and text, so that ranks can exchange it
KINDS: tuple[Kind, ...] = ("segm", "bbox")
# From and to so many pixels: all, small, medium, large. 1e10 is pycocotools' 1e5 squared.
SIZE_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
MAX_DETECTIONS = (1, 10, 100)  # per image and class
MAX_PROPOSALS = (10, 100, 1000)  # per image
DETECTION_NUMBERS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl"),
)
PROPOSAL_NUMBERS = ("AR@10", "AR@100", "AR@1000", "ARs", "ARm", "ARl")

# Indices into the axes T, A and M of precision and recall.
IOU_50 = 0
IOU_75 = 5
ALL_SIZES = 0
SINGLE_SIZES = (1, 2, 3)
LIMITS = (0, 1, 2)
HIGHEST_LIMIT = 2


class CocoEvaluator(BaseEvaluator):
    """Measure AP and AR per class of masks (`segm/`) and boxes (`bbox/`).

    It keeps all objects, masks run-length encoded, as a ranking needs them together.
    """

    protocol = (
        "COCO instances as pycocotools counts them: IoU 0.50:0.05:0.95, 101 recall points, "
        "at most 1, 10, 100 detections per image and class, crowd regions ignored"
    )

    def __init__(
        self, class_names: list[str], kinds: list[Literal["segm", "bbox"]] | None = None
    ) -> None:
        """Measure `kinds`; None: `segm` where predictions have masks, `bbox` where they have boxes.

        Boxes of a `Segments` prediction are not its own where boxes and areas are just those of
        its masks; they are then not measured.
        """
        self.class_names = list(class_names)
        self.asked: list[Kind] | None = kinds or None
        self.images: dict[str, Record] = {}  # id -> see `_image`, and the score for `worst`
        self._numbers: dict[str, float] | None = None  # the last answer of compute()

    def update(self, sample_id: str, prediction: Prediction, target: Truth) -> None:
        """Add one image: `Segments` or `Instances`, the prediction with scores.

        Errors name the image.
        """
        num_classes = len(self.class_names)
        image = _image(sample_id, self.images, prediction, target, num_classes, self.asked)
        self.images[sample_id] = image | {"score": _own_ap(image, num_classes, self.asked)}
        self._numbers = None

    def state(self) -> dict[str, Any]:
        """Return {"images": {id: objects as lists of numbers and text, and the own score}}."""
        return {"images": dict(self.images)}

    def merge(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace the objects by the union of `states`.

        Errors: InternalError if two states share an image.
        """
        self.images = union(state["images"] for state in states)
        self._numbers = None

    def names(self) -> list[str]:
        """Return every key that `compute` can give: twelve of each kind, then the AP by class.

        A number of which the truth holds nothing will have no key.
        """
        kinds = [kind for kind in KINDS if kind in (self.asked or KINDS)]
        summary = [f"{kind}/{name}" for kind in kinds for name in DETECTION_NUMBERS]
        return summary + [f"{kind}/AP/{name}" for kind in kinds for name in self.class_names]

    def kinds(self) -> list[Kind]:
        """Return the kinds that `compute` gives: those asked for, else those of the predictions.

        Where there are no predictions, it is all that the truth allows.
        """
        if self.asked is not None:
            return [kind for kind in KINDS if kind in self.asked]
        predicted = {
            kind for image in self.images.values() for kind in image["prediction"]["kinds"]
        }
        if predicted:
            return [kind for kind in KINDS if kind in predicted]
        masked = all(image["truth"]["masks"] is not None for image in self.images.values())
        return [kind for kind in KINDS if masked or kind == "bbox"]

    def compute(self) -> dict[str, float]:
        """Return the numbers of `names`.

        Errors: NothingToMeasure when no image was given; DataError when some predictions have masks
        and others not.
        """
        if self._numbers is not None:
            return dict(self._numbers)
        names = _in_order(self.images)
        images = [self.images[name] for name in names]
        summary: dict[str, float | None] = {}
        classes: dict[str, float | None] = {}
        for kind in self.kinds():
            for name, image in zip(names, images, strict=True):
                prediction = image["prediction"]
                if kind == "segm" and prediction["masks"] is None and prediction["labels"]:
                    raise DataError(f"{name}: this prediction has boxes only, others have masks.")
            precision, recall = _evaluate(images, kind, len(self.class_names))
            for name, value in _summary(precision, recall).items():
                summary[f"{kind}/{name}"] = value
            for index, name in enumerate(self.class_names):
                classes[f"{kind}/AP/{name}"] = _mean(
                    precision[:, :, index, ALL_SIZES, HIGHEST_LIMIT]
                )
        self._numbers = {
            name: value for name, value in (summary | classes).items() if value is not None
        }
        return dict(self._numbers)

    def worst(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` images of lowest AP, counted as if there were no others, worst first.

        It is the AP of masks where there are any, else of boxes. Images without an object that is
        not a crowd are left out.
        """
        return lowest({name: image["score"] for name, image in self.images.items()}, count)

    def image_scores(self) -> dict[str, dict[str, float | None]]:
        """Return each image's own AP, counted as in `worst`, and how many objects it has."""
        return {
            name: {
                "AP": self.images[name]["score"],
                "objects": sum(not crowd for crowd in self.images[name]["truth"]["crowd"]),
            }
            for name in _in_order(self.images)
        }

    def counts(self) -> dict[str, Any]:
        """Return {"matches": ...}: what the AP of any choice of these images follows from."""
        if not self.images:
            return {}
        names = _in_order(self.images)
        kind = self.kinds()[0]
        images = [self.images[name] for name in names]
        found = _matches(images, kind, len(self.class_names))
        return {"matches": {"kind": kind, "images": names, "classes": self.class_names, **found}}

    def table(self) -> str:
        """Return text for the terminal, in percent.

        A row has the twelve numbers of a kind; below stands the AP of every class.
        """
        numbers = self.compute()
        kinds = self.kinds()
        summary = [(kind, *_percents(numbers, kind, DETECTION_NUMBERS)) for kind in kinds]
        objects = Counter(
            label for image in self.images.values() for label in _countable(image["truth"])
        )
        rows = [("class", *(f"{kind} AP" for kind in kinds), "objects")]
        for index, name in enumerate(self.class_names):
            values = [_percents(numbers, kind, [f"AP/{name}"])[0] for kind in kinds]
            rows.append((name, *values, f"{objects[index]:,}"))
        head, *lines = aligned(rows)
        above = aligned([("", *DETECTION_NUMBERS), *summary])
        return "\n".join([*above, "", head, "-" * len(head), *lines])


class ProposalEvaluator(BaseEvaluator):
    """Measure the recall of 10, 100 and 1,000 proposals an image, whatever their class.

    That is pycocotools with useCats = 0. Hits are counted per image at once, so nothing else is
    kept. ARs, ARm, ARl are those of 1,000 proposals.
    """

    protocol = (
        "COCO proposals as pycocotools counts them with useCats=0: recall of the best 10, 100, "
        "1000 per image, mean over IoU 0.50:0.05:0.95, crowd regions ignored"
    )
    class_agnostic = True

    def __init__(self, class_names: list[str], kind: Literal["segm", "bbox"] = "segm") -> None:
        self.class_names = list(class_names)
        self.kind: Kind = kind
        # Image id -> {"objects": (A,) counts, "hits": (T, A, M) counts}.
        self.images: dict[str, Record] = {}

    def update(self, sample_id: str, prediction: Prediction, target: Truth) -> None:
        """Add one image: `Segments` or `Instances`, the prediction with scores.

        Errors name the image.
        """
        num_classes = len(self.class_names)
        image = _image(sample_id, self.images, prediction, target, num_classes, [self.kind])
        _, recall = _evaluate([image], self.kind, num_classes, class_agnostic=True)
        crowd = np.array(image["truth"]["crowd"], bool)
        areas = np.array(image["truth"]["areas"])[~crowd]
        objects = np.array(
            [np.count_nonzero((areas >= low) & (areas <= high)) for low, high in SIZE_RANGES]
        )
        # A recall is hits / objects, so rounding gives back the whole number; where there is no
        # object the recall is -1 and the product 0.
        hits = np.rint(recall[:, 0] * objects[:, None]).astype(np.int64)
        self.images[sample_id] = {"objects": objects.tolist(), "hits": hits.tolist()}

    def state(self) -> dict[str, Any]:
        """Return {"images": {id: {"objects": (A,), "hits": (T, A, M)}}}, lists."""
        return {"images": dict(self.images)}

    def merge(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace the counts by the union of `states`.

        Errors: InternalError if two states share an image.
        """
        self.images = union(state["images"] for state in states)

    def names(self) -> list[str]:
        """Return every key that `compute` can give, `<kind>/AR@10` and so on.

        A number of which the truth holds nothing will have no key.
        """
        return [f"{self.kind}/{name}" for name in PROPOSAL_NUMBERS]

    def compute(self) -> dict[str, float]:
        """Return the numbers of `names`. Errors: NothingToMeasure when no image was given."""
        if not self.images:
            raise NothingToMeasure("no image was evaluated: the split is empty.")
        objects = np.sum([image["objects"] for image in self.images.values()], axis=0)
        hits = np.sum([image["hits"] for image in self.images.values()], axis=0)
        recall = np.where(objects[:, None] > 0, hits / np.maximum(objects, 1)[:, None], -1.0)
        parts = [recall[:, ALL_SIZES, limit] for limit in LIMITS]
        parts += [recall[:, size, HIGHEST_LIMIT] for size in SINGLE_SIZES]
        values = zip(self.names(), map(_mean, parts), strict=True)
        return {name: value for name, value in values if value is not None}

    def worst(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` images of lowest own AR@1000, worst first.

        Images without objects are left out.
        """
        scores = {name: own["AR@1000"] for name, own in self.image_scores().items()}
        return lowest(scores, count)

    def image_scores(self) -> dict[str, dict[str, float | None]]:
        """Return each image's own AR@1000, and how many objects it has."""
        scores: dict[str, dict[str, float | None]] = {}
        for name in _in_order(self.images):
            hits = np.array(self.images[name]["hits"])[:, ALL_SIZES, HIGHEST_LIMIT]
            objects = self.images[name]["objects"][ALL_SIZES]
            recall = float(np.mean(hits / objects)) if objects else None
            scores[name] = {"AR@1000": recall, "objects": objects}
        return scores

    def table(self) -> str:
        """Return text for the terminal: the numbers in percent."""
        values = _percents(self.compute(), self.kind, PROPOSAL_NUMBERS)
        return "\n".join(aligned([("", *PROPOSAL_NUMBERS), (self.kind, *values)]))


# The objects of one image


def _image(
    sample_id: str,
    known: Container[str],
    prediction: Prediction,
    target: Truth,
    num_classes: int,
    asked: Sequence[Kind] | None,
) -> Record:
    """Return {"prediction": objects, "truth": objects}, see `_objects`.

    `known` are the images counted so far. Errors: DataError for what cannot be compared.
    """
    if sample_id in known:
        raise InternalError(f"{sample_id}: evaluated twice.")
    try:
        predicted = _objects(prediction, "prediction", num_classes)
        truth = _objects(target, "truth", num_classes)
    except DataError as error:
        raise DataError(f"{sample_id}: {error}") from None
    if predicted["size"] != truth["size"]:
        raise DataError(
            f"{sample_id}: the prediction has size {predicted['size']}, the truth {truth['size']}."
        )
    if predicted["scores"] is None:
        raise DataError(f"{sample_id}: the prediction has no scores.")
    if "segm" in (asked or predicted["kinds"]):
        for who, objects in (("prediction", predicted), ("truth", truth)):
            if objects["masks"] is None and objects["labels"]:
                raise DataError(
                    f"{sample_id}: the {who} has boxes only; for boxes take metric.kinds=[bbox], "
                    "or metric=box_proposals."
                )
    return {"prediction": predicted, "truth": truth}


def _objects(objects: Prediction | Truth, who: str, num_classes: int) -> Record:
    """Return objects as plain lists.

    They are size (height, width), labels, areas, scores and crowd (N), boxes (4 N), masks (N
    texts), and the kinds of results file that they stand for.

    Errors: DataError for what is not instances, labels that are no class, columns of other lengths,
    and damaged masks.
    """
    if not isinstance(objects, Instances | Segments):
        raise DataError(
            "this metric compares instances, not label maps; take metric=semantic for label maps."
        )
    dense = isinstance(objects, Instances)
    objects = run_lengths.as_segments(objects)
    columns: Record = {
        "boxes": objects.boxes,
        "areas": objects.areas,
        "crowd": objects.crowd,
        "scores": objects.scores,
        "masks": objects.masks,
    }
    for name, column in columns.items():
        if column is not None and len(column) != len(objects):
            raise DataError(f"the {who} has {len(objects)} labels, but {len(column)} {name}.")
        if name != "masks" and column is not None:
            if not np.isfinite(column).all():
                raise DataError(f"the {who} holds {name} that are not finite numbers.")
            columns[name] = np.ravel(column).tolist()
    wrong = objects.labels[(objects.labels < 0) | (objects.labels >= num_classes)]
    if len(wrong):
        raise DataError(f"the {who} holds label {wrong[0]}, but classes are 0-{num_classes - 1}.")
    size = [int(objects.size[0]), int(objects.size[1])]
    kinds: list[Kind] = [] if objects.masks is None else ["segm"]
    if _check_masks(objects, who, size) or dense:
        kinds.append("bbox")
    return columns | {
        "size": size,
        "labels": objects.labels.tolist(),
        "masks": None if objects.masks is None else [mask["counts"] for mask in objects.masks],
        "crowd": columns["crowd"] or [False] * len(objects),
        "kinds": kinds if len(objects) or dense else [],
    }


def _check_masks(objects: Segments, who: str, size: list[int]) -> bool:
    """Tell whether boxes or areas say more than the masks do.

    Errors: DataError for a damaged mask or one of another size.
    """
    if objects.masks is None:
        return True
    for mask in objects.masks:
        if list(mask["size"]) != size:
            raise DataError(
                f"the {who} has a mask of {list(mask['size'])} in an image of {size} pixels."
            )
        if not isinstance(mask["counts"], str):
            raise DataError(f"the {who} has a mask that is not in COCO's compressed form.")
    try:
        areas = run_lengths.areas(objects.masks)
        boxes = run_lengths.boxes(objects.masks)
    except ValueError as error:
        raise DataError(f"the {who} has a damaged mask: {error}.") from None
    return not (np.array_equal(areas, objects.areas) and np.array_equal(boxes, objects.boxes))


def _countable(truth: Record) -> list[int]:
    """Return the labels of the objects that are not crowd regions."""
    return [
        label for label, crowd in zip(truth["labels"], truth["crowd"], strict=True) if not crowd
    ]


# The evaluation of many images


def _evaluate(
    images: list[Record],
    kind: Kind,
    num_classes: int,
    classes: list[int] | None = None,
    class_agnostic: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision (T, R, K, A, M) and recall (T, K, A, M), -1 where the truth has nothing.

    `classes` restricts K to those. `class_agnostic` counts proposals: all objects are of one class,
    K = 1. Errors: NothingToMeasure without images.
    """
    evaluation = _prepared(images, kind, num_classes)
    evaluation.params.max_dets = list(MAX_PROPOSALS if class_agnostic else MAX_DETECTIONS)
    evaluation.params.use_cats = not class_agnostic
    if classes is not None:
        evaluation.params.cat_ids = [index + 1 for index in classes]
    evaluation.evaluate()
    evaluation.accumulate()
    arrays: Any = evaluation.eval
    return arrays["precision"], arrays["recall"]


def _prepared(images: list[Record], kind: Kind, num_classes: int) -> COCOeval:
    """Return an evaluation of the objects of images. Errors: NothingToMeasure without images."""
    if not images:
        raise NothingToMeasure("no image was evaluated: the split is empty.")
    predicted = [image["prediction"] for image in images]
    truth = [image["truth"] for image in images]
    pictures = [
        {"id": number, "height": part["size"][0], "width": part["size"][1]}
        for number, part in enumerate(truth, 1)
    ]
    categories = [{"id": index + 1, "name": str(index)} for index in range(num_classes)]
    annotations = COCO.from_arrays(
        pictures,
        categories,
        _image_numbers(truth),
        _join(truth, "labels", np.int64) + 1,
        _join(truth, "boxes").reshape(-1, 4),
        area=_join(truth, "areas"),
        iscrowd=_join(truth, "crowd", np.bool_),
        segmentation=_masks(truth) if kind == "segm" else None,
    )
    boxes = _join(predicted, "boxes").reshape(-1, 4)
    scores = _join(predicted, "scores")
    rows = [_image_numbers(predicted), boxes, scores, _join(predicted, "labels") + 1]
    results = annotations.load_res(
        np.column_stack(rows), segmentation=_masks(predicted) if kind == "segm" else None
    )
    # load_res sizes by its own rule; pycocotools' rule is that of `areas`, see the module.
    areas = _join(predicted, "areas")
    if kind == "bbox" and any("bbox" in part["kinds"] for part in predicted):
        areas = boxes[:, 2] * boxes[:, 3]
    results.update_anns(ids=np.arange(1, len(areas) + 1), area=areas)
    return COCOeval(annotations, results, kind)


def _matches(images: list[Record], kind: Kind, num_classes: int) -> Record:
    """Return which detections hit an object, as columns of plain numbers.

    `truths` are [image, class, objects] where there are any that count. A detection is an entry in
    `image`, `label`, `score`, `hits` and `ignored`; bit t of the last two is for IoU threshold t.
    """
    evaluation = _prepared(images, kind, num_classes)
    evaluation.params.max_dets = [MAX_DETECTIONS[HIGHEST_LIMIT]]
    evaluation.params.area_rng = [list(SIZE_RANGES[ALL_SIZES])]
    evaluation.params.area_rng_lbl = ["all"]
    evaluation.evaluate()
    truths: list[list[int]] = []
    columns: Record = {name: [] for name in ("image", "label", "score", "hits", "ignored")}
    for pair in evaluation.eval_imgs:
        if pair is None:
            continue
        image = pair["image_id"] - 1
        label = pair["category_id"] - 1
        if objects := sum(not ignored for ignored in pair["gtIgnore"]):
            truths.append([image, label, objects])
        count = len(pair["dtScores"])
        columns["image"] += [image] * count
        columns["label"] += [label] * count
        columns["score"] += pair["dtScores"]
        columns["hits"] += _bits(pair["dtMatched"], count)
        columns["ignored"] += _bits(pair["dtIgnore"], count)
    return {"truths": truths, **columns}


def _bits(rows: list[list[bool]], count: int) -> list[int]:
    """Return (T, N) flags as N numbers, of which flag t is bit t."""
    flags = np.array(rows, np.int64).reshape(len(rows), count)
    return (flags << np.arange(len(flags))[:, None]).sum(0).tolist()


def _image_numbers(parts: list[Record]) -> np.ndarray:
    """Return the number of the image of each object, counted from 1."""
    return np.repeat(np.arange(1, len(parts) + 1), [len(part["labels"]) for part in parts])


def _join(parts: list[Record], name: str, dtype: type = np.float64) -> np.ndarray:
    """Join one column of the objects of all images."""
    return np.array([value for part in parts for value in part[name]], dtype)


def _masks(parts: list[Record]) -> list[Any]:
    """Return the masks of the objects of all images in COCO's form."""
    return [
        {"size": part["size"], "counts": text} for part in parts for text in part["masks"] or ()
    ]


def _own_ap(image: Record, num_classes: int, asked: Sequence[Kind] | None) -> float | None:
    """Return the AP of one image over the classes of its truth; None where all of that is crowd."""
    classes = sorted(set(_countable(image["truth"])))
    if not classes:
        return None
    kind: Kind = "segm" if "segm" in (asked or image["prediction"]["kinds"]) else "bbox"
    precision, _ = _evaluate([image], kind, num_classes, classes=classes)
    return _mean(precision[..., ALL_SIZES, HIGHEST_LIMIT])


# Numbers and text


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """Return the twelve numbers of `DETECTION_NUMBERS`, None where the truth has nothing."""
    parts = [
        precision[..., ALL_SIZES, HIGHEST_LIMIT],
        precision[IOU_50, ..., ALL_SIZES, HIGHEST_LIMIT],
        precision[IOU_75, ..., ALL_SIZES, HIGHEST_LIMIT],
    ]
    parts += [precision[..., size, HIGHEST_LIMIT] for size in SINGLE_SIZES]
    parts += [recall[..., ALL_SIZES, limit] for limit in LIMITS]
    parts += [recall[..., size, HIGHEST_LIMIT] for size in SINGLE_SIZES]
    return dict(zip(DETECTION_NUMBERS, map(_mean, parts), strict=True))


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of what the truth knows; None for nothing.

    In C order like pycocotools, whose last bit depends on it.
    """
    known = values[values > -1]
    return float(np.mean(known)) if known.size else None


def _in_order(names: Iterable[str]) -> list[str]:
    """Sort ids as numbers where all are numbers, else as text."""
    names = list(names)
    if all(map(str.isdecimal, names)):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _percents(numbers: dict[str, float], kind: str, names: Sequence[str]) -> list[str]:
    """Return numbers of one kind in percent with one decimal; `-` for those that are not there."""
    keys = [f"{kind}/{name}" for name in names]
    return [f"{100 * numbers[key]:.1f}" if key in numbers else "-" for key in keys]
