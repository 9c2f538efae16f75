"""Copies of the real samples, and faults to plant in them.

Each fault returns how the one line about it must start.

A copy is made of links, and a fault replaces the link by a file, so the samples stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat


@dataclass(frozen=True)
class Copy:
    """A copy of a sample: what to type, and where a sample's files are ("JPEGImages/{}.jpg", or
    with a suffix).
    """

    arguments: list[str]
    root: Path
    images: str
    masks: str
    ids: list[str]
    legal: str = ""  # what the set says of a wrong value
    listed: Path | None = None  # the list file; None: the folders make the list
    deep: int = 40_000  # how a mask value of 40,000 is named
    others: int = 0  # samples of the split that are not in `ids`

    def image(self, name: str) -> Path:
        return self.root / self.images.format(name)

    def mask(self, name: str) -> Path:
        return self.root / self.masks.format(name)


Fault = Callable[[Copy, str], str]  # damages the sample of this id; how the line about it starts


# ---------------------------------------------------------------------- copies


def linked(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, copy_function=os.symlink)
    return target


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def voc_tree(data: Path, root: Path) -> Path:
    return linked(data / "voc2012/VOCdevkit/VOC2012", root / "VOC2012")


def voc_list(base: Path, split: str) -> tuple[Path, list[str]]:
    """A list, as a file of its own, and what it holds."""
    path = base / f"ImageSets/Segmentation/{split}.txt"
    text = path.read_text()
    put(path, text.encode())
    return path, text.split()


def camvid(data: Path, root: Path) -> Copy:
    for part in ("val", "valannot"):
        linked(data / "camvid" / part, root / part)
    ids = sorted(path.stem for path in (root / "val").iterdir())
    arguments = ["dataset=camvid", f"dataset.root={root}", "dataset.split=val"]
    return Copy(
        arguments,
        root,
        "val/{}.jpg",
        "valannot/{}.png",
        ids,
        "camvid has classes 0-10 and 11 for ignored",
    )


def voc(data: Path, root: Path) -> Copy:
    path, ids = voc_list(base := voc_tree(data, root), "train")
    made = Copy(
        ["dataset=voc", f"dataset.root={root}"],
        base,
        "JPEGImages/{}.jpg",
        "SegmentationClass/{}.png",
        ids,
    )
    return replace(made, legal="voc has classes 0-20 and 255 for ignored", listed=path)


def voc_aug(data: Path, root: Path) -> Copy:
    made = voc(data, root)
    path, ids = voc_list(made.root, "train_aug")
    made = replace(made, masks="SegmentationClassAug/{}.png", ids=ids, listed=path)
    return replace(made, arguments=[*made.arguments, "dataset.split=train_aug"])


def voc_sbd(data: Path, root: Path) -> Copy:
    """SBD's own release, made from SegmentationClassAug: the 19 images that are in none of VOC's
    lists.
    """
    made = voc(data, root)
    sbd = made.root / "dataset"
    ids = sorted(set(voc_list(made.root, "train_aug")[1]) - set(voc_list(made.root, "trainval")[1]))
    (sbd / "cls").mkdir(parents=True)
    for name in ids:
        plane = np.array(Image.open(made.root / f"SegmentationClassAug/{name}.png"))
        save_sbd(sbd / f"cls/{name}.mat", np.where(plane == 255, 0, plane))
    (sbd / "train.txt").write_text("\n".join(ids) + "\n")
    (sbd / "val.txt").write_text("\n".join(voc_list(made.root, "val")[1]) + "\n")
    arguments = [*made.arguments, f"dataset.sbd={sbd}", "dataset.split=train_aug"]
    masks = "dataset/cls/{}.mat"
    listed = sbd / "train.txt"
    return replace(made, arguments=arguments, masks=masks, ids=ids, listed=listed, others=46)


def voc_instance(data: Path, root: Path) -> Copy:
    base = voc_tree(data, root)
    path, ids = voc_list(base, "train_instances")
    splits = ["dataset.train_split=train_instances", "dataset.val_split=val_instances"]
    arguments = ["dataset=voc_instance", f"dataset.root={root}", *splits]
    legal = "voc has classes 1-20 and 0, 255 for ignored"
    return Copy(arguments, base, "JPEGImages/{}.jpg", "SegmentationObject/{}.png", ids, legal, path)


def context(data: Path, root: Path) -> Copy:
    """14 ids, because four images are too few for ten faults."""
    sample = data / "pascal_context"
    names = (sample / "val.txt").read_text().split()
    ids = [f"c{i:02}" for i in range(14)]
    for i, name in enumerate(ids):
        link(sample / f"JPEGImages/{names[i % 4]}.jpg", root / f"JPEGImages/{name}.jpg")
        link(
            sample / f"59_context_labels/{names[i % 4]}.png", root / f"59_context_labels/{name}.png"
        )
    (root / "val.txt").write_text("\n".join(ids) + "\n")
    arguments = ["dataset=context", f"dataset.root={root}", "dataset.split=val"]
    legal = "context has classes 1-59 and 0, 255 for ignored"
    return Copy(
        arguments,
        root,
        "JPEGImages/{}.jpg",
        "59_context_labels/{}.png",
        ids,
        legal,
        root / "val.txt",
    )


def context_459(data: Path, root: Path) -> Copy:
    """The original release's .mat files: 1 (accordion) is background, 416 is the class train."""
    made = context(data, root)
    (root / "trainval").mkdir()
    for name in made.ids:
        plane = np.array(Image.open(made.mask(name)))
        savemat(
            root / f"trainval/{name}.mat",
            {"LabelMap": np.where(plane == 0, 1, 416).astype(np.uint16)},
        )
    arguments = [*made.arguments, "dataset.masks=trainval", "dataset.ids=459"]
    legal = "context has classes 2-458 (59 values) and 0-459 (401 values) for ignored"
    return replace(made, arguments=arguments, masks="trainval/{}.mat", legal=legal)


def cityscapes(data: Path, root: Path) -> Copy:
    """15 ids made of the six frames."""
    kinds = ("leftImg8bit", "gtFine_labelIds", "gtFine_instanceIds")
    ids = [f"ulm_{i:06}_000019" for i in range(15)]
    for i, name in enumerate(ids):
        for kind in kinds:
            part = f"{kind.split('_')[0]}/train"
            link(
                data / "cityscapes" / part / f"aachen/aachen_{i % 6:06}_000019_{kind}.png",
                root / part / f"ulm/{name}_{kind}.png",
            )
    arguments = ["dataset=cityscapes", f"dataset.root={root}", "dataset.split=train"]
    images = "leftImg8bit/train/ulm/{}_leftImg8bit.png"
    masks = "gtFine/train/ulm/{}_gtFine_labelIds.png"
    return Copy(
        arguments,
        root,
        images,
        masks,
        ids,
        "cityscapes has classes 7-8, 11-13, 17, 19-28, 31-33 and ",
    )


def cityscapes_instance(data: Path, root: Path) -> Copy:
    made = cityscapes(data, root)
    arguments = ["dataset=cityscapes_instance", *made.arguments[1:]]
    masks = made.masks.replace("label", "instance")
    legal = "cityscapes has classes 24-28, 31-33 and "
    return replace(made, arguments=arguments, masks=masks, legal=legal, deep=40)


def coco_tree(data: Path, root: Path) -> Path:
    for part in ("stuffthingmaps", "train2017", "val2017"):
        linked(data / "coco" / part, root / part)
    for split in ("train2017", "val2017"):
        link(
            data / f"coco/annotations/instances_{split}.json",
            root / f"annotations/instances_{split}.json",
        )
    return root


def coco_stuff(data: Path, root: Path) -> Copy:
    base = coco_tree(data, root)
    ids = sorted(path.stem for path in (base / "stuffthingmaps/train2017").iterdir())
    legal = "coco_stuff has classes 0-10, "
    masks = "stuffthingmaps/train2017/{}.png"
    return Copy(
        ["dataset=coco_stuff", f"dataset.root={root}"], base, "train2017/{}.jpg", masks, ids, legal
    )


def isbi(data: Path, root: Path) -> Copy:
    """The EM slices as a folder with a list."""
    for part in ("image", "label"):
        linked(data / "isbi_em" / part, root / part)
    ids = [str(i) for i in range(30)]
    (root / "lists").mkdir()
    (root / "lists/train.txt").write_text("\n".join(ids) + "\n")
    labels = "dataset.labels=[{id: 0, name: membrane}, {id: 255, name: cell}]"
    arguments = [
        "dataset=folder",
        f"dataset.root={root}",
        "dataset.images=image",
        "dataset.masks=label",
        labels,
    ]
    made = Copy(
        [*arguments, "dataset.lists=lists", "dataset.split=train"],
        root,
        "image/{}.png",
        "label/{}.png",
        ids,
    )
    return replace(made, legal="dataset.labels has classes 0, 255", listed=root / "lists/train.txt")


def isbi_paired(data: Path, root: Path) -> Copy:
    """The same, where the folders make the list."""
    made = isbi(data, root)
    for part in ("image", "label"):
        (root / part).rename(root / "train")
        (root / part).mkdir()
        (root / "train").rename(root / part / "train")
    arguments = [a for a in made.arguments if not a.startswith("dataset.lists")]
    return replace(
        made,
        arguments=arguments,
        images="image/train/{}.png",
        masks="label/train/{}.png",
        listed=None,
    )


# ---------------------------------------------------------------------- faults in files


def put(path: Path, content: bytes) -> None:
    """A file of its own in place of the link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def png(values: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG", compress_level=1)
    return file.getvalue()


def stored(path: Path) -> np.ndarray:
    """The values of a mask, whatever they stand for."""
    return np.array(Image.open(path))


def save_sbd(path: Path, plane: np.ndarray) -> None:
    """A cls file in SBD's field layout."""
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = np.zeros((1, 1))
    fields = {
        "Boundaries": boundaries,
        "Segmentation": plane,
        "CategoriesPresent": np.array([[1]], np.uint8),
    }
    savemat(path, {"GTcls": fields}, do_compression=True)


def empty_image(made: Copy, name: str) -> str:
    put(made.image(name), b"")
    return f"{made.image(name)}: is empty (0 bytes)"


def cut_image(made: Copy, name: str) -> str:
    whole = made.image(name).read_bytes()
    put(made.image(name), whole[: len(whole) // 2])
    return f"{made.image(name)}: cannot be decoded, the file is truncated or damaged ("


def deep_image(made: Copy, name: str) -> str:
    put(made.image(name), png(np.zeros((8, 8), np.uint16)))
    return f"{made.image(name)}: 16 bits per channel; convert the image to 8 bit"


def no_image(made: Copy, name: str) -> str:
    made.image(name).unlink()
    image = made.image(name).with_suffix("")
    mask = made.mask(name)
    if made.listed:
        return f"{image}.*: listed, but not there"
    if "stuffthingmaps" in made.masks:
        return f"{mask}: has no image {image}.*"
    return f"{mask}: has no partner {image}." + ("png" if "leftImg8bit" in made.images else "*")


def cut_mask(made: Copy, name: str) -> str:
    whole = made.mask(name).read_bytes()
    put(made.mask(name), whole[: len(whole) // 2])
    return f"{made.mask(name)}: cannot be decoded, the file is truncated or damaged ("


def smaller_mask(made: Copy, name: str) -> str:
    values = stored(made.mask(name))
    height, width = values.shape
    put(made.mask(name), png(values[:, 1:]))
    image = f"its image {made.image(name)} has {width} x {height}"
    text = f"mask of {width - 1} x {height} pixels, but {image}"
    return f"{made.mask(name)}: {text}"


def strange_value(made: Copy, name: str) -> str:
    values = stored(made.mask(name))
    values[2, 3] = 200
    put(made.mask(name), png(values))
    return f"{made.mask(name)}: mask value 200 at (x=3, y=2), but {made.legal}"


def deep_mask(made: Copy, name: str) -> str:
    values = stored(made.mask(name)).astype(np.uint16)
    values[2, 3] = 40_000
    put(made.mask(name), png(values))
    return f"{made.mask(name)}: mask value {made.deep} at (x=3, y=2), but {made.legal}"


def colour_mask(made: Copy, name: str) -> str:
    put(made.mask(name), png(np.zeros((8, 8, 3), np.uint8)))
    text = "mode RGB, but a mask is 1 channel of class values; take one channel where all are equal"
    return f"{made.mask(name)}: {text}"


def jpeg_mask(made: Copy, name: str) -> str:
    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    put(made.mask(name), file.getvalue())
    return f"{made.mask(name)}: JPEG is lossy and invents mask values; save masks as 1-channel PNG"


def no_mask(made: Copy, name: str) -> str:
    made.mask(name).unlink()
    mask = made.mask(name)
    if made.listed:
        return f"{mask.with_suffix('')}.*: listed, but not there"
    partner = mask if "leftImg8bit" in made.images else f"{mask.with_suffix('')}.*"
    return f"{made.image(name)}: has no partner {partner}"


def listed_twice(made: Copy, name: str) -> str:
    assert made.listed is not None
    lines = made.listed.read_text().split()
    made.listed.write_text("\n".join([*lines, name]) + "\n")
    first = f"(first in line {lines.index(name) + 1})"
    return f"{made.listed}, line {len(lines) + 1}: `{name}` is listed twice {first}"


def unknown_id(made: Copy, name: str) -> str:
    """Named once, though image and mask both are not there."""
    assert made.listed is not None
    made.listed.write_text(made.listed.read_text() + f"no_{name}\n")
    gone = [path.with_suffix("") for path in (made.image(f"no_{name}"), made.mask(f"no_{name}"))]
    return f"{gone[0]}.* and {gone[1]}.*: listed, but not there"


def train_ids(made: Copy, name: str) -> str:
    """In place of labelIds; pixel (0, 0) is the first `out of roi`, which trainIds store as 255."""
    table = np.full(34, 255, np.uint8)
    table[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = np.arange(19)
    put(made.mask(name), png(table[stored(made.mask(name))]))
    return f"{made.mask(name)}: mask value 255 at (x=0, y=0), but {made.legal}"


def train_ids_without_void(made: Copy, name: str) -> str:
    """Legal labelIds all of them: only the file of instances tells."""
    train_ids(made, name)
    values = stored(made.mask(name))
    put(made.mask(name), png(np.where(values == 255, 0, values).astype(np.uint8)))
    return f"{made.mask(name)}: "


def cut_instances(made: Copy, name: str) -> str:
    return cut_mask(replace(made, masks=made.masks.replace("label", "instance")), name)


# SegmentationObject and SegmentationClass


def classes_of(made: Copy) -> Copy:
    return replace(made, masks="SegmentationClass/{}.png")


def smaller_objects(made: Copy, name: str) -> str:
    line = smaller_mask(made, name)
    return line.replace(f"image {made.image(name)}", f"image {classes_of(made).mask(name)}")


def extra_object(made: Copy, name: str) -> str:
    strange_value(made, name)
    text = f"object 200 is background in {classes_of(made).mask(name)}"
    return f"{made.mask(name)}: {text}, but an object has one class"


def void_object(made: Copy, name: str) -> str:
    """All pixels of object 1 are void in the file of classes."""
    path = classes_of(made).mask(name)
    put(path, png(np.where(stored(made.mask(name)) == 1, 255, stored(path)).astype(np.uint8)))
    return f"{made.mask(name)}: object 1 is nothing but void in {path}, but an object has one class"


def cut_classes(made: Copy, name: str) -> str:
    return cut_mask(classes_of(made), name)


def strange_class(made: Copy, name: str) -> str:
    return strange_value(classes_of(made), name)


def no_classes(made: Copy, name: str) -> str:
    return no_mask(classes_of(made), name)


def unknown_object_id(made: Copy, name: str) -> str:
    return unknown_id(classes_of(made), name)


# .mat files


def save_plane(path: Path, plane: np.ndarray) -> None:
    """In the layout of the file that is there."""
    if "cls" in path.parts:
        save_sbd(path, plane)
    else:
        savemat(path, {"LabelMap": plane}, do_compression=True)


def size_of(made: Copy, name: str) -> tuple[int, int]:
    """(height, width)"""
    with Image.open(made.image(name)) as image:
        return image.height, image.width


def plane_name(made: Copy) -> str:
    return "GTcls.Segmentation" if "cls" in made.masks else "LabelMap"


NO_MAT = "cannot be read as a .mat file: it is empty, damaged or of another format"


def empty_mat(made: Copy, name: str) -> str:
    put(made.mask(name), b"")
    return f"{made.mask(name)}: {NO_MAT}"


def cut_mat(made: Copy, name: str) -> str:
    whole = made.mask(name).read_bytes()
    put(made.mask(name), whole[: len(whole) - 40])
    return f"{made.mask(name)}: cannot be read as a .mat file: it is truncated or damaged"


def png_as_mat(made: Copy, name: str) -> str:
    put(made.mask(name), png(np.zeros((8, 200), np.uint8)))
    return f"{made.mask(name)}: {NO_MAT}"


def other_mat(made: Copy, name: str) -> str:
    savemat(made.mask(name), {"Other": np.zeros((8, 8))})
    text = f"holds no label map `{plane_name(made)}`; is it a file of this data set?"
    return f"{made.mask(name)}: {text}"


def fractions_mat(made: Copy, name: str) -> str:
    save_plane(made.mask(name), np.full(size_of(made, name), 0.5))
    return f"{made.mask(name)}: {plane_name(made)} holds fractions, but labels are whole numbers"


def smaller_mat(made: Copy, name: str) -> str:
    height, width = size_of(made, name)
    save_plane(made.mask(name), np.zeros((height, width - 1), np.uint8))
    image = f"its image {made.image(name)} has {width} x {height}"
    text = f"mask of {width - 1} x {height} pixels, but {image}"
    return f"{made.mask(name)}: {text}"


def strange_mat(made: Copy, name: str) -> str:
    plane = np.zeros(size_of(made, name), np.uint16)
    plane[2, 3] = 460
    save_plane(made.mask(name), plane)
    return f"{made.mask(name)}: mask value 460 at (x=3, y=2), but {made.legal}"


IMAGES: list[Fault] = [empty_image, cut_image, deep_image, no_image]
MASKS: list[Fault] = [cut_mask, smaller_mask, strange_value, deep_mask, colour_mask]
LISTS: list[Fault] = [listed_twice, unknown_id]
MATS: list[Fault] = [
    empty_mat,
    cut_mat,
    png_as_mat,
    other_mat,
    fractions_mat,
    smaller_mat,
    strange_mat,
]
OBJECTS: list[Fault] = [
    cut_mask,
    smaller_objects,
    extra_object,
    colour_mask,
    void_object,
    cut_classes,
    strange_class,
]

# Each set, and the faults in its copy: ten kinds or more.
SETS: list[tuple[Callable[[Path, Path], Copy], list[Fault]]] = [
    (camvid, [*IMAGES, *MASKS, no_mask]),
    (voc, [*IMAGES, *MASKS, no_mask, *LISTS]),
    (voc_aug, [*IMAGES, *MASKS, no_mask, *LISTS]),
    (voc_sbd, [*IMAGES, *MATS, no_mask, *LISTS]),
    (voc_instance, [*IMAGES, *OBJECTS, no_mask, no_classes, listed_twice, unknown_object_id]),
    (context, [*IMAGES, *MASKS, no_mask, *LISTS]),
    (context_459, [*IMAGES, *MATS, no_mask]),
    (cityscapes, [*IMAGES, *MASKS, no_mask, train_ids, train_ids_without_void, cut_instances]),
    (cityscapes_instance, [*IMAGES, *MASKS, no_mask]),
    (coco_stuff, [*IMAGES, *MASKS, jpeg_mask]),
    (isbi, [*IMAGES, *MASKS, no_mask, *LISTS]),
    (isbi_paired, [*IMAGES, *MASKS, no_mask]),
]


# --------------------------------------------------------------------- faults in COCO's annotations

Content = dict[str, Any]


def outside(entry: Content) -> str:
    entry["bbox"] = [600.5, 10, 2000, 20]
    return "box [600.5, 10.0, 2000.0, 20.0] leaves its image of "


def negative(entry: Content) -> str:
    entry["bbox"] = [-30, 10, 40, 20]
    return "box [-30.0, 10.0, 40.0, 20.0] leaves its image of "


def flat_box(entry: Content) -> str:
    entry["bbox"] = [10, 10, 5, 0]
    return "box [10.0, 10.0, 5.0, 0.0] has no width or no height"


def no_area(entry: Content) -> str:
    entry["area"] = 0
    return "area is 0.0, but must be above 0"


def unknown_category(entry: Content) -> str:
    entry["category_id"] = 12  # one of the eleven numbers between 1 and 91 that COCO does not use
    return "category 12 is unknown, "


def unknown_image(entry: Content) -> str:
    entry["image_id"] = 999_999
    return "belongs to image 999999, which the file does not list"


def two_points(entry: Content) -> str:
    entry["segmentation"] = [[1, 1, 5, 5]]
    return "a polygon of 4 numbers; three points or more are 6, 8, ... numbers"


def far_points(entry: Content) -> str:
    entry["segmentation"] = [[1, 1, 5, 5, 1e7, 9]]
    return "a polygon lies far outside its image of "


def points_of_text(entry: Content) -> str:
    entry["segmentation"] = [["1", "1", "5", "5", "9", "1"]]
    return "its polygons are not lists of numbers"


def nan_point(entry: Content) -> str:
    entry["segmentation"] = [[1, 1, 5, float("nan"), 9, 9]]
    return "a polygon lies far outside its image of "


def no_points(entry: Content) -> str:
    entry["segmentation"] = [[]]
    return "a polygon of 0 numbers; three points or more are 6, 8, ... numbers"


def runs_of_another_size(entry: Content) -> str:
    entry["segmentation"] = {"size": [20, 10], "counts": [50, 150]}
    return "run-length mask of [20, 10] pixels (height, width) in an image of "


def runs_that_end_early(entry: Content) -> str:
    entry["segmentation"] = {"size": [20, 10], "counts": [50, 149]}
    return "the runs of its mask do not add up to its 20 x 10 pixels"


def nan_box(entry: Content) -> str:
    entry["bbox"] = [1, 2, float("nan"), 4]
    return "`bbox` is [1, 2, NaN, 4], but must be [x, y, width, height]"


def endless_area(entry: Content) -> str:
    entry["area"] = float("inf")
    return "`area` is Infinity, but must be a number"


def no_image_id(entry: Content) -> str:
    del entry["image_id"]
    return "`image_id` is missing, but must be an integer"


ENTRIES = [
    outside,
    negative,
    flat_box,
    no_area,
    unknown_category,
    unknown_image,
    two_points,
    far_points,
    points_of_text,
    nan_point,
    no_points,
    runs_of_another_size,
    runs_that_end_early,
]
# found before it is known of which image the annotation is
NUMBERS = [
    nan_box,
    endless_area,
    no_image_id,
]


def plant_in_coco(root: Path) -> list[str]:
    """24 faults in the split train2017, five of them in images."""
    path = root / "annotations/instances_train2017.json"
    content: Content = json.loads(path.read_text())
    # coco_voc takes images with 1,000 pixels of VOC's classes: those with a large person
    large = {
        e["image_id"] for e in content["annotations"] if e["category_id"] == 1 and e["area"] > 5000
    }
    images = [image for image in content["images"] if image["id"] in large][:6]
    made = Copy(
        [],
        root,
        "train2017/{}.jpg",
        "",
        [image["file_name"].removesuffix(".jpg") for image in images],
    )
    spare = {image["id"] for image in images}
    objects = iter(
        [e for e in content["annotations"] if e["image_id"] not in spare and not e["iscrowd"]]
    )

    found = [
        fault(made, name)
        for fault, name in zip((empty_image, cut_image, deep_image), made.ids, strict=False)
    ]
    gone = made.image(made.ids[3])
    other = made.image(made.ids[4])
    flat = images[5]["id"]
    width = images[5]["width"]
    gone.unlink()
    found.append(f"{gone}: listed, but not there (image {images[3]['id']} of {path})")
    put(other, png(np.zeros((8, 9, 3), np.uint8)))
    found.append(
        f"{other}: has 9 x 8 pixels, but {path} says {images[4]['width']} x {images[4]['height']}"
    )
    # the objects of an image without height go with it, and are not named one by one
    assert sum(e["image_id"] == flat for e in content["annotations"]) > 1
    del images[5]["height"]
    found.append(f"{path}: image {flat}: height missing and width {width} are no image size")
    content["images"].append(content["images"][0])
    found.append(f"{path}: image {content['images'][0]['id']}: this id is used twice")
    again = next(objects)
    entry = next(objects)
    entry["id"] = again["id"]
    found.append(
        f"{path}: annotation {again['id']} (image {entry['image_id']}): this id is used twice"
    )
    for plant in ENTRIES:
        entry = next(objects)
        line = plant(entry)
        found.append(f"{path}: annotation {entry['id']} (image {entry['image_id']}): {line}")
    for plant in NUMBERS:
        entry = next(objects)
        found.append(f"{path}: annotation {entry['id']}: {plant(entry)}")
    put(path, json.dumps(content).encode())
    return found
