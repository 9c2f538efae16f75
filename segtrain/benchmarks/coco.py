"""COCO 2017 and the maps of COCO-Stuff: their archives."""

from __future__ import annotations

from pathlib import Path

from segtrain.benchmarks.archives import GB, Archive, obtain

# images.cocodataset.org has no certificate of its own: it is the storage bucket of that name, which
# has https here. Sizes and sha256: tensorflow/datasets (url_checksums) and pytorch/vision
# (prototype datasets).
BUCKET = "https://s3.amazonaws.com/images.cocodataset.org"
COCO = (
    Archive(
        "train2017.zip",
        f"{BUCKET}/zips/train2017.zip",
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        limit=40 * GB,
        folder="train2017",
        holds={"": 118_287},
        inside="train2017",
        size=19_336_861_798,
    ),
    Archive(
        "val2017.zip",
        f"{BUCKET}/zips/val2017.zip",
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        limit=2 * GB,
        folder="val2017",
        holds={"": 5_000},
        inside="val2017",
        size=815_585_330,
    ),
    Archive(
        "annotations_trainval2017.zip",
        f"{BUCKET}/annotations/annotations_trainval2017.zip",
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        limit=3 * GB,
        folder="annotations",
        holds={"instances_train2017.json": 1, "instances_val2017.json": 1},
        inside="annotations",
        size=252_907_541,
    ),
)
# The owners' page gives an http address and no hash, and no public source with a hash is known.
STUFF = Archive(
    "stuffthingmaps_trainval2017.zip",
    "https://github.com/nightrome/cocostuff#downloads",
    "",
    limit=5 * GB,
    folder="stuffthingmaps",
    holds={"train2017": 118_287, "val2017": 5_000},
    by_hand="published without https and without a hash",
)


def prepare(root: Path, with_stuff: bool, progress: bool) -> bool:
    """Bring images and annotations below `root`, with COCO-Stuff's maps where they are needed.

    Returns whether everything is there then. Errors: UserError, DataError, DiskError.
    """
    return obtain((*COCO, STUFF) if with_stuff else COCO, root, progress)
