"""The scripts that cut and measure data sets give the numbers that can be counted by hand."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"
Script = Callable[..., str]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Run `script(name, arguments...)` in this process and return what it prints."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name: str, *arguments: object) -> str:
        module = importlib.import_module(name)
        capsys.readouterr()
        module.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


def annotation(image_id: int, side: int, iscrowd: int = 0) -> dict[str, Any]:
    """One square object of category 3 with its upper left corner at (10, 10)."""
    far = 10 + side
    return {
        "id": 100 * image_id + side,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [10, 10, side, side],
        "area": float(side * side),
        "iscrowd": iscrowd,
        "segmentation": [[10, 10, far, 10, far, far, 10, far]],
    }


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Images 1 to 5: large object, small beside large, crowd, none, two large objects."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 160, "width": 200} for i in (5, 4, 3, 2, 1)
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 7, "name": "train"}],
        "annotations": [
            annotation(1, 64),
            annotation(2, 64),
            annotation(2, 31),
            annotation(3, 64, iscrowd=1),
            annotation(5, 40),
            annotation(5, 90),
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_subset_takes_the_first_images_of_large_objects_only(
    script: Script, annotations: Path, tmp_path: Path
) -> None:
    output = tmp_path / "subset.json"
    printed = script("coco_subset", annotations, output)
    assert printed == f"2 images, 3 objects of 1 classes: {output}\n"
    part = json.loads(output.read_text())
    assert [image["id"] for image in part["images"]] == [1, 5]
    assert len(part["categories"]) == 2
    script("coco_subset", annotations, output, "--images", 1)
    assert [image["id"] for image in json.loads(output.read_text())["images"]] == [1]


def test_fpn_oracle_of_squares_is_nearly_perfect(
    script: Script, annotations: Path, tmp_path: Path
) -> None:
    part = tmp_path / "subset.json"
    script("coco_subset", annotations, part)
    small = ["--levels", 5, "--sizes", 14, "--shorter", 160, "--longest", 200]
    title, row = script("fpn_oracle", part, *small).splitlines()
    values = dict(zip(title.split(), row.split(), strict=True))
    assert values["levels"] == "P2-P5"
    assert values["mask"] == "14"
    # Of sides 64, 40 and 90, on scales of 64, 45 and 91 pixels: the middle 42 lies within 8 pixels
    # of columns at 36 and 44, 30 within 4 of 26, 30 and 34, and 55 within 8 of 52 and 60. Rows as
    # columns: 4 + 9 + 4 positions in two images.
    assert float(values["positives"]) == 8.5
    assert 0.5 < float(values["AR@100"]) <= 1
    # Fewer candidates cannot reach more.
    (row,) = script("fpn_oracle", part, *small, "--octaves", 0).splitlines()[1:]
    assert float(row.split()[-4]) <= float(values["AR@1000"])


def test_mask_oracle_of_squares_is_perfect(
    script: Script, annotations: Path, tmp_path: Path
) -> None:
    for number in range(1, 6):
        Image.new("RGB", (200, 160)).save(tmp_path / f"{number}.jpg")
    small = ["--images", tmp_path, "--sizes", 14, "--shorter", 160, "--longest", 200]
    title, *rows = (
        line.split() for line in script("mask_oracle", annotations, *small).splitlines()
    )
    assert title == ["mask", "targets", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [row[:2] for row in rows] == [["14", "binary"], ["14", "covered"]]
    assert rows[1][2] == "1.0000"


def isbi_folder(root: Path) -> Path:
    """30 slices of 8 x 10: membranes of grey value 60 in the left 3 columns, cells of 180."""
    grey = np.full((8, 10), 180, np.uint8)
    grey[:, :3] = 60
    for name, pixels in (("image", grey), ("label", np.where(grey > 100, 255, 0))):
        (root / name).mkdir()
        for number in range(30):
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def test_unet_isbi_writes_lists_and_scores_a_threshold(script: Script, tmp_path: Path) -> None:
    root = isbi_folder(tmp_path)
    printed = script("unet_isbi", "lists", "--root", root)
    assert printed == f"{root}/lists: train.txt (24 slices), val.txt (6 slices)\n"
    assert (root / "lists" / "val.txt").read_text().split() == ["24", "25", "26", "27", "28", "29"]
    metrics = tmp_path / "metrics.json"
    numbers = {"pixAcc": 0.75, "IoU/membrane": 0.5, "IoU/cell": 0.625, "protocol": {"images": 6}}
    metrics.write_text(json.dumps(numbers))
    rows = script("unet_isbi", "score", "--root", root, metrics).splitlines()
    assert rows[0].split("  ")[0] == "on the six held-out slices"
    assert rows[1].split()[-3:] == ["0.0000", "1.0000", "1.0000"]  # grey values part them exactly
    assert rows[3].split()[-3:] == ["0.3000", "0.0000", "0.7000"]  # all cell: 3 of 10 columns wrong
    assert rows[4].split()[-3:] == ["0.2500", "0.5000", "0.6250"]
    metrics.write_text(json.dumps({**numbers, "protocol": {"images": 5}}))
    with pytest.raises(SystemExit, match="measured on 5 images, not on the 6 held-out ones"):
        script("unet_isbi", "score", "--root", root, metrics)
