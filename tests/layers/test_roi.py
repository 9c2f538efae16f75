"""Which level a region is read from, and what is read there, by hand."""

import pytest
import torch

from segtrain.errors import UserError
from segtrain.layers.roi import RoIPool, regions_of

STRIDES = [4, 8, 16, 32]


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def square(side, x=0, y=0):
    return (x, y, x + side, y + side)


@pytest.mark.parametrize(
    ("side", "stride"),
    [
        (0, 4),
        (1, 4),
        (111, 4),
        (112, 8),
        (223, 8),
        (224, 16),
        (447, 16),
        (448, 32),
        (895, 32),
        (896, 32),
        (5000, 32),
    ],
)
def test_a_square_is_read_from_the_level_of_its_side(side, stride):
    assert STRIDES[RoIPool(7, STRIDES).levels(boxes(square(side)))] == stride


def test_the_area_decides_and_not_a_side():
    # 56 x 448 has the area of 158.4 x 158.4, 448 x 112 that of 224 x 224
    found = RoIPool(7, STRIDES).levels(
        boxes((0, 0, 56, 448), (10, 20, 458, 132), (500, 500, 556, 724))
    )
    assert [STRIDES[place] for place in found] == [8, 16, 8]


def test_levels_keep_within_the_strides_that_there_are():
    sides = boxes(*(square(side) for side in (10, 112, 224, 448, 896, 1792)))
    assert RoIPool(7, [8, 16]).levels(sides).tolist() == [0, 0, 1, 1, 1, 1]
    assert RoIPool(7, [4, 8, 16, 32, 64]).levels(sides).tolist() == [0, 1, 2, 3, 4, 4]


def test_boxes_carry_the_number_of_their_image():
    found = regions_of([boxes((1, 2, 3, 4)), boxes(), boxes((5, 6, 7, 8), (9, 9, 10, 10))])
    assert found.tolist() == [[0, 1, 2, 3, 4], [2, 5, 6, 7, 8], [2, 9, 9, 10, 10]]


def constant(levels=4, images=2, side=512):
    """Features that say 10 x level + image everywhere."""
    values = [10.0 * level + torch.arange(images)[:, None, None, None] for level in range(levels)]
    return [
        value.expand(images, 1, side // s, side // s)
        for value, s in zip(values, STRIDES, strict=False)
    ]


@pytest.mark.parametrize("roi", ["align", "legacy", "pool"])
def test_regions_keep_their_order_whatever_their_levels(roi):
    first = boxes(square(300, 10, 10), square(20, 50, 60), square(460, 5, 5))
    second = boxes(square(150, 30, 30), square(20, 100, 100), square(300, 20, 20))
    found = RoIPool(1, STRIDES, roi)([*constant(), torch.full((2, 1, 8, 8), 99.0)], [first, second])
    assert found.shape == (6, 1, 1, 1)
    assert found.flatten().tolist() == [20, 0, 30, 11, 1, 21]


def test_one_level_serves_boxes_of_any_size():
    pool = RoIPool(2, [16])
    found = pool(
        [torch.full((1, 3, 32, 32), 5.0)], [boxes(square(20, 30, 30), square(400, 20, 20))]
    )
    assert found.shape == (2, 3, 2, 2)
    assert (found == 5).all()


RAMP = torch.arange(16.0).expand(1, 1, 16, 16)  # each cell holds its column


def columns(roi, *rows, size=2):
    return RoIPool(size, [4], roi)([RAMP], [boxes(*rows)])[:, 0, 0]


def test_align_reads_bins_at_their_centres():
    # pixels 8 to 24 are columns 2 to 6; the bins' middles 3 and 5 lie between cells 2, 3 and 4, 5
    assert columns("align", (8, 8, 24, 24)).tolist() == [[2.5, 4.5]]
    # a pixel is a quarter of a cell
    assert columns("align", (9, 8, 25, 24)).tolist() == [[2.75, 4.75]]


def test_legacy_reads_half_a_cell_further():
    assert columns("legacy", (8, 8, 24, 24), (9, 8, 25, 24)).tolist() == [[3, 5], [3.25, 5.25]]


def test_adaptive_samples_are_as_many_as_a_bin_has_cells():
    # Columns 2 to 8 in two bins of 3 cells: squares are averaged over samples at the thirds 2.5,
    # 3.5, 4.5 (cells 2, 3 and 4) instead of at 2.75 and 4.25 (cells 2.25 and 3.75).
    pool = RoIPool(2, [4], samples=0)
    found = pool([RAMP**2], [boxes((8, 8, 32, 32))])[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([(4 + 9 + 16) / 3, (25 + 36 + 49) / 3]))
    # Between cells the square is drawn as a line: 5.25 between 4 and 9, 14.25 between 9 and 16.
    found = RoIPool(2, [4])([RAMP**2], [boxes((8, 8, 32, 32))])[0, 0, 0]
    torch.testing.assert_close(found[0], torch.tensor((5.25 + 14.25) / 2))


def test_inclusive_boxes_are_read_up_to_their_last_pixel():
    # the last pixel of (8, 8, 25, 25) is 24
    found = RoIPool(2, [4], inclusive=True)([RAMP], [boxes((8, 8, 25, 25))])
    assert found[0, 0, 0].tolist() == [2.5, 4.5]


def test_fewer_than_no_samples_are_refused():
    with pytest.raises(UserError, match=r"^model\.roi_samples=-1: samples along a side of a bin"):
        RoIPool(7, STRIDES, samples=-1)


def test_pool_rounds_to_whole_cells():
    # columns 2 to 6, the last one included: 5 cells in bins of 2.5, maxima of cells 2-4 and of
    # cells 4-6
    assert columns("pool", (8, 8, 24, 24), (9, 8, 25, 24)).tolist() == [[4, 6], [4, 6]]
    assert columns("pool", (10.1, 8, 26.1, 24)).tolist() == [[5, 7]]  # 2.525 rounds to 3


@pytest.mark.parametrize("roi", ["align", "legacy", "pool"])
@pytest.mark.parametrize("strides", [STRIDES, [4]])
def test_without_boxes_features_still_get_a_gradient(roi, strides):
    features = [torch.ones(2, 3, 8, 8, requires_grad=True) for _ in strides]
    found = RoIPool(7, strides, roi)(features, [boxes(), boxes()])
    found.sum().backward()
    assert found.shape == (0, 3, 7, 7)
    assert all(feature.grad is not None and not feature.grad.any() for feature in features)


def test_bf16_features_are_read_in_float32():
    found = RoIPool(2, [4])([RAMP.bfloat16()], [boxes((9, 8, 25, 24))])
    assert found.dtype == torch.float32
    assert found[0, 0, 0].tolist() == [2.75, 4.75]


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match=r"^roi=warp is unknown\. Known: align, legacy, pool$"):
        RoIPool(7, STRIDES, "warp")
