"""A photo and its labels lie in one frame: the photo's as its orientation tag turns it.

Members: labels of the turned photo, of the unturned one (label map, COCO), half a turn, a square
photo, a mask with the same tag, no tag, a tag that is none.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.data.images import orientation
from segtrain.data.verify import notes, verify_labels
from segtrain.datasets.coco import CocoJson
from segtrain.datasets.folder import Folder
from segtrain.datasets.labelme import Labelme
from segtrain.datasets.yolo import Yolo

WAY = (
    "its orientation tag is 6, which turns it, and the labels fit the photo as it was before: "
    "turn them too, or take the tag out of the photo"
)


def photo(path: Path, width: int, height: int, tag: int | None) -> None:
    """A photo whose file holds width x height pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if tag is not None:
        exif[0x0112] = tag
    Image.new("RGB", (width, height), (1, 2, 3)).save(path, exif=exif)


def folder(
    root: Path, size: tuple[int, int], tag: int | None, mask: tuple[int, int], mask_tag: int = 1
) -> Folder:
    """Sizes are (width, height)."""
    photo(root / "images/train/a.jpg", *size, tag)
    path = root / "masks/train/a.png"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = mask_tag
    values = np.zeros(mask[::-1], np.uint8)
    values[0] = 1
    Image.fromarray(values).save(path, exif=exif)
    return Folder(str(root), "train", labels=["ground", "tree"])


def test_labels_of_the_turned_photo_fit(tmp_path: Path) -> None:
    data = folder(tmp_path, (8, 6), 6, (6, 8))  # turned by a quarter: 6 wide, 8 high
    assert data[0].image.shape == (8, 6, 3)
    report = verify_labels(data)
    assert (report.problems, notes(data, report)) == ([], [])


def test_labels_of_the_unturned_photo_are_refused_by_the_tag(tmp_path: Path) -> None:
    (problem,) = verify_labels(folder(tmp_path / "a", (8, 6), 6, (8, 6))).problems
    assert problem.endswith(f"a.jpg has 6 x 8; {WAY}")
    (problem,) = verify_labels(folder(tmp_path / "b", (8, 6), 6, (7, 6))).problems
    assert problem.endswith("a.jpg has 6 x 8")  # which no turn explains
    (problem,) = verify_labels(folder(tmp_path / "c", (8, 6), None, (6, 8))).problems
    assert problem.endswith("a.jpg has 8 x 6")


def test_so_are_coco_s(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", 8, 6, 6)
    table = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}],
        "categories": [{"id": 1, "name": "tree"}],
        "annotations": [],
    }
    (tmp_path / "a.json").write_text(json.dumps(table))
    data = CocoJson(str(tmp_path / "a.json"), "train", str(tmp_path))
    (problem,) = verify_labels(data).problems
    assert "a.jpg: has 6 x 8 pixels, but" in problem
    assert problem.endswith(f"says 8 x 6; {WAY}")


def test_a_tag_of_the_mask_alone_is_named(tmp_path: Path) -> None:
    (problem,) = verify_labels(folder(tmp_path / "a", (8, 6), None, (8, 6), 6)).problems
    assert problem.endswith(
        "a.jpg has 8 x 6; the mask has an orientation tag of its own, 6, which turns it: take it "
        "out"
    )
    data = folder(tmp_path / "b", (8, 6), None, (8, 6), 3)
    report = verify_labels(data)
    assert report.problems == []
    assert report.turned == [f"{tmp_path}/b/images/train/a.jpg: tag 1, its mask: tag 3"]
    assert verify_labels(folder(tmp_path / "c", (8, 6), 6, (8, 6), 8)).turned == [
        f"{tmp_path}/c/images/train/a.jpg: tag 6, its mask: tag 8"
    ]


def labelme(root: Path, told: dict[str, int]) -> Labelme:
    photo(root / "train/a.jpg", 8, 6, 6)  # turned 6 wide, 8 high
    shape = {"label": "tree", "points": [[1, 1], [5, 1], [5, 4]]}
    (root / "train/a.json").write_text(json.dumps({"shapes": [shape], **told}))
    return Labelme(str(root), "train")


def test_labelme_s_size_of_the_unturned_photo_is_refused_by_the_tag(tmp_path: Path) -> None:
    (problem,) = verify_labels(
        labelme(tmp_path / "a", {"imageHeight": 6, "imageWidth": 8})
    ).problems
    assert problem.endswith(f"is of an image of 8 x 6 pixels, but its image has 6 x 8; {WAY}")
    data = labelme(tmp_path / "b", {"imageHeight": 8, "imageWidth": 6})
    report = verify_labels(data)
    assert (report.problems, notes(data, report)) == ([], [])


def test_labels_without_a_size_beside_a_turned_photo_are_noted(tmp_path: Path) -> None:
    photo(tmp_path / "yolo/images/train/a.jpg", 8, 6, 6)
    photo(tmp_path / "yolo/images/train/b.jpg", 8, 6, None)
    (tmp_path / "yolo/labels/train").mkdir(parents=True)
    for name in "ab":
        (tmp_path / f"yolo/labels/train/{name}.txt").write_text("0 0 0 1 0 1 0.5\n")
    for data, name, count in (
        (Yolo(str(tmp_path / "yolo"), "train", labels=["tree"]), "yolo/labels/train/a.txt", 2),
        (labelme(tmp_path / "labelme", {}), "labelme/train/a.json", 1),
    ):
        report = verify_labels(data)
        assert report.problems == []
        images = "2 images" if count == 2 else "1 image"
        assert notes(data, report) == [
            "labels without a size of their own beside a photo that its orientation tag turns: "
            f"they must be those of the turned photo: 1 of {images} ({tmp_path}/{name})"
        ]


@pytest.mark.parametrize(
    ("size", "tag", "mask_tag", "named"),
    [
        ((8, 6), 3, 1, True),
        ((8, 6), 2, 1, True),
        ((6, 6), 6, 1, True),
        ((8, 6), 3, 3, False),
        ((8, 6), 1, 1, False),
        ((8, 6), None, 1, False),
        ((8, 6), 9, 1, False),
    ],
    ids=[
        "half a turn",
        "mirrored",
        "square",
        "mask turned too",
        "upright",
        "no tag",
        "no such tag",
    ],
)
def test_a_tag_that_no_size_tells_is_noted(
    tmp_path: Path, size: tuple[int, int], tag: int | None, mask_tag: int, named: bool
) -> None:
    data = folder(tmp_path, size, tag, size, mask_tag)
    report = verify_labels(data)
    assert report.problems == []
    path = f"{tmp_path}/images/train/a.jpg"
    line = (
        f"1 photo turned by the orientation tag within the same size ({path}: tag {tag}): the "
        "labels must be those of the turned photo, which no size tells"
    )
    assert notes(data, report) == ([line] if named else [])
    assert orientation(path) == (tag if tag in range(1, 9) else 1)
