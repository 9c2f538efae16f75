"""Label maps: raw mask values to train ids and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.errors import DataError, UserError
from segtrain.structures.labels import LabelMap, spans, voc_color

TABLE = [
    {"id": 7, "name": "road", "color": [128, 64, 128]},
    {"id": 9, "name": "car"},
    {"id": 300, "name": "road"},  # merged with 7
    {"id": 0, "ignore": True},
    {"id": 255, "ignore": True},
]
BUILT_IN = {"camvid": 11, "voc": 21, "cityscapes": 19, "context": 60, "coco": 80, "coco_stuff": 171}


@pytest.fixture
def labels() -> LabelMap:
    return LabelMap.from_table(TABLE, "toy")


def test_a_table_gives_train_ids_in_the_order_of_first_mention_and_merges_equal_names(
    labels: LabelMap,
) -> None:
    assert labels.names == ("road", "car")
    assert labels.num_classes == 2
    assert labels.raw == {7: 0, 9: 1, 300: 0, 0: 255, 255: 255}
    assert labels.colors == ((128, 64, 128), (128, 0, 0))  # car has train id 1: VOC rule


def test_encode_looks_every_value_up(labels: LabelMap) -> None:
    train = labels.encode(np.array([[7, 9, 0], [255, 300, 9]], np.uint16), "m.png")
    assert train.dtype == np.uint8
    assert train.tolist() == [[0, 1, 255], [255, 0, 1]]


def test_decode_writes_the_first_listed_raw_value_and_the_first_ignored_one(
    labels: LabelMap,
) -> None:
    raw = labels.decode(np.array([[0, 1, 255]], np.uint8))
    assert raw.tolist() == [[7, 9, 0]]
    assert raw.dtype == np.uint8
    with pytest.raises(UserError, match=r"class 2 predicted, but toy has classes 7, 9, 300"):
        labels.decode(np.array([[2]], np.uint8))


@pytest.mark.row("R18")
def test_an_illegal_value_is_named_with_file_place_and_legal_set(labels: LabelMap) -> None:
    mask = np.full((5, 6), 7, np.uint8)
    mask[3, 4] = 34
    mask[4, 0] = 35
    with pytest.raises(DataError) as caught:
        labels.encode(mask, "a/b.png")
    message = str(caught.value)
    assert message.startswith(
        "a/b.png: mask value 34 at (x=4, y=3), "
        "but toy has classes 7, 9, 300 and 0, 255 for ignored. "
    )
    assert "dataset.labels=[{id: 34, name: ...}, ...]" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [-1, 65536, 70000])
def test_values_that_no_file_can_hold_are_illegal_and_do_not_wrap_around(
    labels: LabelMap, value: int
) -> None:
    with pytest.raises(DataError, match=rf"mask value {value} at \(x=1, y=0\)"):
        labels.encode(np.array([[7, value]], np.int64), "m.mat")


def test_value_254_is_refused_like_any_unlisted_one(labels: LabelMap) -> None:
    with pytest.raises(DataError, match="mask value 254"):
        labels.encode(np.array([[254]], np.uint8), "m.png")


def test_a_binary_0_255_mask_gets_the_map_that_makes_it_work() -> None:
    binary = np.array([[0, 255], [0, 0]], np.uint8)
    two = LabelMap.from_table([{"id": 0, "name": "background"}, {"id": 1, "name": "object"}], "two")
    with pytest.raises(
        DataError, match=r"Binary 0/255 masks.*id: 0, name: background.*id: 255, name: object"
    ):
        two.encode(binary, "m.png")
    fixed = LabelMap.from_table(
        [{"id": 0, "name": "background"}, {"id": 255, "name": "object"}], "fixed"
    )
    assert fixed.encode(binary, "m.png").tolist() == [[0, 1], [0, 0]]
    assert fixed.decode(np.array([[1, 0]], np.uint8)).tolist() == [[255, 0]]


def test_without_a_class_the_later_train_ids_move_down() -> None:
    labels = LabelMap.load("context").without("background")
    assert labels.num_classes == 59
    assert labels.encode(np.array([[0, 1, 59, 255]], np.uint8), "m.png").tolist() == [
        [255, 0, 58, 255]
    ]
    assert labels.names[0] == "aeroplane"
    assert labels.colors[0] == (128, 0, 0)
    with pytest.raises(UserError, match="Did you mean `aeroplane`"):
        labels.without("aeroplan")


def test_only_some_classes_are_numbered_in_their_old_order_and_the_others_ignored() -> None:
    labels = LabelMap.load("cityscapes").only(("bicycle", "person"))
    assert labels.names == ("person", "bicycle")
    assert labels.colors == ((220, 20, 60), (119, 11, 32))
    assert labels.encode(np.array([[24, 33, 26, 0]], np.uint8), "m").tolist() == [[0, 1, 255, 255]]
    assert labels.decode(np.array([[0, 1, 255]], np.uint8)).tolist() == [[24, 33, 0]]


def test_a_file_may_list_several_numberings_of_the_same_classes() -> None:
    official = LabelMap.load("context")
    other = LabelMap.load("context", "id_459")
    assert other.names == official.names
    assert other.colors == official.colors
    assert (official.raw[52], other.raw[19]) == (52, 52)  # bedcloth
    with pytest.raises(UserError, match="context, label entry 0: `id` is None"):
        LabelMap.load("context", "id_460")


def test_a_data_set_can_say_the_way_out_of_an_illegal_value(labels: LabelMap) -> None:
    for mask in (
        np.array([[1]], np.uint8),
        np.array([[-1]], np.int64),
        np.array([[0, 255, 1]], np.uint8),
    ):
        with pytest.raises(DataError, match=r"for ignored\. Put the original back$"):
            labels.encode(mask, "m", "Put the original back")


def test_ignored_pixels_are_not_written_as_the_class_whose_value_is_255() -> None:
    labels = LabelMap.from_table(
        [{"id": 0, "name": "background"}, {"id": 255, "name": "object"}], "two"
    )
    with pytest.raises(UserError, match="class 255 predicted, but two has classes 0, 255"):
        labels.decode(np.array([[255]], np.uint8))


def test_a_long_list_of_legal_values_is_cut_short() -> None:
    labels = LabelMap.from_table(
        [{"id": 2 * i, "name": f"c{i}"} for i in range(100)] + [{"id": 1, "ignore": True}], "many"
    )
    assert labels.legal() == "classes 0-198 (100 values) and 1 for ignored"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_maps_survive_a_record(name: str) -> None:
    labels = LabelMap.load(name)
    assert LabelMap.from_record(json.loads(json.dumps(labels.record())), "run") == labels


def test_a_contiguous_map_reads_masks_that_hold_train_ids() -> None:
    labels = LabelMap.load("cityscapes")
    assert labels.encode(np.array([[7, 33, 0]], np.uint8), "m").tolist() == [[0, 18, 255]]
    assert labels.contiguous().encode(np.array([[0, 18, 255]], np.uint8), "m").tolist() == [
        [0, 18, 255]
    ]
    with pytest.raises(DataError, match="mask value 33"):
        labels.contiguous().encode(np.array([[33]], np.uint8), "m")


def test_the_voc_rule_gives_the_published_colours() -> None:
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {i: voc_color(i) for i in published} == published
    assert LabelMap.load("voc").colors == tuple(voc_color(i) for i in range(21))


@pytest.mark.parametrize(("name", "count"), BUILT_IN.items())
def test_built_in_maps_have_the_benchmarks_class_counts_and_survive_a_round_trip(
    name: str, count: int
) -> None:
    labels = LabelMap.load(name)
    train = np.arange(count, dtype=np.uint8)[None]
    assert labels.num_classes == count == len(labels.colors)
    assert labels.encode(labels.decode(train), name).tolist() == train.tolist()


def test_built_in_maps_keep_known_raw_ids() -> None:
    assert LabelMap.load("camvid").raw[11] == 255
    assert LabelMap.load("coco").raw[90] == 79
    assert LabelMap.load("coco_stuff").raw[181] == 170
    assert LabelMap.load("coco_stuff").raw[11] == 255  # street sign: never annotated
    assert LabelMap.load("cityscapes").decode(np.array([[13, 255]], np.uint8)).tolist() == [[26, 0]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "entry 1: id 1 is listed twice"),
        ([{"id": -1, "name": "a"}], "`id` is -1"),
        ([{"id": "1", "name": "a"}], "`id` is '1'"),
        ([{"id": True, "name": "a"}], "`id` is True"),
        ([{"name": "a"}], "`id` is None"),
        ([{"id": 0}], "id 0 needs a `name`"),
        ([{"id": 0, "name": "a", "color": [0, 0, 256]}], r"`color` is \[0, 0, 256\]"),
        ([{"id": 0, "name": "a", "color": "red"}], "`color` is 'red'"),
        (
            [
                {"id": 0, "name": "a", "color": [0, 0, 1]},
                {"id": 1, "name": "a", "color": [0, 0, 2]},
            ],
            "two colours",
        ),
        ([{"id": 0, "nmae": "a"}], "unknown key `nmae`.*Did you mean `name`"),
        (["road", 3], "`road` is not a table"),
        (["road", {"id": 1, "name": "car"}], "`road` is not a table"),
        ({"x": "road"}, r"{'x': 'road'} is no class list; write \[background, car\]"),
        ("road", "mine: road is no class list; write"),
        (None, "mine: None is no class list; write"),
        ({0: "road", 1: 7}, "id 1 needs a `name`"),
        ([], "0 classes listed"),
        ([{"id": 0, "ignore": True}], "0 classes listed"),
        (
            [{"id": i, "name": f"c{i}"} for i in range(255)],
            "255 classes listed; a label map holds 1 to 254",
        ),
    ],
)
def test_a_wrong_table_is_refused_with_its_entry(table: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelMap.from_table(table, "mine")


@pytest.mark.parametrize(
    ("short", "raw"),
    [
        (["ground", "thing"], {0: 0, 1: 1}),
        ({0: "ground", 7: "thing"}, {0: 0, 7: 1}),
        ({"0": "ground", "1": "thing", "255": None}, {0: 0, 1: 1, 255: 255}),
        ({3: "ground", 4: "thing", 5: "ground"}, {3: 0, 4: 1, 5: 0}),
    ],
)
def test_a_short_list_is_the_long_one(short: Any, raw: dict[int, int]) -> None:
    labels = LabelMap.from_table(short, "mine")
    assert labels.names == ("ground", "thing")
    assert labels.raw == raw


def test_a_file_may_list_names_alone(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('{"classes": ["ground", "thing"], "ignored": [255]}')
    labels = LabelMap.load(str(tmp_path / "classes.json"))
    assert labels.names == ("ground", "thing")
    assert labels.raw == {0: 0, 1: 1, 255: 255}


def test_254_classes_are_the_most_and_work() -> None:
    labels = LabelMap.from_table([{"id": i, "name": f"c{i}"} for i in range(254)], "many")
    assert labels.encode(np.array([[0, 253]], np.uint8), "m").tolist() == [[0, 253]]


def test_a_json_file_of_the_users_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "classes": [{"id": 3, "name": "b", "note": "x"}, {"id": 1, "name": "a"}],
                "ignored": [9],
            }
        )
    )
    labels = LabelMap.load(str(path))
    assert (labels.name, labels.names, labels.raw) == ("mine", ("b", "a"), {3: 0, 1: 1, 9: 255})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[1]", "expected"),
        ('{"classes": [{"id": 0, "name": "a"}], "ignored": 255}', "expected"),
        ('{"classes": [{"id": 0, "train": 1, "name": "a"}]}', "id 0 has train id 1"),
        ('{"classes": [{"name": "a", "train": 0}]}', "`id` is None"),
    ],
)
def test_a_damaged_json_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises((DataError, UserError), match=f"mine.*{message}"):
        LabelMap.load(str(path))


def test_an_unknown_map_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no label map `vocc`.*Did you mean `voc`"):
        LabelMap.load("vocc")
    with pytest.raises(UserError, match=r"gone.json.*dataset.classes=FILE.json"):
        LabelMap.load(str(tmp_path / "gone.json"))


def test_a_text_file_has_a_name_a_line(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    for text, raw in (
        ("ground\n traffic light \n\n", {0: 0, 1: 1}),
        ("\ufeffground\r\ntraffic light", {0: 0, 1: 1}),
        ("3: ground\n7 : traffic light\n", {3: 0, 7: 1}),
        ("0 ground\n1, traffic light\n", {0: 0, 1: 1}),
        ("1 ground\n2 traffic light\n", {1: 0, 2: 1}),
    ):
        path.write_text(text)
        labels = LabelMap.load(str(path))
        assert (labels.name, labels.names) == ("classes", ("ground", "traffic light"))
        assert labels.raw == raw


@pytest.mark.parametrize("text", ["1 euro\n2 euro\n5 cent", "1 euro\n0 euro", "0 euro\n2: cent"])
def test_numbers_that_do_not_count_up_belong_to_the_names(tmp_path: Path, text: str) -> None:
    path = tmp_path / "coins.txt"
    path.write_text(text)
    labels = LabelMap.load(str(path))
    assert labels.names == tuple(text.split("\n"))
    assert labels.raw == {place: place for place in range(len(labels.names))}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "ground\n\ncar\n", "a.txt, line 2: is empty; every line names a class"),
        ("a.txt", "1: ground\n01: car\n", "a.txt: lists a number twice"),
        ("a.txt", "64 128 64\tAnimal\n", "a.txt, line 1: holds a colour, but a line is a name"),
        ("a.txt", "", "0 classes listed"),
        ("a.txt", None, "a.txt: label file: No such file or directory; set dataset.classes="),
        ("a.yaml", "x", "a.yaml: a class list is a .json file, or a .txt file of a name a line"),
    ],
)
def test_what_is_no_list_of_names_is_named(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((DataError, UserError), match=message):
        LabelMap.load(str(tmp_path / name))


def test_a_byte_order_mark_and_spaces_around_names_are_left_away(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('{"classes": [" ground", "thing "]}', encoding="utf-8-sig")
    assert LabelMap.load(str(path)).names == ("ground", "thing")
    assert LabelMap.from_table(["a ", "b"], "x").names == ("a", "b")
    assert LabelMap.from_table({0: "a", 5: " a"}, "x").raw == {0: 0, 5: 0}  # one name, one class


@pytest.mark.parametrize(
    "names", [["road", "car", "Road"], ["ROAD", "road"], ["a  b", "A b"], ["Straße", "STRASSE"]]
)
def test_names_that_differ_only_in_case_or_spaces_are_refused(names: list[str]) -> None:
    said = f"mine: the classes `{names[0]}` and `{names[-1]}` differ only in case or spaces; write"
    with pytest.raises(UserError, match=said):
        LabelMap.from_table(names, "mine")


def test_spans_are_short() -> None:
    assert spans([5, 0, 1, 2, 8, 9]) == "0-2, 5, 8-9"
    assert spans([]) == ""


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (["a", "b", "a"], r"`a` is listed twice; ids of one class are written \{0: a, 2: a, ...\}"),
        ({0: "a", 1.7: "b"}, "is no class list"),
    ],
)
def test_short_lists_that_would_lose_a_class_are_refused(table: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        LabelMap.from_table(table, "dataset.labels")


def test_two_classes_of_one_colour_are_refused_for_masks_in_colours() -> None:
    bare = [{"id": 0, "name": "ground"}, {"id": 1, "name": "road", "color": [0, 0, 0]}]
    labels = LabelMap.from_table(bare, "x")  # VOC's first colour is black
    with pytest.raises(UserError, match=r"`ground` and `road` have the same colour \[0, 0, 0\]"):
        labels.check_colors("dataset.rgb=true")
    LabelMap.from_table(["ground", "road"], "x").check_colors("dataset.rgb=true")


def test_values_that_are_not_listed_have_the_nearest_way_out() -> None:
    labels = LabelMap.from_table(["ground", "person"], "x")
    with pytest.raises(DataError, match=r"Objects numbered 1 to 3\? dataset=instance_maps_se"):
        labels.encode(np.array([[0, 1], [2, 3]], np.uint8), "a.png")
    with pytest.raises(DataError, match=r"255 mostly stands for ignored pixels: add `255: null`"):
        labels.encode(np.array([[0, 1], [255, 1]], np.uint8), "a.png")
