"""Confusion matrix and the numbers made from it (Long et al., FCN, CVPR 2015, section 5).

Counts over the whole set, ratios once at the end. Pixels whose truth is IGNORE never count, whatever was predicted.
Shapes: label maps (H, W), matrix (K, K + V) int64 with rows = truth, columns = prediction. The V last columns, none unless
a benchmark asks for them, are predictions that are no evaluated class: missed pixels of the truth's class, false for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.errors import DataError, InternalError, UserError, did_you_mean
from segtrain.metrics.base import BaseEvaluator
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import IGNORE, Scene
from segtrain.visualization.heat_map import confusion_picture


def confusion(
    prediction: Tensor | np.ndarray, target: Tensor | np.ndarray, num_classes: int, voids: int = 0
) -> Tensor:
    """(K, K + voids) int64 pixel counts on the prediction's device, rows = truth. Integer maps (H, W), IGNORE in the target.

    A prediction may also hold the `voids` highest values of a byte (1: 255; 2: 254 and 255), in this order in the columns
    behind the classes. Raises `DataError` for different sizes, another prediction, a truth that is neither class nor IGNORE.
    """
    prediction = _tensor(prediction)
    target = _tensor(target).to(prediction.device)
    if prediction.shape != target.shape:
        raise DataError(
            f"the prediction has shape {tuple(prediction.shape)}, the truth {tuple(target.shape)}."
        )
    column = _shifted("prediction", prediction, num_classes, voids)
    row = _shifted("truth", target, num_classes, 1)
    # One table for every pixel, the ignored ones in row 0, so there is no boolean mask. int16 is enough for 180 classes.
    rows, columns = num_classes + 1, num_classes + voids
    dtype = torch.int16 if rows * columns <= 2**15 else torch.int32
    index = row.to(dtype).mul_(columns).add_(column.to(dtype)).flatten()
    table = torch.bincount(index, minlength=rows * columns).view(rows, columns)
    return table[1:].roll(-voids, 1)


def _tensor(labels: Tensor | np.ndarray) -> Tensor:
    if isinstance(labels, Tensor):
        return labels
    return torch.from_numpy(
        labels if labels.flags.writeable else labels.copy()
    )  # torch warns about read-only arrays


def _shifted(name: str, labels: Tensor, num_classes: int, voids: int) -> Tensor:
    """uint8 labels + voids, which wraps 256 - voids .. 255 round to 0 .. voids - 1: what is legal is then one range."""
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
    ignored = {0: "", 1: f" and {IGNORE} is ignored"}.get(
        voids, f" and {256 - voids}-{IGNORE} are no class"
    )
    return DataError(f"the {name} holds {value}, but classes are 0-{num_classes - 1}{ignored}.")


def iou(matrix: Tensor) -> np.ndarray:
    """(K,) float64 intersection over union; nan for a class that neither the truth nor the prediction contains."""
    counts = matrix.cpu().numpy().astype(np.float64)
    hit = counts.diagonal()
    return _ratio(hit, counts.sum(1) + counts.sum(0)[: len(hit)] - hit)


def accuracy(matrix: Tensor) -> np.ndarray:
    """(K,) float64 share of a class's true pixels that were found; nan for a class without true pixels."""
    counts = matrix.cpu().numpy().astype(np.float64)
    return _ratio(counts.diagonal(), counts.sum(1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def numbers(
    matrix: Tensor, class_names: list[str], leave_out: Sequence[str] = ()
) -> dict[str, float]:
    """mIoU, pixAcc, mAcc, fwIoU and `IoU/<class>` as fractions in [0, 1].

    A class absent from truth and prediction has no IoU: it is left out of the mean and has no key (JSON knows no NaN).
    A class that is predicted but nowhere true has IoU 0 and counts in mIoU, but not in mAcc. The classes to `leave_out`
    are left out of mIoU and mAcc only. Raises `DataError` when no pixel of a class that counts there was counted.
    """
    true = matrix.sum(1).cpu().numpy().astype(np.float64)
    kept = np.array([name not in leave_out for name in class_names])
    if true[kept].sum() == 0:
        raise DataError(
            "no labelled pixel was counted: the split is empty or every pixel of its masks is ignored."
        )
    per_class, found = iou(matrix), accuracy(matrix)
    result = {
        "mIoU": float(np.nanmean(per_class[kept])),
        "pixAcc": float(matrix.diagonal().sum()) / float(true.sum()),
        "mAcc": float(np.nanmean(found[kept])),
        "fwIoU": float((true * np.nan_to_num(per_class)).sum() / true.sum()),
    }
    named = zip(class_names, per_class, strict=True)
    return result | {f"IoU/{name}": float(value) for name, value in named if not np.isnan(value)}


PROTOCOL = (
    "confusion over the whole split at native size; void pixels of the truth dropped; "
    "mIoU over the classes present in truth or prediction"
)


class SemanticEvaluator(BaseEvaluator):
    """Adds up confusion matrices and remembers each image's own mIoU. See `contracts.Evaluator`.

    `leave_out` names classes that are counted, but stand in neither mIoU nor mAcc: the convention "without background".
    """

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
        self.protocol = PROTOCOL + (
            f"; mIoU and mAcc without {', '.join(self.leave_out)}" if self.leave_out else ""
        )
        self.matrix = torch.zeros(
            (len(self.class_names), len(self.class_names) + self.voids), dtype=torch.int64
        )
        self.images: dict[
            str, float | None
        ] = {}  # id -> mIoU of that image alone, None where every pixel is ignored

    def update(
        self,
        sample_id: str,
        prediction: Tensor | Instances | Segments,
        target: Tensor | np.ndarray | Instances | Scene | Segments,
    ) -> None:
        """Add one image: label maps (H, W), of a `Scene` its mask. Errors name the image."""
        target = target.mask if isinstance(target, Scene) else target
        if isinstance(prediction, Instances | Segments) or isinstance(target, Instances | Segments):
            raise DataError(
                f"{sample_id}: this metric compares label maps, not instances; check metric."
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

    def state(self) -> dict:
        """{"matrix": (K, K + V) int64, "images": {id: mIoU or None}}, copies."""
        return {"matrix": self.matrix.clone(), "images": dict(self.images)}

    def merge(self, states: list[dict]) -> None:
        """Replace the counts by the union of `states`. Raises `InternalError` if two states share an image."""
        matrix = torch.zeros_like(self.matrix)
        images: dict[str, float | None] = {}
        for state in states:
            twice = sorted(images.keys() & state["images"].keys())
            if twice:
                raise InternalError(
                    f"{twice[0]}: evaluated by two processes ({len(twice)} images in all)."
                )
            matrix += state["matrix"]
            images |= state["images"]
        self.matrix, self.images = matrix, images

    def names(self) -> list[str]:
        """See `numbers`."""
        return ["mIoU", "pixAcc", "mAcc", "fwIoU", *(f"IoU/{name}" for name in self.class_names)]

    def compute(self) -> dict[str, float]:
        """See `numbers`."""
        return numbers(self.matrix, self.class_names, self.leave_out)

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The `count` images of lowest mIoU, worst first, ties by id: the same under any sharding."""
        scored = [(name, value) for name, value in self.images.items() if value is not None]
        return sorted(scored, key=lambda pair: (pair[1], pair[0]))[:count]

    def pictures(self) -> dict[str, np.ndarray]:
        """{"confusion": picture (H, W, 3)} of the matrix, normalised by row."""
        return {"confusion": confusion_picture(self.matrix, self.class_names)}

    def counts(self) -> dict[str, Any]:
        """Return {"confusion": the class names and the (K, K) matrix}, rows = truth, in pixels."""
        square = self.matrix[:, : len(self.matrix)]
        return {"confusion": {"classes": self.class_names, "counts": square.tolist()}}

    def table(self) -> str:
        """Text for the terminal: a line per class with IoU and accuracy in percent and true pixels, then the means."""
        result = self.compute()
        rows = [("class", "IoU %", "Acc %", "pixels")]
        pixels = self.matrix.sum(1).tolist()
        for row in zip(
            self.class_names, iou(self.matrix), accuracy(self.matrix), pixels, strict=True
        ):
            rows.append((row[0], percent(row[1]), percent(row[2]), f"{row[3]:,}"))
        rows.append(("mean", percent(result["mIoU"]), percent(result["mAcc"]), f"{sum(pixels):,}"))
        without = f", means without {', '.join(self.leave_out)}" if self.leave_out else ""
        return f"{ruled(rows)}\n{totals(result)}{without}"


def ruled(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as aligned text, the first column to the left; the first row is the head, the last one the mean."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def totals(result: dict[str, float]) -> str:
    """The line below a table."""
    return f"pixel accuracy {percent(result['pixAcc'])} %, frequency-weighted IoU {percent(result['fwIoU'])} %"


def percent(value: float | None) -> str:
    """A fraction with two decimals; `-` for none."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.2f}"
