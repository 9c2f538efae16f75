"""Pictures at known pixels, and label PNGs that read back as they were."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.errors import DataError, DiskError
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.visualization import colors, heat_map, overlays, panels, picture_files, text

NAMES = ["background", "square", "dot"]
COLORS = [(0, 0, 0), (200, 100, 50), (40, 160, 220)]


def scene() -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:40] = 1
    mask[:, 50:] = 255
    return mask


def instances(scores: bool = True) -> Instances:
    masks = torch.zeros(1, 120, 200, dtype=torch.bool)
    masks[0, 40:80, 60:120] = True
    confidence = torch.tensor([0.875]) if scores else None
    return Instances(
        torch.tensor([[60.0, 40, 120, 80]]), torch.tensor([1]), masks, scores=confidence
    )


def test_colorize_gives_every_label_its_colour_and_ignored_pixels_the_void_colour() -> None:
    picture = colors.colorize(torch.tensor([[0, 1], [2, 255]], dtype=torch.uint8), COLORS)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[0, 0, 0], [200, 100, 50]], [[40, 160, 220], list(colors.VOID)]]


@pytest.mark.parametrize("value", [3, 254, -1])
def test_a_label_without_a_colour_is_refused(value: int) -> None:
    with pytest.raises(DataError, match=f"label {value} has no colour: there are 3"):
        colors.colorize(np.array([[0, value]]), COLORS)


def test_the_label_overlay_is_four_tenths_image_and_leaves_ignored_pixels_as_they_are() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    picture = overlays.overlay(image, scene(), NAMES, COLORS)
    assert picture[5, 5].tolist() == [40, 40, 40]  # 0.4 * 100 + 0.6 * 0
    assert picture[20, 30].tolist() == [160, 100, 70]  # 0.4 * 100 + 0.6 * (200, 100, 50)
    assert picture[20, 20].min() > 180  # the border between two classes is bright
    assert (picture[:, 50:] == 100).all()
    assert (image == 100).all()


def test_the_instance_overlay_tints_the_mask_outlines_it_and_draws_the_box_and_a_tag() -> None:
    image = np.full((120, 200, 3), 100, np.uint8)
    picture = overlays.overlay(image, instances(), NAMES, COLORS)
    assert picture[60, 90].tolist() == [150, 100, 75]  # half image, half colour
    for edge in (picture[40, 90], picture[79, 90], picture[60, 60], picture[60, 119]):
        assert edge.tolist() == [200, 100, 50]
    # x2 and y2 are exclusive
    assert picture[80, 110].tolist() == picture[60, 120].tolist() == [100, 100, 100]
    assert picture[38, 60].tolist() == [200, 100, 50]  # the tag stands above the box
    assert (image == 100).all()


def test_a_score_makes_the_tag_longer_and_no_instances_leave_the_image_alone() -> None:
    image = np.full((120, 200, 3), 100, np.uint8)
    tagged = (overlays.overlay(image, instances(), NAMES, COLORS)[30] != 100).any(1).sum()
    untagged = (
        (overlays.overlay(image, instances(scores=False), NAMES, COLORS)[30] != 100).any(1).sum()
    )
    assert tagged > untagged + 15
    none = Instances(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 120, 200, dtype=torch.bool),
    )
    assert np.array_equal(overlays.overlay(image, none, NAMES, COLORS), image)


def test_the_surest_instance_is_drawn_on_top() -> None:
    masks = torch.zeros(2, 100, 100, dtype=torch.bool)
    masks[:, 30:90, 30:90] = True
    boxes = torch.tensor([[30.0, 30, 90, 90]] * 2)
    both = Instances(boxes, torch.tensor([1, 2]), masks, scores=torch.tensor([0.9, 0.3]))
    picture = overlays.overlay(np.zeros((100, 100, 3), np.uint8), both, NAMES, COLORS)
    assert picture[89, 60].tolist() == [200, 100, 50]


def many(scores: list[float], masks: bool = True) -> Segments:
    """Squares of 4 x 4 pixels side by side in a picture of 120 x 2000, all of class 1."""
    count = len(scores)
    dense = torch.zeros(count, 120, 2000, dtype=torch.bool)
    for i in range(count):
        dense[i, 60:64, 8 * i : 8 * i + 4] = True
    boxes = torch.tensor([[8.0 * i, 60, 8 * i + 4, 64] for i in range(count)])
    objects = run_lengths.segments(
        Instances(boxes, torch.ones(count).long(), dense, scores=torch.tensor(scores))
    )
    return objects if masks else replace(objects, masks=None)


def test_run_lengths_are_drawn_as_the_masks_they_stand_for() -> None:
    image = np.full((120, 200, 3), 100, np.uint8)
    dense = instances()
    assert np.array_equal(
        overlays.overlay(image, run_lengths.segments(dense), NAMES, COLORS),
        overlays.overlay(image, dense, NAMES, COLORS),
    )
    truth = run_lengths.segments(instances(scores=False))
    assert (
        panels.panel(image, truth, run_lengths.segments(dense), NAMES, COLORS).shape[1]
        == 3 * 212 + text.MARGIN
    )


def test_without_masks_only_the_boxes_are_drawn() -> None:
    image = np.full((120, 200, 3), 100, np.uint8)
    picture = overlays.overlay(
        image, replace(run_lengths.segments(instances()), masks=None), NAMES, COLORS
    )
    assert picture[60, 90].tolist() == [100, 100, 100]  # inside
    assert picture[79, 90].tolist() == picture[60, 119].tolist() == [200, 100, 50]  # the frame


def test_a_prediction_shows_what_scores_enough_and_a_truth_everything() -> None:
    image = np.full((120, 2000, 3), 100, np.uint8)
    objects = many([0.5, 0.49, 0.9, 0.05])

    def drawn(picture: np.ndarray) -> list[bool]:
        return [(picture[62:64, 8 * i : 8 * i + 4] != 100).any() for i in range(4)]

    assert drawn(overlays.overlay(image, objects, NAMES, COLORS)) == [True, False, True, False]
    assert drawn(overlays.overlay(image, objects, NAMES, COLORS, min_score=0.1)) == [
        True,
        True,
        True,
        False,
    ]
    assert (
        drawn(overlays.overlay(image, replace(objects, scores=None), NAMES, COLORS)) == [True] * 4
    )
    none = overlays.overlay(image, objects, NAMES, COLORS, min_score=0.95)
    assert np.array_equal(none, image)


@pytest.mark.parametrize(("count", "drawn"), [(100, 100), (150, 10)])
def test_of_more_than_a_hundred_objects_the_best_ten_are_drawn(count: int, drawn: int) -> None:
    image = np.full((120, 2000, 3), 100, np.uint8)
    picture = overlays.overlay(image, many([0.6 + 0.001 * i for i in range(count)]), NAMES, COLORS)
    shown = [(picture[62:64, 8 * i : 8 * i + 4] != 100).any() for i in range(count)]
    assert shown == [False] * (count - drawn) + [True] * drawn


def test_an_object_half_over_a_better_one_of_its_class_is_not_drawn() -> None:
    both = many([0.7, 0.9])
    over = replace(both, boxes=both.boxes[[0, 0]], masks=[both.masks[0]] * 2)
    apart = replace(over, labels=np.array([0, 1]))
    assert [len(overlays.select_drawn(objects, 0.5)) for objects in (both, over, apart)] == [
        2,
        1,
        2,
    ]


def test_the_panel_says_how_many_objects_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = []
    real = panels.captioned
    monkeypatch.setattr(
        panels, "captioned", lambda picture, text: captions.append(text) or real(picture, text)
    )
    image = np.full((120, 2000, 3), 100, np.uint8)
    panels.panel(image, replace(many([1.0]), scores=None), many([0.7, 0.3]), NAMES, COLORS)
    assert captions == ["image", "truth", "prediction: 1 of 2, score from 0.5"]
    assert panels.counted(many([0.4, 0.3])) == "0 of 2, score from 0.5, the surest 0.40"
    assert panels.counted(np.zeros((2, 2), np.uint8)) == ""


def test_the_legend_shows_the_present_classes_only_and_wraps() -> None:
    picture = panels.legend(NAMES, COLORS, [2, 1, 255], width=300)
    painted = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert COLORS[1] in painted
    assert COLORS[2] in painted
    assert COLORS[0] not in painted
    many = panels.legend(["a class"] * 20, [(9, 9, 9)] * 20, range(20), width=300)
    assert many.shape[1] == picture.shape[1] == 300
    assert many.shape[0] > picture.shape[0] + 5 * 20


def test_the_error_tile_is_red_exactly_where_the_prediction_is_wrong() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    truth = scene()
    guess = truth.copy()
    guess[0, 0] = guess[0, 55] = 2  # one wrong pixel, one ignored
    picture = panels.error_picture(image, truth, guess).astype(int)
    red = (picture[..., 0] - picture[..., 1]) > 60
    assert np.argwhere(red).tolist() == [[0, 0]]


def test_a_panel_of_label_maps_has_four_tiles_and_one_of_instances_three() -> None:
    image = np.full((120, 200, 3), 100, np.uint8)
    labels = np.zeros((120, 200), np.uint8)
    wide = panels.panel(image, labels, torch.from_numpy(labels), NAMES, COLORS, "title").shape
    narrow = panels.panel(image, instances(False), instances(), NAMES, COLORS).shape
    tile = 200 + text.MARGIN
    assert wide[1] == 4 * tile + text.MARGIN
    assert narrow[1] == 3 * tile + text.MARGIN
    assert wide[0] == narrow[0] + 28  # the title's line


def test_a_grid_keeps_pictures_of_different_sizes_whole() -> None:
    small = np.full((4, 6, 3), 10, np.uint8)
    large = np.full((8, 5, 3), 20, np.uint8)
    picture = panels.grid([small, large, small], columns=2)
    gap = text.MARGIN
    assert picture.shape == (3 * gap + 2 * 8, 3 * gap + 2 * 6, 3)
    assert (picture[gap : gap + 4, gap : gap + 6] == 10).all()
    assert (picture[gap : gap + 8, 2 * gap + 6 : 2 * gap + 11] == 20).all()
    assert (picture == 10).all(2).sum() == 2 * 24
    assert (picture == 20).all(2).sum() == 40


def test_the_heat_map_is_dark_for_a_full_row_and_grey_for_a_row_without_truth() -> None:
    picture = heat_map.confusion_picture(torch.tensor([[5, 0], [0, 0]]), ["a", "b"])
    cells = [tuple(color) for color in picture.reshape(-1, 3).tolist()]
    assert cells.count((8, 48, 107)) > 1500  # one cell of 55 x 55 less its number
    assert cells.count((247, 250, 253)) == 55 * 55
    assert cells.count((240, 240, 240)) == 2 * 55 * 55


def test_a_cell_of_the_heat_map_has_no_number_that_would_be_0() -> None:
    # 0.5 % is written as 0, as halves are rounded to the even number; 0.505 % is written as 1.
    cells = []
    for others in (199, 197):
        picture = heat_map.confusion_picture(np.array([[others, 1], [0, 1]]), ["a", "b"])
        top = text.MARGIN + 26
        right = picture.shape[1] - text.MARGIN - (300 - 2 * 56)
        cells.append(picture[top : top + 55, right - 56 : right - 1])
    without, with_number = (len(np.unique(cell.reshape(-1, 3), axis=0)) for cell in cells)
    assert without == 1
    assert with_number > 1


def test_a_heat_map_of_150_classes_stays_below_2500_pixels() -> None:
    picture = heat_map.confusion_picture(
        np.eye(150, dtype=np.int64), [f"class {i}" for i in range(150)]
    )
    assert max(picture.shape) < 2500


@pytest.mark.parametrize("values", [[0, 1], [0, 1, 2, 255], list(range(256))])
def test_a_label_png_reads_back_identical_and_shows_its_colours(
    tmp_path: Path, values: list[int]
) -> None:
    mask = np.random.default_rng(0).choice(values, (31, 17)).astype(np.uint8)
    picture_files.save_labels(tmp_path / "new" / "labels.png", torch.from_numpy(mask), COLORS)
    with Image.open(tmp_path / "new" / "labels.png") as read:
        assert read.mode == "P"
        assert np.array_equal(np.asarray(read), mask)
        shown = np.asarray(read.convert("RGB"))
    assert (shown[mask == 1] == COLORS[1]).all()
    assert (shown[mask == 255] == colors.VOID).all()


def test_labels_that_do_not_fit_a_byte_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels 0-256 do not fit"):
        picture_files.save_labels(tmp_path / "labels.png", np.array([[0, 256]]), COLORS)


def test_a_picture_reads_back_and_an_unwritable_path_is_a_clear_error(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    picture_files.save(tmp_path / "a" / "picture.png", picture)
    with Image.open(tmp_path / "a" / "picture.png") as read:
        assert np.array_equal(np.asarray(read), picture)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"picture.png: cannot write the picture"):
        picture_files.save(tmp_path / "file" / "picture.png", picture)
