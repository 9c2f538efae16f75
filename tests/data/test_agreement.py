"""What a COCO file says twice is compared: boxes and areas with masks.

Members: boxes of the masks, a pixel off, a few pixels off, as corners, elsewhere, one slip among
many; the area of the box, of the polygon, none of either; corners that leave their image; the same
of label maps.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from segtrain.data.agreement import Agreement
from segtrain.data.verify import notes, verify_labels
from segtrain.datasets.coco import CocoInstances, CocoJson, CocoJsonMasks

# Two rectangles of 20 x 10 and 10 x 20 pixels in an image of 100 x 100.
FIRST = (10, 20, 30, 30)
SECOND = (30, 10, 40, 30)
RIGHT = [[10, 20, 20, 10], [30, 10, 10, 20]]


def coco(root: Path, boxes: list[list[float]], areas: tuple[float, ...] = (200, 200)) -> CocoJson:
    """Boxes and areas of the two rectangles, again and again."""
    objects = []
    for number, box in enumerate(boxes):
        x1, y1, x2, y2 = (FIRST, SECOND)[number % 2]
        objects.append(
            {
                "id": number + 1,
                "image_id": 5,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": box,
                "area": areas[number % 2],
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
            }
        )
    table = {
        "images": [{"id": 5, "file_name": "a.png", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "tree"}],
        "annotations": objects,
    }
    Image.new("RGB", (100, 100)).save(root / "a.png")
    (root / "a.json").write_text(json.dumps(table))
    return CocoJson(str(root / "a.json"), "train", str(root))


def found(data: CocoJson) -> Agreement:
    report = verify_labels(data, workers=1, scored=True)
    assert data.problems == report.problems == []
    return report.agreement


@pytest.mark.parametrize("off", [0, 1, 2])
def test_a_pixel_or_two_are_nothing(tmp_path: Path, off: int) -> None:
    moved = [[x + off, y - off, w, h] for x, y, w, h in RIGHT]
    told = found(coco(tmp_path, moved))
    assert told == Agreement(boxes=2, areas=2)
    assert (told.fault(), told.notes()) == ("", [])


def test_boxes_of_corners_are_refused_with_the_way_out(tmp_path: Path) -> None:
    told = found(coco(tmp_path, [list(FIRST), list(SECOND)]))
    # 200 of 900 and of 1,200 pixels are shared.
    assert (told.boxes, told.loose, told.elsewhere, told.corners) == (2, 2, 2, 2)
    assert told.fault() == (
        "2 of 2 boxes lie elsewhere than their masks "
        "(image 5: box [10, 20, 30, 30], mask [10, 20, 20, 10]; "
        "image 5: box [30, 10, 40, 30], mask [30, 10, 10, 20]); "
        "they are corners (x1, y1, x2, y2), but `bbox` is [x, y, width, height]"
    )


def test_boxes_elsewhere_are_refused_and_one_slip_among_many_is_named(tmp_path: Path) -> None:
    away = [[60, 60, 20, 10], [60, 60, 10, 20]]
    told = found(coco(tmp_path, away))
    assert (told.elsewhere, told.corners) == (2, 0)
    assert told.fault().endswith("; save the boxes of these masks, or the masks of these boxes")
    told = found(coco(tmp_path, [*away[:1], RIGHT[1], *RIGHT * 50]))  # 1 of 102 is below 1 %
    assert told.fault() == ""
    assert told.notes() == [
        "1 of 102 boxes lie elsewhere than their masks "
        "(image 5: box [60, 60, 20, 10], mask [10, 20, 20, 10])"
    ]


def test_wider_boxes_and_other_areas_are_noted(tmp_path: Path) -> None:
    wide = [[7, 17, 26, 16], RIGHT[1]]  # 3 pixels on all sides: 200 of 416 is below a half
    assert found(coco(tmp_path, wide)).elsewhere == 1
    wide = [[7, 20, 26, 10], RIGHT[1]]  # 200 of 260
    data = coco(tmp_path, wide, areas=(200, 230))  # 30 is the half of the edge of 10 x 20
    told = found(data)
    assert (told.loose, told.elsewhere, told.wrong_areas, told.fault()) == (1, 0, 0, "")
    assert notes(data, verify_labels(data)) == [
        "1 of 2 boxes are more than 2 pixels from those of their masks; both are learned as they "
        "are"
    ]
    told = found(coco(tmp_path, RIGHT, areas=(200, 231)))
    assert (told.areas, told.wrong_areas, told.fault()) == (2, 1, "")
    assert told.notes() == [
        "1 of 2 areas are not those of their masks; by `area` objects count as small, medium or "
        "large"
    ]


@pytest.mark.parametrize(
    ("boxes", "areas"),
    [
        (RIGHT, (200, 200)),
        ([list(FIRST), list(SECOND)], (200, 200)),
        ([[60, 60, 20, 10], RIGHT[1]], (200, 231)),
        ([[7, 20, 26, 10], RIGHT[1]], (200, 230)),
    ],
    ids=["right", "corners", "elsewhere", "loose"],
)
def test_label_maps_drawn_from_objects_are_held_to_the_same(
    tmp_path: Path, boxes: list[list[float]], areas: tuple[float, float]
) -> None:
    objects = found(coco(tmp_path, boxes, areas))
    drawn = CocoJsonMasks(str(tmp_path / "a.json"), "train", str(tmp_path))
    assert verify_labels(drawn).agreement == objects
    assert objects.boxes == objects.areas == 2


def test_a_wrong_area_hides_no_object_in_a_label_map(tmp_path: Path) -> None:
    # The rectangles share no pixel; a third of 4 x 4 lies in the first and says that it is larger.
    coco(tmp_path, RIGHT)
    table = json.loads((tmp_path / "a.json").read_text())
    small = [12, 22, 16, 22, 16, 26, 12, 26]
    table["categories"].append({"id": 2, "name": "bird"})
    table["annotations"].append(
        {
            "id": 9,
            "image_id": 5,
            "category_id": 2,
            "iscrowd": 0,
            "bbox": [12, 22, 4, 4],
            "area": 5000,
            "segmentation": [small],
        }
    )
    (tmp_path / "a.json").write_text(json.dumps(table))
    drawn = CocoJsonMasks(str(tmp_path / "a.json"), "train", str(tmp_path))
    assert (drawn.mask(0) == 2).sum() == 16
    assert verify_labels(drawn).agreement.wrong_areas == 1


def test_corners_that_leave_their_image_are_asked_for(tmp_path: Path) -> None:
    (problem,) = coco(tmp_path, [list(FIRST), [50, 10, 60, 30]]).problems
    assert "leaves its image" in problem
    assert problem.endswith("; are these corners? `bbox` is [x, y, width, height]")
    (problem,) = coco(tmp_path, [RIGHT[0], [95, 10, 10, 20]]).problems
    assert problem.endswith("(width x height)")


@pytest.mark.slow
@pytest.mark.parametrize("root", ["coco", "coco_tiny160"])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_the_real_samples_agree(data_root: Path, root: str, split: str) -> None:
    data = CocoInstances(str(data_root / root), split)
    report = verify_labels(data, scored=True)
    told = report.agreement
    assert told.boxes == {"coco": (939, 624), "coco_tiny160": (705, 815)}[root][split == "val2017"]
    assert (told.elsewhere, told.fault(), told.notes()) == (0, "", [])
    assert told.loose < 0.02 * told.boxes
