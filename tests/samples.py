"""Small data sets made of links to the real samples."""

from __future__ import annotations

import os
from pathlib import Path


def voc_part(source: Path, target: Path, train: int, val: int) -> Path:
    """A VOC root with links to a few of the sample's own images; `input/` has the images of val."""
    source = source / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "input"):
        (target / folder).mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        listed = (source / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        ids = [name for name in listed if (source / "SegmentationClass" / f"{name}.png").is_file()][
            :count
        ]
        assert len(ids) == count
        (target / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for name in ids:
            for file in (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"):
                os.symlink(source / file, target / file)
            if split == "val":
                os.symlink(source / "JPEGImages" / f"{name}.jpg", target / "input" / f"{name}.jpg")
    return target
