"""U-Net on the ISBI 2012 EM slices: lists of the two splits, and what a threshold reaches.

Run:  python scripts/unet_isbi.py lists --root FOLDER
      python scripts/unet_isbi.py score --root FOLDER [RUN/eval/folder-val/metrics.json ...]

FOLDER holds image/0.png .. 29.png and label/0.png .. 29.png. `lists` writes FOLDER/lists/train.txt
(slices 0 to 23) and val.txt (24 to 29); with --lists elsewhere, of which the run is then told:
dataset.lists=ABSOLUTE_PATH. `score` chooses Gaussian smoothing and one global threshold (cells are
bright) with the lowest pixel error on the 24 training slices, and prints pixel error (1 - pixAcc)
and the IoU of both classes on the six held-out ones. Each metrics.json that `segeval
checkpoint=RUN` wrote is printed below; it must be of the same six slices, of which only their
number is checked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from segtrain.datasets.folder import Folder
from segtrain.metrics.confusion import confusion, numbers

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("what", choices=["lists", "score"])
parser.add_argument("metrics", nargs="*", type=Path, help="metrics.json files of segeval")
parser.add_argument("--root", type=Path, required=True, help="folder of image/ and label/")
parser.add_argument("--lists", type=Path, help="folder of the lists; default ROOT/lists")
SPLITS = {"train": range(24), "val": range(24, 30)}  # slice numbers
LABELS = [{"id": 0, "name": "membrane"}, {"id": 255, "name": "cell"}]
SIGMAS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]  # pixels; 0: no smoothing


def write_lists(folder: Path) -> None:
    """Write one file of ids per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, ids in SPLITS.items():
        (folder / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
    counts = ", ".join(f"{split}.txt ({len(ids)} slices)" for split, ids in SPLITS.items())
    print(f"{folder}: {counts}")


def read(root: Path, lists: Path, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read grey images (H, W) float and masks (H, W) of train ids, 0 membrane and 1 cell."""
    dataset = Folder(str(root), split, "image", "label", str(lists.resolve()), None, LABELS)
    samples = [dataset[index] for index in range(len(dataset))]
    images = [sample.image.mean(2) for sample in samples]
    return images, [np.asarray(sample.mask) for sample in samples]


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth an image and round it to grey values, as thresholds are."""
    return np.rint(ndimage.gaussian_filter(image, sigma) if sigma else image).astype(np.int64)


def best_threshold(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], sigma: float
) -> tuple[float, int]:
    """Return (pixel error, t) of the best t; cells are the pixels of grey value t and above."""
    counts = np.zeros((2, 257))
    for image, mask in zip(images, masks, strict=True):
        grey = smooth(image, sigma)
        for label in (0, 1):
            counts[label, 1:] += np.bincount(grey[mask == label], minlength=256)
    below = counts.cumsum(1)  # [label, t]: pixels darker than t
    wrong = below[1] + (below[0, -1] - below[0])
    threshold = int(wrong.argmin())
    return float(wrong[threshold] / below[:, -1].sum()), threshold


def line(name: str, metrics: dict[str, float]) -> str:
    """Return one row of the table."""
    error = 1 - metrics["pixAcc"]
    return f"{name:<44}{error:>12.4f}{metrics['IoU/membrane']:>14.4f}{metrics['IoU/cell']:>10.4f}"


def score(root: Path, lists: Path, results: Sequence[Path]) -> None:
    """Print the table."""
    images, masks = read(root, lists, "train")
    title = "on the six held-out slices"
    rows = [f"{title:<44}{'pixel error':>12}{'IoU membrane':>14}{'IoU cell':>10}"]
    best_of = {sigma: best_threshold(images, masks, sigma) for sigma in SIGMAS}
    held_out, truth = read(root, lists, "val")
    for sigma in (0.0, min(SIGMAS, key=lambda sigma: best_of[sigma])):
        threshold = best_of[sigma][1]
        predicted = [(smooth(image, sigma) >= threshold).astype(np.uint8) for image in held_out]
        matrix = torch.stack(
            [confusion(p, t, 2) for p, t in zip(predicted, truth, strict=True)]
        ).sum(0)
        name = f"threshold {threshold}" + (f" after smoothing by {sigma} px" if sigma else "")
        rows.append(line(name, numbers(matrix, ["membrane", "cell"])))
    cells = float(np.mean([mask.mean() for mask in truth]))
    rows.append(line("all cell", {"pixAcc": cells, "IoU/membrane": 0.0, "IoU/cell": cells}))
    for path in results:
        metrics = json.loads(path.read_text())
        count = metrics["protocol"]["images"]
        if count != len(truth):
            raise SystemExit(
                f"{path}: measured on {count} images, not on the {len(truth)} held-out ones"
            )
        rows.append(line(str(path)[-43:], metrics))
    print("\n".join(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the lists, or print the table."""
    options = parser.parse_intermixed_args(arguments)
    lists = options.lists or options.root / "lists"
    if options.what == "lists":
        write_lists(lists)
    else:
        score(options.root, lists, options.metrics)


if __name__ == "__main__":
    main()
