"""Boxes between anchors, proposals and objects, by hand.

Coding, matching, sampling, targets of masks.
"""

import math

import pytest
import torch

from segtrain.inference.paste import segments
from segtrain.layers.regions import (
    clip,
    decode,
    encode,
    mask_targets,
    match,
    not_crowded,
    sample,
    sampling_generator,
    usable,
)
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def squares(count):
    """`count` disjoint boxes of 10 x 10, in a row."""
    return boxes(*((20 * i, 0, 20 * i + 10, 10) for i in range(count)))


# 10 x 20 around (5, 10) becomes 20 x 20 around (12, 14): 7 of 10 to the right, 4 of 20 down, twice
# as wide, as high
BOX = boxes((0, 0, 10, 20))
OBJECT = boxes((2, 4, 22, 24))


def test_a_box_moved_by_hand_has_these_deltas():
    torch.testing.assert_close(encode(OBJECT, BOX), boxes((0.7, 0.2, math.log(2), 0)))
    torch.testing.assert_close(encode(OBJECT, BOX, WEIGHTS), boxes((7, 2, 5 * math.log(2), 0)))


def test_deltas_move_the_box_back_onto_the_object():
    torch.testing.assert_close(decode(boxes((7, 2, 5 * math.log(2), 0)), BOX, WEIGHTS), OBJECT)
    corners = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0)) * 100
    some = torch.cat([corners.amin(1), corners.amax(1) + 1], 1)
    torch.testing.assert_close(
        decode(encode(some, some.flip(0), WEIGHTS), some.flip(0), WEIGHTS), some
    )


def test_one_box_for_each_class_is_decoded_at_once():
    deltas = torch.stack([torch.zeros(1, 4), encode(OBJECT, BOX, WEIGHTS)], 1)  # (1, 2, 4)
    torch.testing.assert_close(decode(deltas, BOX[:, None], WEIGHTS), torch.stack([BOX, OBJECT], 1))


def test_a_side_grows_at_most_from_16_to_1000_pixels():
    grown = decode(
        boxes((0, 0, 50, 5), (0, 0, 5, 50)),
        boxes((0, 0, 16, 16), (0, 0, 16, 16)),
        (1.0, 1.0, 1.0, 1.0),
    )
    torch.testing.assert_close(
        (grown[:, 2:] - grown[:, :2]).diagonal(), torch.tensor([1000.0, 1000.0])
    )
    # weights divide before the limit: 20 / 5 = 4 is within log(62.5) = 4.135
    wide = decode(boxes((0, 0, 20, 0)), boxes((0, 0, 16, 16)), WEIGHTS)[0]
    assert float(wide[2] - wide[0]) == pytest.approx(16 * math.exp(4), rel=1e-5)


def test_boxes_are_cut_to_height_and_width():
    cut = clip(boxes((-5, -6, 50, 60), (1, 2, 3, 4), (40, 5, 45, 9)), (20, 30))
    assert cut.tolist() == [[0, 0, 30, 20], [1, 2, 3, 4], [30, 5, 30, 9]]


def test_thresholds_belong_to_the_upper_side():
    # parts of a 10 x 10 object: their IoU is their area / 100
    found = boxes(*((0, 0, 10, height) for height in (2.9, 3, 5, 6.9, 7, 10)))
    target = boxes((0, 0, 10, 10))
    assert match(target, found, 0.3, 0.7)[1].tolist() == [0, -1, -1, -1, 1, 1]
    assert match(target, found, 0.5, 0.5)[1].tolist() == [0, 0, 1, 1, 1, 1]


def test_the_best_boxes_of_an_object_are_positive_however_small_their_overlap():
    # 0.2, 0.2 and 0.01 of the first object; the second object has no overlap at all, so it makes
    # nothing positive
    found = boxes((0, 0, 10, 2), (0, 8, 10, 10), (4, 4, 5, 5), (70, 70, 80, 80))
    objects = boxes((0, 0, 10, 10), (30, 30, 40, 40))
    assert match(objects, found, 0.3, 0.7, best=True)[1].tolist() == [1, 1, 0, 0]
    assert match(objects, found, 0.3, 0.7)[1].tolist() == [0, 0, 0, 0]
    assert match(objects, found[3:], 0.3, 0.7, best=True)[1].tolist() == [0]


def test_a_best_box_belongs_to_the_object_that_it_overlaps_most():
    objects = boxes((0, 0, 10, 10), (0, 0, 40, 10))
    found = boxes((0, 0, 10, 10), (90, 90, 99, 99))
    # the first box is the best of both: IoU 1 and 0.25
    which, kind = match(objects, found, 0.3, 0.7, best=True)
    assert which[0] == 0
    assert kind.tolist() == [1, 0]


def test_seventy_objects_are_matched_as_one():
    objects = squares(70)
    which, kind = match(objects, objects.flip(0), 0.5, 0.5)
    assert which.tolist() == list(range(69, -1, -1))
    assert (kind == 1).all()
    # equal overlaps: the first object, also where the second is in another chunk
    twice = torch.cat([objects, objects])
    assert match(twice, objects, 0.5, 0.5)[0].tolist() == list(range(70))
    small = objects.clone()
    # a tenth of each: only the best of every object, on both sides of a chunk's border
    small[:, 2] -= 9
    assert (match(objects, small, 0.3, 0.7, best=True)[1] == 1).all()


def test_without_objects_every_box_is_background():
    which, kind = match(boxes(), squares(3), 0.3, 0.7, best=True)
    assert kind.tolist() == [0, 0, 0]
    assert which.shape == (3,)
    assert kind.dtype == torch.int8


def test_negatives_in_a_crowd_region_are_left_out():
    # 0.7 and 0.6 of the box's own area inside the crowd; then a positive inside, one that was
    # neither, one far away
    found = boxes(
        (93, 0, 103, 10), (94, 0, 104, 10), (0, 0, 10, 10), (0, 0, 10, 10), (300, 300, 310, 310)
    )
    kind = torch.tensor([0, 0, 1, -1, 0], dtype=torch.int8)
    assert not_crowded(kind, found, boxes((200, 200, 210, 210), (0, 0, 100, 100))).tolist() == [
        -1,
        0,
        1,
        -1,
        0,
    ]
    assert not_crowded(kind, found, boxes()) is kind


def test_a_crowd_inside_a_box_hides_nothing():
    # all of the crowd lies in the box, which is 1 % of the box's own area
    assert not_crowded(
        torch.tensor([0]), boxes((0, 0, 100, 100)), boxes((5, 5, 15, 15))
    ).tolist() == [0]


@pytest.mark.parametrize(
    ("positives", "negatives", "count", "share", "expected"),
    [
        (300, 1000, 256, 0.5, (128, 128)),
        (300, 1000, 512, 0.25, (128, 384)),  # 1 : 3
        (10, 1000, 256, 0.5, (10, 246)),  # background fills what is missing
        (300, 5, 256, 0.5, (128, 5)),  # objects do not
        (0, 3, 256, 0.5, (0, 3)),
        (0, 0, 256, 0.5, (0, 0)),
    ],
)
def test_so_many_are_sampled(positives, negatives, count, share, expected):
    kind = torch.tensor([1] * positives + [-1] * 7 + [0] * negatives, dtype=torch.int8)
    found = sample(kind, count, share, None)
    assert tuple(len(places) for places in found) == expected
    assert (kind[found[0]] == 1).all()
    assert (kind[found[1]] == 0).all()
    assert len(torch.cat(found).unique()) == sum(expected)  # none twice


def test_the_same_numbers_draw_the_same_and_evaluation_always_does():
    kind = torch.zeros(1000, dtype=torch.int8)

    def drawn(generator):
        return sample(kind, 10, 0.5, generator)[1].tolist()

    assert drawn(sampling_generator(False)) == drawn(sampling_generator(False))
    torch.manual_seed(1)
    first = drawn(sampling_generator(True))
    assert drawn(sampling_generator(True)) != first
    torch.manual_seed(1)
    assert drawn(sampling_generator(True)) == first


def pixels(polygon, size):
    return torch.from_numpy(run_lengths.decode([run_lengths.from_polygons([polygon], size)], size))


RECTANGLE = [4, 4, 12, 4, 12, 12, 4, 12]  # 8 x 8 pixels of 16 x 16
NONE = torch.zeros(1, dtype=torch.int64)


def test_cells_of_a_rectangle_in_a_box():
    masks = pixels(RECTANGLE, (16, 16))
    assert masks.sum() == 64
    whole = mask_targets(masks, boxes((0, 0, 16, 16)), NONE, 4)[0]
    assert whole.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert mask_targets(masks, boxes((4, 4, 12, 12)), NONE, 7).eq(1).all()  # the object's own box


def test_cells_half_of_which_are_mask_are_on_and_quarters_are_off():
    # cells begin at 2, 6, 10 and, beyond the image, 14: rectangle from 4 to 12 covers 1/2, 1, 1/2
    # and 0 of them
    cells = mask_targets(pixels(RECTANGLE, (16, 16)), boxes((2, 2, 18, 18)), NONE, 4)[0]
    assert cells.tolist() == [[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_covered_targets_are_the_shares_of_cells():
    # the same cells: 1/2, 1, 1/2 and 0 along each side, so their products
    masks = pixels(RECTANGLE, (16, 16))
    cells = mask_targets(masks, boxes((2, 2, 18, 18)), NONE, 4, covered=True)[0]
    side = torch.tensor([0.5, 1, 0.5, 0])
    assert torch.equal(cells, side[:, None] * side)
    whole = mask_targets(masks, boxes((4, 4, 12, 12)), NONE, 7, covered=True)
    torch.testing.assert_close(whole, torch.ones(1, 7, 7))  # the object's own box


def test_shares_are_those_of_the_lengths_that_pixels_and_cells_have_in_common():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 20, 30, generator=generator) > 0.5
    around = boxes((-3.3, 2.1, 17.9, 25.4), (4, 5, 5.5, 6.25), (28, 18, 40, 33), (0, 0, 30, 20))
    which = torch.tensor([2, 0, 1, 1])

    def common(start, stop, pixels):  # (7, pixels), in cells
        edges = start + (stop - start) * torch.arange(8, dtype=torch.float64) / 7
        pixel = torch.arange(pixels, dtype=torch.float64)
        ends = torch.minimum(edges[1:, None], pixel + 1)
        return (ends - torch.maximum(edges[:-1, None], pixel)).clamp(min=0) / (edges[1] - edges[0])

    cells = mask_targets(masks, around, which, 7, covered=True)
    for share, (x1, y1, x2, y2), number in zip(cells, around.double(), which, strict=True):
        expected = common(y1, y2, 20) @ masks[number].double() @ common(x1, x2, 30).T
        torch.testing.assert_close(share, expected.float())


def test_beyond_the_image_there_is_no_mask():
    full = torch.ones(1, 8, 8, dtype=torch.bool)
    assert mask_targets(full, boxes((4, 4, 20, 20)), NONE, 4)[0].nonzero().tolist() == [[0, 0]]
    assert mask_targets(full, boxes((-12, -12, 4, 4)), NONE, 4)[0].nonzero().tolist() == [[3, 3]]
    assert mask_targets(full, boxes((20, 0, 28, 8)), NONE, 4).sum() == 0


def test_cells_of_a_triangle():
    # right angle at the origin, legs of 10 pixels, cells of 4: of cell (0, 1) 13 of 16 pixels are
    # inside, of (1, 1) one
    cells = mask_targets(pixels([0, 0, 10, 0, 0, 10], (12, 12)), boxes((0, 0, 12, 12)), NONE, 3)[0]
    assert cells.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_torchvisions_targets_are_shares_half_a_pixel_further():
    left = torch.zeros(1, 8, 8, dtype=torch.bool)
    left[:, :, :4] = True
    cells = mask_targets(left, boxes((0, 0, 8, 8)), NONE, 4, legacy=True)[0]
    # cell 1 is read at columns 2.5 and 3.5 (pixel centres are whole numbers): all mask, and half of
    # it
    torch.testing.assert_close(cells, torch.tensor([1, 0.75, 0, 0]).expand(4, 4))
    hard = mask_targets(left, boxes((0, 0, 8, 8)), NONE, 4, legacy=True, covered=False)[0]
    assert torch.equal(hard, torch.tensor([1.0, 1, 0, 0]).expand(4, 4))


def test_each_box_gets_its_own_object_on_both_sides_of_a_chunks_border():
    numbers = torch.arange(40)
    masks = (
        numbers[:, None] >> torch.arange(6) & 1
    ).bool()  # mask i holds the bits of i in columns of two pixels
    masks = masks.repeat_interleave(2, 1)[:, None].expand(40, 12, 12)
    which = torch.tensor([0, 39, 31, 32, 5, 39])
    cells = mask_targets(masks, boxes((0, 0, 12, 12)).expand(6, 4), which, 6)
    assert (cells == cells[:, :1]).all()
    assert (cells[:, 0].long() << torch.arange(6)).sum(1).tolist() == which.tolist()


def test_no_boxes_and_no_objects_give_no_targets():
    assert mask_targets(torch.ones(1, 8, 8, dtype=torch.bool), boxes(), NONE[:0], 28).shape == (
        0,
        28,
        28,
    )
    assert mask_targets(torch.ones(0, 8, 8, dtype=torch.bool), boxes(), NONE[:0], 28).shape == (
        0,
        28,
        28,
    )


def test_nothing_is_learned_of_crowds_and_of_boxes_without_an_area():
    bad = float("nan"), float("inf")
    rows = boxes(
        (0, 0, 4, 4),
        (1, 1, 5, 5),
        (bad[0], 0, 4, 4),
        (0, 0, bad[1], 4),
        (3, 3, 3, 6),
        (3, 6, 6, 3),
        (2, 2, 6, 6),
    )
    crowd = torch.tensor([False, True, False, True, False, False, False])
    masks = torch.arange(7)[:, None, None].expand(7, 2, 2) % 2 == 0
    found = usable(Instances(rows, torch.arange(7), masks, crowd))
    assert found.boxes.tolist() == [[0, 0, 4, 4], [2, 2, 6, 6]]
    assert found.labels.tolist() == [0, 6]
    assert found.masks.shape == (2, 2, 2)
    assert found.crowds.tolist() == [[1, 1, 5, 5]]


def test_objects_that_are_all_usable_are_not_copied():
    target = Instances(squares(3), torch.arange(3), torch.ones(3, 8, 8, dtype=torch.bool))
    found = usable(target)
    assert found.masks is target.masks
    assert found.crowds.shape == (0, 4)


def test_boxes_are_cut_to_the_image_and_inclusive_ones_keep_a_pixel():
    beyond = boxes((-5, -5, 60, 60), (40, 2, 45, 9), (-9, 3, -3, 30))
    assert clip(beyond, (20, 30)).tolist() == [[0, 0, 30, 20], [30, 2, 30, 9], [0, 3, 0, 20]]
    kept = clip(beyond, (20, 30), inclusive=True)
    assert kept.tolist() == [[0, 0, 30, 20], [29, 2, 30, 9], [0, 3, 1, 20]]


def test_masks_learned_as_in_torchvision_are_whole_again_half_a_pixel_further():
    """What `mask_shift` says: the circle lies half a pixel beside its box, and not in it."""
    rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(80.0), indexing="ij")
    mask = (rows - 29.5) ** 2 + (columns - 29.5) ** 2 <= 20**2
    box = boxes((10, 10, 50, 50))
    cells = mask_targets(mask[None], box, torch.zeros(1, dtype=torch.int64), 28, legacy=True)

    def overlap(shift):
        found = segments((80, 80), box, cells, torch.zeros(1), torch.ones(1), regions=box + shift)
        pasted = torch.from_numpy(run_lengths.decode(found.masks, (80, 80))[0]) > 0
        return ((pasted & mask).sum() / (pasted | mask).sum()).item()

    assert overlap(0.5) > 0.995
    assert overlap(0) < 0.965
