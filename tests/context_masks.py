"""PASCAL-Context's official list of classes, and the sample's masks in every numbering."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy.io import savemat

# The data set's 59_labels.txt with the ids of its labels.txt (459 labels), written down apart from
# classes/context.json.
OFFICIAL = """
aeroplane 2, bicycle 23, bird 25, boat 31, bottle 34, bus 45, car 59, cat 65, chair 72, cow 98,
diningtable 397, dog 113, horse 207, motorbike 258, person 284, pottedplant 308, sheep 347,
sofa 368, train 416, tvmonitor 427, bag 9, bed 18, bench 22, book 33, building 44, cabinet 46,
ceiling 68, clothes 80, computer 85, cup 104, door 115, fence 144, floor 158, flower 159,
food 162, grass 187, ground 189, keyboard 220, light 232, mountain 259, mouse 260, curtain 105,
platform 296, sign 355, plate 295, road 324, rock 326, shelves 349, sidewalk 354, sky 360,
snow 366, bedcloth 19, track 415, tree 420, truck 424, wall 440, water 445, window 454,
wood 458
"""
NAMES = [entry.split()[0] for entry in OFFICIAL.split(",")]
ID_459 = [int(entry.split()[1]) for entry in OFFICIAL.split(",")]
Numbering = Literal["official", "sorted", 459]


def planes(sample: Path) -> dict[str, np.ndarray]:
    """The sample's masks as stored: 0 background, 1 .. 59 official."""
    return {
        path.stem: np.array(Image.open(path))
        for path in sorted((sample / "59_context_labels").glob("*.png"))
    }


def other_masks(sample: Path, root: Path, numbering: Numbering) -> Path:
    """The sample with its masks in another numbering, as `root/masks`."""
    (root / "masks").mkdir(parents=True)
    (root / "JPEGImages").symlink_to(sample / "JPEGImages")
    (root / "val.txt").write_text((sample / "val.txt").read_text())
    rank = {value: place for place, value in enumerate(sorted(ID_459), 1)}
    for name, plane in planes(sample).items():
        if numbering == 459:
            table = np.array([0, *ID_459], np.uint16)
            raw = table[plane]
            # unknown
            raw[(plane == 0) & (np.arange(plane.size).reshape(plane.shape) % 2 == 0)] = 431
            raw[(plane == 0) & (np.arange(plane.size).reshape(plane.shape) % 3 == 0)] = 255  # money
            savemat(root / f"masks/{name}.mat", {"LabelMap": raw}, do_compression=True)
        else:
            table = np.array([0, *(rank[value] for value in ID_459)], np.uint8)
            Image.fromarray(table[plane]).save(root / f"masks/{name}.png")
    return root
