"""The region proposal network by hand.

Anchors, the order of the head's numbers, proposals, sampled anchors.
"""

import math

import pytest
import torch
from torch import nn

from segtrain.errors import UserError
from segtrain.layers.regions import Objects
from segtrain.layers.rpn import RegionProposals, Scored

STRIDES = [4, 8, 16, 32, 64]
SIDES = [[32], [64], [128], [256], [512]]
SHAPES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]  # rows and columns of the levels


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def features(images=1, channels=1):
    return [torch.zeros(images, channels, *shape) for shape in SHAPES]


def truth(objects, crowds=()):
    count = len(objects)
    masks = torch.zeros(count, 1, 1, dtype=torch.bool)
    return Objects(boxes(*objects), torch.zeros(count, dtype=torch.int64), masks, boxes(*crowds))


class Head(nn.Module):
    """Says what it is told, level by level."""

    def __init__(self, logits, deltas):
        super().__init__()
        self.logits = iter(logits)
        self.deltas = iter(deltas)

    def conv(self, feature):
        return feature

    def cls_logits(self, feature):
        return next(self.logits)

    def bbox_pred(self, feature):
        return next(self.deltas)


def test_anchors_of_the_finest_level_by_hand():
    rpn = RegionProposals(1, STRIDES, SIDES)
    anchors = rpn.anchors(features())
    # ratios 1/2, 1 and 2 (height / width) around the grid point (0, 0), sides rounded to whole
    # pixels
    assert anchors[:3].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    # row 1, column 2: around x 8, y 4
    assert anchors[(1 * 12 + 2) * 3 + 1].tolist() == [
        -8,
        -12,
        24,
        20,
    ]


def test_anchors_of_detectron2_are_not_rounded():
    anchors = RegionProposals(1, STRIDES, SIDES, corners="exact").anchors(features())
    # 32 x sqrt(2) = 45.2548 wide and 32 / sqrt(2) = 22.6274 high, half of it to each side
    expected = boxes(
        (-22.6274, -11.3137, 22.6274, 11.3137),
        (-16, -16, 16, 16),
        (-11.3137, -22.6274, 11.3137, 22.6274),
    )
    torch.testing.assert_close(anchors[:3], expected, rtol=0, atol=1e-4)
    # row 1, column 2 of stride 4; and the second level's twice as large
    moved = expected + torch.tensor([8, 4, 8, 4])
    torch.testing.assert_close(anchors[(1 * 12 + 2) * 3 :][:3], moved, rtol=0, atol=1e-4)
    torch.testing.assert_close(anchors[288:291], expected * 2, rtol=0, atol=1e-4)


def test_anchors_of_detectron_are_whole_cells_around_the_middle_of_one():
    anchors = RegionProposals(1, STRIDES, SIDES, corners="quantised").anchors(features())
    # A cell of 4 x 4: 6 x 3, 4 x 4 and 3 x 6 (sqrt(32) is 5.7, sqrt(8) is 2.8), each 8 times as
    # large, around (2, 2).
    expected = [[-22, -10, 26, 14], [-14, -14, 18, 18], [-10, -22, 14, 26]]
    assert anchors[:3].tolist() == expected
    assert anchors[3:6].tolist() == [[x + 4, y, w + 4, h] for x, y, w, h in expected]
    # A cell of 8 x 8: 11 x 6 (5.5 rounds to the even number), 8 x 8 and 6 x 12.
    assert anchors[288:291].tolist() == [[-40, -20, 48, 28], [-28, -28, 36, 36], [-20, -44, 28, 52]]


def test_quantised_anchors_of_one_level_are_those_that_faster_rcnn_lists():
    # Faster R-CNN's table for sizes 128, 256, 512 at stride 16, there with x2 and y2 inclusive and
    # counted from 1.
    table = [
        (-83, -39, 100, 56),
        (-175, -87, 192, 104),
        (-359, -183, 376, 200),
        (-55, -55, 72, 72),
        (-119, -119, 136, 136),
        (-247, -247, 264, 264),
        (-35, -79, 52, 96),
        (-79, -167, 96, 184),
        (-167, -343, 184, 360),
    ]
    rpn = RegionProposals(1, [16], [[128, 256, 512]], corners="quantised")
    anchors = rpn.anchors([torch.zeros(1, 1, 1, 1)])
    assert anchors.tolist() == [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in table]


def test_other_corners_of_anchors_are_refused():
    with pytest.raises(UserError, match=r"^model\.anchor_corners=round is unknown\. Did you mean"):
        RegionProposals(1, STRIDES, SIDES, corners="round")


@pytest.mark.parametrize("level", range(5))
def test_every_level_has_its_side_and_its_stride(level):
    first = sum(3 * h * w for h, w in SHAPES[:level])
    side = SIDES[level][0]
    stride = STRIDES[level]
    columns = SHAPES[level][1]
    shapes = [
        (shape[0] + 1, shape[1]) if number == level else shape
        for number, shape in enumerate(SHAPES)
    ]
    anchors = RegionProposals(1, STRIDES, SIDES).anchors(
        [torch.zeros(1, 1, *shape) for shape in shapes]
    )
    wide, high = (anchors[first : first + 3, i + 2] - anchors[first : first + 3, i] for i in (0, 1))
    torch.testing.assert_close(wide * high, torch.full((3,), float(side**2)), rtol=0.02, atol=0)
    torch.testing.assert_close(high / wide, torch.tensor([0.5, 1, 2]), rtol=0.05, atol=0)
    here = anchors[first + 1]
    below = anchors[first + 3 * columns + 1]
    assert here.tolist() == [-side / 2, -side / 2, side / 2, side / 2]
    assert (below - here).tolist() == [0, stride, 0, stride]  # the next row
    if columns > 1:
        assert (anchors[first + 4] - here).tolist() == [stride, 0, stride, 0]  # the next column


def test_sides_of_one_level_follow_each_other_within_a_ratio():
    anchors = RegionProposals(1, [16], [[32, 64]]).anchors([torch.zeros(1, 1, 1, 1)])
    assert (anchors[:, 2] - anchors[:, 0]).tolist() == [46, 90, 32, 64, 22, 46]


@pytest.mark.parametrize(
    ("level", "y", "x", "anchor"), [(0, 0, 0, 0), (0, 7, 11, 2), (1, 2, 5, 1), (4, 0, 0, 2)]
)
def test_what_the_head_says_of_a_place_ends_at_its_anchor(level, y, x, anchor):
    rpn = RegionProposals(1, STRIDES, SIDES)
    logits = [torch.zeros(2, 3, *shape) for shape in SHAPES]
    deltas = [torch.zeros(2, 12, *shape) for shape in SHAPES]
    logits[level][1, anchor, y, x] = 5
    deltas[level][1, 4 * anchor : 4 * anchor + 4, y, x] = torch.tensor([1.0, 2, 3, 4])
    rpn.head = Head(logits, deltas)
    scored = rpn(features(2))
    assert scored.counts == [288, 72, 18, 6, 3]
    assert scored.anchors.shape == (387, 4)
    place = sum(scored.counts[:level]) + 3 * (y * SHAPES[level][1] + x) + anchor
    assert scored.logits.nonzero().tolist() == [[1, place]]
    assert scored.logits[1, place] == 5
    assert scored.deltas[1, place].tolist() == [1, 2, 3, 4]
    assert scored.deltas.count_nonzero() == 4
    middle = (scored.anchors[place, :2] + scored.anchors[place, 2:]) / 2
    assert middle.tolist() == [x * STRIDES[level], y * STRIDES[level]]


def scored(anchors, logits, counts, deltas=None, images=1):
    """What a head says that would not move its anchors."""
    moves = torch.zeros(len(anchors), 4) if deltas is None else deltas
    return Scored(torch.tensor([logits] * images), moves.expand(images, -1, -1), anchors, counts)


def propose(said, *sizes, training=False, **settings):
    rpn = RegionProposals(1, STRIDES, SIDES, **settings).train(training)
    return rpn.propose(said, torch.tensor(sizes))


APART = boxes(*((20 * i, 0, 20 * i + 10, 10) for i in range(6)))


def test_the_best_of_each_level_enter_and_the_best_of_all_are_kept():
    said = scored(APART, [4.0, 5.0, 6.0, 7.0, 1.0, 2.0], [4, 2])

    def lefts(training, after):
        found = propose(said, (50, 200), training=training, before=(2, 1), after=after)
        return (found[0][0][:, 0] / 20).tolist()

    assert lefts(True, (9, 9)) == [3, 2, 5, 4]  # two of each level, best first
    assert lefts(False, (9, 9)) == [3, 5]  # one of each
    assert lefts(True, (3, 1)) == [3, 2, 5]
    assert lefts(False, (3, 1)) == [3]


def test_scores_are_probabilities_best_first():
    found, scores = propose(scored(APART[:3], [0.0, math.log(3), -math.log(3)], [3]), (50, 200))[0]
    torch.testing.assert_close(scores, torch.tensor([0.75, 0.5, 0.25]))
    assert found[:, 0].tolist() == [20, 0, 40]


def test_suppression_is_within_a_level():
    # IoU 0.8 and 0.6 with the first
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 8), (0, 0, 10, 6), (0, 0, 10, 10))
    found, scores = propose(scored(anchors, [4.0, 3.0, 2.0, 1.0], [3, 1]), (50, 50))[0]
    torch.testing.assert_close(scores, torch.tensor([4.0, 2.0, 1.0]).sigmoid())
    assert found[:, 3].tolist() == [10, 6, 10]


def test_proposals_end_at_the_real_image_and_not_at_the_padding():
    said = scored(boxes((-10, -10, 50, 50), (32, 5, 38, 9)), [1.0, 2.0], [2], images=2)
    small, large = propose(said, (20, 30), (40, 40))
    assert small[0].tolist() == [[0, 0, 30, 20]]  # the other one lies in the padding
    assert large[0].tolist() == [[32, 5, 38, 9], [0, 0, 40, 40]]


def test_inclusive_proposals_keep_their_last_pixel_in_the_image_and_one_pixel_at_least():
    # The image is 30 wide and 20 high: its last pixel ends at 30, 20. A box beyond it is moved to
    # its last pixels; one of less than a pixel is none.
    anchors = boxes((-10, -10, 50, 50), (32, 5, 38, 9), (3, 3, 4, 4), (5, 5, 5.5, 9))
    said = scored(anchors, [1.0, 2.0, 3.0, 4.0], [4])
    found, _ = propose(said, (20, 30), inclusive=True)[0]
    assert found.tolist() == [[3, 3, 4, 4], [29, 5, 30, 9], [0, 0, 30, 20]]


def detectrons_proposals(anchors, logits, deltas, height, width):
    """Detectron's proposals of one level: boxes (n, 4) that end with their last pixel, + 1."""
    sides = anchors[:, 2:] - anchors[:, :2] + 1
    middles = anchors[:, :2] + 0.5 * sides + deltas[:, :2] * sides
    moved = sides * deltas[:, 2:].exp()
    found = torch.cat([middles - 0.5 * moved, middles + 0.5 * moved - 1], 1)
    found = torch.stack([found[:, i].clamp(0, (width, height)[i % 2] - 1) for i in range(4)], 1)
    found = found[logits.argsort(descending=True)]
    kept = []
    for box in found[(found[:, 2:] >= found[:, :2]).all(1)]:
        for other in kept:
            shared = (torch.minimum(box[2:], other[2:]) - torch.maximum(box[:2], other[:2])) + 1
            area = shared.clamp(min=0).prod()
            areas = [(each[2:] - each[:2] + 1).prod() for each in (box, other)]
            if area / (sum(areas) - area) > 0.7:
                break
        else:
            kept.append(box)
    return torch.stack(kept)


def test_inclusive_proposals_are_those_of_detectrons_arithmetic():
    generator = torch.Generator().manual_seed(0)
    rpn = RegionProposals(1, [8], [[16]], corners="quantised", inclusive=True).eval()
    anchors = rpn.anchors([torch.zeros(1, 1, 6, 8)])
    deltas = torch.randn(len(anchors), 4, generator=generator) * 0.5
    logits = torch.randn(len(anchors), generator=generator)
    said = Scored(logits[None], deltas[None], anchors, [len(anchors)])
    found = rpn.propose(said, torch.tensor([[41, 62]]))[0][0]
    one = torch.tensor([0, 0, 1, 1])
    expected = detectrons_proposals(anchors - one, logits, deltas, 41, 62)
    assert 20 < len(found) < len(anchors)
    torch.testing.assert_close(found - one, expected, rtol=0, atol=1e-4)


def test_boxes_that_are_no_numbers_are_dropped():
    nan = float("nan")
    inf = float("inf")
    deltas = boxes(
        (nan, 0, 0, 0),
        (0, 0, 0, nan),
        (inf, 0, 0, 0),
        (0, -inf, 0, 0),
        (0, 0, -inf, 0),
        (0, 0, 0, 0),
    )
    found, scores = propose(scored(APART, [9.0, 8.0, 7.0, 6.0, 5.0, 1.0], [6], deltas), (50, 200))[
        0
    ]
    assert found.tolist() == [[100, 0, 110, 10]]
    assert scores.shape == (1,)


def test_an_image_may_have_no_proposal():
    found = propose(scored(APART + 100, [1.0] * 6, [6]), (50, 50))
    assert found[0][0].shape == (0, 4)
    assert found[0][1].shape == (0,)


GRID = RegionProposals(1, [4], [[32]]).anchors([torch.zeros(1, 1, 20, 20)])  # 1200 anchors


LARGE = torch.tensor([[4096, 4096]])


def learn(objects, anchors=GRID, training=False, samples=256, sizes=LARGE):
    """The output of one image, whose logits and deltas tell the number of the anchor."""
    numbers = torch.arange(float(len(anchors)))
    said = Scored(numbers[None], numbers[None, :, None].expand(1, -1, 4), anchors, [len(anchors)])
    return (
        RegionProposals(1, STRIDES, SIDES, samples=samples)
        .train(training)
        .learn(said, [objects], sizes)
    )


def test_half_of_256_sampled_anchors_are_objects_at_most():
    # the 160 squares of the upper eight rows are objects
    output = learn(truth(GRID[1:480:3].tolist()))
    assert output["rpn_class_target"].tolist() == [1] * 128 + [0] * 128
    assert output["rpn_box"].shape == output["rpn_box_target"].shape == (128, 4)
    assert len(output["rpn_class"].unique()) == 256
    # the same anchors, in the same order
    assert torch.equal(output["rpn_box"][:, 0], output["rpn_class"][:128])


def test_background_fills_what_objects_leave():
    # squares of 32 around (40, 40) and its neighbours: IoU 1, four of 28/36 = 0.78 and four of 0.62
    output = learn(truth([(24, 24, 56, 56)]))
    positive = sorted(output["rpn_class"][:5].long().tolist())
    assert output["rpn_class_target"].tolist() == [1] * 5 + [0] * 251
    place = 3 * (10 * 20 + 10) + 1
    assert positive == [place - 60, place - 3, place, place + 3, place + 60]


def test_targets_of_an_anchor_are_the_deltas_to_its_object():
    anchors = boxes((50, 50, 60, 60), (100, 100, 110, 110), (0, 0, 10, 10))
    # IoU 0.8 and 0.83; middles move by 1
    output = learn(truth([(0, 0, 10, 8), (100, 100, 112, 110)]), anchors)
    order = output["rpn_class"][:2].long()
    expected = boxes((0, 0, 0, 0), (0.1, 0, math.log(1.2), 0), (0, -0.1, 0, math.log(0.8)))
    torch.testing.assert_close(output["rpn_box_target"], expected[order])
    assert sorted(order.tolist()) == [1, 2]
    assert output["rpn_class"][2:].tolist() == [0]


def test_anchors_between_the_thresholds_are_not_learned_from():
    # IoU 1, 0.6, 0.4, 0.2
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 6), (0, 0, 10, 4), (0, 0, 10, 2))
    output = learn(truth([(0, 0, 10, 10)]), anchors)
    assert output["rpn_class"].tolist() == [0, 3]
    assert output["rpn_class_target"].tolist() == [1, 0]


def test_an_object_is_learned_by_its_best_anchor():
    anchors = boxes((0, 0, 10, 10), (60, 60, 70, 70))
    output = learn(truth([(0, 0, 2, 10)]), anchors)  # IoU 0.2
    assert output["rpn_class_target"].tolist() == [1, 0]
    torch.testing.assert_close(output["rpn_box_target"], boxes((-0.4, 0, math.log(0.2), 0)))


def test_images_without_objects_are_background_and_crowds_are_nothing():
    empty = learn(truth([]))
    assert empty["rpn_class_target"].tolist() == [0] * 256
    assert empty["rpn_box"].shape == (0, 4)
    hidden = learn(truth([], [(-100, -100, 200, 200)]))
    assert hidden["rpn_class"].shape == (0,)
    assert hidden["rpn_box_target"].shape == (0, 4)


def test_evaluation_draws_the_same_again_and_training_does_not():
    first, second = (learn(truth([]))["rpn_class"] for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    first, second = (learn(truth([]), training=True)["rpn_class"] for _ in range(2))
    assert not torch.equal(first, second)


def test_each_image_is_sampled_for_itself():
    said = Scored(torch.zeros(2, 1200), torch.zeros(2, 1200, 4), GRID, [1200])
    output = RegionProposals(1, [4], [[32]], samples=10).learn(
        said, [truth([(24, 24, 56, 56)]), truth([])], torch.tensor([[4096, 4096]] * 2)
    )
    assert output["rpn_class_target"].tolist() == [1] * 5 + [0] * 15
    assert output["rpn_box"].shape == (5, 4)


def test_nothing_is_learned_from_anchors_in_the_padding():
    output = learn(truth([]), samples=10_000, sizes=torch.tensor([[40, 20]]))  # of 80 x 80 pixels
    middles = (GRID[output["rpn_class"].long(), :2] + GRID[output["rpn_class"].long(), 2:]) / 2
    assert len(middles) == 10 * 5 * 3
    assert middles.amax(0).tolist() == [
        16,
        36,
    ]
    beyond = learn(truth([(44, 44, 76, 76)]), samples=10_000, sizes=torch.tensor([[40, 20]]))
    assert beyond["rpn_class_target"].sum() > 0  # an object is learned wherever it is
