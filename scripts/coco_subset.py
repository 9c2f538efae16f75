"""A small fixed part of a COCO file, to overfit on: the first images of large objects only.

    python scripts/coco_subset.py data/coco/annotations/instances_train2017.json subset.json

Images with a crowd region or without objects are left out. The default, no object below 32 x 32
pixels (`small` in COCO), takes 16 images among the first 94 ids of train2017.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("source", type=Path, help="annotation file")
parser.add_argument("output", type=Path, help="the smaller one, which is written")
parser.add_argument("--images", type=int, default=16, help="at most so many")
parser.add_argument("--smallest", type=float, default=32.0**2, help="pixels of the smallest object")


def subset(annotations: dict, images: int, smallest: float) -> dict:
    """Take the first `images` by id that are fit, with all their annotations and all categories."""
    objects = defaultdict(list)
    for entry in annotations["annotations"]:
        objects[entry["image_id"]].append(entry)

    def fits(image: dict) -> bool:
        own = objects[image["id"]]
        return bool(own) and all(not e["iscrowd"] and e["area"] >= smallest for e in own)

    by_id = sorted(annotations["images"], key=lambda image: image["id"])
    chosen = [image for image in by_id if fits(image)][:images]
    kept = [entry for image in chosen for entry in objects[image["id"]]]
    return {"images": chosen, "annotations": kept, "categories": annotations["categories"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, cut, write, say what is in it."""
    options = parser.parse_args(arguments)
    annotations = json.loads(options.source.read_text(encoding="utf-8"))
    part = subset(annotations, options.images, options.smallest)
    options.output.write_text(json.dumps(part), encoding="utf-8")
    classes = {entry["category_id"] for entry in part["annotations"]}
    print(
        f"{len(part['images'])} images, {len(part['annotations'])} objects of "
        f"{len(classes)} classes: {options.output}"
    )


if __name__ == "__main__":
    main()
