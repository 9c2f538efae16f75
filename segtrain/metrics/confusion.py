"""Count pixels by truth and prediction, and make the semantic numbers from the counts.

The numbers are those of FCN (Long et al., CVPR 2015, section 5). Counts are taken over the whole
set, ratios once at the end. Pixels whose truth is IGNORE never count, whatever was predicted.

Shapes: label maps (H, W), matrix (K, K + V) int64 with rows = truth and columns = prediction. The V
last columns, none unless a benchmark asks for them, are predictions that are no evaluated class:
missed pixels of the truth's class, and false positives of none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.contracts import Prediction, Truth
from segtrain.errors import (
    DataError,
    InternalError,
    NothingToMeasure,
    UserError,
    did_you_mean,
)
from segtrain.metrics.base import BaseEvaluator, aligned, lowest, union
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import IGNORE, Scene
from segtrain.visualization.heat_map import confusion_picture

PROTOCOL = (
    "confusion over the whole split at native size; void pixels of the truth dropped; "
    "mIoU over the classes present in truth or prediction"
)


def confusion(
    prediction: Tensor | np.ndarray, target: Tensor | np.ndarray, num_classes: int, voids: int = 0
) -> Tensor:
    """Count the pixels (K, K + voids) int64 of two integer maps (H, W), rows = truth.

    The result is on the prediction's device. The target may hold IGNORE. A prediction may also hold
    the `voids` highest values of a byte (1: 255; 2: 254 and 255), which stand in this order in the
    columns behind the classes. Errors: DataError for different sizes, for a prediction of another
    value, and for a truth that is neither class nor IGNORE.
    """
    prediction = _tensor(prediction)
    target = _tensor(target).to(prediction.device)
    if prediction.shape != target.shape:
        raise DataError(
            f"the prediction has shape {tuple(prediction.shape)}, the truth {tuple(target.shape)}."
        )
    column = _shifted("prediction", prediction, num_classes, voids)
    row = _shifted("truth", target, num_classes, 1)
    # One table for every pixel, the ignored ones in row 0, is faster than a boolean mask that
    # leaves them out. int16 suffices for 180 classes and moves a quarter of the bytes of int64.
    rows = num_classes + 1
    columns = num_classes + voids
    dtype = torch.int16 if rows * columns <= 2**15 else torch.int32
    index = row.to(dtype).mul_(columns).add_(column.to(dtype)).flatten()
    table = torch.bincount(index, minlength=rows * columns).view(rows, columns)
    return table[1:].roll(-voids, 1)


def _tensor(labels: Tensor | np.ndarray) -> Tensor:
    """Return labels as a tensor; read-only arrays are copied, as torch warns about them."""
    if isinstance(labels, Tensor):
        return labels
    return torch.from_numpy(labels if labels.flags.writeable else labels.copy())


def _shifted(name: str, labels: Tensor, num_classes: int, voids: int) -> Tensor:
    """Return uint8 labels + voids, which wraps the values 256 - voids .. 255 to 0 .. voids - 1.

    What is legal is then one range. Errors: DataError for a value outside it.
    """
    if labels.numel() == 0:
        return labels.to(torch.uint8)
    if labels.dtype != torch.uint8:
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high > 255:
            raise _illegal(name, low if low < 0 else high, num_classes, voids)
        labels = labels.to(torch.uint8)
    shifted = labels + voids if voids else labels
    if int(shifted.max()) >= num_classes + voids:
        wrong = labels[shifted >= num_classes + voids][0]
        raise _illegal(name, int(wrong), num_classes, voids)
    return shifted


def _illegal(name: str, value: int, num_classes: int, voids: int) -> DataError:
    """Return the error that names a value which is no class, and what is allowed beside classes."""
    allowed = {0: "", 1: f" and {IGNORE} is ignored"}.get(
        voids, f" and {256 - voids}-{IGNORE} are no class"
    )
    return DataError(f"the {name} holds {value}, but classes are 0-{num_classes - 1}{allowed}.")


def iou(matrix: Tensor) -> np.ndarray:
    """Return the IoU (K,) float64; nan for a class in neither truth nor prediction."""
    counts = matrix.cpu().numpy().astype(np.float64)
    intersection = counts.diagonal()
    true = counts.sum(1)
    predicted = counts.sum(0)[: len(intersection)]
    return _ratio(intersection, true + predicted - intersection)


def accuracy(matrix: Tensor) -> np.ndarray:
    """Return the share (K,) float64 of a class's true pixels that are predicted as it, or nan."""
    counts = matrix.cpu().numpy().astype(np.float64)
    return _ratio(counts.diagonal(), counts.sum(1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide, with nan where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def numbers(
    matrix: Tensor, class_names: list[str], leave_out: Sequence[str] = ()
) -> dict[str, float]:
    """Return mIoU, pixAcc, mAcc, fwIoU and `IoU/<class>` as fractions in [0, 1].

    A class absent from truth and prediction has no IoU: it is left out of the mean and has no key,
    as JSON knows no NaN. A class that is predicted but nowhere true has IoU 0 and counts in mIoU,
    but not in mAcc. The classes to `leave_out` are left out of mIoU and mAcc only.

    Errors: NothingToMeasure when no pixel of a class that counts there was counted.
    """
    true = matrix.sum(1).cpu().numpy().astype(np.float64)
    kept = np.array([name not in leave_out for name in class_names])
    if true[kept].sum() == 0:
        raise NothingToMeasure(
            "no labelled pixel was counted: the split is empty or every pixel of its masks is "
            "ignored."
        )
    class_iou = iou(matrix)
    class_accuracy = accuracy(matrix)
    result = {
        "mIoU": float(np.nanmean(class_iou[kept])),
        "pixAcc": float(matrix.diagonal().sum()) / float(true.sum()),
        "mAcc": float(np.nanmean(class_accuracy[kept])),
        "fwIoU": float((true * np.nan_to_num(class_iou)).sum() / true.sum()),
    }
    named = zip(class_names, class_iou, strict=True)
    return result | {f"IoU/{name}": float(value) for name, value in named if not np.isnan(value)}


class SemanticEvaluator(BaseEvaluator):
    """Add up confusion matrices, and remember each image's own mIoU.

    `leave_out` names classes that are counted, but stand in neither mIoU nor mAcc: the convention
    "without background". A pixel that is predicted as void is missed, as in CamVid's and
    Cityscapes' own code. Errors: UserError for names that are no class.
    """

    voids = 1

    def __init__(self, class_names: list[str], leave_out: list[str] | None = None) -> None:
        self.class_names = list(class_names)
        self.leave_out = list(leave_out or [])
        for name in self.leave_out:
            if name not in self.class_names:
                raise UserError(
                    f"leave_out: there is no class `{name}`.{did_you_mean(name, self.class_names)}"
                )
        self.kept = np.array([name not in self.leave_out for name in self.class_names])
        if not self.kept.any():
            raise UserError("leave_out: names every class, so there is nothing to take the mean of")
        self.protocol = PROTOCOL
        if self.leave_out:
            self.protocol += f"; mIoU and mAcc without {', '.join(self.leave_out)}"
        num_classes = len(self.class_names)
        self.matrix = torch.zeros((num_classes, num_classes + self.voids), dtype=torch.int64)
        # Image id -> mIoU of that image alone, None where every pixel is ignored.
        self.images: dict[str, float | None] = {}
        # Image id -> pixels (3, K) int64 of each class: intersection, union, truth.
        self.parts: dict[str, Tensor] = {}

    def update(self, sample_id: str, prediction: Prediction, target: Truth) -> None:
        """Add one image: label maps (H, W), of a `Scene` its mask. Errors name the image."""
        target = target.mask if isinstance(target, Scene) else target
        if isinstance(prediction, Instances | Segments) or isinstance(target, Instances | Segments):
            raise DataError(
                f"{sample_id}: this metric compares label maps, not instances; take metric=coco, "
                "or metric=proposals for objects without a class."
            )
        if sample_id in self.images:
            raise InternalError(f"{sample_id}: evaluated twice.")
        try:
            matrix = confusion(prediction, target, len(self.class_names), self.voids).cpu()
        except DataError as error:
            raise DataError(f"{sample_id}: {error}") from None
        self.matrix += matrix
        own = iou(matrix)[self.kept]
        self.images[sample_id] = None if np.isnan(own).all() else float(np.nanmean(own))
        both = matrix.diagonal()
        true = matrix.sum(1)
        self.parts[sample_id] = torch.stack([both, true + matrix.sum(0)[: len(both)] - both, true])

    def state(self) -> dict[str, Any]:
        """Return copies of matrix (K, K + V), images {id: mIoU or None} and parts {id: (3, K)}."""
        return {
            "matrix": self.matrix.clone(),
            "images": dict(self.images),
            "parts": dict(self.parts),
        }

    def merge(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace the counts by the union of `states`.

        Errors: InternalError if two states share an image.
        """
        self.images = union([state["images"] for state in states])
        self.parts = union([state["parts"] for state in states])
        self.matrix = sum(
            (state["matrix"] for state in states), start=torch.zeros_like(self.matrix)
        )

    def names(self) -> list[str]:
        """Return every key that `compute` can give, see `numbers`."""
        return ["mIoU", "pixAcc", "mAcc", "fwIoU", *(f"IoU/{name}" for name in self.class_names)]

    def compute(self) -> dict[str, float]:
        """Return mIoU, pixAcc, mAcc, fwIoU and `IoU/<class>`, see `numbers`."""
        return numbers(self.matrix, self.class_names, self.leave_out)

    def worst(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` images of lowest mIoU, worst first."""
        return lowest(self.images, count)

    def image_scores(self) -> dict[str, dict[str, float | None]]:
        """Return each image's own mIoU and pixAcc, and the pixels that the set's mIoU is made of.

        The sums of `intersection/<class>` and `union/<class>` over all images give the IoU of the
        set. Only classes that mIoU counts have them.
        """
        scores: dict[str, dict[str, float | None]] = {}
        for sample_id in sorted(self.images):
            both, unions, true = self.parts[sample_id].tolist()
            pixels = sum(true)
            scores[sample_id] = {
                "mIoU": self.images[sample_id],
                "pixAcc": sum(both) / pixels if pixels else None,
            }
            for name, counts in (("intersection", both), ("union", unions)):
                named = zip(self.class_names, counts, self.kept.tolist(), strict=True)
                scores[sample_id] |= {f"{name}/{of}": count for of, count, kept in named if kept}
        return scores

    def pictures(self) -> dict[str, np.ndarray]:
        """Return {"confusion": picture (H, W, 3)} of the matrix, normalised by row."""
        return {"confusion": confusion_picture(self.matrix, self.class_names)}

    def counts(self) -> dict[str, Any]:
        """Return {"confusion": the class names and the (K, K) matrix}, rows = truth, in pixels."""
        square = self.matrix[:, : len(self.matrix)]
        return {"confusion": {"classes": self.class_names, "counts": square.tolist()}}

    def table(self) -> str:
        """Return text for the terminal: a line per class, then the means.

        A line has IoU and accuracy in percent and the number of true pixels.
        """
        result = self.compute()
        pixels = self.matrix.sum(1).tolist()
        columns = zip(
            self.class_names, iou(self.matrix), accuracy(self.matrix), pixels, strict=True
        )
        rows = [("class", "IoU %", "Acc %", "pixels")]
        for name, class_iou, class_accuracy, true in columns:
            rows.append((name, percent(class_iou), percent(class_accuracy), f"{true:,}"))
        rows.append(("mean", percent(result["mIoU"]), percent(result["mAcc"]), f"{sum(pixels):,}"))
        without = f", means without {', '.join(self.leave_out)}" if self.leave_out else ""
        missed = int(self.matrix[:, len(self.matrix) :].sum())
        voids = f"\n{missed:,} pixels are predicted as void; they count as missed" if missed else ""
        return f"{ruled(rows)}\n{totals(result)}{without}{voids}"


def ruled(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows of cells as aligned text, the first column to the left.

    The first row is the head, the last one the mean; both are set off by a line.
    """
    lines = aligned(rows)
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def totals(result: dict[str, float]) -> str:
    """Return the line below a table."""
    return (
        f"pixel accuracy {percent(result['pixAcc'])} %, "
        f"frequency-weighted IoU {percent(result['fwIoU'])} %"
    )


def percent(value: float | None) -> str:
    """Return a fraction in percent with two decimals; `-` for none."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.2f}"
