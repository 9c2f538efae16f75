"""PASCAL VOC 2012 and SBD: their archives, and the masks of train_aug that are made of both."""

from __future__ import annotations

import shutil
from pathlib import Path

from segtrain.benchmarks.archives import DOWNLOADS, GB, Archive, obtain
from segtrain.benchmarks.convert import convert, write_whole
from segtrain.data.listing import read_ids
from segtrain.data.mat import read_mat
from segtrain.errors import DataError
from segtrain.structures.labels import LabelMap
from segtrain.visualization.picture_files import save_labels

TRAIN_AUG_IDS = 10_582  # of the full sets, as papers count them

# Size and sha256: tensorflow/datasets (url_checksums) and pytorch/vision (prototype datasets,
# independent of it); the md5 of torchvision's VOC belongs to the same file.
# thor.robots.ox.ac.uk is the https host that torchvision uses.
VOC2012 = Archive(
    "VOCtrainval_11-May-2012.tar",
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    limit=4 * GB,
    folder="",
    holds={
        "JPEGImages": 17_125,
        "SegmentationClass": 2_913,
        "ImageSets/Segmentation/trainval.txt": 1,
    },
    inside="VOCdevkit/VOC2012",
    size=1_999_639_040,
)
# sha256: pytorch/vision (prototype datasets) only; the md5 that torchvision released,
# 82b4d87ceb2ed10f6038a1cba92111cb, is widely used.
SBD = Archive(
    "benchmark.tgz",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz",
    "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    limit=4 * GB,
    folder="",
    holds={"cls": 11_355, "train.txt": 1, "val.txt": 1},
    inside="benchmark_RELEASE/dataset",
)


def prepare(root: Path, sbd: str | None, progress: bool) -> bool:
    """Bring VOC 2012 below `root`, and with a folder `sbd` SBD there and train_aug of both.

    Returns whether everything is there then. Errors: UserError, DataError, DiskError.
    """
    base = year_folder(root, "VOC2012")
    complete = obtain([VOC2012], base, progress, root / DOWNLOADS)
    if sbd is None:
        return complete
    source = Path(sbd).expanduser()
    if (source / "dataset").is_dir():
        source = source / "dataset"
    complete &= obtain([SBD], source, progress, root / DOWNLOADS)
    make_train_aug(source, base, progress)
    return complete


def year_folder(root: Path, year: str) -> Path:
    """Return the folder of one year's VOC, where `root` is it or the folder above."""
    return root if root.name == year or (root / "JPEGImages").is_dir() else root / year


def make_train_aug(sbd: Path, base: Path, progress: bool = True) -> None:
    """Write SegmentationClassAug and train_aug.txt below `base` (VOC2012).

    `sbd` is the folder benchmark_RELEASE/dataset. The ids are those of SBD train and val and of VOC
    train, without VOC val; images of VOC train keep VOC's own masks, the others get SBD's
    (21 classes, no void). Hariharan et al., ICCV 2011. Errors: DataError, DiskError.
    """
    labels = LabelMap.load("voc")
    lists = base / "ImageSets" / "Segmentation"
    voc_train = set(_read_list(lists / "train.txt"))
    voc_val = set(_read_list(lists / "val.txt"))
    in_sbd = {name for split in ("train", "val") for name in _read_list(sbd / f"{split}.txt")}
    ids = sorted((voc_train | in_sbd) - voc_val)
    target = lists / "train_aug.txt"
    if target.exists() and sorted(_read_list(target)) != ids:
        raise DataError(
            f"{target}: lists other ids than VOC and {sbd} give; remove it to have it made again"
        )

    def write(name: str, path: Path) -> None:
        if name in voc_train:
            mask = base / "SegmentationClass" / f"{name}.png"
            if not mask.is_file():
                raise DataError(f"{mask}: missing, but {lists / 'train.txt'} lists it")
            shutil.copyfile(mask, path)
            return
        file = sbd / "cls" / f"{name}.mat"
        raw = read_mat(file, "GTcls", "Segmentation")
        save_labels(path, labels.encode(raw, str(file)), labels.colors)

    convert(ids, base / "SegmentationClassAug", write, "converting SBD", progress)
    if not target.exists():  # written last: the list is there only when all of its masks are
        write_whole(target, lambda path: path.write_text("".join(f"{name}\n" for name in ids)))
    full = "" if len(ids) == TRAIN_AUG_IDS else f" ({TRAIN_AUG_IDS:,} in the full sets)"
    print(f"{target}: {len(ids):,} ids{full}")


def _read_list(path: Path) -> list[str]:
    """Read a list of ids. Errors: DataError for the first problem."""
    problems: list[str] = []
    ids = read_ids(path, problems)
    if problems:
        raise DataError(problems[0])
    return ids
