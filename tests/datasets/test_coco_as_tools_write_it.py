"""COCO's format as tools write it: an id is an id, and a name is a name.

Members. Ids: text, negative, 0, beyond 64 bits, 1.0, `"7"` beside `7`, none, two alike. Categories:
Roboflow's parent of the same name, of its own name, two used ones of one name, numbered from 0.
Sizes as 48.0 and "48", or none. No box, area or mask; points in brackets; `iscrowd: "0"`; copies.
Names: folders doubled or of another machine, capitals, another suffix, another folder. Files:
UTF-16, a list, a comma too many, a bracket too few.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segtrain.data.verify import notes, verify_labels
from segtrain.datasets.coco import CocoJson, CocoJsonMasks
from segtrain.errors import DataError
from segtrain.structures.labels import LabelMap

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]  # 12 pixels


def shape(number: Any, image: Any = 1, category: Any = 1, **other: Any) -> dict[str, Any]:
    made = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
    made |= {"bbox": [2, 1, 4, 3], "area": 12, "segmentation": [SQUARE]} | other
    return {key: value for key, value in made.items() if value != "gone"}


def photo(number: Any, name: str = "a.png", **other: Any) -> dict[str, Any]:
    made = {"id": number, "file_name": name, "width": 10, "height": 8} | other
    return {key: value for key, value in made.items() if value != "gone"}


def table(*shapes: dict[str, Any], **other: Any) -> dict[str, Any]:
    made = {"images": [photo(1)], "categories": [{"id": 1, "name": "tree"}]}
    return made | {"annotations": list(shapes) or [shape(1)]} | other


def read(root: Path, made: Any, images: str | None = None, name: str = "made") -> CocoJson:
    file = root / f"{name}.json"
    file.write_text(made if isinstance(made, str) else json.dumps(made))
    return CocoJson(str(file), "train", None if images is None else str(root / images))


def pictures(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 8)).save(path)


# ------------------------------------------------------------------ ids


@pytest.mark.parametrize("image", ["a", "0001", -3, 0, 7, 7.0, 1 << 62, 1 << 70, "-0", "ü 1"])
@pytest.mark.parametrize("own", ["x", 0, 1.0, None, 1 << 65])
def test_every_id_is_an_id(tmp_path: Path, image: Any, own: Any) -> None:
    made = table(shape(own, image), images=[photo(5, "b.png"), photo(image)])
    data = read(tmp_path, made)
    assert data.problems == []
    assert sorted(data.ids) == sorted(["5", "7" if image == 7 else str(image)])
    place = data.ids.index("7" if image == 7 else str(image))
    assert [len(data.segments(index)) for index in (place, 1 - place)] == [1, 0]


def test_an_id_written_as_text_and_as_a_number_is_one_id(tmp_path: Path) -> None:
    data = read(
        tmp_path, table(shape(1, 7), shape(2, "007"), images=[photo("7"), photo("007", "b")])
    )
    assert data.problems == []
    assert data.ids == ["7", "007"]
    assert [len(data.segments(index)) for index in range(2)] == [1, 1]
    (problem,) = read(tmp_path, table(images=[photo(1), photo("1", "b.png")])).problems
    assert problem.endswith("image 1: this id is used twice")


def test_annotations_without_an_id_are_told_by_their_place(tmp_path: Path) -> None:
    faulty = shape("gone", bbox=[2, 1, 40, 3])
    (problem,) = read(tmp_path, table(shape("gone"), faulty, shape(1))).problems
    assert "annotation number 2 of the list (image 1): box [2.0, 1.0, 40.0, 3.0] leaves" in problem


@pytest.mark.parametrize("ids", [(-1, 3), (5, 70_000), ("a", "b"), (0, "1"), (1 << 70, "x")])
def test_category_ids_are_kept_as_the_file_has_them(tmp_path: Path, ids: tuple) -> None:
    one, two = sorted(ids, key=lambda value: isinstance(value, str) or value > 1 << 62)
    categories = [{"id": two, "name": "bush"}, {"id": one, "name": "tree"}]
    made = table(shape(1, 1, two), shape(2, 1, one, bbox=[2, 1, 4, 3.5]), categories=categories)
    data = read(tmp_path, made)
    assert (data.problems, data.labels.names) == ([], ("tree", "bush"))
    assert data.labels.raw == {one: 0, two: 1}
    assert data.segments(0).labels.tolist() == [1, 0]
    stored = json.loads(json.dumps(data.labels.record()))
    assert LabelMap.from_record(stored, "x").raw == {one: 0, two: 1}
    assert CocoJsonMasks(str(tmp_path / "made.json"), "train").labels.names[1:] == ("tree", "bush")


def test_a_file_name_of_two_images_is_a_fault(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, table(images=[photo(1), photo(2)])).problems
    assert problem == f"{tmp_path}/made.json: images 1 and 2 are both `a.png`"


def test_copies_of_annotations_under_new_ids_are_noted(tmp_path: Path) -> None:
    shapes = [shape(1), shape(2, bbox=[2, 1, 4, 3.5]), shape(3), shape(4, category=2), shape(5)]
    names = [{"id": 1, "name": "tree"}, {"id": 2, "name": "bush"}]
    data = read(tmp_path, table(*shapes, categories=names))
    assert data.problems == []
    assert data.notes == [
        f"{tmp_path}/made.json: 2 of 5 annotations repeat another one of their image under a new "
        "id (as 1 and 3)"
    ]


def test_annotations_of_one_box_are_copies_only_with_one_mask(tmp_path: Path) -> None:
    two = [SQUARE[:6], SQUARE[2:]]  # the points of one polygon, and the same as two
    joined = SQUARE[:6] + SQUARE[2:]
    shapes = [shape(k + 1, segmentation=mask) for k, mask in enumerate((two, [joined]))]
    assert read(tmp_path, table(*shapes)).notes == []
    shapes.append(shape(3, segmentation=two))  # of the first, with another one between them
    assert read(tmp_path, table(*shapes)).notes == [
        f"{tmp_path}/made.json: 1 of 3 annotations repeat another one of their image under a new "
        "id (as 1 and 3)"
    ]
    other = table(shape(1), shape(2, image=2), images=[photo(1), photo(2, "b.png")])
    assert read(tmp_path, other).notes == []


# ------------------------------------------------------------------ classes


def parents(name: str, *used: int) -> dict[str, Any]:
    categories = [
        {"id": 0, "name": name, "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": name},
        {"id": 2, "name": "dog", "supercategory": name},
    ]
    shapes = [shape(k, category=category) for k, category in enumerate(used)]
    return table(*shapes, categories=categories)


@pytest.mark.parametrize("name", ["cat", "pets"])
def test_a_parent_that_no_object_has_is_no_class(tmp_path: Path, name: str) -> None:
    data = read(tmp_path, parents(name, 1))
    assert data.labels.raw == {1: 0, 2: 1}
    assert data.labels.names == ("cat", "dog")
    why = "another has its name" if name == "cat" else "it is the `supercategory` of others"
    assert data.notes == [
        f"{tmp_path}/made.json: category 0 `{name}` is no class: no annotation uses it, and {why}"
    ]
    read(tmp_path, parents(name, 2), name="val")
    val = CocoJson(str(tmp_path / "made.json"), "val", val_annotations=str(tmp_path / "val.json"))
    assert (val.problems, val.labels.raw) == ([], {1: 0, 2: 1})
    assert val.segments(0).labels.tolist() == [1]


def test_a_parent_with_an_object_is_a_class(tmp_path: Path) -> None:
    data = read(tmp_path, parents("pets", 0, 2))
    assert (data.labels.raw, data.labels.names) == ({0: 0, 1: 1, 2: 2}, ("pets", "cat", "dog"))
    with pytest.raises(
        DataError, match=r"categories 0 and 1 are both named `cat`, and annotations"
    ):
        read(tmp_path, parents("cat", 0, 1))


def test_categories_numbered_from_zero_are_one_line(tmp_path: Path) -> None:
    names = [{"id": 1, "name": "tree"}, {"id": 2, "name": "bush"}]
    shapes = [shape(1, category=0), shape(2, category=0), shape(3, category=1)]
    (problem,) = read(tmp_path, table(*shapes, categories=names)).problems
    assert problem.endswith(
        "the `category_id` of 2 annotations is 0, but made has classes 1-2; numbered from 0? Add 1 "
        "to every `category_id`"
    )


# ------------------------------------------------------------------ what may be missing


@pytest.mark.parametrize(
    "sides", [{"width": 10.0, "height": "8"}, {"width": "gone", "height": None}]
)
def test_a_size_is_read_however_it_is_written(tmp_path: Path, sides: dict) -> None:
    pictures(tmp_path, "photos/a.png")
    data = read(tmp_path, table(images=[photo(1, **sides)]), "photos")
    assert data.problems == []
    assert data.sizes().tolist() == [[8, 10]]
    assert verify_labels(data, scored=True).problems == []


def test_without_size_and_file_the_way_out_is_named(tmp_path: Path) -> None:
    made = table(images=[photo(1, width="gone", height="gone")])
    (problem,) = read(tmp_path, made).problems
    assert problem.endswith("set dataset.images=FOLDER, and they are taken from its file")
    (problem,) = read(tmp_path, made, "photos").problems
    assert problem.endswith(f"and its file {tmp_path}/photos/a.png is not there")


@pytest.mark.parametrize("nothing", ["gone", None, []])
def test_box_and_area_follow_from_the_mask(tmp_path: Path, nothing: Any) -> None:
    runs = {"size": [8, 10], "counts": [8, 2, 70]}  # column 1, rows 0 and 1
    area = "gone" if nothing == [] else nothing
    shapes = [
        shape(1, bbox=nothing, area=area),
        shape(2, bbox=nothing, area=area, segmentation=runs),
    ]
    data = read(tmp_path, table(*shapes))
    assert data.problems == []
    segments = data.segments(0)
    assert segments.boxes.tolist() == [[2, 1, 4, 3], [1, 0, 1, 2]]
    assert segments.areas.tolist() == [12, 2]


def test_a_box_without_a_mask_is_left_out_and_counted(tmp_path: Path) -> None:
    data = read(tmp_path, table(shape(1), shape(2, segmentation=[]), shape(3, bbox=[2, 1, 4, 2])))
    assert (data.problems, len(data.segments(0))) == ([], 2)
    line = f"{tmp_path}/made.json: 1 of 3 annotations have no `segmentation` and are left out"
    assert notes(data, verify_labels(data))[0] == line
    most = [shape(k, segmentation="gone") for k in (2, 3)]
    (problem,) = read(tmp_path, table(shape(1), *most)).problems
    assert problem.endswith(
        "2 of 3 annotations have no `segmentation`; draw their masks, or take them out of the file"
    )
    (problem,) = read(tmp_path, table(shape(1, bbox=[], segmentation=None))).problems
    assert problem.endswith("annotation 1: has neither `bbox` nor `segmentation`")


def test_a_file_of_boxes_needs_no_areas(tmp_path: Path) -> None:
    data = read(tmp_path, table(shape(1, segmentation="gone", area="gone")))
    assert (data.problems, data.segments(0).areas.tolist()) == ([], [12])


@pytest.mark.parametrize(
    "points", [[[2, 1], [6, 1], [6, 4], [2, 4]], [[[2, 1], [6, 1], [6, 4], [2, 4]]]]
)
@pytest.mark.parametrize("crowd", ["0", None, False])
def test_points_in_brackets_are_a_polygon(tmp_path: Path, points: Any, crowd: Any) -> None:
    data = read(tmp_path, table(shape(1, segmentation=points, iscrowd=crowd)))
    assert data.problems == []
    assert data.instances(0).masks.sum() == 12
    assert not data.segments(0).crowd.any()


# ------------------------------------------------------------------ names of files


@pytest.mark.parametrize(
    ("written", "noted"),
    [
        ("day/a.png", False),
        ("day\\a.png", False),
        ("photos/day/a.png", True),
        ("/elsewhere/bob/day/a.png", True),
        ("C:\\pics\\day\\a.png", True),
        ("day/A.PNG", True),
    ],
)
def test_folders_of_another_machine_are_no_matter(
    tmp_path: Path, written: str, noted: bool
) -> None:
    pictures(tmp_path, "photos/day/a.png", "photos/b.png")
    made = table(images=[photo(1, written), photo(2, "b.png")])
    data = read(tmp_path, made, "photos")
    assert data.problems == []
    assert data.files(0).image == tmp_path / "photos/day/a.png"
    assert verify_labels(data, scored=True).problems == []
    said = (
        f"1 of 2 names in {tmp_path}/made.json have other folders or capitals than the files, "
        f"which are read all the same ({written}: {tmp_path}/photos/day/a.png)"
    )
    assert data.notes == [said] * noted


def test_a_file_that_two_images_may_be_is_neither(tmp_path: Path) -> None:
    pictures(tmp_path, "photos/a.png", "photos/b.png")
    images = [photo(1, "x/a.png"), photo(2, "y/a.png"), photo(3, "b.png")]
    data = read(tmp_path, table(images=images), "photos")
    assert data.ids == ["3"]
    assert data.problems == [
        f"{tmp_path}/photos/{way}/a.png: listed, but not there (image {number} of "
        f"{tmp_path}/made.json); {tmp_path}/photos/a.png fits other images too"
        for number, way in ((1, "x"), (2, "y"))
    ]


@pytest.mark.parametrize("written", ["{}.jpg", "{}", "images/{}.jpg"])
def test_another_suffix_is_one_line_with_the_file(tmp_path: Path, written: str) -> None:
    pictures(tmp_path, "photos/a.png", "photos/b.png")
    images = [photo(k, written.format(name)) for k, name in enumerate("ab")]
    (problem,) = read(tmp_path, table(shape(1, 0), images=images), "photos").problems
    assert problem == (
        f"{tmp_path}/made.json: 2 of its images are there only with another suffix "
        f"({written.format('a')}: {tmp_path}/photos/a.png); write the names of the files into "
        "`file_name`"
    )


def test_the_wrong_folder_is_one_line_with_the_right_one(tmp_path: Path) -> None:
    pictures(tmp_path, "photos/a.png", "photos/b.png", "other/c.png")
    images = [photo(1, "a.png"), photo(2, "b.png")]
    (problem,) = read(tmp_path, table(images=images), "other").problems
    assert problem == (
        f"{tmp_path}/other: has none of the 2 images that {tmp_path}/made.json lists, as `a.png`; "
        f"dataset.images={tmp_path}/photos has it"
    )
    assert read(tmp_path, table(images=[photo(1), photo(2, "z")]), "photos").problems == [
        f"{tmp_path}/photos/z: listed, but not there (image 2 of {tmp_path}/made.json)"
    ]
    missing = read(tmp_path, table(), "nowhere")
    assert verify_labels(missing).problems == [f"{tmp_path}/nowhere: no such folder of images"]


# ------------------------------------------------------------------ the file itself


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_the_encodings_of_windows_are_read(tmp_path: Path, encoding: str) -> None:
    made = table(images=[photo(1, "ü.png")])
    (tmp_path / "made.json").write_text(json.dumps(made, ensure_ascii=False), encoding=encoding)
    data = CocoJson(str(tmp_path / "made.json"), "train")
    assert (data.problems, data.index.name(0)) == ([], "ü.png")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "is a list, but must be an object {...} that holds lists (line 1, after 0 "),
        (
            '{\n"images": [1,\n]}',
            "a comma too many, or a value too few, before `]` (line 3, after 16 ",
        ),
        ('{\n"images": [{"id": 1},\n\n]}', "before `]` (line 4, after "),
        ('{"images": [{"a": 1},\n{"id": [1,]}]}', "before `]` (line 2, after 32 "),
        ('{"images": [],\n}', "a comma too many, or a value too few, before `}` (line 2, "),
        ('{"images": []\n', "the file ends before its closing `}` (line 2, after 14 "),
        ('{"images": [1\n', "the file ends before its closing `]` (line 2, after 14 "),
        ('{"images": [{"id": 1', "the file ends within an entry (line 1, after 20 "),
        ('{"images": [{"id": "a', "the file ends within an entry (line 1, after 19 "),
    ],
)
def test_what_is_wrong_with_the_text_is_said_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, text)
    assert f"{said}" in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/made.json: not whole, or no JSON: ")
