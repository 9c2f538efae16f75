"""What `segdata prepare` does beside the cache: fetch, check and unpack a benchmark's files, convert MATLAB label maps.

Only what its owners publish for everybody is fetched; for the rest it is said what to fetch, from where, and where to
put it. What is there already is never replaced, and a conversion that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.benchmarks import download, unpack
from segtrain.config.schema import RunConf
from segtrain.data.file_sets import read_ids
from segtrain.data.mat import read_mat
from segtrain.errors import DataError, DiskError
from segtrain.logs.progress import Progress
from segtrain.structures.labels import BUILT_IN, LabelMap
from segtrain.visualization import picture_files

DOWNLOADS = "downloads"  # below the data set's root: archives, fetched or put there by hand
MADE = "59_context_labels"  # what PASCAL-Context's maps are converted to; its readers know the name
GB = 10**9
WORKERS = 4
TRAIN_AUG = 10_582  # ids of train_aug as the field uses it


@dataclass(frozen=True)
class Archive:
    """One published file: where it is, its hash, and the folder below the data set's root that it becomes."""

    name: str
    url: str  # fetched from there; with `by_hand` the page or address to fetch it from
    digest: str  # sha256, or md5 where nothing better is published; "" where nothing is
    limit: int  # bytes that it may unpack to, with a margin of about two
    folder: str  # below root
    holds: Mapping[str, int] = field(
        default_factory=dict
    )  # path below `folder` -> files in the official release
    inside: str = ""  # the folder of the archive that becomes `folder`
    size: int | None = None  # bytes
    by_hand: str = ""  # why it is not fetched here


# Sizes and sha256: tensorflow/datasets (url_checksums) and pytorch/vision (prototype datasets, independent of it), the
# VOC md5 of torchvision belongs to the same file. thor.robots.ox.ac.uk is the https host that torchvision uses.
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
# sha256: pytorch/vision (prototype datasets) only; its released md5, 82b4d87ceb2ed10f6038a1cba92111cb, is widely used.
SBD = Archive(
    "benchmark.tgz",
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    limit=4 * GB,
    folder="",
    holds={"cls": 11_355, "train.txt": 1, "val.txt": 1},
    inside="benchmark_RELEASE/dataset",
)
# images.cocodataset.org has no certificate of its own: it is the storage bucket of that name, which has https here.
# Sizes and sha256: tensorflow/datasets (url_checksums) and pytorch/vision (prototype datasets).
COCO_BUCKET = "https://s3.amazonaws.com/images.cocodataset.org"
COCO = (
    Archive(
        "train2017.zip",
        f"{COCO_BUCKET}/zips/train2017.zip",
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        limit=40 * GB,
        folder="train2017",
        holds={"": 118_287},
        inside="train2017",
        size=19_336_861_798,
    ),
    Archive(
        "val2017.zip",
        f"{COCO_BUCKET}/zips/val2017.zip",
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        limit=2 * GB,
        folder="val2017",
        holds={"": 5_000},
        inside="val2017",
        size=815_585_330,
    ),
    Archive(
        "annotations_trainval2017.zip",
        f"{COCO_BUCKET}/annotations/annotations_trainval2017.zip",
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        limit=3 * GB,
        folder="annotations",
        holds={"instances_train2017.json": 1, "instances_val2017.json": 1},
        inside="annotations",
        size=252_907_541,
    ),
)
# The owners' page gives an http address and no hash, and no public source with a hash was found.
STUFF = Archive(
    "stuffthingmaps_trainval2017.zip",
    "https://github.com/nightrome/cocostuff#downloads",
    "",
    limit=5 * GB,
    folder="stuffthingmaps",
    holds={"train2017": 118_287, "val2017": 5_000},
    by_hand="published without https and without a hash",
)
# sha256: pytorch/vision (prototype datasets) only.
LOGIN = "needs a free account"
CITYSCAPES_PAGE = "https://www.cityscapes-dataset.com/downloads/"
CITYSCAPES = (
    Archive(
        "leftImg8bit_trainvaltest.zip",
        CITYSCAPES_PAGE,
        "3ccff9ac1fa1d80a6a064407e589d747ed0657aac7dc495a4403ae1235a37525",
        limit=25 * GB,
        folder="leftImg8bit",
        holds={"train": 18, "val": 3},  # cities
        inside="leftImg8bit",
        by_hand=LOGIN,
    ),
    Archive(
        "gtFine_trainvaltest.zip",
        CITYSCAPES_PAGE,
        "40461a50097844f400fef147ecaf58b18fd99e14e4917fb7c3bf9c0d87d95884",
        limit=5 * GB,
        folder="gtFine",
        holds={"train": 18, "val": 3},
        inside="gtFine",
        by_hand=LOGIN,
    ),
)
# md5 of VOC 2010: torchvision's datasets/voc.py only. md5 of the maps: ahundt/tf-image-segmentation only.
TERMS = "comes with terms of use that you must accept yourself"
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
LAYOUTS = {
    "cityscapes": (
        "leftImg8bit/{train,val,test}/<city>/<city>_<seq>_<frame>_leftImg8bit.png",
        "gtFine/{train,val,test}/<city>/<city>_<seq>_<frame>_gtFine_{labelIds,instanceIds}.png",
    ),
    "context": (
        "JPEGImages/<id>.jpg         images of VOC 2010",
        "trainval/<id>.mat           maps of 459 classes, from which are made here:",
        "59_context_labels/<id>.png  maps of 59 classes and background",
    ),
}


def prepare(run: RunConf) -> bool:
    """Bring the files of `run.dataset` into its root; True when nothing is missing any more.

    Errors: UserError where the network fails, DataError for wrong files, DiskError.
    """
    node, progress = run.dataset, run.log.progress
    module, name = node["_target_"].split(".")[-2:]
    root = Path(node.get("root", "")).expanduser()
    if module == "voc":
        return _voc(root, node.get("sbd"), progress)
    if (
        module.startswith("coco") and node.get("annotations") is None
    ):  # else it is somebody's own file
        return _obtain(
            (*COCO, STUFF) if "stuff" in f"{module} {name}".lower() else COCO, root, progress
        )
    if module == "cityscapes":
        return _listed(CITYSCAPES, root, module, progress)
    if module == "context":
        return _context(root, node.get("masks") or MADE, progress)
    print(f"{node['_target_']}: nothing to fetch or to convert")
    return True


# ---------------------------------------------------------------------- archives


def _obtain(
    archives: Sequence[Archive], root: Path, progress: bool, downloads: Path | None = None
) -> bool:
    """Fetch, check and unpack what is not below `root` yet; True when all of it is there afterwards."""
    downloads = downloads or root / DOWNLOADS
    wanted = [archive for archive in archives if not _present(archive, root)]
    missing = [
        archive for archive in wanted if archive.by_hand and not (downloads / archive.name).exists()
    ]
    for archive in missing:  # said first: what follows may take hours, or fail
        _tell(archive, downloads)
    fetched = [archive for archive in wanted if not archive.by_hand]
    if fetched:
        _make(downloads)
        download.room(downloads, sum(_need(archive, downloads) for archive in fetched))
    for archive in wanted:
        file = downloads / archive.name
        if archive in missing:
            continue
        if not archive.by_hand:
            print(f"{file}: from {archive.url}", flush=True)
            download.download(archive.url, file, archive.digest, archive.size, progress)
        elif archive.digest:
            download.check(file, archive.digest, progress)
        unpack.unpack(file, root / archive.folder, archive.limit, archive.inside, progress)
        if not _present(archive, root):
            raise DataError(
                f"{file}: does not hold {', '.join(archive.holds)}; is it another archive of that name?"
            )
        print(f"{file}: unpacked, no longer needed")
    return not missing


def _present(archive: Archive, root: Path) -> bool:
    """Whether everything of the archive is below `root`; says so, and where there is less than in the release."""
    if not _there(archive, root):
        return False
    for path, official in ((root / archive.folder / path, n) for path, n in archive.holds.items()):
        count = sum(1 for _ in os.scandir(path)) if path.is_dir() else 1
        some = f"; the release has {official:,}" if count < official else ""
        some += ", remove the folder to have it made whole" if some and not archive.by_hand else ""
        print(f"{path}: there" + (f", {count:,} entries{some}" if path.is_dir() else ""))
    return True


def _need(archive: Archive, downloads: Path) -> int:
    """Bytes still to be written for an archive: what is not fetched yet, and about as much again unpacked."""
    size, file = archive.size or 0, downloads / archive.name
    part = file.with_name(f"{file.name}.part")
    have = size if file.exists() else part.stat().st_size if part.exists() else 0
    return 2 * size - min(have, size)


def _tell(archive: Archive, downloads: Path) -> None:
    """What to fetch by hand, from where, and where to put it."""
    hashed = (
        f" ({'md5' if len(archive.digest) == 32 else 'sha256'} {archive.digest})"
        if archive.digest
        else ""
    )
    print(
        f"{archive.name}{hashed}: {archive.by_hand}, so it is not fetched here. Get it from {archive.url}, put it at "
        f"{downloads / archive.name} and run the same command again: it is {'checked and ' if hashed else ''}unpacked."
    )


def _there(archive: Archive, root: Path) -> bool:
    return all((root / archive.folder / path).exists() for path in archive.holds)


def _listed(
    archives: Sequence[Archive],
    root: Path,
    name: str,
    progress: bool,
    downloads: Path | None = None,
) -> bool:
    """`_obtain`, and how the folder must look where something is missing."""
    complete = _obtain(archives, root, progress, downloads)
    if not complete:
        paths = [str(Path(a.folder) / path) for a in archives for path in a.holds]
        print(f"\n{root} must look like this (folders that you unpack there yourself do as well):")
        print("\n".join(f"  {line}" for line in LAYOUTS[name]))
        print(f"missing now: {', '.join(path for path in paths if not (root / path).exists())}")
    return complete


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(
            f"{folder}: cannot be made ({error.strerror}); set dataset.root to another folder"
        ) from error


# ---------------------------------------------------------------------- VOC with SBD, PASCAL-Context


def _voc(root: Path, sbd: str | None, progress: bool) -> bool:
    base = _year(root, "VOC2012")
    complete = _obtain([VOC2012], base, progress, root / DOWNLOADS)
    if sbd is None:
        return complete
    source = Path(sbd).expanduser()
    source = source / "dataset" if (source / "dataset").is_dir() else source
    complete &= _obtain([SBD], source, progress, root / DOWNLOADS)
    train_aug(source, base, progress)
    return complete


def train_aug(sbd: Path, base: Path, progress: bool = True) -> None:
    """SegmentationClassAug and train_aug.txt below `base` (VOC2012) from the folder `sbd` (benchmark_RELEASE/dataset).

    The ids are those of SBD train and val and of VOC train, without VOC val; images of VOC train keep VOC's own masks,
    the others get SBD's (21 classes, no void). Hariharan et al., ICCV 2011. Errors: DataError, DiskError.
    """
    labels = LabelMap.load("voc")
    lists = base / "ImageSets" / "Segmentation"
    own, val = (set(_ids(lists / f"{split}.txt")) for split in ("train", "val"))
    other = {name for split in ("train", "val") for name in _ids(sbd / f"{split}.txt")}
    ids, target = sorted((own | other) - val), lists / "train_aug.txt"
    if target.exists() and sorted(_ids(target)) != ids:
        raise DataError(
            f"{target}: lists other ids than VOC and {sbd} give; remove it to have it made again"
        )

    def write(name: str, path: Path) -> None:
        if name in own:
            mask = base / "SegmentationClass" / f"{name}.png"
            if not mask.is_file():
                raise DataError(f"{mask}: missing, but {lists / 'train.txt'} lists it")
            shutil.copyfile(mask, path)
            return
        file = sbd / "cls" / f"{name}.mat"
        picture_files.save_labels(
            path, labels.encode(read_mat(file, "GTcls", "Segmentation"), str(file)), labels.colors
        )

    convert(ids, base / "SegmentationClassAug", write, "converting SBD", progress)
    if not target.exists():  # last: the list is there only when all of its masks are
        _whole(target, lambda path: path.write_text("".join(f"{name}\n" for name in ids)))
    usual = "" if len(ids) == TRAIN_AUG else f" ({TRAIN_AUG:,} in the full sets)"
    print(f"{target}: {len(ids):,} ids{usual}")


def _context(root: Path, masks: str, progress: bool) -> bool:
    base = _year(root, "VOC2010")
    images, maps = CONTEXT
    enough = (base / masks).is_dir() and not (
        base / maps.folder
    ).exists()  # converted elsewhere, or published like this
    complete = _listed([images] if enough else CONTEXT, base, "context", progress, root / DOWNLOADS)
    if (base / maps.folder).is_dir():
        context_59(base / maps.folder, base / MADE, progress)
    return complete


def _year(root: Path, year: str) -> Path:
    """The folder of one year's VOC, where `root` is it or the folder above."""
    return root if root.name == year or (root / "JPEGImages").is_dir() else root / year


def context_59(source: Path, target: Path, progress: bool = True) -> None:
    """Maps <id>.mat (variable LabelMap, 459 classes) -> palette PNGs of the 59 classes in the official order.

    0 is background: every other class, and what is not labelled. Mottaghi et al., CVPR 2014. Errors: DataError, DiskError.
    """
    entries = json.loads((BUILT_IN / "context.json").read_text(encoding="utf-8"))["classes"]
    table = np.zeros(460, np.uint8)
    table[[entry["id_459"] for entry in entries]] = [entry["id"] for entry in entries]
    colors = LabelMap.load("context").colors

    def write(name: str, path: Path) -> None:
        file = source / f"{name}.mat"
        labels = read_mat(file, "LabelMap")
        if labels.min(initial=0) < 0 or labels.max(initial=0) > 459:
            raise DataError(
                f"{file}: holds labels {labels.min()} to {labels.max()}, but PASCAL-Context has 0 to 459"
            )
        picture_files.save_labels(path, table[labels], colors)

    ids = sorted(path.stem for path in source.glob("*.mat") if not path.name.startswith("."))
    convert(ids, target, write, "converting PASCAL-Context", progress)
    print(f"{target}: {len(ids):,} maps")


def convert(
    ids: Sequence[str], folder: Path, write: Callable[[str, Path], Any], name: str, progress: bool
) -> None:
    """`write(id, path)` for every id whose folder/<id>.png is not there, in threads; each file appears whole."""
    _make(folder)
    there = {entry.name for entry in os.scandir(folder)}
    todo = [sample_id for sample_id in ids if f"{sample_id}.png" not in there]

    def one(sample_id: str) -> None:
        _whole(folder / f"{sample_id}.png", lambda path: write(sample_id, path))

    pool = ThreadPoolExecutor(WORKERS)  # decompression and PNG encoding release the GIL
    try:
        with Progress(len(todo), name, enabled=progress and bool(todo)) as bar:
            for done, _ in enumerate(pool.map(one, todo), 1):
                bar.to(done)
    finally:
        pool.shutdown(cancel_futures=True)  # neither Ctrl-C nor a damaged file waits for the rest


def _whole(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` to a file beside `path`, which then gets its name. Errors: DiskError, and those of `write`."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _ids(path: Path) -> list[str]:
    problems: list[str] = []
    ids = read_ids(path, problems)
    if problems:
        raise DataError(problems[0])
    return ids
