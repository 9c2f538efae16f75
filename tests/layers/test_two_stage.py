"""The second stage with heads that know the answer.

Which regions are learned from, and what is read of the heads.
"""

import math

import pytest
import torch
from torch import nn

from segtrain.errors import UserError
from segtrain.inference.instances import InstanceSegmentation
from segtrain.layers.regions import encode, mask_targets
from segtrain.layers.rpn import RegionProposals
from segtrain.layers.two_stage import DELTA_WEIGHTS, TwoStage
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances
from segtrain.structures.samples import Batch

CLASSES = 3
CELLS = 4


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def instances(*rows, labels=None, crowd=None, size=(64, 64)):
    """Rectangles with full masks, all of class 2 where nothing else is said."""
    masks = torch.zeros(len(rows), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, rows, strict=True):
        if x1 == x1:
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    found = torch.full((len(rows),), 2) if labels is None else torch.tensor(labels)
    none = torch.zeros(len(rows), dtype=torch.bool)
    return Instances(boxes(*rows), found, masks, none if crowd is None else torch.tensor(crowd))


def batch(*targets, size=(64, 64)):
    images = torch.zeros(len(targets), 3, *size, dtype=torch.uint8)
    return Batch(
        images, torch.tensor([size] * len(targets)), [""] * len(targets), instances=list(targets)
    )


class Proposals(nn.Module):
    """Proposes the same boxes in every image."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, features):
        return None

    def propose(self, scored, sizes):
        return [(self.found, torch.ones(len(self.found)))] * len(sizes)

    def learn(self, scored, objects, sizes):
        return {}


class BoxHead(nn.Module):
    """Tells apart every number it gives: scores 100 n + column, deltas 1000 n + column.

    Remembers what it was asked.
    """

    def forward(self, features, boxes):
        self.asked = boxes
        count = torch.arange(float(sum(map(len, boxes))))[:, None]
        self.scores = (100 * count + torch.arange(CLASSES + 1)).requires_grad_()
        self.deltas = (1000 * count + torch.arange(4 * (CLASSES + 1))).requires_grad_()
        return self.scores, self.deltas


class MaskHead(nn.Module):
    """Logits 100 n + column of every cell."""

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, features, boxes):
        self.asked = boxes
        logits = 100 * torch.arange(float(sum(map(len, boxes))))[:, None] + torch.arange(
            self.columns
        )
        self.logits = logits[:, :, None, None].repeat(1, 1, CELLS, CELLS).requires_grad_()
        return self.logits


def stage(found, columns=CLASSES + 1, **settings):
    return TwoStage(Proposals(found), BoxHead(), MaskHead(columns), **settings)


FAR = boxes(*((x, 50, x + 8, 58) for x in range(40, 56)))  # 16 boxes of background


# ------------------------------------------------------------- a perfect head (systems.md, trap 18)

# an L of 28 x 28, as large as its mask has cells: cells are pixels
SHAPE = torch.zeros(64, 64, dtype=torch.bool)
SHAPE[12:40, 14:24] = SHAPE[30:40, 14:42] = True
TRUTH = boxes((14, 12, 42, 40))
LABEL = 2


class PerfectBox(nn.Module):
    """Moves whatever it is asked onto the object, for the object's class.

    The other classes' boxes are elsewhere.
    """

    def forward(self, features, boxes):
        asked = torch.cat(boxes)
        scores = torch.zeros(len(asked), CLASSES + 1)
        deltas = torch.full((len(asked), 4 * (CLASSES + 1)), 5.0)
        scores[:, LABEL + 1] = 20
        deltas[:, 4 * (LABEL + 1) : 4 * (LABEL + 2)] = encode(
            TRUTH.expand(len(asked), 4), asked, DELTA_WEIGHTS
        )
        return scores, deltas


class PerfectMask(nn.Module):
    """The object's mask in whatever box it is asked for, in the column of its class.

    The others say the contrary.
    """

    def forward(self, features, boxes):
        asked = torch.cat(boxes)
        cells = mask_targets(SHAPE[None], asked, torch.zeros(len(asked), dtype=torch.int64), 28)
        logits = (20 - 40 * cells)[:, None].repeat(1, CLASSES + 1, 1, 1)
        logits[:, LABEL + 1] *= -1
        return logits


class Perfect(nn.Module):
    """A model whose proposals are off by many pixels, and whose heads are right."""

    def __init__(self):
        super().__init__()
        self.stages = TwoStage(
            Proposals(boxes((10, 10, 50, 36), (20, 15, 45, 50))), PerfectBox(), PerfectMask()
        )
        self.detect = self.stages.detect
        self.masks = self.stages.masks

    def features(self, batch):
        return []


def test_perfect_heads_find_exactly_the_object():
    found = InstanceSegmentation(Perfect(), shorter=None)(torch.zeros(3, 64, 64, dtype=torch.uint8))
    assert found.labels.tolist() == [LABEL]
    assert found.scores[0] > 0.999
    assert abs(found.boxes - [[14, 12, 28, 28]]).max() < 1e-4
    assert (run_lengths.decode(found.masks, found.size)[0] == SHAPE.numpy()).all()
    assert found.areas[0] == SHAPE.sum()


def test_of_classes_only_the_background_column_is_left_out():
    scores, moved = stage(FAR[:2]).detect([], torch.tensor([[64, 64]]))[0]
    assert scores.shape == (2, CLASSES)
    assert moved.shape == (2, CLASSES, 4)
    torch.testing.assert_close(scores[0], torch.arange(4.0).softmax(0)[1:])


def test_detections_end_at_each_images_real_size():
    found = Perfect().stages.detect([], torch.tensor([[64, 64], [30, 20]]))
    torch.testing.assert_close(found[0][1][:, LABEL], TRUTH.expand(2, 4))
    torch.testing.assert_close(found[1][1][:, LABEL], boxes((14, 12, 20, 30)).expand(2, 4))


class Widens(nn.Module):
    """Says that every box is e times as wide."""

    def forward(self, features, boxes):
        count = sum(map(len, boxes))
        deltas = torch.zeros(count, CLASSES + 1, 4)
        deltas[..., 2] = DELTA_WEIGHTS[2]
        return torch.zeros(count, CLASSES + 1), deltas.flatten(1)


def test_inclusive_boxes_are_refined_in_the_images_own_pixels():
    # Pixels 210 to 249 of an image that grew twofold are 105 to 124.5 of it: 20.5 wide with + 1,
    # not 20, around 115.25. The height stays.
    model = TwoStage(Proposals(boxes((210, 10, 250, 50))), Widens(), MaskHead(4), inclusive=True)
    size = torch.tensor([[400, 400]])
    grown = model.detect([], size, torch.full((4,), 2.0))[0][1][0, 0]
    first = 115.25 - 10.25 * math.e
    last = 115.25 + 10.25 * math.e - 1
    torch.testing.assert_close(grown, torch.tensor([2 * first, 10, 2 * last + 1, 50]))
    same = model.detect([], size)[0][1][0, 0]
    torch.testing.assert_close(same, torch.tensor([230 - 20 * math.e, 10, 230 + 20 * math.e, 50]))


def test_masks_are_those_of_the_classes_asked_for():
    model = stage(FAR)
    labels = torch.tensor([2, 0])
    assert torch.equal(
        model.masks([], [FAR[:2]], labels)[:, 0, 0], torch.tensor([3.0, 101.0]).sigmoid()
    )
    softmax = stage(FAR, masks="softmax").masks([], [FAR[:2]], labels)[:, 0, 0]
    torch.testing.assert_close(softmax, torch.arange(4.0).softmax(0)[[3, 1]])
    agnostic = stage(FAR, columns=1).masks([], [FAR[:2]], labels)[:, 0, 0]
    assert torch.equal(agnostic, torch.tensor([0.0, 100.0]).sigmoid())


def test_without_proposals_there_is_nothing_to_detect():
    scores, moved = stage(boxes()).detect([], torch.tensor([[64, 64]]))[0]
    assert scores.shape == (0, CLASSES)
    assert moved.shape == (0, CLASSES, 4)
    assert stage(boxes()).masks([], [boxes()], torch.zeros(0, dtype=torch.int64)).shape == (
        0,
        CELLS,
        CELLS,
    )


# ------------------------------------------------------------------ what is learned from


def test_a_quarter_of_512_regions_are_objects():
    shifts = torch.arange(200)[:, None] * 0.01  # 200 boxes that overlap the object by 0.8 and more
    near = boxes((8, 8, 28, 28)) + shifts * torch.tensor([1.0, 0, 1, 0])
    away = boxes((40, 40, 50, 50)) + torch.arange(900)[:, None] * 0.001
    output = stage(torch.cat([near, away]))([], batch(instances((8, 8, 28, 28))))
    assert output["class_target"].tolist() == [3] * 128 + [0] * 384
    assert output["box"].shape == output["box_target"].shape == (128, 4)
    assert output["mask"].shape == (128, 4, 4)


def test_the_objects_themselves_are_regions():
    model = stage(FAR)
    objects = instances((4, 4, 20, 20), (30, 8, 44, 30), labels=[0, 2])
    output = model([], batch(objects))
    asked = model.box_head.asked[0]
    assert sorted(asked[:2].tolist()) == [[4, 4, 20, 20], [30, 8, 44, 30]]
    assert len(asked) == 18
    assert sorted(output["class_target"].tolist()) == [0] * 16 + [1, 3]
    assert torch.equal(output["box_target"], torch.zeros(2, 4))
    assert (output["mask_target"] == 1).all()
    assert torch.equal(model.mask_head.asked[0], asked[:2])  # masks of the positives alone


def test_box_targets_by_hand():
    # the object is 2 pixels of 20 further to the right and as large: IoU 0.82, delta 0.1 x 10
    output = stage(boxes((2, 4, 22, 24)), regions=2, positive_share=1.0)(
        [], batch(instances((4, 4, 24, 24)))
    )
    got = sorted(output["box_target"].tolist())
    torch.testing.assert_close(torch.tensor(got), boxes((0, 0, 0, 0), (1, 0, 0, 0)))


def test_regions_of_half_overlap_are_objects():
    found = boxes((0, 0, 10, 20), (0, 0, 10, 19))  # IoU 0.5 and 0.475
    output = stage(found, positive_share=1.0)([], batch(instances((0, 0, 20, 20))))
    assert output["class_target"].tolist() == [3, 3, 0]


def test_boxes_are_learned_of_the_true_class_alone():
    model = stage(FAR)
    output = model([], batch(instances((4, 4, 20, 20), (30, 8, 44, 30), labels=[0, 2])))
    rows = [
        range(1000 * n + 4 * int(c), 1000 * n + 4 * int(c) + 4)
        for n, c in enumerate(output["class_target"][:2])
    ]
    assert output["box"].tolist() == [list(row) for row in rows]
    output["box"].sum().backward()
    touched = model.box_head.deltas.grad.unflatten(1, (-1, 4)).abs().sum(2).nonzero().tolist()
    assert touched == [[n, int(c)] for n, c in enumerate(output["class_target"][:2])]


def test_masks_are_learned_of_the_true_class_alone():
    model = stage(FAR)
    output = model([], batch(instances((4, 4, 20, 20), (30, 8, 44, 30), labels=[0, 2])))
    classes = output["class_target"][:2].tolist()
    assert output["mask"][:, 0, 0].tolist() == [classes[0], 100 + classes[1]]
    output["mask"].sum().backward()
    assert model.mask_head.logits.grad.sum((2, 3)).nonzero().tolist() == [
        [0, classes[0]],
        [1, classes[1]],
    ]


def test_one_mask_for_all_classes():
    output = stage(FAR, columns=1)(
        [], batch(instances((4, 4, 20, 20), (30, 8, 44, 30), labels=[0, 2]))
    )
    assert output["mask"][:, 0, 0].tolist() == [0, 100]
    assert output["mask_target"].shape == (
        2,
        CELLS,
        CELLS,
    )


def test_masks_that_compete_have_classes_for_targets():
    objects = instances((4, 4, 20, 20), labels=[1])
    objects.masks[0, :, 12:] = False  # the left half
    output = stage(FAR, masks="softmax")([], batch(objects))
    assert output["mask"].shape == (1, CLASSES + 1, CELLS, CELLS)
    assert output["mask_target"].dtype == torch.int64
    assert output["mask_target"].tolist() == [[[2, 2, 0, 0]] * 4]


# An object of 16 x 16, whose mask begins at its column 2: cells of 4 pixels are half, whole, ...
PART = [0.5, 1.0, 1.0, 1.0]
WHOLE = [1.0] * 4


@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({}, WHOLE),
        ({"mask_targets": "binary"}, WHOLE),
        ({"mask_targets": "covered"}, PART),
        ({"mask_targets": "binary", "legacy": True}, WHOLE),
        # Half a pixel further, between the middles of pixels: 2.5 of 4 columns are mask.
        ({"legacy": True}, [0.625, 1.0, 1.0, 0.875]),
        ({"mask_targets": "covered", "legacy": True, "inclusive": True}, None),
    ],
)
def test_targets_are_whether_a_cell_is_mask_or_how_much_of_it(settings, row):
    objects = instances((4, 4, 20, 20))
    objects.masks[0, :, :6] = False
    target = stage(FAR, **settings)([], batch(objects))["mask_target"]
    if row is None:
        assert ((target > 0) & (target < 1)).any()
    else:
        torch.testing.assert_close(target[0, 1], torch.tensor(row))


def test_classes_that_compete_have_no_shares():
    objects = instances((4, 4, 20, 20))  # class 2, so 3 behind the background
    objects.masks[0, :, :6] = False
    output = stage(FAR, masks="softmax", legacy=True)([], batch(objects))
    assert output["mask_target"][0, 1].tolist() == [3, 3, 3, 3]
    with pytest.raises(UserError, match=r"model.mask_targets=covered: with model.masks=softmax"):
        stage(FAR, masks="softmax", mask_targets="covered")
    with pytest.raises(UserError, match=r"mask_targets=cover is unknown.*covered.*binary"):
        stage(FAR, mask_targets="cover")


def test_regions_follow_their_images():
    model = stage(FAR)
    images = batch(
        instances((4, 4, 20, 20), labels=[0]), instances(), instances((30, 8, 44, 30), labels=[1])
    )
    output = model([], images)
    assert [len(found) for found in model.box_head.asked] == [17, 16, 17]
    assert output["class_target"].tolist() == [1] + [0] * 16 + [0] * 16 + [2] + [0] * 16
    assert output["box"].tolist() == [[4, 5, 6, 7], [33008, 33009, 33010, 33011]]
    assert [found.tolist() for found in model.mask_head.asked] == [
        [[4, 4, 20, 20]],
        [],
        [[30, 8, 44, 30]],
    ]


@pytest.mark.parametrize(
    ("target", "regions"),
    [
        (instances(), 16),
        (instances((0, 0, 30, 30), crowd=[True]), 16),
        (instances((0, 0, 64, 64), crowd=[True]), 0),  # all proposals lie in the crowd
        (instances((float("nan"), 0, 9, 9)), 16),
        (instances((9, 9, 9, 20)), 16),
    ],
)
@pytest.mark.parametrize("masks", ["sigmoid", "softmax"])
def test_images_without_an_object_are_background(target, regions, masks):
    model = stage(FAR, masks=masks)
    output = model([], batch(target))
    assert output["class_target"].tolist() == [0] * regions
    assert output["box"].shape == output["box_target"].shape == (0, 4)
    assert len(output["mask_target"]) == 0
    sum(output[name].sum() for name in ("class", "box", "mask")).backward()
    given = (model.box_head.scores, model.box_head.deltas, model.mask_head.logits)
    assert all(each.grad is not None for each in given)


def test_a_box_that_is_no_number_does_not_hide_the_others():
    output = stage(FAR)(
        [], batch(instances((float("nan"), 0, 9, 9), (4, 4, 20, 20), labels=[0, 1]))
    )
    assert output["class_target"].tolist() == [2] + [0] * 16
    assert all(values.isfinite().all() for values in output.values())


def test_five_hundred_objects():
    rows = [(3 * (i % 25), 3 * (i // 25), 3 * (i % 25) + 2, 3 * (i // 25) + 2) for i in range(500)]
    objects = instances(*rows, labels=[i % 3 for i in range(500)], size=(75, 75))
    model = stage(boxes())
    output = model([], batch(objects, size=(75, 75)))
    assert len(output["class_target"]) == 128
    assert (output["mask_target"] == 1).all()
    places = (
        (model.box_head.asked[0][:, 0] / 3 + 25 * model.box_head.asked[0][:, 1] / 3).round().long()
    )
    assert torch.equal(output["class_target"], places % 3 + 1)


def test_without_instances_there_is_nothing_to_learn():
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert (
        stage(FAR)([], Batch(images, torch.tensor([[64, 64]] * 2), ["", ""], masks=images[:, 0]))
        == {}
    )
    assert stage(FAR)([], Batch(images, torch.tensor([[64, 64]] * 2), ["", ""], instances=[])) == {}


def test_evaluation_gives_the_same_losses_again_and_training_does_not():
    torch.manual_seed(0)
    rpn = RegionProposals(4, [8], [[16]], samples=16)
    model = TwoStage(rpn, BoxHead(), MaskHead(CLASSES + 1), regions=16)
    features = [torch.randn(1, 4, 8, 8)]
    images = batch(instances((4, 4, 20, 20), (30, 8, 44, 30)))
    model.eval()
    first, second = (model(features, images) for _ in range(2))
    assert first.keys() == second.keys()
    assert len(first) == 10
    assert all(torch.equal(first[name], second[name]) for name in first)
    model.train()
    first, second = (model(features, images)["rpn_class"] for _ in range(2))
    assert not torch.equal(first, second)
