"""COCO: the flat index of an annotation file, and the data sets that read it."""

from __future__ import annotations

import gc
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as judge
from pycocotools.coco import COCO

from segtrain.config import parts
from segtrain.config.schema import CONF_DIR, DATASET_RUN_KEYS, ONLY_TYPED
from segtrain.data import json_entries
from segtrain.data.coco_index import CocoIndex
from segtrain.data.verify import verify_labels
from segtrain.datasets.coco import (
    KNOWN_FLAT_BOXES,
    CocoInstances,
    CocoJson,
    CocoProposals,
    CocoThings,
    CocoVOC,
)
from segtrain.datasets.coco_stuff import CocoStuff
from segtrain.errors import DataError, UserError
from segtrain.structures import run_lengths
from segtrain.structures.labels import LabelMap

Content = dict[str, Any]
SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]  # columns 1-3 of rows 1-2
SPLITS = ("train2017", "val2017")


def entry(number: int, image: int = 7, category: int = 1, **other: Any) -> dict[str, Any]:
    """A rectangle of 6 pixels."""
    made = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, "area": 6.25}
    return made | {"bbox": [1, 1, 3, 2], "segmentation": [SQUARE]} | other


def content() -> Content:
    """Two images of 4 x 6 pixels (height, width); all three forms of masks.

    Ids and annotations out of order.
    """
    corner = np.asfortranarray(np.array([[1, 1, 0, 0, 0, 0]] + [[0] * 6] * 3, np.uint8))
    return {
        "info": {"version": 1.5},
        "images": [
            {"id": 30, "height": 4, "width": 6, "file_name": "b.png"},
            {"id": 7, "height": 4, "width": 6, "file_name": "a.png"},
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        "annotations": [
            entry(50, 30, 3),
            entry(
                51,
                7,
                3,
                iscrowd=1,
                area=2,
                bbox=[0, 0, 1, 2],
                segmentation={"size": [4, 6], "counts": [0, 2, 22]},
            ),
            entry(
                40, 7, 1, segmentation=[SQUARE, [5, 0, 6, 0, 6, 1, 5, 1]], bbox=[1.25, 0, 4.75, 3]
            ),
            entry(41, 7, 1, area=2, bbox=[0, 0, 2, 1], segmentation=compressed(corner)),
        ],
    }


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """By pycocotools."""
    found = judge.encode(mask)
    return {"size": found["size"], "counts": found["counts"].decode()}


def save(path: Path, made: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made if isinstance(made, str) else json.dumps(made))
    return path


def index_of(tmp_path: Path, made: Any) -> CocoIndex:
    return CocoIndex(save(tmp_path / "made.json", made))


def official(root: Path, made: Content | None = None, split: str = "train2017") -> str:
    """A root in COCO's layout, with an image for every entry."""
    made = made or content()
    save(root / "annotations" / f"instances_{split}.json", made)
    for image in made["images"]:
        (root / split).mkdir(exist_ok=True)
        shape = (image["height"], image["width"], 3)
        Image.fromarray(np.full(shape, image["id"] % 256, np.uint8)).save(
            root / split / image["file_name"]
        )
    return str(root)


# ------------------------------------------------------------------ the index


def test_images_come_by_id_and_their_objects_in_the_order_of_the_file(tmp_path: Path) -> None:
    index = index_of(tmp_path, content())
    assert index.problems == []
    assert len(index) == 2
    assert index.image_ids.tolist() == [7, 30]
    assert [index.name(0), index.name(1)] == [
        "a.png",
        "b.png",
    ]
    assert index.ids.tolist() == [51, 40, 41, 50]
    assert index.first.tolist() == [0, 3, 4]
    assert index.labels.names == ("person", "car")
    assert index.labels.raw == {
        1: 0,
        3: 1,
    }


def test_polygons_and_both_kinds_of_run_lengths_are_read_exactly(tmp_path: Path) -> None:
    segments = index_of(tmp_path, content()).segments(0)
    assert segments.size == (4, 6)
    assert segments.labels.tolist() == [1, 0, 0]
    assert segments.crowd is not None
    assert segments.crowd.tolist() == [True, False, False]
    assert segments.areas.tolist() == [2, 6.25, 2]  # as the file says, not counted
    assert segments.boxes.tolist() == [[0, 0, 1, 2], [1.25, 0, 4.75, 3], [0, 0, 2, 1]]
    assert segments.masks is not None
    crowd, square, corner = run_lengths.decode(segments.masks, (4, 6)).astype(int).tolist()
    assert crowd == [[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6, [0] * 6]
    assert square == [[0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6]
    assert corner == [[1, 1, 0, 0, 0, 0], [0] * 6, [0] * 6, [0] * 6]
    assert [mask["size"] for mask in segments.masks] == [[4, 6]] * 3


def test_instances_are_dense_with_corner_boxes(tmp_path: Path) -> None:
    instances = index_of(tmp_path, content()).instances(0)
    assert instances.boxes.dtype == torch.float32
    assert instances.labels.dtype == torch.int64
    assert instances.boxes.tolist() == [[0, 0, 1, 2], [1.25, 0, 6, 3], [0, 0, 2, 1]]
    assert instances.masks.dtype == torch.bool
    assert instances.masks.sum((1, 2)).tolist() == [2, 7, 2]
    assert instances.crowd is not None
    assert instances.crowd.tolist() == [True, False, False]


def remove(made: Content, key: str) -> None:
    for table in ("images", "annotations"):
        made[table][0].pop(key, None)


def polygon(made: Content, *polygons: Any) -> None:
    made["annotations"][0]["segmentation"] = list(polygons)


def change(made: Content, **values: Any) -> None:
    made["annotations"][0].update(values)


# What is done to the first annotation (50, of image 30) or the first image (30), and the one line
# that names it.
FAULTS: list[tuple[Callable[[Content], Any], str]] = [
    (
        lambda c: change(c, image_id=8),
        r"annotation 50 \(image 8\): belongs to image 8, which the file does not list",
    ),
    (
        lambda c: change(c, category_id=2),
        r"annotation 50 \(image 30\): category 2 is unknown, made has classes 1, 3",
    ),
    (lambda c: change(c, id=41), r"annotation 41 \(image 30\): this id is used twice"),
    (lambda c: c["images"].append(c["images"][0]), r"image 30: this id is used twice"),
    (
        lambda c: change(c, bbox=[1, 1, 0, 2]),
        r"annotation 50 .*: box \[1.0, 1.0, 0.0, 2.0\] has no width or no height",
    ),
    (
        lambda c: change(c, bbox=[1, 1, 3, -2]),
        r"annotation 50 .*: box .* has no width or no height",
    ),
    (
        lambda c: change(c, bbox=[1, 1, 6.5, 2]),
        r"box \[1.0, 1.0, 6.5, 2.0\] leaves its image of 6 x 4 pixels",
    ),
    (lambda c: change(c, bbox=[-1.5, 1, 2, 2]), r"annotation 50 .*: box .* leaves its image"),
    (
        lambda c: change(c, bbox=[1, 1, 2]),
        r"annotation 50: `bbox` is \[1, 1, 2\], but must be \[x, y, width, height\]",
    ),
    (
        lambda c: change(c, bbox=[1, 1, 2, float("nan")]),
        r"annotation 50: `bbox` is \[1, 1, 2, NaN\], but must be",
    ),
    (
        lambda c: change(c, bbox=None, segmentation=[]),
        r"annotation 50: has neither `bbox` nor `segmentation`",
    ),
    (lambda c: change(c, area=0), r"annotation 50 .*: area is 0.0, but must be above 0"),
    (lambda c: change(c, area="6"), r"annotation 50: `area` is \"6\", but must be a number"),
    (lambda c: change(c, iscrowd=2), r"annotation 50: `iscrowd` is 2, but must be 0 or 1"),
    (
        lambda c: change(c, id=[50]),
        r"annotation number 1 of the list: `id` is \[50\], but must be an integer, or text",
    ),
    (lambda c: change(c, id=None, iscrowd=2), r"annotation number 1 of the list: `iscrowd` is 2"),
    (lambda c: change(c, id=True), r"number 1 of the list: `id` is true, but must be an integer"),
    (lambda c: change(c, image_id=30.5), r"annotation 50: `image_id` is 30.5, but must be"),
    (lambda c: change(c, category_id="a\nb"), r"annotation 50: `category_id` is \"a\\nb\", but"),
    (lambda c: c["annotations"].append(None), r"annotation number 5 of the list: is no table"),
    (
        lambda c: polygon(c, SQUARE, [1, 1, 2, 2]),
        r"annotation 50 .*: a polygon of 4 numbers; three points or more",
    ),
    (lambda c: polygon(c, [*SQUARE, 3]), r"annotation 50 .*: a polygon of 9 numbers"),
    (
        lambda c: polygon(c, [[1, 1], [4, 1], [4, 3, 3]]),
        r"annotation 50 .*: its polygons are not lists of numbers",
    ),
    (
        lambda c: polygon(c, [1, 1, 4, 1, 1e9, 3]),
        r"annotation 50 .*: a polygon lies far outside its image of 6 x 4",
    ),
    (
        lambda c: polygon(c, [1, 1, 4, 1, float("nan"), 3]),
        r"annotation 50 .*: a polygon lies far outside",
    ),
    (
        lambda c: change(c, segmentation={"size": [6, 4], "counts": [0, 2, 22]}),
        r"annotation 50 .*: the `size` \[6, 4\] of its run-length mask is \[width, height\] of "
        r"the image; it must be \[height, width\]",
    ),
    (
        lambda c: change(c, segmentation={"size": [3, 8], "counts": [0, 2, 22]}),
        r"annotation 50 .*: run-length mask of \[3, 8\] pixels \(height, width\) "
        r"in an image of 4 x 6",
    ),
    (
        lambda c: change(c, segmentation={"size": [4, 6], "counts": [0, 2, 21]}),
        r"annotation 50 .*: the runs of its mask do not add up to its 4 x 6 pixels",
    ),
    (
        lambda c: change(c, segmentation={"size": [4, 6], "counts": "02c0"}),
        r"annotation 50 .*: the runs of its mask",
    ),
    (
        lambda c: change(c, segmentation={"size": [4, 6], "counts": "é"}),
        r"annotation 50 .*: the runs of its mask",
    ),
    (
        lambda c: change(c, segmentation={"counts": [24]}),
        r"annotation 50 .*: run-length mask of size missing",
    ),
    (
        lambda c: c["images"].append({"id": 9, "height": "4 px", "width": 6}),
        r"image 9: height \"4 px\" and width 6 are no image size",
    ),
    (
        lambda c: c["images"].append({"id": 9, "file_name": "c.png"}),
        r"image 9: has no `height` and `width`; set dataset.images=FOLDER, and they are taken",
    ),
    (
        lambda c: c["images"].append({"id": 9, "height": 4, "width": 6, "file_name": "a.png"}),
        r"images 7 and 9 are both `a.png`",
    ),
    (
        lambda c: c["images"].append({"id": 9, "height": 4, "width": 6}),
        r"image 9: `file_name` is missing",
    ),
    (
        lambda c: c["images"].append({"id": 9, "height": 4, "width": 6, "file_name": "\ud800"}),
        r"image 9: `file_name` is \"\\ud800\"",
    ),
]


@pytest.mark.parametrize(("plant", "line"), FAULTS)
def test_a_planted_fault_is_named_in_one_line(
    tmp_path: Path, plant: Callable[[Content], Any], line: str
) -> None:
    made = content()
    plant(made)
    index = index_of(tmp_path, made)
    (problem,) = index.problems
    assert problem.startswith(f"{tmp_path / 'made.json'}: ")
    assert "\n" not in problem
    assert re.search(line, problem), problem
    for image in range(len(index)):  # what is left can still be read
        index.instances(image)


def test_braces_in_a_file_name_are_no_matter(tmp_path: Path) -> None:
    made = content()
    change(made, category_id=2, bbox=[1, 1, 0, 2])
    (problem,) = CocoIndex(save(tmp_path / "a{0}{x}.json", made)).problems
    assert problem.endswith(
        "a{0}{x}.json: annotation 50 (image 30): category 2 is unknown, a{0}{x} has classes 1, 3"
    )


def test_an_object_may_reach_a_rounding_beyond_its_image(tmp_path: Path) -> None:
    made = content()
    change(made, bbox=[-0.5, 0, 7.0, 4.9])
    polygon(made, [-0.5, 0, 6.5, 0, 6.5, 4.9])
    index = index_of(tmp_path, made)
    assert index.problems == []
    assert index.instances(1).masks.any()


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
def test_a_file_without_one_of_the_tables_is_refused(tmp_path: Path, key: str) -> None:
    made = content()
    del made[key]
    with pytest.raises(
        DataError, match=rf"made.json: no COCO annotation file: it has no list `{key}`, but `"
    ):
        index_of(tmp_path, made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        json.dumps(content())[:-40],
        json.dumps(content()) + "x",
        json.dumps(content()).replace('"area": ', '"area": ,'),
        json.dumps(content()).replace('}], "categories"', '} {}], "categories"'),
        '{"images": [], "annotations": [' + "[" * 200_000,
        '{"images": [], ["annotations"]: []}',
        "[1, 2]",
        "null",
    ],
)
def test_what_is_no_json_is_refused_at_once(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        DataError,
        match=r"made.json: not whole, or no JSON: .* \(line 1, after [\d,]+ characters\)$",
    ):
        index_of(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.json: no such annotation file"):
        CocoIndex(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"images": "\xe9"}')
    with pytest.raises(DataError, match=r"latin.json: not whole, or no JSON: .*utf-8"):
        CocoIndex(tmp_path / "latin.json")


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_the_size_of_the_pieces_a_file_is_read_in_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    made = {"year": 2017, "half": 1.25} | content() | {"count": 1234567}
    whole = index_of(tmp_path, made)
    monkeypatch.setattr(json_entries, "CHUNK", size)
    pieces = index_of(tmp_path, "\ufeff" + json.dumps(made, indent=1))
    for key, value in vars(whole).items():
        assert (
            np.array_equal(value, getattr(pieces, key))
            if isinstance(value, np.ndarray)
            else value == vars(pieces)[key]
        )


def reachable(root: object) -> int:
    """How many Python objects hang on `root`, types and modules aside."""
    seen = {id(root): root}
    ahead = [root]
    while ahead:
        for found in gc.get_referents(ahead.pop()):
            if id(found) not in seen and not isinstance(found, type):
                seen[id(found)] = found
                ahead.append(found)
    return len(seen)


def test_no_python_object_is_kept_per_image_or_annotation(tmp_path: Path) -> None:
    """So forked workers write to none of the pages they read: an array has one reference count."""
    small = content()
    large = content()
    for number in range(100, 600):
        large["images"].append(
            {"id": number, "height": 4, "width": 6, "file_name": f"{number}.png"}
        )
        large["annotations"].append(entry(number, number))
    assert reachable(index_of(tmp_path, large)) == reachable(index_of(tmp_path, small)) < 200
    assert len(index_of(tmp_path, large).ids) == 504


def test_an_index_survives_pickling(tmp_path: Path) -> None:
    index = index_of(tmp_path, content())
    again = pickle.loads(pickle.dumps(index))
    assert again.segments(0).masks == index.segments(0).masks
    assert again.name(1) == "b.png"


# ------------------------------------------------------------------ the real sample


@pytest.fixture(scope="module", params=SPLITS)
def real(request: pytest.FixtureRequest, data_root: Path) -> tuple[CocoInstances, COCO]:
    path = data_root / "coco" / "annotations" / f"instances_{request.param}.json"
    return CocoInstances(str(data_root / "coco"), request.param), COCO(str(path))


# pycocotools with numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_object_of_the_real_sample_is_as_pycocotools_reads_it(
    real: tuple[CocoInstances, COCO],
) -> None:
    data, coco = real
    assert data.problems == []
    assert data.ids == [str(i) for i in sorted(coco.imgs)]
    total = 0
    for place, sample_id in enumerate(data.ids):
        entries = coco.imgToAnns[int(sample_id)]
        segments = data.segments(place)
        assert segments.boxes.tolist() == [e["bbox"] for e in entries]
        assert segments.areas.tolist() == [e["area"] for e in entries]
        assert segments.crowd is not None
        assert segments.crowd.tolist() == [bool(e["iscrowd"]) for e in entries]
        assert data.labels.decode(segments.labels).tolist() == [e["category_id"] for e in entries]
        masks = run_lengths.decode(segments.masks or [], segments.size)
        for mask, e in zip(masks, entries, strict=True):
            assert np.array_equal(mask, coco.annToMask(e).astype(bool)), e["id"]
        target = data.instances(place)
        assert np.array_equal(target.masks.numpy(), masks)  # none of them is empty
        corners = segments.boxes + np.pad(segments.boxes[:, :2], ((0, 0), (2, 0)))
        assert np.array_equal(target.boxes.numpy(), corners.astype(np.float32))
        total += len(entries)
    assert (len(data), total) in {(128, 939), (79, 624)}


def test_masks_of_the_real_sample_have_the_annotated_area(real: tuple[CocoInstances, COCO]) -> None:
    """Pixels against the area of the polygon: 1 % is less than the rounding at the edge of a small
    object.
    """
    index = real[0].index
    pixels = np.concatenate(
        [run_lengths.areas(index.segments(image).masks or []) for image in range(len(index))]
    )
    single = ~index.crowd
    off = abs(pixels - index.areas)
    relative = off / index.areas
    assert ((relative > 0.01) & single).sum() == {929: 213, 619: 122}[single.sum()]
    assert ((relative > 0.01) & single & (index.areas >= 32**2)).sum() == {929: 4, 619: 3}[
        single.sum()
    ]
    assert (relative[single & (index.areas >= 96**2)] <= 0.01).all()
    assert (off <= 0.25 * 2 * index.boxes[:, 2:].sum(1))[
        single
    ].all()  # a quarter of a pixel along the box's edge
    assert off[single].sum() < 0.001 * index.areas[single].sum()


def test_real_samples_are_images_with_their_objects(real: tuple[CocoInstances, COCO]) -> None:
    data, coco = real
    report = verify_labels(data, range(0, len(data), 8), workers=1)
    assert report.problems == []
    assert report.checked in (16, 10)
    sample = data.scored(0)
    said = coco.imgs[int(sample.id)]
    assert sample.image.shape == (said["height"], said["width"], 3)
    assert data.files(0).image.name == said["file_name"]
    assert sample.instances is not None
    assert sample.truth is not None
    assert len(sample.truth) == len(coco.imgToAnns[int(sample.id)]) == len(sample.instances.labels)


def test_category_ids_go_to_train_ids_and_back(data_root: Path) -> None:
    labels = CocoInstances(str(data_root / "coco"), "val2017").labels
    said = json.loads((data_root / "coco/annotations/instances_val2017.json").read_text())[
        "categories"
    ]
    assert labels.num_classes == 80
    assert labels.decode(np.arange(80, dtype=np.uint8)).tolist() == sorted(c["id"] for c in said)
    assert {c["id"]: c["name"] for c in said} == {
        raw: labels.names[train] for raw, train in labels.raw.items()
    }
    assert labels.raw[1] == 0
    assert labels.raw[13] == 11
    assert labels.raw[90] == 79


CONFIGS = ("coco_instance", "coco_proposal", "coco_voc", "coco_things", "coco_stuff", "coco_json")


def config_node(name: str) -> dict[str, Any]:
    """conf/dataset/NAME.yaml without its defaults list, which names the metric."""
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "dataset" / f"{name}.yaml"))
    del node["defaults"]
    return node


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_names_only_what_there_is(name: str) -> None:
    node = config_node(name)
    parts.check_part("dataset", node)
    assert set(DATASET_RUN_KEYS) - {"cache"} - set(ONLY_TYPED) <= set(node)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_builds_its_data_set_from_the_real_sample(data_root: Path, name: str) -> None:
    node = config_node(name)
    root = str(data_root / "coco")
    if name == "coco_json":
        node |= {
            "annotations": f"{root}/annotations/instances_train2017.json",
            "images": f"{root}/train2017",
        }
        node |= {
            "val_annotations": f"{root}/annotations/instances_val2017.json",
            "val_images": f"{root}/val2017",
        }
    else:
        node["root"] = root
    for split in (node["train_split"], node["val_split"]):
        data = parts.dataset(node, split)
        assert data.labelled
        sample = data[len(data) - 1]
        assert sample.id == data.ids[-1]
        assert data.files(0)[0].is_file()
    assert (name, len(data)) in {
        ("coco_instance", 79),
        ("coco_proposal", 79),
        ("coco_voc", 60),  # of train
        ("coco_voc", 79),
        ("coco_things", 79),
        ("coco_stuff", 8),
        ("coco_json", 79),
    }


# ------------------------------------------------------------------ instances, proposals


def test_a_sample_has_its_image_and_its_official_id(tmp_path: Path) -> None:
    data = CocoInstances(official(tmp_path), "train2017")
    assert data.ids == ["7", "30"]
    assert data.problems == []
    assert data.labelled
    assert (data[0].image == 7).all()
    assert data[0].image.shape == (4, 6, 3)
    assert data[0].instances.labels.tolist() == [2, 0, 0]  # car is COCO's third class


def test_a_missing_image_and_a_missing_folder_are_problems(tmp_path: Path) -> None:
    root = official(tmp_path)
    (tmp_path / "train2017/a.png").unlink()
    Image.new("RGB", (6, 4)).save(tmp_path / "train2017/other.png")  # not listed: no matter
    data = CocoInstances(root, "train2017")
    (problem,) = data.problems
    assert data.ids == ["30"]
    assert (data[0].image == 30).all()
    assert problem.startswith(f"{tmp_path}/train2017/a.png: listed, but not there (image 7 of ")
    (tmp_path / "train2017").rename(tmp_path / "elsewhere")
    data = CocoInstances(root, "train2017")
    assert (data.ids, data.problems) == ([], [f"{tmp_path}/train2017: no such folder of images"])


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    root = official(tmp_path)
    Image.new("RGB", (4, 6)).save(tmp_path / "train2017/a.png")
    with pytest.raises(
        DataError, match=r"train2017/a.png: has 4 x 6 pixels, but .*_train2017.json says 6 x 4$"
    ):
        CocoInstances(root, "train2017")[0]


def test_objects_without_pixels_are_not_learned_but_counted_as_the_file_says(
    tmp_path: Path,
) -> None:
    made = content()
    made["annotations"] = [
        # no pixel
        entry(
            1, segmentation=[[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]], area=0.005, bbox=[1.1, 1.1, 0.1, 0.1]
        ),
        entry(2),
        entry(3, bbox=[1, 1, 1e-9, 2]),  # in float32 without width
    ]
    data = CocoInstances(official(tmp_path, made), "train2017")
    sample = data.scored(0)
    assert data.problems == []
    assert len(data.segments(0)) == 3
    assert sample.truth is not None
    assert len(sample.truth) == 3
    assert (
        sample.instances.masks.sum((1, 2)).tolist()
        == data[0].instances.masks.sum((1, 2)).tolist()
        == [6]
    )


def test_the_two_flat_boxes_of_the_official_files_are_no_problem(tmp_path: Path) -> None:
    line = [296.65, 388.33, 296.65, 388.33, 297.68, 388.33, 297.68, 388.33]
    made = content()
    made["images"] = [
        {"id": image, "height": 400, "width": 400, "file_name": f"{image}.png"}
        for _, image in KNOWN_FLAT_BOXES
    ]
    flat = {"segmentation": [line], "area": 0.0, "bbox": [296.65, 388.33, 1.03, 0.0]}
    made["annotations"] = [entry(number, image, **flat) for number, image in KNOWN_FLAT_BOXES]
    data = CocoInstances(official(tmp_path, made), "train2017")
    assert data.problems == []
    assert [len(data.instances(i).labels) for i in (0, 1)] == [0, 0]
    assert [len(data.segments(i)) for i in (0, 1)] == [1, 1]
    made["annotations"][0]["id"] = 919
    assert len(CocoInstances(official(tmp_path, made), "train2017").problems) == 2  # box and area


def test_images_without_objects_stay_unless_asked_otherwise(tmp_path: Path) -> None:
    made = content()
    made["annotations"] = made["annotations"][1:]
    root = official(tmp_path, made)
    data = CocoInstances(root, "train2017")
    assert data.ids == ["7", "30"]
    assert data[1].instances.masks.shape == (0, 4, 6)
    truth = data.scored(1).truth
    assert truth is not None
    assert len(truth) == 0
    assert truth.masks == []
    fewer = CocoInstances(root, "train2017", keep_empty=False)
    assert fewer.ids == ["7"]
    assert len(fewer[0].instances.labels) == 3
    official(tmp_path, made, split="val2017")
    # a detection there is a false one
    assert CocoInstances(root, "val2017", keep_empty=False).ids == [
        "7",
        "30",
    ]


@pytest.mark.parametrize("split", ["test2017", "test-dev2017"])
def test_a_test_split_has_images_and_no_truth(tmp_path: Path, split: str) -> None:
    root = official(tmp_path, split="test2017")
    (tmp_path / "annotations/instances_test2017.json").unlink()
    made = content()
    del made["annotations"]
    save(tmp_path / "annotations" / f"image_info_{split}.json", made)
    data = CocoInstances(root, split, keep_empty=False)
    assert not data.labelled
    assert data.ids == ["7", "30"]
    assert data.problems == []
    assert (data[1].image == 30).all()
    assert data[1].instances.masks.shape == (0, 4, 6)
    with pytest.raises(UserError, match=f"split={split}: COCO has no annotations of this split"):
        CocoVOC(root, split)


def test_other_splits_and_other_classes_are_named(tmp_path: Path) -> None:
    made = content()
    made["categories"][1]["name"] = "persona"
    root = official(tmp_path, made)
    with pytest.raises(
        UserError, match=r"no split `train`; there is train2017 .*Did you mean `train2017`"
    ):
        CocoInstances(root, "train")
    (problem,) = CocoInstances(root, "train2017").problems
    assert "category 1 is `persona`, but `person` in coco; dataset=coco_json takes" in problem
    with pytest.raises(DataError, match=r"annotations: no such folder; is dataset.root right"):
        CocoInstances(str(tmp_path / "train2017"), "train2017")


def test_proposals_have_one_class(tmp_path: Path) -> None:
    data = CocoProposals(official(tmp_path), "train2017")
    assert data.labels.names == ("object",)
    assert data.problems == []
    assert data[0].instances.labels.tolist() == [0, 0, 0]
    assert data.scored(0).truth.labels.tolist() == [
        0,
        0,
        0,
    ]
    assert data.truth(1).labels.tolist() == [0]
    assert data.labels.raw[90] == 0
    assert data.labels.decode(np.array([0])).tolist() == [1]
    assert (
        CocoInstances(official(tmp_path), "train2017").segments(0).masks == data.segments(0).masks
    )


def test_only_the_first_images_of_a_split_that_is_measured_are_kept(tmp_path: Path) -> None:
    root = official(tmp_path)
    official(tmp_path, split="val2014")
    assert CocoProposals(root, "val2014", val_first=1).ids == ["7"]
    assert CocoProposals(root, "train2017", val_first=1).ids == ["7", "30"]
    with pytest.raises(UserError, match=r"dataset\.val_first=0: at least 1 image"):
        CocoProposals(root, "val2014", val_first=0)


# ------------------------------------------------------------------ any file


def test_a_file_is_scored_without_its_images(tmp_path: Path) -> None:
    path = str(save(tmp_path / "truth.json", content()))
    for images in (None, str(tmp_path / "nowhere")):
        data = CocoJson(path, "val", images=images)
        assert data.ids == ["7", "30"]
        assert data.problems == []
        assert data.labels.names == ("person", "car")
        assert data.segments(0).labels.tolist() == [1, 0, 0]
        assert len(data.instances(0).labels) == 3
    with pytest.raises(DataError, match=r"nowhere: no such folder of images"):
        data[0]
    with pytest.raises(
        UserError, match=r"truth.json: where are its images. Set dataset.images=FOLDER"
    ):
        CocoJson(path, "train")[0]


def test_val_reads_its_own_file_with_the_classes_of_the_first(tmp_path: Path) -> None:
    train = content()
    train["categories"].append({"id": 2, "name": "bicycle", "color": [1, 2, 3]})
    paths = [
        str(save(tmp_path / f"{name}.json", made))
        for name, made in (("train", train), ("val", content()))
    ]
    official(tmp_path)
    data = CocoJson(
        paths[0],
        "val",
        str(tmp_path),
        val_annotations=paths[1],
        val_images=str(tmp_path / "train2017"),
    )
    assert data.index.path.name == "val.json"
    assert data.labels.names == ("person", "bicycle", "car")
    assert data[0].instances.labels.tolist() == [2, 0, 0]  # car, person, person
    assert data.labels.colors[1] == (1, 2, 3)
    assert CocoJson(paths[0], "train", val_annotations=paths[1]).index.path.name == "train.json"
    other = content()
    other["categories"][0]["name"] = "cart"
    save(tmp_path / "val.json", other)
    (problem,) = CocoJson(paths[0], "val", val_annotations=paths[1]).problems
    assert problem.endswith("val.json: category 3 is `cart`, but `car` in train")
    with pytest.raises(UserError, match="no split `test`; there is train, val"):
        CocoJson(paths[0], "test")


def test_the_file_to_validate_on_may_give_the_classes_other_ids(tmp_path: Path) -> None:
    """Ids 1 and 3 are person and car in one file, car and person in the other."""
    ours = content()
    theirs = content()
    for category in theirs["categories"]:
        category["id"] = 4 - category["id"]
    for annotation in theirs["annotations"]:
        annotation["category_id"] = 4 - annotation["category_id"]
    paths = [str(save(tmp_path / f"{n}.json", c)) for n, c in (("ours", ours), ("theirs", theirs))]
    same, other = (CocoJson(paths[0], "val", val_annotations=path) for path in paths)
    assert other.problems == []
    assert other.labels.names == same.labels.names == ("person", "car")
    assert other.labels.colors == same.labels.colors
    assert other.labels.raw == {1: 1, 3: 0}
    for index in range(len(same)):
        assert other.segments(index).labels.tolist() == same.segments(index).labels.tolist()


def test_a_file_of_boxes_can_be_scored_but_not_learned(tmp_path: Path) -> None:
    made = content()
    for e in made["annotations"]:
        e["segmentation"] = []
    data = CocoJson(str(save(tmp_path / "boxes.json", made)), "val")
    assert data.problems == []
    assert data.segments(0).masks is None
    assert len(data.segments(0)) == 3
    with pytest.raises(DataError, match=r"boxes.json: holds boxes and no masks"):
        data.instances(0)


@pytest.mark.parametrize(
    "categories", [[], [{"id": 1}], [{"name": "x"}], [1], [{"id": 1, "name": "x"}] * 2]
)
def test_categories_that_are_no_classes_are_refused(tmp_path: Path, categories: list) -> None:
    with pytest.raises(DataError, match=r"made.json: its `categories` cannot be read"):
        index_of(tmp_path, content() | {"categories": categories})


# ------------------------------------------------------------------ masks


def rectangle(number: int, category: int, columns: tuple[int, int], **other: Any) -> dict[str, Any]:
    """All four rows of some columns of image 7."""
    left, right = columns
    points = [left, 0, right, 0, right, 4, left, 4]
    made = {
        "area": 4 * (right - left),
        "bbox": [left, 0, right - left, 4],
        "segmentation": [points],
    }
    return entry(number, 7, category, **(made | other))


def test_voc_masks_have_the_smaller_object_on_top_and_crowds_below(tmp_path: Path) -> None:
    made = content()
    made["categories"] = [
        {"id": i, "name": n} for i, n in ((1, "person"), (47, "cup"), (62, "chair"), (63, "couch"))
    ]
    couch = rectangle(1, 63, (0, 4))
    chair = rectangle(2, 62, (3, 5))
    cup = rectangle(3, 47, (0, 1))  # no class of VOC: what is behind it stays
    crowd = {"size": [4, 6], "counts": [16, 8]}  # columns 4 and 5; its area says 1
    crowd_entry = rectangle(4, 1, (4, 6), iscrowd=1, area=1, segmentation=crowd)
    for order in ([couch, chair, cup, crowd_entry], [crowd_entry, cup, chair, couch]):
        made["annotations"] = order
        data = CocoVOC(official(tmp_path, made), "train2017", min_pixels=1)
        assert data.problems == []
        assert data.ids == ["7"]
        assert data.labels.num_classes == 21
        assert data[0].mask.dtype == np.uint8
        assert data[0].mask.tolist() == [[18, 18, 18, 9, 9, 15]] * 4  # sofa, chair, person
        assert np.array_equal(data.truth(0), data[0].mask)


def test_things_are_painted_with_their_category_ids_and_have_91_classes(tmp_path: Path) -> None:
    made = content()
    made["categories"] = [{"id": i, "name": n} for i, n in ((47, "cup"), (90, "toothbrush"))]
    made["annotations"] = [rectangle(1, 90, (0, 4)), rectangle(2, 47, (3, 5))]  # the cup is smaller
    data = CocoThings(official(tmp_path, made), "train2017")
    assert data[0].mask.tolist() == [[90, 90, 90, 47, 47, 0]] * 4
    assert data.ids == ["7", "30"]  # those without an object too
    assert data.labels.num_classes == 91
    assert [data.labels.names[i] for i in (0, 1, 12, 47, 90)] == [
        "background",
        "person",
        "street sign",  # of which COCO has no object
        "cup",
        "toothbrush",
    ]


def test_voc_keeps_images_with_more_than_the_asked_area_of_its_classes(tmp_path: Path) -> None:
    made = content()
    made["images"] = [
        {"id": i, "height": 40, "width": 60, "file_name": f"{i}.png"} for i in (1, 2, 3, 4)
    ]
    made["categories"] = [
        {"id": 1, "name": "person"},
        {"id": 3, "name": "car"},
        {"id": 8, "name": "truck"},
    ]
    made["annotations"] = [
        entry(1, 1, 1, area=1000),  # not over 1,000
        entry(2, 2, 1, area=600),
        entry(3, 2, 3, area=400.5),  # two classes together
        entry(4, 3, 8, area=2000),  # a truck is no class of VOC
    ]
    root = official(tmp_path, made)
    assert CocoVOC(root, "train2017").ids == ["2"]
    assert CocoVOC(root, "train2017", min_pixels=999).ids == ["1", "2"]
    everything = CocoVOC(root, "train2017", min_pixels=None)
    assert everything.ids == ["1", "2", "3", "4"]
    assert not everything[2].mask.any()
    assert not everything[3].mask.any()
    with pytest.raises(
        DataError,
        match=r"no image has more than 2000 pixels of VOC's classes; lower dataset.min_pixels",
    ):
        CocoVOC(root, "train2017", min_pixels=2000)
    assert CocoVOC(official(tmp_path, made, split="val2017"), "val2017").ids == ["1", "2", "3", "4"]


def test_the_classes_of_voc_are_found_by_their_names() -> None:
    coco = LabelMap.load("coco")
    voc = LabelMap.load("voc")
    other = {
        "airplane": "aeroplane",
        "motorcycle": "motorbike",
        "dining table": "diningtable",
        "couch": "sofa",
    }
    other |= {"potted plant": "pottedplant", "tv": "tvmonitor"}
    from segtrain.datasets.coco import _voc_classes

    pairs = {
        (other.get(coco.names[t], coco.names[t]), voc.names[v])
        for t, v in enumerate(_voc_classes())
        if v
    }
    assert len(pairs) == 20
    assert all(one == two for one, two in pairs)


def test_stuff_maps_hold_official_ids_less_one(tmp_path: Path) -> None:
    # person, street sign, stop sign; hair brush, wood, none
    values = np.array([[0, 11, 12], [90, 181, 255]], np.uint8)
    for folder, name in (
        ("stuffthingmaps/val2017", "x.png"),
        ("val2017", "x.png"),
        ("val2017", "more.png"),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / folder / name)
    data = CocoStuff(str(tmp_path), "val2017")
    assert data.ids == ["x"]
    assert data.problems == []
    assert data.labels.num_classes == 171
    assert data[0].mask.tolist() == [[0, 255, 11], [255, 170, 255]]
    assert data.labels.names[170] == "wood"
    assert data.labels.names[11] == "stop sign"
    assert np.array_equal(data.truth(0), data[0].mask)
    every = CocoStuff(str(tmp_path), "val2017", classes=182)
    assert every.labels.num_classes == 182
    assert every.labels.names[11] == "street sign"
    assert every[0].mask.tolist() == values.tolist()
    (tmp_path / "val2017/x.png").unlink()
    (problem,) = CocoStuff(str(tmp_path), "val2017").problems
    assert (
        problem == f"{tmp_path}/stuffthingmaps/val2017/x.png: has no image {tmp_path}/val2017/x.*"
    )


def test_stuff_says_where_its_maps_belong(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"stuffthingmaps: no such folder; unpack stuffthingmaps_trainval2017.zip there",
    ):
        CocoStuff(str(tmp_path), "val2017")
    (tmp_path / "stuffthingmaps/val2017").mkdir(parents=True)
    with pytest.raises(UserError, match="no split `val`; there is val2017"):
        CocoStuff(str(tmp_path), "val")


def test_the_real_stuff_maps_agree_with_the_instances(data_root: Path) -> None:
    """Where one object alone lies, the map has its class (another program drew its edges)."""
    stuff = CocoStuff(str(data_root / "coco"), "val2017")
    things = CocoInstances(str(data_root / "coco"), "val2017")
    assert stuff.problems == []
    assert stuff.ids[0] == "000000000139"
    assert things.ids[0] == "139"
    mask = stuff.mask(0)
    target = things.instances(0)
    alone = target.masks.sum(0) == 1
    for region, label in zip(target.masks, target.labels, strict=True):
        inside = mask[(region & alone).numpy()]
        assert len(inside) < 50 or (inside == label.item()).mean() > 0.9
