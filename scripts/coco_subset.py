"""A small fixed part of a COCO file, to overfit on: the first images whose every object is large enough.

    python scripts/coco_subset.py data/coco/annotations/instances_train2017.json subset.json

Images with a crowd region or without objects are left out. The default, no object below 32 x 32 pixels (`small` in COCO), takes
16 images among the first 94 ids of train2017.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path


def subset(annotations: dict, images: int, smallest: float) -> dict:
    """The first `images` by id, with all their annotations and all categories."""
    objects = defaultdict(list)
    for entry in annotations["annotations"]:
        objects[entry["image_id"]].append(entry)
    fit = [
        image
        for image in sorted(annotations["images"], key=lambda image: image["id"])
        if objects[image["id"]]
        and all(not e["iscrowd"] and e["area"] >= smallest for e in objects[image["id"]])
    ][:images]
    kept = [entry for image in fit for entry in objects[image["id"]]]
    return {"images": fit, "annotations": kept, "categories": annotations["categories"]}


def main() -> None:
    """Read, cut, write, say what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument(
        "--smallest", type=float, default=32.0**2, help="pixels of the smallest object"
    )
    options = parser.parse_args()
    found = subset(
        json.loads(options.source.read_text(encoding="utf-8")), options.images, options.smallest
    )
    options.output.write_text(json.dumps(found), encoding="utf-8")
    classes = {entry["category_id"] for entry in found["annotations"]}
    print(
        f"{len(found['images'])} images, {len(found['annotations'])} objects of {len(classes)} classes: {options.output}"
    )


if __name__ == "__main__":
    main()
