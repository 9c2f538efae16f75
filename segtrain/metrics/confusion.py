"""Confusion matrix and the numbers made from it (Long et al., FCN, CVPR 2015, section 5).

Counts over the whole set, ratios once at the end. Pixels whose truth is IGNORE never count, whatever was predicted.
Shapes: label maps (H, W), matrix (K, K) int64 with rows = truth, columns = prediction.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segtrain.contracts import IGNORE, Instances
from segtrain.draw import confusion_picture
from segtrain.errors import DataError, InternalError


def confusion(prediction: Tensor | np.ndarray, target: Tensor | np.ndarray, num_classes: int) -> Tensor:
    """(K, K) int64 pixel counts on the prediction's device, rows = truth. Integer maps (H, W), IGNORE in the target.

    Raises `DataError` for different sizes, a prediction outside 0..K-1, a truth that is neither class nor IGNORE.
    """
    prediction = _tensor(prediction)
    target = _tensor(target).to(prediction.device)
    if prediction.shape != target.shape:
        raise DataError(f"the prediction has shape {tuple(prediction.shape)}, the truth {tuple(target.shape)}.")
    _check_range("prediction", prediction, num_classes, num_classes)
    if target.dtype != torch.uint8:
        _check_range("truth", target, num_classes, IGNORE + 1)
    # Ignored pixels fall into an extra row that is cut off: one pass, no boolean mask. int16 is enough for 180 classes.
    dtype = torch.int16 if num_classes <= 180 else torch.int32
    row = target.clamp(max=num_classes).to(dtype)
    index = row.mul_(num_classes).add_(prediction.to(dtype)).flatten()
    table = torch.bincount(index, minlength=num_classes * (num_classes + 1)).view(num_classes + 1, num_classes)
    if int(table[-1].sum()) != int((target == IGNORE).sum()):
        wrong = target[(target >= num_classes) & (target != IGNORE)][0]
        raise DataError(f"the truth holds {int(wrong)}, but classes are 0-{num_classes - 1} and {IGNORE} is ignored.")
    return table[:-1]


def _tensor(labels: Tensor | np.ndarray) -> Tensor:
    if isinstance(labels, Tensor):
        return labels
    return torch.from_numpy(labels if labels.flags.writeable else labels.copy())  # torch warns about read-only arrays


def _check_range(name: str, labels: Tensor, num_classes: int, end: int) -> None:
    if labels.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= end:
        raise DataError(f"the {name} holds {low if low < 0 else high}, but classes are 0-{num_classes - 1}.")


def iou(matrix: Tensor) -> np.ndarray:
    """(K,) float64 intersection over union; nan for a class that neither the truth nor the prediction contains."""
    counts = matrix.cpu().numpy().astype(np.float64)
    hit = counts.diagonal()
    return _ratio(hit, counts.sum(1) + counts.sum(0) - hit)


def accuracy(matrix: Tensor) -> np.ndarray:
    """(K,) float64 share of a class's true pixels that were found; nan for a class without true pixels."""
    counts = matrix.cpu().numpy().astype(np.float64)
    return _ratio(counts.diagonal(), counts.sum(1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def numbers(matrix: Tensor, class_names: list[str]) -> dict[str, float]:
    """mIoU, pixAcc, mAcc, fwIoU and `IoU/<class>` as fractions in [0, 1].

    A class absent from truth and prediction has no IoU: it is left out of the mean and has no key (JSON knows no NaN).
    A class that is predicted but nowhere true has IoU 0 and counts in mIoU, but not in mAcc.
    Raises `DataError` when no pixel was counted.
    """
    true = matrix.sum(1).cpu().numpy().astype(np.float64)
    if true.sum() == 0:
        raise DataError("no labelled pixel was counted: the split is empty or every pixel of its masks is ignored.")
    per_class, found = iou(matrix), accuracy(matrix)
    result = {
        "mIoU": float(np.nanmean(per_class)),
        "pixAcc": float(matrix.diagonal().sum()) / float(true.sum()),
        "mAcc": float(np.nanmean(found)),
        "fwIoU": float((true * np.nan_to_num(per_class)).sum() / true.sum()),
    }
    named = zip(class_names, per_class, strict=True)
    return result | {f"IoU/{name}": float(value) for name, value in named if not np.isnan(value)}


class SemanticEvaluator:
    """Adds up confusion matrices and remembers each image's own mIoU. See `contracts.Evaluator`."""

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = list(class_names)
        self.matrix = torch.zeros((len(self.class_names), len(self.class_names)), dtype=torch.int64)
        self.images: dict[str, float | None] = {}  # id -> mIoU of that image alone, None where every pixel is ignored

    def update(self, sample_id: str, prediction: Tensor | Instances, target: Tensor | np.ndarray | Instances) -> None:
        """Add one image: label maps (H, W). Errors name the image."""
        if isinstance(prediction, Instances) or isinstance(target, Instances):
            raise DataError(f"{sample_id}: this metric compares label maps, not instances; check dataset.metric.")
        if sample_id in self.images:
            raise InternalError(f"{sample_id}: evaluated twice.")
        try:
            matrix = confusion(prediction, target, len(self.class_names)).cpu()
        except DataError as error:
            raise DataError(f"{sample_id}: {error}") from None
        self.matrix += matrix
        self.images[sample_id] = float(np.nanmean(iou(matrix))) if matrix.any() else None

    def state(self) -> dict:
        """{"matrix": (K, K) int64, "images": {id: mIoU or None}}, copies."""
        return {"matrix": self.matrix.clone(), "images": dict(self.images)}

    def merge(self, states: list[dict]) -> None:
        """Replace the counts by the union of `states`. Raises `InternalError` if two states share an image."""
        matrix = torch.zeros_like(self.matrix)
        images: dict[str, float | None] = {}
        for state in states:
            twice = sorted(images.keys() & state["images"].keys())
            if twice:
                raise InternalError(f"{twice[0]}: evaluated by two processes ({len(twice)} images in all).")
            matrix += state["matrix"]
            images |= state["images"]
        self.matrix, self.images = matrix, images

    def names(self) -> list[str]:
        """See `numbers`."""
        return ["mIoU", "pixAcc", "mAcc", "fwIoU", *(f"IoU/{name}" for name in self.class_names)]

    def compute(self) -> dict[str, float]:
        """See `numbers`."""
        return numbers(self.matrix, self.class_names)

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The `count` images of lowest mIoU, worst first, ties by id: the same under any sharding."""
        scored = [(name, value) for name, value in self.images.items() if value is not None]
        return sorted(scored, key=lambda pair: (pair[1], pair[0]))[:count]

    def pictures(self) -> dict[str, np.ndarray]:
        """{"confusion": picture (H, W, 3)} of the matrix, normalised by row."""
        return {"confusion": confusion_picture(self.matrix, self.class_names)}

    def table(self) -> str:
        """Text for the terminal: a line per class with IoU and accuracy in percent and true pixels, then the means."""
        result = self.compute()
        rows = [("class", "IoU %", "Acc %", "pixels")]
        pixels = self.matrix.sum(1).tolist()
        for row in zip(self.class_names, iou(self.matrix), accuracy(self.matrix), pixels, strict=True):
            rows.append((row[0], _percent(row[1]), _percent(row[2]), f"{row[3]:,}"))
        rows.append(("mean", _percent(result["mIoU"]), _percent(result["mAcc"]), f"{sum(pixels):,}"))
        name, *others = (max(len(row[i]) for row in rows) for i in range(4))
        lines = [
            "  ".join([row[0].ljust(name), *(c.rjust(w) for c, w in zip(row[1:], others, strict=True))]) for row in rows
        ]
        rule = "-" * len(lines[0])
        foot = f"pixel accuracy {_percent(result['pixAcc'])} %, frequency-weighted IoU {_percent(result['fwIoU'])} %"
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], foot])


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
