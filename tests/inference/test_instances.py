"""Instances of one image, from models that see exactly what they are shown."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from segtrain.errors import UserError
from segtrain.inference.instances import InstanceSegmentation
from segtrain.structures import run_lengths

SIZE = (40, 60)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def blank(size=SIZE):
    return torch.zeros(3, *size, dtype=torch.uint8)


class Told(nn.Module):
    """Says in every view what it is told: rows (box, probability of each class).

    Its masks are of `values`, view by view.
    """

    def __init__(self, *rows, values=(1.0,)):
        super().__init__()
        self.rows = rows
        self.values = list(values)
        self.sizes = []

    def features(self, batch):
        self.sizes.append(tuple(batch.sizes[0].tolist()))
        assert batch.images.shape[2:] == self.sizes[-1]
        return [batch.images]

    def detect(self, features, sizes):
        scores = torch.tensor([row[1] for row in self.rows]) if self.rows else torch.zeros(0, 2)
        found = boxes(*(row[0] for row in self.rows))
        return [(scores, found[:, None].repeat(1, scores.shape[1], 1))]

    def masks(self, features, boxes, labels):
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        return torch.full((len(labels), 4, 4), value)


class Earlier(Told):
    """Has the conventions of earlier releases: boxes that count + 1, masks beside their boxes."""

    def __init__(self, *rows, inclusive_boxes=False, mask_shift=0.0):
        super().__init__(*rows)
        self.inclusive_boxes = inclusive_boxes
        self.mask_shift = mask_shift

    def detect(self, features, sizes, growth=None):
        self.growth = growth
        return super().detect(features, sizes)

    def masks(self, features, boxes, labels):
        self.asked = boxes[0].tolist()
        return super().masks(features, boxes, labels)


class Sees(Told):
    """Finds what is bright in its view: a box around it, and as its mask what exceeds 0.7."""

    def detect(self, features, sizes):
        ys, xs = torch.nonzero(features[0][0, 0] > 64, as_tuple=True)
        self.found = boxes((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        return [(torch.tensor([[0.9]]), self.found[:, None])]

    def masks(self, features, boxes, labels):
        self.asked = boxes[0]
        return (roi_align(features[0][:, :1].float() / 255, boxes, 4, aligned=True) > 0.7)[
            :, 0
        ].float()


def picture():
    """An object in rows 8 to 24 and columns 4 to 20, brighter in its left half."""
    image = blank()
    image[:, 8:24, 4:20] = 130
    image[:, 8:24, 4:12] = 255
    return image


def rectangle(found):
    """Return the rows and columns that a mask fills.

    Its corners are missing, as paste.py fades them: 0.6 x 0.6 is below 0.5.
    """
    mask = run_lengths.decode(found.masks, found.size)[0]
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    assert mask.sum() == mask[place].size - 4
    return place


@pytest.mark.parametrize(
    ("shorter", "longest", "scales", "expected"),
    [
        (50, 1333, None, [(50, 100)]),
        (50, 80, None, [(40, 80)]),  # the longer edge decides
        (None, 1333, None, [(100, 200)]),
        (None, 1333, [0.5, 2.0], [(50, 100), (200, 400)]),
        (50, 80, [1.0, 1.5], [(40, 80), (60, 120)]),  # both edges are scaled
    ],
)
def test_sizes_of_views_follow_the_shorter_and_the_longer_edge(shorter, longest, scales, expected):
    model = Told(((0, 0, 9, 9), [0.9]))
    predictor = InstanceSegmentation(model, shorter, longest, scales=scales)
    assert predictor.sizes((100, 200)) == expected
    assert predictor.sizes((200, 100)) == [(w, h) for h, w in expected]
    predictor(blank((100, 200)))
    assert model.sizes == expected


def test_scores_above_the_threshold_are_kept_best_first():
    rows = [
        ((0, 0, 9, 9), [0.05, 0.3]),
        ((20, 0, 29, 9), [0.6, 0.051]),
        ((40, 0, 49, 9), [0.0, 0.01]),
    ]
    found = InstanceSegmentation(Told(*rows), shorter=None)(blank())
    assert np.allclose(found.scores, [0.6, 0.3, 0.051])
    assert found.labels.tolist() == [0, 1, 1]
    assert found.boxes.tolist() == [[20, 0, 9, 9], [0, 0, 9, 9], [20, 0, 9, 9]]
    assert found.labels.dtype == np.int64
    assert found.scores.dtype == found.boxes.dtype == np.float64
    assert len(InstanceSegmentation(Told(*rows), shorter=None, score=0.5)(blank())) == 1


def test_suppression_is_within_a_class():
    # IoU with the first: 0.8, 0.8 of another class, 0.4
    rows = [
        ((0, 0, 10, 10), [0.9, 0]),
        ((0, 0, 10, 8), [0.8, 0]),
        ((0, 0, 10, 8), [0, 0.7]),
        ((0, 0, 10, 4), [0.6, 0]),
    ]
    found = InstanceSegmentation(Told(*rows), shorter=None)(blank())
    assert np.allclose(found.scores, [0.9, 0.7, 0.6])
    assert found.labels.tolist() == [0, 1, 0]
    assert len(InstanceSegmentation(Told(*rows), shorter=None, overlap=0.85)(blank())) == 4


def test_the_best_hundred_of_all_classes_are_kept():
    rows = [
        ((4 * (i % 15), 4 * (i // 15), 4 * (i % 15) + 3, 4 * (i // 15) + 3), [0.0, 0.0])
        for i in range(150)
    ]
    for i, (_, scores) in enumerate(rows):
        scores[i % 2] = 0.1 + 0.005 * i
    found = InstanceSegmentation(Told(*rows), shorter=None)(blank())
    assert len(found) == len(found.masks) == 100
    assert np.allclose(found.scores, [0.1 + 0.005 * i for i in range(149, 49, -1)])
    assert found.labels.tolist() == [1, 0] * 50
    assert len(InstanceSegmentation(Told(*rows), shorter=None, detections=3)(blank())) == 3


def test_boxes_without_a_side_and_those_that_are_no_numbers_are_left_out():
    rows = [((3, 3, 3, 9), [0.9]), ((float("nan"), 0, 9, 9), [0.8]), ((0, 0, 9, 9), [0.7])]
    found = InstanceSegmentation(Told(*rows), shorter=None)(blank())
    assert found.boxes.tolist() == [[0, 0, 9, 9]]


def test_boxes_are_given_in_the_images_own_pixels():
    # 40 x 60 is shown as 80 x 120; the box reads x and y 2 fold
    found = InstanceSegmentation(Told(((8, 20, 28, 60), [0.9])), shorter=80)(blank())
    assert found.size == SIZE
    assert found.boxes.tolist() == [[4, 10, 10, 20]]
    assert rectangle(found) == (slice(10, 30), slice(4, 14))


VIEWS = [{}, {"shorter": 80}, {"shorter": 20}, {"flip": True}, {"scales": [1.0, 2.0], "flip": True}]


@pytest.mark.parametrize("settings", VIEWS)
def test_every_view_finds_the_object_where_it_is(settings):
    model = Sees()
    found = InstanceSegmentation(model, **{"shorter": None, **settings})(picture())
    assert found.boxes.tolist() == [[4, 8, 16, 16]]
    assert found.labels.tolist() == [0]
    assert rectangle(found) == (slice(8, 24), slice(4, 12))  # the bright half


def test_a_mirrored_view_is_asked_at_the_mirrored_place():
    model = Sees()
    InstanceSegmentation(model, shorter=None, flip=True)(picture())
    assert model.found.tolist() == model.asked.tolist() == [[60 - 20, 8, 60 - 4, 24]]


@pytest.mark.parametrize(
    ("values", "settings", "on"),
    [
        ((0.9, 0.2), {"flip": True}, True),  # 0.55
        ((0.9, 0.2, 0.2), {"scales": [0.5, 1.0, 2.0]}, False),  # 0.43
        ((0.9, 0.2, 0.2, 0.9), {"scales": [1.0, 2.0], "flip": True}, True),  # 0.55
        ((0.9, 0.2), {"flip": True, "threshold": 0.6}, False),
    ],
)
def test_masks_of_all_views_are_averaged(values, settings, on):
    model = Told(((0, 0, 60, 40), [0.9]), values=values)
    found = InstanceSegmentation(model, shorter=None, detections=1, **settings)(blank())
    assert len(found) == 1
    assert (found.areas[0] > 0) == on
    assert len(model.sizes) == len(values)
    assert len(model.values) == 1


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        # The image is shown four times as large, so masks lie 2 / 4 pixels further: from 20.5 to
        # 40.5. The middles of pixels 20 and 40 are on these edges, where a half is left.
        ({}, (slice(5, 26), slice(20, 41))),
        ({"paste": "box"}, (slice(5, 25), slice(20, 40))),
        # Mirrored they lie as far to the left.
        ({"flip": True}, (slice(5, 26), slice(20, 40))),
    ],
)
def test_masks_are_pasted_where_the_model_draws_them(settings, place):
    model = Earlier(((80, 20, 160, 100), [0.9]), mask_shift=2.0)
    found = InstanceSegmentation(model, shorter=160, **settings)(blank())
    assert found.boxes.tolist() == [[20, 5, 20, 20]]
    mask = run_lengths.decode(found.masks, found.size)[0]
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    assert (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) == place


def test_of_inclusive_boxes_the_last_pixel_is_scaled():
    # The image is shown twice as large. Pixels 8 to 27 and 20 to 59 there are 4 to 13.5 and 10 to
    # 29.5 here: with + 1 sides of 10.5 and 20.5. The mirrored view says the same of 60 - x.
    model = Earlier(((8, 20, 28, 60), [0.9]), inclusive_boxes=True)
    found = InstanceSegmentation(model, shorter=80)(blank())
    assert found.boxes.tolist() == [[4, 10, 10.5, 20.5]]
    assert model.asked == [[8, 20, 28, 60]]
    assert model.growth.tolist() == [2, 2, 2, 2]
    found = InstanceSegmentation(model, shorter=80, flip=True)(blank())
    assert found.boxes.tolist() == [[4, 10, 10.5, 20.5], [45.5, 10, 10.5, 20.5]]
    # of the mirrored view: 45.5 to 56 is pixels 91 to 110
    assert model.asked == [[91, 20, 111, 60], [8, 20, 28, 60]]
    # The last pixel of the view, 119, would be 59.5 and end at 60.5.
    model = Earlier(((100, 20, 120, 60), [0.9]), inclusive_boxes=True)
    found = InstanceSegmentation(model, shorter=80)(blank())
    assert found.boxes.tolist() == [[50, 10, 10, 20.5]]
    assert model.asked == [[100, 20, 119, 60]]


def test_masks_of_inclusive_boxes_end_with_the_first_edge_of_the_last_pixel():
    # Pixels 20 to 40, whose features are read from 20 to 40 and not 41.
    model = Earlier(((20, 5, 41, 26), [0.9]), inclusive_boxes=True)
    for paste, ends in (("aligned", (40, 25)), ("box", (41, 26))):
        found = InstanceSegmentation(model, shorter=None, paste=paste)(blank())
        assert found.boxes.tolist() == [[20, 5, 21, 21]]
        mask = run_lengths.decode(found.masks, found.size)[0]
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        assert (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1) == (20, ends[0], 5, ends[1])


@pytest.mark.parametrize("rows", [[], [((0, 0, 9, 9), [0.01, 0.02])]])
@pytest.mark.parametrize("flip", [False, True])
def test_nothing_found_is_an_empty_answer_of_the_images_size(rows, flip):
    found = InstanceSegmentation(Told(*rows), flip=flip)(blank())
    assert len(found) == 0
    assert found.size == SIZE
    assert found.masks == []
    assert found.boxes.shape == (0, 4)
    assert found.areas.shape == found.scores.shape == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"shorter": 0},
            r"inference\.shorter=0: the shorter edge in pixels, at most inference\.longest=1333",
        ),
        (
            {"shorter": 900, "longest": 800},
            r"inference\.shorter=900: .* at most inference\.longest=800",
        ),
        ({"scales": []}, r"inference\.scales=\[\]: give one or more positive factors"),
        (
            {"scales": [1.0, -1.0]},
            r"inference\.scales=\[1\.0, -1\.0\]: give one or more positive factors",
        ),
        ({"paste": "boxes"}, r"inference\.paste=boxes is unknown\. Did you mean `box`"),
        ({"detections": 0}, r"inference\.detections=0: at least 1"),
        ({"score": 1.5}, r"inference\.score=1\.5: between 0 and 1"),
        ({"overlap": -0.1}, r"inference\.overlap=-0\.1: between 0 and 1"),
        ({"threshold": 2}, r"inference\.threshold=2: between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        InstanceSegmentation(Told(), **settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_finds_no_instances_is_refused():
    with pytest.raises(
        UserError,
        match=r"^inference: Conv2d finds no instances; set inference=whole, or another model$",
    ):
        InstanceSegmentation(nn.Conv2d(1, 1, 1))
