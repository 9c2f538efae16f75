"""The same ten images as values, in colours, as COCO's, labelme's and YOLO's polygons.

Objects overlap, touch the border and hold fractions of pixels. What is wrong in a file is named,
and what is harmless read. Members: labels as numbers, null, in another case, sizes as text, shapes
without a type or with too few points, rectangles of two and four corners or turned, files of
another image or program, marks elsewhere, names in classes.txt (in Latin-1, UTF-16, with an empty
line), obj.names or data.yml, a wrong nc, rounded coordinates, a class called background.
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
TURNED = [[2, 0], [4, 2], [2, 4], [0, 2]]  # a square on its corner


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
        (
            {"shapes": [{"label": "car", "points": TURNED, "shape_type": "rectangle"}]},
            r"a\.json, shape 0: is a rectangle of 4 points; outline it as a polygon$",
        ),
        ({"shapes": [{"label": "car", "points": [[0, "x"]]}]}, r"`points` is no list of \[x, y\]"),
        (
            {"shapes": [{"label": "car", "points": [[0, 0], [1, 1]], "shape_type": "polygon"}]},
            r"a\.json, shape 0: is a polygon of 2 points; it needs 3$",
        ),
        ({"shapes": [{"label": None, "points": TRIANGLE}]}, r"a\.json, shape 0: has no `label`$"),
        (
            {"shapes": [{"label": 3, "points": TRIANGLE}]},
            r"label `3` is no class; there are background, car, person$",
        ),
        (
            {"shapes": [], "imageHeight": 6, "imageWidth": 4},
            r"a\.json: is of an image of 4 x 6 pixels, but its image has 6 x 4",
        ),
        (
            {"shapes": [{"label": "car", "points": [[0, 0], [1, 0.2], [0.5, 1]]}]},
            r"a\.json: none of its points lies beyond the first pixel; coordinates from 0 to 1\?",
        ),
    ],
)
def test_what_is_wrong_in_labelmes_file_is_named(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        labelled(tmp_path, content).mask(0)


def test_labelmes_rectangles_are_drawn_and_its_void_is_ignored(tmp_path: Path) -> None:
    around = [[0, 0], [2, 0], [2, 4], [0, 4]]
    for number, points in enumerate(([[0, 0], [2, 4]], [[2, 4], [0, 0]], around, around[::-1])):
        shapes = [
            {"label": "car", "points": points, "shape_type": "rectangle"},
            {"label": "__ignore__", "points": [[4, 0], [6, 4]], "shape_type": "rectangle"},
        ]
        data = labelled(tmp_path / str(number), {"shapes": shapes})
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


def test_what_is_harmless_in_labelmes_file_is_read(tmp_path: Path) -> None:
    shapes = [
        {"label": " Car", "points": [[0, 0], [3, 0], [3, 4], [0, 4]], "shape_type": None},
        {"label": 7, "points": [[3, 0], [6, 4]], "shape_type": "rectangle"},
    ]
    content = {"shapes": shapes, "imageHeight": "4", "imageWidth": 6, "imagePath": "old\\IMG_1.jpg"}
    data = labelled(tmp_path, content, ["car", "7"])
    assert data.mask(0).tolist() == [[1, 1, 1, 2, 2, 2]] * 4
    assert Labelme(str(tmp_path), "train").labels.names == ("background", "7", "Car")


@pytest.mark.parametrize("named", ["b.png", "..\\photos\\b.png", "far/away/b.png"])
def test_a_file_of_another_image_that_is_there_is_refused(tmp_path: Path, named: str) -> None:
    data = labelled(tmp_path, {"shapes": [], "imagePath": named})
    assert data.mask(0).max() == 0  # b.png is not there: the files were renamed
    save(tmp_path / "train/b.png", np.zeros((4, 6, 3), np.uint8))
    said = r"a\.json: its imagePath says that it is of `b\.png`, which is there too; .*`a\.png` the"
    with pytest.raises(DataError, match=said):
        data.mask(0)


def test_other_programs_json_is_left_out_but_beside_an_image(tmp_path: Path) -> None:
    shapes = {"shapes": [{"label": "car", "points": TRIANGLE}]}
    for name in ("package.json", "train/coco.json", "train/deep/list.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"images": []}')
    labelled(tmp_path, shapes)
    data = Labelme(str(tmp_path), "train")
    assert (data.labels.names, data.problems) == (("background", "car"), [])
    (tmp_path / "train/lonely.json").write_text(json.dumps(shapes))
    assert Labelme(str(tmp_path), "train").problems == [
        f"{tmp_path}/train/lonely.json: has no image {tmp_path}/train/lonely.*"
    ]
    save(tmp_path / "train/coco.png", np.zeros((4, 6, 3), np.uint8))
    data = Labelme(str(tmp_path), "train")
    with pytest.raises(DataError, match=r"coco\.json: is no file of labelme's: it has no"):
        data.mask(data.ids.index("coco"))


def test_labels_that_differ_in_case_ask_for_one_of_them(tmp_path: Path) -> None:
    shapes = [{"label": label, "points": TRIANGLE} for label in ("Car", "car")]
    labelled(tmp_path, {"shapes": shapes})
    said = r"have the labels `Car` and `car`; with one of them in dataset.labels=\[Car,"
    with pytest.raises(DataError, match=said):
        Labelme(str(tmp_path), "train")


def test_marks_that_lie_elsewhere_are_found(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"train/{number}.png", np.zeros((4, 6, 3), np.uint8))
        save(tmp_path / f"images/train/{number}.png", np.zeros((4, 6, 3), np.uint8))
        (tmp_path / "jsons").mkdir(exist_ok=True)
        (tmp_path / f"jsons/{number}.json").write_text('{"shapes": []}')
        (tmp_path / "annotations/train").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"annotations/train/{number}.txt").write_text("0 0 0 1 0 1 1\n")
    assert Labelme(str(tmp_path), "train", labels=["car"]).problems == [
        f"{tmp_path}/train: holds no .json for any of the 3 images in {tmp_path}/train; "
        f"3 lie in {tmp_path}/jsons"
    ]
    assert Yolo(str(tmp_path), "train", labels=["car"]).problems == [
        f"{tmp_path}/labels/train: holds no .txt for any of the 3 images in {tmp_path}/images/train"
        f"; `annotations` is there in place of `labels`; 3 lie in {tmp_path}/annotations/train"
    ]
    (tmp_path / "annotations").rename(tmp_path / "labels")
    assert Yolo(str(tmp_path), "train", labels=["car"]).problems == []
    (tmp_path / "images").rename(tmp_path / "other")
    (tmp_path / "labels").rename(tmp_path / "images")
    (tmp_path / "other").rename(tmp_path / "labels")
    said = r"images/train: holds no images .*; .*labels/train does: are the two folders swapped\?$"
    with pytest.raises(DataError, match=said):
        Yolo(str(tmp_path), "train", labels=["car"])


def test_folders_without_splits_are_told(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"no split `train`, its images .*; set dataset.val_share="):
        Labelme(str(tmp_path), "train", labels=["car"])
    (tmp_path / "Images").mkdir()
    with pytest.raises(UserError, match=r"; `Images` is there in place of `images`$"):
        Yolo(str(tmp_path), "train", labels=["car"])
    save(tmp_path / "images/a.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"; images/ has no folder of a split$"):
        Yolo(str(tmp_path), "train", labels=["car"])


def yolo(root: Path, files: dict[str, str], split: str = "train") -> Yolo:
    """One image of 4 x 8 pixels with these other files."""
    save(root / "images/train/a.png", np.zeros((4, 8, 3), np.uint8))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Yolo(str(root), split)


LABEL = {"labels/train/a.txt": "1 0 0 0.5 0 0.5 1 0 1\n"}


@pytest.mark.parametrize(
    "files",
    [
        {"data.yml": "names: [car, person]\nnc: 2\n"},
        {"data.yaml": "\ufeffnames: {0: car, 1: person}\nnc: 2\n", "data.yml": "names: [x]\n"},
        {"classes.txt": "car\nperson\n"},
        {"labels/classes.txt": "car\r\nperson"},
        {"labels/train/classes.txt": "car\nperson\n"},
        {"obj.names": "car\nperson\n"},
        {"data.yaml": "names: [car, person]\n", "labels/train/classes.txt": "other\n"},
    ],
)
def test_yolos_names_are_found_where_tools_write_them(
    tmp_path: Path, files: dict[str, str]
) -> None:
    data = yolo(tmp_path, LABEL | files)
    assert (data.labels.names, data.problems) == (("background", "car", "person"), [])
    assert data.mask(0).tolist() == [[2, 2, 2, 2, 0, 0, 0, 0]] * 4


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            "car\ncaf\u00e9\n".encode("latin-1"),
            r"classes.txt: is no UTF-8 text .*; save it as UTF-8",
        ),
        ("car\nperson\n".encode("utf-16"), r"classes.txt: is no UTF-8 text .*; save it as UTF-8"),
        (b"car\n\nperson\n", r"classes.txt, line 2: is empty; every line names a class$"),
    ],
)
def test_a_list_of_yolos_names_that_is_damaged_is_named(
    tmp_path: Path, names: bytes, said: str
) -> None:
    (tmp_path / "classes.txt").write_bytes(names)
    with pytest.raises(DataError, match=said):
        yolo(tmp_path, LABEL)


def test_yolos_other_yaml_is_named_and_nc_is_compared(tmp_path: Path) -> None:
    said = r"data\.yaml: names no classes; .*/dataset\.yaml is there: name it data\.yaml, or"
    with pytest.raises(UserError, match=said):
        yolo(tmp_path, LABEL | {"dataset.yaml": "names: [car, person]\n"})
    data = yolo(tmp_path, {"data.yaml": "names: [car, person]\nnc: 3\n"})
    assert data.problems == [f"{tmp_path}/data.yaml: nc is 3, but there are 2 names"]


@pytest.mark.parametrize("outside", ["1.0000001", "1.001", "-1e-7", "-0.001"])
def test_coordinates_that_rounding_moved_out_are_clipped(tmp_path: Path, outside: str) -> None:
    right = f"0.5 0 {outside} 0 {outside} 1 0.5 1"
    left = f"{outside} 0 0.5 0 0.5 1 {outside} 1"
    files = {"labels/train/a.txt": f"0 {left if outside[0] == '-' else right}\n"}
    data = yolo(tmp_path, files | {"classes.txt": "car\n"})
    row = [1, 1, 1, 1, 0, 0, 0, 0]
    assert data.mask(0).tolist() == [row if outside[0] == "-" else row[::-1]] * 4
    (tmp_path / "labels/train/a.txt").write_text("0 0 0 1.002 0 1 1\n")
    with pytest.raises(DataError, match="coordinates are shares of the image"):
        data.mask(0)


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
