"""What other tools write is read where it is harmless, else what is there is named.

Members. Read: `iscrowd: null`, a polygon with a bracket too few, a list with a byte order mark,
Windows' backslashes in `file_name`. Named: ids with folders of either kind, masks that all end in
`_mask`, 0/255 masks with soft edges, white as 254 or 65535, three values.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.data.pairing import pair_all
from segtrain.data.verify import verify_labels
from segtrain.datasets.coco import CocoJson
from segtrain.datasets.folder import Folder
from segtrain.errors import DataError
from segtrain.structures.labels import LabelMap

BINARY = [{"id": 0, "name": "background"}, {"id": 255, "name": "object"}]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8)).save(path)


def mask(path: Path, *values: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values * 10] * 8, np.uint8)[:, :10]).save(path)


def test_a_coco_file_of_another_tool_is_read(tmp_path: Path) -> None:
    image(tmp_path / "day/a.png")
    table = {
        "images": [{"id": 1, "file_name": "day\\a.png", "width": 10, "height": 8}],
        "categories": [{"id": 1, "name": "tree"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": None,
                "bbox": [2, 1, 4, 3],
                "area": 12,
                "segmentation": [2, 1, 6, 1, 6, 4, 2, 4],
            }
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(table))
    data = CocoJson(str(tmp_path / "a.json"), "train", str(tmp_path))
    report = verify_labels(data, scored=True)
    assert (data.problems, report.problems) == ([], [])
    assert (report.crowds, report.objects[0], report.pixels[0]) == (0, 1, 12)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a", ""),
        ("a.png", "; list ids without the suffix"),
        ("images/a.png", "; list ids without folder and suffix"),
        ("images\\a.png", "; list ids without folder and suffix"),
        ("b", "listed, but not there"),
    ],
)
def test_a_list_of_another_tool_is_read_or_explained(tmp_path: Path, line: str, said: str) -> None:
    image(tmp_path / "images/a.png")
    mask(tmp_path / "masks/a.png", 0, 255)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    data = Folder(str(tmp_path), "train", lists="lists", labels=BINARY)
    if not said:
        assert (data.ids, data.problems) == (["a"], [])
    else:
        (problem,) = data.problems
        assert problem.endswith(said)


def test_masks_that_end_in_the_same_letters_are_one_line_with_the_setting(tmp_path: Path) -> None:
    for name in ("a", "ab", "c"):
        image(tmp_path / f"images/{name}.png")
        mask(tmp_path / f"masks/{name}_mask.png", 0)
    problems: list[str] = []
    assert pair_all(tmp_path / "images", tmp_path / "masks", problems, "") == {}
    assert problems == [
        f"{tmp_path}/masks: 3 of 3 images have no mask of their name; found only with `_mask` at "
        "the end (`a_mask.png` for `a`); set dataset.mask_suffix=_mask"
    ]
    problems = []
    pairs = pair_all(tmp_path / "images", tmp_path / "masks", problems, "_mask")
    assert (list(pairs), problems) == (["a", "ab", "c"], [])


def test_soft_edges_are_named(tmp_path: Path) -> None:
    image(tmp_path / "images/train/a.png")
    mask(tmp_path / "masks/train/a.png", 0, 0, 64, 192, 255, 255)
    (problem,) = verify_labels(Folder(str(tmp_path), "train", labels=BINARY)).problems
    assert "mask value 64 at (x=2, y=0)" in problem
    assert "soft edges" in problem
    mask(tmp_path / "masks/train/a.png", 0, 1, 2, 3, 4, 255)
    (problem,) = verify_labels(Folder(str(tmp_path), "train", labels=BINARY)).problems
    assert "soft edges" not in problem


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 0, 65535], "Binary 0/65535 masks? Map 65535 to a class"),
        ([0, 254, 254], "Binary 0/254 masks? Map 254 to a class"),
        ([0, 0, 0, 900, 65535, 40000], "with every value below 32768 as 0 and the others as 65535"),
        ([0, 0, 128, 255], "the three values 0, 128, 255, as of object, border and background? "),
        ([0, 0, 128, 255], "'dataset.labels={0: ..., 128: ..., 255: ...}' (null: ignored)"),
        ([0, 7, 7], "Other labels? dataset=folder takes them"),
    ],
)
def test_hints_name_the_values_that_are_there(values: list[int], said: str) -> None:
    labels = LabelMap.from_table(["ground", "tree"], "mine")
    with pytest.raises(DataError) as raised:
        labels.encode(np.array([values], np.uint16), "m.png")
    assert said in str(raised.value)
    assert ("soft edges" in str(raised.value)) == (900 in values)
