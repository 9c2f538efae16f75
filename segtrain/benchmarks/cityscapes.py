"""Cityscapes: its archives, which only people with an account may fetch."""

from __future__ import annotations

from pathlib import Path

from segtrain.benchmarks.archives import GB, Archive, obtain_or_show_layout

PAGE = "https://www.cityscapes-dataset.com/downloads/"
LOGIN = "needs a free account"
CITIES = {"train": 18, "val": 3}
# sha256: pytorch/vision (prototype datasets) only.
CITYSCAPES = (
    Archive(
        "leftImg8bit_trainvaltest.zip",
        PAGE,
        "3ccff9ac1fa1d80a6a064407e589d747ed0657aac7dc495a4403ae1235a37525",
        limit=25 * GB,
        folder="leftImg8bit",
        holds=CITIES,
        inside="leftImg8bit",
        by_hand=LOGIN,
    ),
    Archive(
        "gtFine_trainvaltest.zip",
        PAGE,
        "40461a50097844f400fef147ecaf58b18fd99e14e4917fb7c3bf9c0d87d95884",
        limit=5 * GB,
        folder="gtFine",
        holds=CITIES,
        inside="gtFine",
        by_hand=LOGIN,
    ),
)
LAYOUT = (
    "leftImg8bit/{train,val,test}/<city>/<city>_<seq>_<frame>_leftImg8bit.png",
    "gtFine/{train,val,test}/<city>/<city>_<seq>_<frame>_gtFine_{labelIds,instanceIds}.png",
)


def prepare(root: Path, progress: bool) -> bool:
    """Unpack the archives that were put below `root`; return whether everything is there then."""
    return obtain_or_show_layout(CITYSCAPES, root, LAYOUT, progress)
