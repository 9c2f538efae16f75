"""PASCAL-Context: its archives, and the maps of 59 classes that are made of those of 459."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from segtrain.benchmarks.archives import DOWNLOADS, GB, Archive, obtain_or_show_layout
from segtrain.benchmarks.convert import convert
from segtrain.benchmarks.voc import year_folder
from segtrain.data.mat import read_mat
from segtrain.errors import DataError
from segtrain.structures.labels import BUILT_IN, LabelMap
from segtrain.visualization.picture_files import save_labels

MAPS_OF_59 = "59_context_labels"  # the folder of the maps that are made; its readers know the name
CLASSES = 459  # of the maps as published
TERMS = "comes with terms of use that you must accept yourself"
# md5 of VOC 2010: torchvision's datasets/voc.py only. md5 of the maps: ahundt/tf-image-segmentation
# only.
CONTEXT = (
    Archive(
        "VOCtrainval_03-May-2010.tar",
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
        "da459979d0c395079b5c75ee67908abb",
        limit=4 * GB,
        folder="",
        holds={"JPEGImages": 10_103},
        inside="VOCdevkit/VOC2010",
        by_hand=TERMS,
    ),
    Archive(
        "trainval.tar.gz",
        "https://www.cs.stanford.edu/~roozbeh/pascal-context/",
        "df034edb2c12aa7d33b42b20bb1796e3",
        limit=2 * GB,
        folder="trainval",
        holds={"": 10_103},
        inside="trainval",
        by_hand=TERMS,
    ),
)
LAYOUT = (
    "JPEGImages/<id>.jpg         images of VOC 2010",
    "trainval/<id>.mat           maps of 459 classes, from which are made here:",
    "59_context_labels/<id>.png  maps of 59 classes and background",
)


def prepare(root: Path, masks: str | None, progress: bool) -> bool:
    """Unpack the archives that were put below `root` and convert the maps.

    `masks` is the data set's folder of maps, MAPS_OF_59 where it has none. Returns whether
    everything is there then. Errors: DataError, DiskError.
    """
    base = year_folder(root, "VOC2010")
    images, maps = CONTEXT
    # The maps may have been converted elsewhere, or published as PNG files: then images suffice.
    converted = (base / (masks or MAPS_OF_59)).is_dir() and not (base / maps.folder).exists()
    archives = [images] if converted else CONTEXT
    complete = obtain_or_show_layout(archives, base, LAYOUT, progress, root / DOWNLOADS)
    if (base / maps.folder).is_dir():
        convert_to_59(base / maps.folder, base / MAPS_OF_59, progress)
    return complete


def convert_to_59(source: Path, target: Path, progress: bool = True) -> None:
    """Convert maps <id>.mat of 459 classes to palette PNGs of the 59 classes in the official order.

    The variable is LabelMap. 0 is background: every other class, and what is not labelled.
    Mottaghi et al., CVPR 2014. Errors: DataError, DiskError.
    """
    entries = json.loads((BUILT_IN / "context.json").read_text(encoding="utf-8"))["classes"]
    table = np.zeros(CLASSES + 1, np.uint8)
    table[[entry["id_459"] for entry in entries]] = [entry["id"] for entry in entries]
    colors = LabelMap.load("context").colors

    def write(name: str, path: Path) -> None:
        file = source / f"{name}.mat"
        labels = read_mat(file, "LabelMap")
        smallest = labels.min(initial=0)
        largest = labels.max(initial=0)
        if smallest < 0 or largest > CLASSES:
            raise DataError(
                f"{file}: holds labels {labels.min()} to {labels.max()}, "
                f"but PASCAL-Context has 0 to {CLASSES}"
            )
        save_labels(path, table[labels], colors)

    ids = sorted(path.stem for path in source.glob("*.mat") if not path.name.startswith("."))
    convert(ids, target, write, "converting PASCAL-Context", progress)
    print(f"{target}: {len(ids):,} maps")
