"""Masks in boxes: pixels worked out by hand, a dense grid_sample as the judge, constant memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.models.detection.roi_heads import paste_masks_in_image

from segtrain.inference.paste import segments
from segtrain.structures import run_lengths
from segtrain.structures.instances import Segments


def pasted(
    size: tuple[int, int], box: list[float], mask: Tensor, threshold: float = 0.5
) -> Segments:
    return segments(
        size, torch.tensor([box]), mask[None], torch.tensor([3]), torch.tensor([0.75]), threshold
    )


def pixels(found: Segments) -> list[list[int]]:
    assert found.masks is not None
    (mask,) = run_lengths.decode(found.masks, found.size)
    return mask.astype(int).tolist()


def test_a_mask_of_two_by_two_cells_in_a_box_of_four_by_four_pixels() -> None:
    # Pixel centres lie at cells -0.25, 0.25, 0.75, 1.25, so the weights of the cells are (3/4, 0),
    # (3/4, 1/4), (1/4, 3/4), (0, 3/4): all ones make 9/16 in the corners, 3/4 on the sides and 1
    # inside.
    ones = torch.ones(2, 2)
    assert pixels(pasted((4, 4), [0, 0, 4, 4], ones)) == [[1] * 4] * 4
    assert pixels(pasted((4, 4), [0, 0, 4, 4], ones, 0.6)) == [
        [0, 1, 1, 0],
        [1] * 4,
        [1] * 4,
        [0, 1, 1, 0],
    ]
    assert pixels(pasted((4, 4), [0, 0, 4, 4], ones, 0.8)) == [
        [0] * 4,
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0] * 4,
    ]
    # One diagonal: 9/16 9/16 3/16 0, then 9/16 10/16 6/16 3/16, and so on.
    diagonal = pasted((4, 4), [0, 0, 4, 4], torch.eye(2))
    assert pixels(diagonal) == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert diagonal.areas.tolist() == [8]
    assert diagonal.boxes.tolist() == [[0, 0, 4, 4]]
    assert diagonal.labels.tolist() == [3]
    assert diagonal.scores is not None
    assert diagonal.scores.tolist() == [0.75]


def test_rows_and_columns_are_not_exchanged() -> None:
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert pixels(pasted((3, 5), [1, 0, 5, 2], mask)) == [[0, 1, 1, 1, 1], [0] * 5, [0] * 5]


def test_a_box_counts_the_pixels_whose_centres_it_holds() -> None:
    one = torch.ones(1, 1)
    # centres 1.5 and 3.5 lie on its sides
    assert pixels(pasted((1, 5), [1.5, 0, 3.5, 1], one)) == [[0, 1, 1, 1, 0]]
    assert pixels(pasted((1, 5), [1.75, 0, 3.75, 1], one)) == [[0, 0, 1, 1, 0]]
    # between two centres
    assert pixels(pasted((1, 5), [1.75, 0, 2.25, 1], one)) == [[0, 0, 0, 0, 0]]


def test_a_box_beyond_the_image_is_cut_and_its_mask_is_not_squeezed() -> None:
    # Pixel centres lie at cells 0.75, 1.25, 1.75: weights 1, 3/4, 1/4.
    found = pasted((3, 3), [-2, -2, 2, 2], torch.ones(2, 2))
    assert pixels(found) == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found.boxes.tolist() == [[0, 0, 2, 2]]
    # A low threshold reaches half a cell beyond the box: 1/4 at its side, 3/16 and 1/16 towards the
    # corner.
    assert pixels(pasted((3, 3), [-2, -2, 2, 2], torch.ones(2, 2), 0.2)) == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 0, 0],
    ]
    outside = pasted((3, 3), [10, 10, 12, 12], torch.ones(2, 2))
    assert pixels(outside) == [[0] * 3] * 3
    assert outside.boxes[0, 2:].tolist() == [0, 0]
    whole = pasted((3, 3), [-1e30, -1e30, 1e30, 1e30], torch.ones(2, 2))
    assert pixels(whole) == [[1] * 3] * 3
    assert whole.boxes.tolist() == [[0, 0, 3, 3]]


@pytest.mark.parametrize(
    "box",
    [
        [1, 1, 1, 3],
        [1, 3, 3, 3],
        [3, 1, 1, 3],
        [1, 1, 1, 1],
        [float("nan"), 0, 2, 2],
        [0, 0, float("inf"), 2],
    ],
)
def test_a_box_without_an_area_or_not_finite_has_an_empty_mask(box: list[float]) -> None:
    found = pasted((4, 4), box, torch.ones(2, 2))
    assert pixels(found) == [[0] * 4] * 4
    assert found.areas.tolist() == [0]
    assert np.isfinite(found.boxes).all()
    assert (found.boxes[:, 2:] >= 0).all()


def test_no_box_is_no_mask() -> None:
    none = segments(
        (4, 5), torch.zeros(0, 4), torch.zeros(0, 28, 28), torch.zeros(0), torch.zeros(0)
    )
    assert len(none) == 0
    assert none.masks == []
    assert none.boxes.shape == (0, 4)
    assert none.areas.shape == (0,)


def sampled(size: tuple[int, int], boxes: Tensor, masks: Tensor) -> Tensor:
    """Return the values (N, H, W) of the masks at the pixels, by one dense grid_sample."""
    x1, y1, x2, y2 = (side[:, None] for side in boxes.double().unbind(1))
    x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.stack(
        [x[:, None, :].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], 3
    )
    return grid_sample(masks[:, None].double(), grid, align_corners=False)[:, 0]


@pytest.mark.parametrize("threshold", [0.2, 0.5])
@pytest.mark.parametrize("cells", [1, 14, 28])
def test_pixels_are_those_of_a_dense_grid_sample(cells: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(cells)
    size = (150, 210)
    count = 60
    # boxes begin outside as well
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([240, 180]) - 30
    # from less than a pixel to the whole image
    extent = torch.rand(count, 2, generator=generator) ** 2 * 200 + 0.5
    boxes = torch.cat([corner, corner + extent], 1)
    masks = torch.rand(count, cells, cells, generator=generator)
    found = segments(size, boxes, masks, torch.zeros(count), torch.ones(count), threshold)
    assert found.masks is not None
    ours = run_lengths.decode(found.masks, size)
    values = sampled(size, boxes, masks).numpy()
    # which side of the threshold is no matter of rounding
    clear = np.abs(values - threshold) > 1e-5
    assert ((values >= threshold) == ours)[clear].all()
    assert clear.mean() > 0.999
    assert found.areas.tolist() == ours.sum((1, 2)).tolist()
    assert found.areas.sum() > 10_000


def test_masks_may_lie_beside_their_boxes() -> None:
    box = torch.tensor([[1.0, 0, 4, 1]])
    region = torch.tensor([[2.0, 0, 5, 1]])
    whole = (torch.ones(1, 1, 3), torch.zeros(1), torch.ones(1))
    found = segments((1, 6), box, *whole, regions=region)
    assert found.boxes.tolist() == [[1, 0, 3, 1]]
    assert pixels(found) == [[0, 0, 1, 1, 1, 0]]


def test_expanded_masks_are_those_of_detectron_by_hand() -> None:
    # A mask of 2 x 2 has a border, and its box is twice as wide: from 2.75 to 7.25, so pixels 2 to
    # 7. The six of them read the four cells 0, 1, 1, 0 at (i + 0.5) x 4 / 6 - 0.5: -1/6 (0), 0.5,
    # 7/6, 11/6, 2.5 (0.5) and 19/6 (0); what is not more than a half is off.
    masks = torch.ones(1, 2, 2)
    given = (torch.tensor([[3.875, 0.0, 6.125, 8.0]]), masks, torch.zeros(1), torch.ones(1))
    found = segments((8, 10), *given, expanded=True)
    row = [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0]]
    assert pixels(found)[3] == row[0]
    assert found.boxes.tolist() == [[3.875, 0, 2.25, 8]]
    # At a threshold of 0.4 the two halves belong to it: one pixel further to each side.
    low = segments((8, 10), *given, 0.4, expanded=True)
    assert pixels(low)[3] == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_expanded_masks_are_torchvisions_to_the_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    size = (90, 120)
    # torchvision knows boxes within the image only
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([110, 80])
    extent = torch.rand(60, 2, generator=generator) ** 2 * 100 + 0.3
    boxes = torch.cat([corner, (corner + extent).minimum(torch.tensor([120, 90]))], 1)
    masks = torch.rand(60, 28, 28, generator=generator)
    expected = paste_masks_in_image(masks[:, None], boxes, size)[:, 0]
    found = segments(size, boxes, masks, torch.zeros(60), torch.ones(60), expanded=True)
    assert found.masks is not None
    assert torch.equal(torch.from_numpy(run_lengths.decode(found.masks, size)) > 0, expected > 0.5)
    assert found.areas.sum() > 10_000


def test_half_precision_around_it_does_not_move_borders() -> None:
    masks = torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.3, 4, 90, 77]] * 5)
    given = (boxes, masks, torch.zeros(5), torch.ones(5))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = segments((80, 100), *given)
    assert mixed.masks == segments((80, 100), *given).masks


def test_memory_does_not_grow_with_the_number_of_masks() -> None:
    def peak(count: int) -> int:
        boxes = torch.tensor([[10.0, 10, 590, 390]] * count)
        masks = torch.ones(count, 28, 28)
        tracemalloc.start()
        segments((400, 600), boxes, masks, torch.zeros(count), torch.ones(count))
        (_, highest) = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1)
    # a mask has 240,000 pixels; its run lengths some hundred bytes
    assert peak(200) < peak(10) + 1_000_000
