"""The same ten images as values, in colours, as COCO's, labelme's and YOLO's polygons.

Objects overlap, touch the border and hold fractions of pixels. What is wrong in a file is named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import SMALL_RUN, done, save, trained
from hotcoco import mask as coco_mask

from segtrain.datasets.coco import CocoJsonMasks
from segtrain.datasets.folder import Folder
from segtrain.datasets.labelme import Labelme
from segtrain.datasets.yolo import Yolo
from segtrain.errors import DataError, UserError

HEIGHT = 40
WIDTH = 64  # a power of two, so that shares of it are exact
NAMES = ["car", "person"]
COLORS = [[0, 0, 0], [10, 200, 30], [220, 20, 60]]


def objects(seed: int) -> list[tuple[int, list[float]]]:
    """(class from 0, polygon) of an image; corners lie on eighths of pixels."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(4):
        middle = rng.uniform((0, 0), (WIDTH, HEIGHT))
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        corners = middle + np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(4, 20)
        corners = np.round(np.clip(corners, 0, (WIDTH, HEIGHT)) * 8) / 8
        found.append((int(rng.integers(2)), corners.ravel().tolist()))
    return found


def drawn(found: list[tuple[int, list[float]]]) -> np.ndarray:
    """The label map: the smaller on top, by COCO's own rasteriser."""
    masks = [
        coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)))
        for _, polygon in found
    ]
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in sorted(range(len(found)), key=lambda k: -int(masks[k].sum())):
        label_map[masks[k] == 1] = found[k][0] + 1
    return label_map


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five forms of the same ten images, in folders `values`, `rgb`, `coco`, `labelme`, `yolo`."""
    root = tmp_path_factory.mktemp("forms")
    images = []
    annotations = []
    for number in range(10):
        found = objects(number)
        label_map = drawn(found)
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        for place in (
            "values/images/train",
            "rgb/images/train",
            "coco",
            "labelme/train",
            "yolo/images/train",
        ):
            save(root / place / f"{number}.png", pixels)
        save(root / f"values/masks/train/{number}.png", label_map)
        save(root / f"rgb/masks/train/{number}.png", np.array(COLORS, np.uint8)[label_map])
        shapes = [
            {"label": NAMES[c], "points": np.reshape(p, (-1, 2)).tolist(), "shape_type": "polygon"}
            for c, p in found
        ]
        (root / f"labelme/train/{number}.json").write_text(
            json.dumps({"shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH})
        )
        lines = [
            " ".join([str(c), *(repr(v / (HEIGHT if i % 2 else WIDTH)) for i, v in enumerate(p))])
            for c, p in found
        ]
        (root / "yolo/labels/train").mkdir(parents=True, exist_ok=True)
        (root / f"yolo/labels/train/{number}.txt").write_text("\n".join(lines) + "\n")
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
        )
        for c, p in found:
            rle = coco_mask.merge(coco_mask.frPyObjects([p], HEIGHT, WIDTH))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": c + 1,
                    "segmentation": [p],
                    "area": float(coco_mask.area(rle)),
                    "bbox": [float(v) for v in coco_mask.toBbox(rle)],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    (root / "coco.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (root / "yolo/data.yaml").write_text("names: [car, person]\nnc: 2\n")
    return root


def forms(root: Path) -> dict[str, Any]:
    table = [
        {"id": i, "name": name, "color": color}
        for i, (name, color) in enumerate(zip(["background", *NAMES], COLORS, strict=True))
    ]
    return {
        "values": Folder(str(root / "values"), "train", labels=table),
        "rgb": Folder(str(root / "rgb"), "train", labels=table, rgb=True),
        "coco": CocoJsonMasks(str(root / "coco.json"), "train", str(root / "coco")),
        "labelme": Labelme(str(root / "labelme"), "train"),
        "yolo": Yolo(str(root / "yolo"), "train"),
    }


def test_all_forms_give_the_same_maps_to_the_pixel(root: Path) -> None:
    sets = forms(root)
    seen = set()
    for number in range(10):
        expected = drawn(objects(number))
        seen |= set(np.unique(expected).tolist())
        for name, data in sets.items():
            assert data.labels.names == ("background", *NAMES), name
            assert (data.mask(number) == expected).all(), (name, number)
            assert (data[number].mask == expected).all(), (name, number)
    assert seen == {0, 1, 2}
    assert all(data.problems == [] for data in sets.values())


def test_an_image_without_a_file_holds_no_object(root: Path, tmp_path: Path) -> None:
    for form, place in (("labelme", "train"), ("yolo", "images/train")):
        save(tmp_path / form / place / "empty.png", np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "labelme/train/a.json").write_text(
        json.dumps({"shapes": [{"label": "car", "points": [[0, 0], [1, 0], [1, 1]]}]})
    )
    save(tmp_path / "labelme/train/a.png", np.zeros((4, 6, 3), np.uint8))
    data = Labelme(str(tmp_path / "labelme"), "train")
    assert data.mask(data.ids.index("empty")).tolist() == np.zeros((4, 6), int).tolist()
    yolo = Yolo(str(tmp_path / "yolo"), "train", labels=["car"])
    assert yolo[0].mask.tolist() == np.zeros((4, 6), int).tolist()


def labelled(tmp_path: Path, content: Any, labels: list[str] | None = None) -> Labelme:
    save(tmp_path / "train/a.png", np.zeros((4, 6, 3), np.uint8))
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "train/a.json").write_text(text)
    return Labelme(str(tmp_path), "train", labels=labels or ["car", "person"])


TRIANGLE = [[0, 0], [4, 0], [0, 3]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"a\.json: is no JSON file"),
        ({"annotations": []}, r"a\.json: is no file of labelme's: it has no list `shapes`"),
        (
            {"shapes": [{"label": "cat", "points": TRIANGLE}]},
            r"a\.json, shape 0: label `cat` is no class; there are background, car, person",
        ),
        (
            {"shapes": [{"label": "car", "points": [[0, 0], [1, 1]], "shape_type": "circle"}]},
            r"a\.json, shape 0: is a circle of 2 points; outline it",
        ),
        ({"shapes": [{"label": "car", "points": [[0, "x"]]}]}, r"`points` is no list of \[x, y\]"),
        (
            {"shapes": [], "imageHeight": 6, "imageWidth": 4},
            r"a\.json: is of an image of 4 x 6 pixels, but its image has 6 x 4",
        ),
    ],
)
def test_what_is_wrong_in_labelmes_file_is_named(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        labelled(tmp_path, content).mask(0)


def test_labelmes_rectangles_are_drawn_and_its_void_is_ignored(tmp_path: Path) -> None:
    shapes = [
        {"label": "car", "points": [[0, 0], [2, 4]], "shape_type": "rectangle"},
        {"label": "__ignore__", "points": [[4, 0], [6, 4]], "shape_type": "rectangle"},
    ]
    data = labelled(tmp_path, {"shapes": shapes})
    assert data.mask(0).tolist() == [[1, 1, 0, 0, 255, 255]] * 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.2 0.2", r"a\.txt, line 1: is a box"),
        ("2 0 0 1 0 1 1", r"line 1: class 2 has no name; there are car, person"),
        ("0 0 0 300 0 1 1", r"line 1: coordinates are shares of the image"),
        ("0 0 0 1 0 1", r"line 1: 5 numbers make no polygon"),
        ("car 0 0 1 0 1 1", r"line 1: is not `class x1 y1"),
    ],
)
def test_what_is_wrong_in_yolos_file_is_named(tmp_path: Path, line: str, said: str) -> None:
    save(tmp_path / "train/images/a.png", np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "train/labels/a.txt").write_text(line)
    (tmp_path / "data.yaml").write_text("names: {0: car, 1: person}\n")
    with pytest.raises(DataError, match=said):
        Yolo(str(tmp_path), "train").mask(0)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"data\.yaml: names no classes; set dataset\.labels="):
        Yolo(str(tmp_path), "train")


@pytest.mark.parametrize("name", ["background", "Background"])
def test_a_class_called_background_is_the_background(tmp_path: Path, name: str) -> None:
    expected = (name, "car", "person")
    shapes = [
        {"label": "person", "points": [[2, 0], [6, 4]], "shape_type": "rectangle"},
        {"label": name, "points": [[0, 0], [6, 4]], "shape_type": "rectangle"},
    ]
    data = labelled(tmp_path / "labelme", {"shapes": shapes}, ["car", name, "person"])
    assert data.labels.names == expected
    assert data.mask(0).tolist() == [[0, 0, 2, 2, 2, 2]] * 4
    save(tmp_path / "yolo/images/train/a.png", np.zeros((4, 8, 3), np.uint8))
    (tmp_path / "yolo/labels/train").mkdir(parents=True)
    lines = "2 0.25 0 1 0 1 1 0.25 1\n1 0 0 1 0 1 1 0 1\n"
    (tmp_path / "yolo/labels/train/a.txt").write_text(lines)
    yolo = Yolo(str(tmp_path / "yolo"), "train", labels=["car", name, "person"])
    assert yolo.labels.names == expected
    assert yolo.mask(0).tolist() == [[0, 0, 2, 2, 2, 2, 2, 2]] * 4
    square = [[2, 0, 8, 0, 8, 4, 2, 4]]
    boxed = {"image_id": 1, "segmentation": square, "area": 24, "bbox": [2, 0, 6, 4], "iscrowd": 0}
    table = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 8}],
        "categories": [{"id": i, "name": n} for i, n in ((1, "car"), (4, name), (7, "person"))],
        "annotations": [{"id": 1, "category_id": 7, **boxed}],
    }
    (tmp_path / "a.json").write_text(json.dumps(table))
    coco = CocoJsonMasks(str(tmp_path / "a.json"), "train", str(tmp_path / "yolo/images/train"))
    assert coco.labels.names == expected
    assert coco.labels.raw == {0: 0, 1: 1, 2: 2}
    assert coco.mask(0).tolist() == [[0, 0, 2, 2, 2, 2, 2, 2]] * 4


@pytest.mark.slow
@pytest.mark.parametrize("form", ["labelme", "yolo", "coco"])
def test_a_person_verifies_and_trains_on_them(root: Path, tmp_path: Path, form: str) -> None:
    words = {
        "labelme": [
            "dataset=labelme",
            f"dataset.root={root / 'labelme/train'}",
            "dataset.val_share=0.3",
        ],
        "yolo": ["dataset=yolo", f"dataset.root={root / 'yolo'}", "dataset.val_split=train"],
        "coco": [
            "dataset=coco_json_semantic",
            f"dataset.annotations={root / 'coco.json'}",
            f"dataset.images={root / 'coco'}",
        ],
    }[form]
    assert "0 problems" in done("segdata", "verify", *words)
    run = trained(
        tmp_path / "run",
        *words,
        *SMALL_RUN,
        "train.steps=1",
    )
    assert "3 classes" in (run / "train.log").read_text()
