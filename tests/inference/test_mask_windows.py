"""Inference by proposals: which boxes, how their scores are merged, what is combined with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from run_folders import make_run
from torch import Tensor, nn

from segtrain import api
from segtrain.config import parts
from segtrain.config.compose import check, compose_config
from segtrain.data.proposals import boxes_of, grid, read_proposals
from segtrain.errors import DataError, UserError
from segtrain.inference.proposals import Boxes, Proposals, cut
from segtrain.structures.boxes import enlarged, overlaps
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Batch


class Redness(nn.Module):
    """Gives scores that anyone can read off a picture.

    Class 1 has red / 100 - 1, class 0 its negative; `seen` are the crops.
    """

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.classes = classes
        self.seen = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.images.dtype == torch.uint8
        self.seen.append(batch.images)
        red = batch.images[:, :1].float() / 100 - 1
        return {"logits": torch.cat([-red, red, *[red * 0 - 3] * (self.classes - 2)], 1)}


class Constant(nn.Module):
    """Call number n scores class 1 with `values[n]` everywhere, class 0 with 0."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        scores = torch.zeros(len(batch.images), 2, *batch.images.shape[-2:])
        for row in scores:
            row[1] = self.values.pop(0)
        return {"logits": scores}


def listed(path, boxes, image_id="a"):
    """A results file of x, y, width, height, score."""
    path.write_text(
        json.dumps(
            [{"image_id": image_id, "bbox": b[:4], "score": b[4], "category_id": 1} for b in boxes]
        )
    )
    return str(path)


def black(height, width):
    return torch.zeros(3, height, width, dtype=torch.uint8)


# Merging


def overlapping(tmp_path, **changes):
    """Boxes of columns 0-5 and 4-9 of a 2 x 12 image, which score class 1 with -1 and with 2."""
    source = listed(tmp_path / "boxes.json", [[0, 0, 6, 2, 0.9], [4, 0, 6, 2, 0.8]])
    boxes = Boxes(source, enlarge=1.0, min_side=1)
    return Proposals(Constant(-1.0, 2.0), boxes, size=4, **changes).scores(black(2, 12), "a")


def test_the_maximum_of_two_overlapping_boxes_starts_at_zero_as_in_the_released_code(tmp_path):
    scores = overlapping(tmp_path)
    assert scores[1].tolist() == [[0] * 4 + [2] * 6 + [0] * 2] * 2
    assert (scores[0] == 0).all()


def test_without_the_floor_a_negative_maximum_stays(tmp_path):
    assert overlapping(tmp_path, floor="none")[1].tolist() == [[-1] * 4 + [2] * 6 + [0] * 2] * 2


def test_the_mean_counts_the_boxes_of_each_pixel(tmp_path):
    assert (
        overlapping(tmp_path, merge="mean")[1].tolist()
        == [[-1] * 4 + [0.5] * 2 + [2] * 4 + [0] * 2] * 2
    )


@pytest.mark.parametrize("floor", ["zero", "none"])
def test_pixels_that_no_box_holds_are_background(tmp_path, floor):
    source = listed(tmp_path / "boxes.json", [[2, 0, 3, 2, 0.9]])
    labels = Proposals(Constant(5.0), Boxes(source, enlarge=1.0, min_side=1), size=4, floor=floor)(
        black(2, 8), "a"
    )
    assert labels.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]] * 2
    assert labels.dtype == torch.uint8


def test_an_image_whose_boxes_are_all_too_small_is_background(tmp_path):
    source = listed(tmp_path / "boxes.json", [[2, 0, 3, 2, 0.9]])
    predictor = Proposals(Constant(5.0), Boxes(source, enlarge=1.0, min_side=3), size=4)
    assert (predictor(black(2, 8), "a") == 0).all()


@pytest.mark.parametrize("enlarge", [1.0, 1.2, 1.5])
@pytest.mark.parametrize("size", [64, 224])
def test_a_painted_square_comes_back_where_it_was(tmp_path, enlarge, size):
    """Cut, resized, scored, resized back: the edge lies where it was, to half a pixel."""
    image = black(60, 90)
    image[0, 20:41, 33:58] = 255
    source = listed(tmp_path / "boxes.json", [[25, 12, 44, 40, 0.9]])
    labels = Proposals(Redness(), Boxes(source, enlarge=enlarge, min_side=1), size=size)(image, "a")
    painted = (image[0] > 0).to(torch.uint8)
    assert torch.equal(labels[21:40, 34:57], painted[21:40, 34:57])
    outside = torch.ones(60, 90, dtype=torch.bool)
    outside[19:42, 32:59] = False
    assert (labels[outside] == 0).all()
    assert (labels != painted).sum() <= 4  # corners


@pytest.mark.parametrize(("top", "left"), [(0, 0), (40, 60), (0, 60), (40, 0)])
def test_a_painted_corner_comes_back_where_it_was(tmp_path, top, left):
    """A quarter of these boxes lies beyond the image."""
    image = black(60, 90)
    image[0, top : top + 20, left : left + 30] = 255
    source = listed(tmp_path / "boxes.json", [[left - 15, top - 10, 60, 40, 0.9]])
    labels = Proposals(Redness(), Boxes(source, enlarge=1.0, min_side=1), size=224)(image, "a")
    assert (labels != (image[0] > 0)).sum() <= 1  # the inner corner


def test_the_boxes_reach_into_black_beyond_the_image():
    image = torch.full((3, 4, 4), 200, dtype=torch.uint8)
    crop = cut(image, [-2, -1, 2, 3], 4)
    assert crop[0].tolist() == [[0, 0, 0, 0], [0, 0, 200, 200], [0, 0, 200, 200], [0, 0, 200, 200]]


def test_padded_pixels_reach_the_network_as_black_and_not_as_the_mean():
    """The released code pads before it subtracts the mean, so the network sees -mean there."""
    model = Redness()
    Proposals(model, Boxes(enlarge=2.0, min_side=1, count=1), size=8)(
        torch.full((3, 8, 8), 90, dtype=torch.uint8)
    )
    assert model.seen[0][0, 0, 0].tolist() == [0] * 8
    assert model.seen[0][0, 0, 4].tolist() == [0, 0, 90, 90, 90, 90, 0, 0]


def test_many_boxes_are_scored_a_few_at_a_time_in_their_order():
    model = Redness()
    predictor = Proposals(model, Boxes(count=20, min_side=1), size=16)
    predictor(black(40, 50))
    assert [len(crops) for crops in model.seen] == [8, 8, 4]


# Which boxes


def test_small_boxes_are_passed_over_and_do_not_count(tmp_path):
    """112 pixels, measured on the enlarged box as the released code does."""
    source = listed(
        tmp_path / "boxes.json",
        [[0, 0, 92, 300, 0.9], [0, 0, 94, 300, 0.8], [0, 0, 200, 90, 0.7], [0, 0, 100, 100, 0.6]],
    )
    found = Boxes(source, count=2)(black(300, 300), "a")
    assert (found[:, 2:] - found[:, :2]).tolist() == [[112, 360], [120, 120]]


def test_the_best_boxes_come_first_whatever_their_order_in_the_file(tmp_path):
    boxes = [[float(x), 0, 10, 10, score] for x, score in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.9))]
    found = Boxes(listed(tmp_path / "b.json", boxes), count=3, enlarge=1, min_side=1)(
        black(20, 20), "a"
    )
    assert found[:, 0].tolist() == [2, 4, 3]


def test_ids_may_be_text_or_numbers(tmp_path):
    path = tmp_path / "boxes.json"
    rows = [("2007_000033", 1.0), (139, 2.0), ("000000000785", 3.0)]
    path.write_text(
        json.dumps([{"image_id": name, "bbox": [x, 0, 5, 5], "score": 1} for name, x in rows])
    )
    known = read_proposals(path)
    ids = ("2007_000033", "139", "000000000139", "000000000785")
    assert [boxes_of(known, name, path)[0, 0] for name in ids] == [1, 2, 2, 3]
    with pytest.raises(
        DataError,
        match=r"boxes.json: holds no box for image `b`; its `image_id`s are such as `2007_000033`",
    ):
        boxes_of(known, "b", path)


@pytest.mark.parametrize(
    "entry",
    [
        {"image_id": "a", "score": 1},
        {"image_id": "a", "bbox": [1, 2, 3], "score": 1},
        {"image_id": "a", "bbox": [1, 2, 0, 4], "score": 1},
        {"image_id": "a", "bbox": [1, 2, float("nan"), 4], "score": 1},
        {"image_id": None, "bbox": [1, 2, 3, 4], "score": 1},
        {"image_id": "a", "bbox": [1, 2, 3, 4], "score": "high"},
        [1, 2, 3, 4],
    ],
)
def test_an_entry_that_is_no_box_is_named(tmp_path, entry):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([{"image_id": "a", "bbox": [1, 2, 3, 4], "score": 1}, entry]))
    with pytest.raises(
        DataError, match=r"boxes.json, entry 1: not of the form \[\{\"image_id\""
    ) as caught:
        Boxes(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_list_or_no_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"images": []}')
    (tmp_path / "b.json").write_text("no json")
    with pytest.raises(DataError, match=r"a.json: not a COCO results file"):
        Boxes(str(tmp_path / "a.json"))
    with pytest.raises(DataError, match=r"b.json: not a readable JSON file"):
        Boxes(str(tmp_path / "b.json"))


def test_the_grid_covers_the_image_many_times_large_boxes_first():
    boxes = grid(375, 500, 50, 94)
    assert boxes.shape == (50, 4)
    assert boxes[0].tolist() == [0, 0, 500, 375]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 500).all()
    assert (boxes[:, 3] <= 375).all()
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 94
    covered = np.zeros((375, 500), int)
    for x1, y1, x2, y2 in boxes.astype(int):
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 3
    assert len(np.unique(boxes, axis=0)) == 50
    assert grid(375, 500, 1).tolist() == [[0, 0, 500, 375]] == grid(375, 500, 50, 1000).tolist()
    assert grid(1, 1, 50).tolist() == [[0, 0, 1, 1]]


def test_boxes_that_miss_the_image_are_passed_over_and_huge_ones_end(tmp_path):
    source = listed(
        tmp_path / "b.json", [[30, 0, 9, 9, 0.9], [-9, 5, 9, 9, 0.8], [-1e9, 3, 2e9, 9, 0.7]]
    )
    assert Boxes(source, enlarge=1, min_side=1)(black(20, 30), "a").tolist() == [[-30, 3, 60, 12]]


def test_boxes_are_enlarged_about_their_middle_and_overlaps_are_ratios():
    found = enlarged(np.array([[10.0, 20, 20, 40], [0, 0, 1, 1]]), 1.2, 50, 50)
    assert found.tolist() == [[9, 18, 21, 42], [0, 0, 1, 1]]
    a = np.array([[0.0, 0, 4, 2], [0, 0, 1, 1]])
    b = np.array([[2.0, 0, 6, 2], [8, 8, 9, 9], [0, 0, 4, 2]])
    assert overlaps(a, b).tolist() == [[4 / 12, 0, 1], [0, 0, 1 / 8]]


# Other networks


NAMES = ("background", "thing")
LABELS = LabelMap("test", NAMES, ((0, 0, 0), (1, 1, 1)), {0: 0, 1: 1})


class Loaded:
    """As much of `api.Loaded` as is asked for."""

    def __init__(self, network=None, labels=LABELS, found=None):
        self.network = network
        self.labels = labels
        self.found = found

    def __call__(self, image):
        return self.found


def with_partner(tmp_path, ours, theirs, combine):
    (tmp_path / "run").mkdir(exist_ok=True)
    predictor = Proposals(
        Constant(ours),
        Boxes(count=1, enlarge=1.0),
        4,
        partner=str(tmp_path / "run"),
        combine=combine,
    )
    predictor.attach(lambda path: Loaded(Constant(theirs)), NAMES)
    return predictor.probabilities(black(4, 4))


def test_the_mean_is_of_probabilities(tmp_path):
    """Scores (0, ln 3) and (0, ln 7): probabilities 3/4 and 7/8 of class 1, 13/16 together."""
    found = with_partner(tmp_path, float(np.log(3)), float(np.log(7)), "mean")
    torch.testing.assert_close(found[1], torch.full((4, 4), 13 / 16))
    torch.testing.assert_close(found.sum(0), torch.ones(4, 4))


def test_the_product_is_of_scores_and_cuts_the_partners_off_at_zero(tmp_path):
    found = with_partner(tmp_path, 2.0, 3.0, "product")
    torch.testing.assert_close(found[1], torch.full((4, 4), float(torch.tensor(6.0).sigmoid())))
    found = with_partner(tmp_path, 2.0, -3.0, "product")
    torch.testing.assert_close(found[1], torch.full((4, 4), 0.5))


def test_a_partner_with_the_classes_in_another_order_is_read_by_name(tmp_path):
    """Its scores (0, ln 7) are of thing and background: background has 7/8, and 1/4 of ours."""
    (tmp_path / "run").mkdir()
    predictor = Proposals(
        Constant(float(np.log(3))), Boxes(count=1, enlarge=1.0), 4, partner=str(tmp_path / "run")
    )
    labels = LabelMap("other", NAMES[::-1], LABELS.colors, LABELS.raw)
    predictor.attach(lambda path: Loaded(Constant(float(np.log(7))), labels), NAMES)
    found = predictor.probabilities(black(4, 4))
    torch.testing.assert_close(found[0], torch.full((4, 4), (1 / 4 + 7 / 8) / 2))


def test_a_partner_of_other_classes_is_refused(tmp_path):
    predictor = Proposals(Constant(1.0), partner="fcn", size=4)
    with pytest.raises(
        UserError, match=r"inference.partner=fcn: it is loaded by segeval and segpredict only"
    ):
        predictor(black(4, 4))
    with pytest.raises(
        UserError, match=r"inference.partner=fcn: knows 2 classes of test, not the 3 of this model"
    ):
        predictor.attach(lambda path: Loaded(Constant(1.0)), ("a", "b", "c"))


def test_the_boxes_may_be_those_of_a_detector_best_first(tmp_path):
    boxes = Boxes(str(tmp_path), enlarge=1.0, min_side=1, count=2)
    with pytest.raises(
        UserError, match="a run is loaded by segeval and segpredict only; train with grid"
    ):
        boxes(black(9, 9), "")
    places = torch.tensor([[0.0, 0, 3, 3], [1, 1, 6, 5], [2, 2, 4, 9]])
    found = Instances(
        places,
        torch.zeros(3).long(),
        torch.zeros(3, 9, 9).bool(),
        scores=torch.tensor([0.1, 0.9, 0.5]),
    )
    predictor = Proposals(Constant(1.0), boxes)
    predictor.attach(lambda path: Loaded(found=found), NAMES)
    assert boxes(black(9, 9), "").tolist() == [[1, 1, 6, 5], [2, 2, 4, 9]]
    predictor.attach(lambda path: Loaded(found=torch.zeros(9, 9)), NAMES)
    with pytest.raises(UserError, match="gives label maps; a detector gives instances"):
        boxes(black(9, 9), "")


def test_a_crf_sees_the_bytes_and_the_probabilities():
    seen = []

    def crf(image, probabilities):
        seen.append((image.dtype, image.shape, probabilities.sum(0)))
        return probabilities.flip(0)

    labels = Proposals(Constant(3.0), Boxes(count=1), 4, crf=crf)(black(5, 6))
    assert (labels == 0).all()
    dtype, shape, total = seen[0]
    assert (dtype, shape) == (torch.uint8, (3, 5, 6))
    torch.testing.assert_close(total, torch.ones(5, 6))


# Arguments and commands


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Boxes(count=0), "inference.boxes.count=0: at least 1"),
        (lambda: Boxes(enlarge=0.5), "inference.boxes.enlarge=0.5: a factor from 1"),
        (lambda: Boxes(min_side=0), "inference.boxes.min_side=0: pixels"),
        (
            lambda: Boxes("nowhere.json"),
            "inference.boxes.source=nowhere.json: neither grid, nor a .json file or a run",
        ),
        (lambda: Proposals(Redness(), size=0), "inference.size=0: pixels"),
        (lambda: Proposals(Redness(), merge="sum"), "inference.merge=sum: use max or mean"),
        (lambda: Proposals(Redness(), floor="low"), "inference.floor=low: use zero or none"),
        (lambda: Proposals(Redness(), combine="sum"), "inference.combine=sum: use mean or product"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_yaml_builds_what_it_says():
    run = check(compose_config(["model=deconvnet", "inference.boxes.count=3"])[0])
    predictor = parts.predictor(run, Redness())
    assert isinstance(predictor, Proposals)
    assert not predictor.plain
    assert (predictor.boxes.count, predictor.boxes.enlarge, predictor.boxes.min_side) == (
        3,
        1.2,
        112,
    )
    assert (predictor.size, predictor.merge, predictor.floor, predictor.combine) == (
        224,
        "max",
        "zero",
        "mean",
    )
    assert predictor.mode == "proposals"
    assert Proposals(Redness(), partner="fcn").mode == "proposals_mean"
    # in metrics.json
    assert predictor.proposals == "3 of grid, 1.2 times, shorter side from 112 px"


def test_a_checkpoint_loads_the_run_that_it_asks_for(tmp_path, monkeypatch):
    """`inference.partner=RUN` reaches the predictor through `api.load`, on the same classes."""
    from segtrain.config.files import load_run
    from segtrain.engine.train import fit
    from segtrain.runtime.distributed import World

    small = [
        "dataset.val=2",
        "dataset.size=[32,32]",
        "train.steps=1",
        "train.eval_every=1",
        "train.batch_size=2",
    ]
    small += ["model=unet", "model.width=2", "log.images=0"]
    folder = make_run(tmp_path / "run", *small)
    fit(load_run(folder / "config.yaml"), folder, World())
    run = check(
        compose_config(
            [
                *small,
                "inference=proposals",
                "inference.boxes.count=1",
                f"inference.partner={folder}",
            ]
        )[0]
    )
    loaded = api.load(folder, device="cpu", run=run)
    image = np.full((40, 50, 3), 90, np.uint8)
    assert loaded(image, "a").shape == (40, 50)
    alone = api.load(
        folder, device="cpu", run=check(compose_config([*small, "inference=proposals"])[0])
    )
    assert not torch.equal(
        *(
            p.predictor.probabilities(torch.from_numpy(image).permute(2, 0, 1))
            for p in (loaded, alone)
        )
    )
