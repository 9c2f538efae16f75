"""Average precision and recall of instances (Lin et al., COCO, ECCV 2014). The home of hotcoco's evaluator.

The numbers are pycocotools' on the same annotations and results files, to the last bit. What that takes:
- Objects are sized by `Segments.areas`: a truth by its annotated area, a detection by what pycocotools' loadRes makes of
  the file: width * height of a box that the file gives, else the pixels of its mask. Boxes that the file gives are sized
  by width * height in `bbox/` whatever `areas` says.
- `Instances` count as two results files, one of masks (sized by their pixels) and one of boxes.
- Equal scores rank by image, then by place within the image. Images go by id: as numbers where all ids are numbers, as
  in COCO, else as text. So any sharding gives the same numbers.

N objects, T = 10 IoU thresholds 0.50:0.05:0.95, R = 101 recall points, K classes, A = 4 size ranges, M = 3 limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from hotcoco import COCO, COCOeval

from segtrain.errors import DataError, InternalError
from segtrain.metrics.base import BaseEvaluator
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments

Kind = Literal["segm", "bbox"]
Record = dict[str, Any]  # plain lists, numbers and text
KINDS: tuple[Kind, ...] = ("segm", "bbox")
SIZES = (
    (0.0, 1e10),
    (0.0, 32.0**2),
    (32.0**2, 96.0**2),
    (96.0**2, 1e10),
)  # pixels: all, small, medium, large
LIMITS = (1, 10, 100)  # detections per image and class
PROPOSALS = (10, 100, 1000)  # proposals per image
SUMMARY = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR@1",
    "AR@10",
    "AR@100",
    "ARs",
    "ARm",
    "ARl",
)
RECALLS = ("AR@10", "AR@100", "AR@1000", "ARs", "ARm", "ARl")


class CocoEvaluator(BaseEvaluator):
    """AP and AR per class of masks (`segm/`) and boxes (`bbox/`). Keeps all objects, masks run-length encoded."""

    protocol = (
        "COCO instances as pycocotools counts them: IoU 0.50:0.05:0.95, 101 recall points, at most 1, 10, 100 detections "
        "per image and class, crowd regions ignored"
    )

    def __init__(
        self, class_names: list[str], kinds: list[Literal["segm", "bbox"]] | None = None
    ) -> None:
        """`kinds` None: `segm` where predictions have masks, `bbox` where they have boxes of their own.

        Boxes of a `Segments` prediction are not its own where boxes and areas are just those of its masks.
        """
        self.class_names = list(class_names)
        self.asked: list[Kind] | None = kinds or None
        self.images: dict[str, Record] = {}  # id -> see `_image`
        self._numbers: dict[str, float] | None = None  # the last answer of compute()

    def update(self, sample_id: str, prediction: Any, target: Any) -> None:
        """Add one image: `Segments` or `Instances`, the prediction with scores. Errors name the image."""
        image = _image(
            sample_id, self.images, prediction, target, len(self.class_names), self.asked
        )
        self.images[sample_id] = image | {"score": _alone(image, len(self.class_names), self.asked)}
        self._numbers = None

    def state(self) -> dict:
        """{"images": {id: objects as lists of numbers and text, and the score for `worst`}}."""
        return {"images": dict(self.images)}

    def merge(self, states: list[dict]) -> None:
        """Replace the objects by the union of `states`. Raises `InternalError` if two states share an image."""
        self.images = _union(states)
        self._numbers = None

    def names(self) -> list[str]:
        """The twelve of each kind, then `<kind>/AP/<class>`. A number of which the truth holds nothing has no key."""
        kinds = [kind for kind in KINDS if kind in (self.asked or KINDS)]
        summary = [f"{kind}/{name}" for kind in kinds for name in SUMMARY]
        return summary + [f"{kind}/AP/{name}" for kind in kinds for name in self.class_names]

    def kinds(self) -> list[Kind]:
        """What compute() gives: as asked, else by the predictions; where there are none, all that the truth allows."""
        if self.asked is not None:
            return [kind for kind in KINDS if kind in self.asked]
        said = {kind for image in self.images.values() for kind in image["found"]["kinds"]}
        masked = all(image["truth"]["masks"] is not None for image in self.images.values())
        return [kind for kind in KINDS if kind in said] or [
            kind for kind in KINDS if masked or kind == "bbox"
        ]

    def compute(self) -> dict[str, float]:
        """See `names`. Raises `DataError` when no image was given, or some predictions have masks and others do not."""
        if self._numbers is not None:
            return dict(self._numbers)
        names = _in_order(self.images)
        images = [self.images[name] for name in names]
        summary, classes = {}, {}
        for kind in self.kinds():
            for name, image in zip(names, images, strict=True):
                if kind == "segm" and image["found"]["masks"] is None and image["found"]["labels"]:
                    raise DataError(f"{name}: this prediction has boxes only, others have masks.")
            precision, recall = _evaluate(images, kind, len(self.class_names))
            summary |= {
                f"{kind}/{name}": value for name, value in _summary(precision, recall).items()
            }
            for index, name in enumerate(self.class_names):
                classes[f"{kind}/AP/{name}"] = _mean(precision[:, :, index, 0, 2])
        self._numbers = {
            name: value for name, value in (summary | classes).items() if value is not None
        }
        return dict(self._numbers)

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The `count` images of lowest AP, counted as if there were no others, worst first, ties by id.

        AP of masks where there are any, else of boxes. Images without an object that is not a crowd are left out.
        """
        return _lowest({name: image["score"] for name, image in self.images.items()}, count)

    def table(self) -> str:
        """Text for the terminal, in percent: a row of the twelve numbers per kind, then the AP of every class."""
        numbers, kinds = self.compute(), self.kinds()
        head = _columns(
            [("", *SUMMARY), *((kind, *_percents(numbers, kind, SUMMARY)) for kind in kinds)]
        )
        objects = Counter(
            label for image in self.images.values() for label in _countable(image["truth"])
        )
        rows = [("class", *(f"{kind} AP" for kind in kinds), "objects")]
        for index, name in enumerate(self.class_names):
            values = [_percents(numbers, kind, [f"AP/{name}"])[0] for kind in kinds]
            rows.append((name, *values, f"{objects[index]:,}"))
        first, *rest = _columns(rows)
        return "\n".join([*head, "", first, "-" * len(first), *rest])


class ProposalEvaluator(BaseEvaluator):
    """Recall of 10, 100 and 1,000 proposals an image, whatever their class (pycocotools with useCats = 0).

    Counts hits per image at once, so nothing else is kept. ARs, ARm, ARl are those of 1,000 proposals.
    """

    protocol = (
        "COCO proposals as pycocotools counts them with useCats=0: recall of the best 10, 100, 1000 per image, mean over "
        "IoU 0.50:0.05:0.95, crowd regions ignored"
    )

    class_agnostic = True

    def __init__(self, class_names: list[str], kind: Literal["segm", "bbox"] = "segm") -> None:
        self.class_names = list(class_names)
        self.kind: Kind = kind
        self.images: dict[
            str, Record
        ] = {}  # id -> {"objects": (A,) counts, "hits": (T, A, M) counts}

    def update(self, sample_id: str, prediction: Any, target: Any) -> None:
        """Add one image: `Segments` or `Instances`, the prediction with scores. Errors name the image."""
        image = _image(
            sample_id, self.images, prediction, target, len(self.class_names), [self.kind]
        )
        _, recall = _evaluate([image], self.kind, len(self.class_names), class_agnostic=True)
        areas = np.array(image["truth"]["areas"])[~np.array(image["truth"]["crowd"], bool)]
        objects = np.array(
            [np.count_nonzero((areas >= low) & (areas <= high)) for low, high in SIZES]
        )
        # A recall is hits / objects, so rounding gives back the whole number; it is -1 where there is no object.
        hits = np.rint(recall[:, 0] * objects[:, None]).astype(np.int64)
        self.images[sample_id] = {"objects": objects.tolist(), "hits": hits.tolist()}

    def state(self) -> dict:
        """{"images": {id: {"objects": (A,), "hits": (T, A, M)}}}, lists."""
        return {"images": dict(self.images)}

    def merge(self, states: list[dict]) -> None:
        """Replace the counts by the union of `states`. Raises `InternalError` if two states share an image."""
        self.images = _union(states)

    def names(self) -> list[str]:
        """`<kind>/AR@10` ... A number of which the truth holds nothing has no key."""
        return [f"{self.kind}/{name}" for name in RECALLS]

    def compute(self) -> dict[str, float]:
        """See `names`. Raises `DataError` when no image was given."""
        if not self.images:
            raise DataError("no image was evaluated: the split is empty.")
        objects = np.sum([image["objects"] for image in self.images.values()], axis=0)
        hits = np.sum([image["hits"] for image in self.images.values()], axis=0)
        recall = np.where(objects[:, None] > 0, hits / np.maximum(objects, 1)[:, None], -1.0)
        parts = [
            *(recall[:, 0, limit] for limit in range(3)),
            *(recall[:, size, 2] for size in (1, 2, 3)),
        ]
        values = zip(self.names(), map(_mean, parts), strict=True)
        return {name: value for name, value in values if value is not None}

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The `count` images of lowest own AR@1000, worst first, ties by id. Images without objects are left out."""
        scores: dict[str, float | None] = {}
        for name, image in self.images.items():
            hits = np.array(image["hits"])[:, 0, 2]
            scores[name] = (
                float(np.mean(hits / image["objects"][0])) if image["objects"][0] else None
            )
        return _lowest(scores, count)

    def table(self) -> str:
        """Text for the terminal: the numbers in percent."""
        return "\n".join(
            _columns([("", *RECALLS), (self.kind, *_percents(self.compute(), self.kind, RECALLS))])
        )


# ---------------------------------------------------------------------- objects of one image


def _image(
    sample_id: str,
    seen: Container[str],
    prediction: Any,
    target: Any,
    num_classes: int,
    asked: Sequence[Kind] | None,
) -> Record:
    """{"found": objects, "truth": objects}, see `_objects`. Errors: DataError for what cannot be compared."""
    if sample_id in seen:
        raise InternalError(f"{sample_id}: evaluated twice.")
    try:
        found, truth = (
            _objects(prediction, "prediction", num_classes),
            _objects(target, "truth", num_classes),
        )
    except DataError as error:
        raise DataError(f"{sample_id}: {error}") from None
    if found["size"] != truth["size"]:
        raise DataError(
            f"{sample_id}: the prediction has size {found['size']}, the truth {truth['size']}."
        )
    if found["scores"] is None:
        raise DataError(f"{sample_id}: the prediction has no scores.")
    if "segm" in (asked or found["kinds"]):
        for who, objects in (("prediction", found), ("truth", truth)):
            if objects["masks"] is None and objects["labels"]:
                raise DataError(
                    f"{sample_id}: the {who} has boxes only; for boxes set the kind in metric to bbox."
                )
    return {"found": found, "truth": truth}


def _objects(objects: Any, who: str, num_classes: int) -> Record:
    """Lists: size (height, width), labels, areas, scores, crowd (N), boxes (4 N), masks (N texts), kinds it tells of.

    Errors: DataError for what is not instances, labels that are no class, columns of other lengths, damaged masks.
    """
    dense = isinstance(objects, Instances)
    if isinstance(objects, Instances):
        objects = run_lengths.segments(objects)
    if not isinstance(objects, Segments):
        raise DataError("this metric compares instances, not label maps; check metric.")
    columns: Record = {}
    for name in ("boxes", "areas", "crowd", "scores", "masks"):
        column = getattr(objects, name)
        if column is not None and len(column) != len(objects):
            raise DataError(f"the {who} has {len(objects)} labels, but {len(column)} {name}.")
        if name != "masks" and column is not None:
            if not np.isfinite(column).all():
                raise DataError(f"the {who} holds {name} that are not finite numbers.")
            column = np.ravel(column).tolist()
        columns[name] = column
    wrong = objects.labels[(objects.labels < 0) | (objects.labels >= num_classes)]
    if len(wrong):
        raise DataError(f"the {who} holds label {wrong[0]}, but classes are 0-{num_classes - 1}.")
    size = [int(objects.size[0]), int(objects.size[1])]
    own = _check_masks(objects, who, size) or dense
    kinds = [
        kind for kind, told in zip(KINDS, (objects.masks is not None, own), strict=True) if told
    ]
    return columns | {
        "size": size,
        "labels": objects.labels.tolist(),
        "masks": None if objects.masks is None else [mask["counts"] for mask in objects.masks],
        "crowd": columns["crowd"] or [False] * len(objects),
        "kinds": kinds if len(objects) or dense else [],
    }


def _check_masks(objects: Segments, who: str, size: list[int]) -> bool:
    """Whether boxes or areas say more than the masks do. Errors: DataError for a damaged mask or one of another size."""
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
        areas, boxes = run_lengths.areas(objects.masks), run_lengths.boxes(objects.masks)
    except ValueError as error:
        raise DataError(f"the {who} has a damaged mask: {error}.") from None
    return not (np.array_equal(areas, objects.areas) and np.array_equal(boxes, objects.boxes))


def _countable(truth: Record) -> list[int]:
    """The labels of the objects that are not crowd regions."""
    return [
        label for label, crowd in zip(truth["labels"], truth["crowd"], strict=True) if not crowd
    ]


# ---------------------------------------------------------------------- the evaluator


def _evaluate(
    images: list[Record],
    kind: Kind,
    num_classes: int,
    classes: list[int] | None = None,
    class_agnostic: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M), -1 where the truth has nothing. `classes`: only those.

    `class_agnostic`: proposals, all objects are of one class, K = 1. Errors: DataError without images.
    """
    if not images:
        raise DataError("no image was evaluated: the split is empty.")
    found, truth = [image["found"] for image in images], [image["truth"] for image in images]
    pictures = [
        {"id": n, "height": part["size"][0], "width": part["size"][1]}
        for n, part in enumerate(truth, 1)
    ]
    categories = [{"id": index + 1, "name": str(index)} for index in range(num_classes)]
    boxes = _join(truth, "boxes").reshape(-1, 4)
    real = COCO.from_arrays(
        pictures,
        categories,
        _owners(truth),
        _join(truth, "labels", np.int64) + 1,
        boxes,
        area=_join(truth, "areas"),
        iscrowd=_join(truth, "crowd", np.bool_),
        segmentation=_masks(truth) if kind == "segm" else None,
    )
    boxes = _join(found, "boxes").reshape(-1, 4)
    rows = [_owners(found), boxes, _join(found, "scores"), _join(found, "labels") + 1]
    results = real.load_res(
        np.column_stack(rows), segmentation=_masks(found) if kind == "segm" else None
    )
    areas = _join(found, "areas")
    if kind == "bbox" and any("bbox" in part["kinds"] for part in found):
        areas = boxes[:, 2] * boxes[:, 3]
    results.update_anns(ids=np.arange(1, len(areas) + 1), area=areas)
    evaluation = COCOeval(real, results, kind)
    evaluation.params.max_dets = list(PROPOSALS if class_agnostic else LIMITS)
    evaluation.params.use_cats = not class_agnostic
    if classes is not None:
        evaluation.params.cat_ids = [index + 1 for index in classes]
    evaluation.evaluate()
    evaluation.accumulate()
    arrays: Any = evaluation.eval
    return arrays["precision"], arrays["recall"]


def _owners(parts: list[Record]) -> np.ndarray:
    """The image of each object, counted from 1."""
    return np.repeat(np.arange(1, len(parts) + 1), [len(part["labels"]) for part in parts])


def _join(parts: list[Record], name: str, dtype: type = np.float64) -> np.ndarray:
    return np.array([value for part in parts for value in part[name]], dtype)


def _masks(parts: list[Record]) -> list[Any]:
    return [
        {"size": part["size"], "counts": text} for part in parts for text in part["masks"] or ()
    ]


def _alone(image: Record, num_classes: int, asked: Sequence[Kind] | None) -> float | None:
    """AP of one image, over the classes of its truth; None where all of that is crowd."""
    truth = image["truth"]
    classes = sorted(set(_countable(truth)))
    if not classes:
        return None
    kind: Kind = "segm" if "segm" in (asked or image["found"]["kinds"]) else "bbox"
    return _mean(_evaluate([image], kind, num_classes, classes=classes)[0][..., 0, 2])


# ---------------------------------------------------------------------- numbers and text


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """The twelve numbers of `SUMMARY`."""
    parts = [
        precision[..., 0, 2],
        precision[0, ..., 0, 2],
        precision[5, ..., 0, 2],
    ]  # all IoU, IoU 0.50, IoU 0.75
    parts += [precision[..., size, 2] for size in (1, 2, 3)]
    parts += [recall[..., 0, limit] for limit in range(3)] + [
        recall[..., size, 2] for size in (1, 2, 3)
    ]
    return dict(zip(SUMMARY, map(_mean, parts), strict=True))


def _mean(values: np.ndarray) -> float | None:
    """The mean of what the truth knows; None for nothing. In C order like pycocotools, whose last bit depends on it."""
    known = values[values > -1]
    return float(np.mean(known)) if known.size else None


def _in_order(names: Iterable[str]) -> list[str]:
    """By number where all ids are numbers, else as text."""
    names = list(names)
    return (
        sorted(names, key=lambda name: (int(name), name))
        if all(map(str.isdecimal, names))
        else sorted(names)
    )


def _union(states: list[dict]) -> dict[str, Record]:
    images: dict[str, Record] = {}
    for state in states:
        if twice := sorted(images.keys() & state["images"].keys()):
            raise InternalError(
                f"{twice[0]}: evaluated by two processes ({len(twice)} images in all)."
            )
        images |= state["images"]
    return images


def _lowest(scores: dict[str, float | None], count: int) -> list[tuple[str, float]]:
    known = [(name, value) for name, value in scores.items() if value is not None]
    return sorted(known, key=lambda pair: (pair[1], pair[0]))[:count]


def _percents(numbers: dict[str, float], kind: str, names: Sequence[str]) -> list[str]:
    keys = [f"{kind}/{name}" for name in names]
    return [f"{100 * numbers[key]:.1f}" if key in numbers else "-" for key in keys]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = [
        [row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))]
        for row in rows
    ]
    return ["  ".join(line) for line in cells]
