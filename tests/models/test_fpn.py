"""FPN's mask proposals: sizes of objects and regions, what is learned from by the paper's rules and
by DeepMask's, and the two ways of computing.
"""

import numpy as np
import pytest
import torch
from torch import nn

from segtrain.errors import UserError
from segtrain.inference.maps import batch_of
from segtrain.inference.mask_proposals import BoxProposals, MaskProposals
from segtrain.inference.paste import segments
from segtrain.layers.regions import Objects, mask_targets, usable
from segtrain.losses.multitask import MultiTask
from segtrain.metrics.coco import ProposalEvaluator
from segtrain.models.fpn import FPN, DeepMaskSampling, Sampling, Scale, around, regions_of, within
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import Batch

SMALL = {
    "backbone": "resnet18",
    "width": 16,
    "hidden": 24,
    "norm": "group",
    "head_norm": "group",
    "mask_size": 7,
}
LOSS = MultiTask({"object": 1.0, "mask": 10.0})


def on_meta(**arguments):
    with torch.device("meta"):
        return FPN(1, **arguments)


def small(**arguments):
    torch.manual_seed(0)
    return FPN(1, **SMALL | arguments)


def deepmask(kernel, stride, rows, columns):
    """A scale whose regions are what its kernel covers, as the tests of DeepMask's rules count."""
    return Scale(kernel, stride, rows, columns, "cells")


def size(module):
    return sum(p.numel() for p in module.parameters())


def objects(boxes, crowds=()):
    """Only their boxes matter."""
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    none = torch.zeros(len(table), 0, 0, dtype=torch.bool)
    crowded = torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4)
    return Objects(table, torch.zeros(len(table)).long(), none, crowded)


def painted(boxes, height, width, crowd=()):
    """`Instances` of filled boxes."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    flags = torch.zeros(len(boxes), dtype=torch.bool)
    flags[list(crowd)] = True
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(table, torch.zeros(len(boxes)).long(), masks, flags)


def batch_with(targets, height=64, width=96):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(
        0, 256, (len(targets), 3, height, width), generator=generator, dtype=torch.uint8
    )
    sizes = torch.tensor([[height, width]] * len(targets))
    return Batch(images, sizes, [str(i) for i in range(len(targets))], instances=targets)


def names(kind, scale, first=0):
    """A scale's kinds as rows of text: + positive, - negative, . neither."""
    cells = kind[first : first + scale.rows * scale.columns].view(scale.rows, scale.columns)
    return ["".join("-+."[value] for value in row) for row in cells.tolist()]


# ---------------------------------------------------------------------- size and shape


@pytest.mark.parametrize(
    ("backbone", "count"), [("resnet50", 29_643_210), ("resnet101", 48_635_338)]
)
def test_the_number_of_parameters_is_that_of_two_heads_of_14_x_14(backbone, count):
    assert size(on_meta(backbone=backbone)) == count


def test_every_part_has_the_size_that_follows_from_the_layers():
    model = on_meta()
    heads = [width * width * 128 * 512 + 512 + 513 * (14 * 14 + 1) for width in (5, 7)]
    assert (size(model.backbone), size(model.pyramid), size(model.heads)) == (
        23_508_032,
        1_082_368,
        sum(heads),
    )
    assert sum(heads) == 5_052_810
    assert size(on_meta(heads=[7]).heads) == heads[1]
    assert size(on_meta(mask_size=28)) - size(model) == 2 * 513 * (784 - 196)


def five_levels(**arguments):
    """The scales of P2 to P6 of an image of 256 x 128 pixels."""
    return on_meta(**arguments).scales(
        [torch.empty(1, 1, 64 // 2**i, 32 // 2**i) for i in range(5)]
    )


def test_objects_and_regions_have_the_sizes_of_the_papers_appendix():
    small, large = five_levels()[::2], five_levels()[1::2]
    assert [scale.kernel for scale in (*small, *large)] == [5] * 5 + [7] * 5
    assert [scale.canonical for scale in small] == [32, 64, 128, 256, 512]
    assert [scale.side for scale in small] == [40, 80, 160, 320, 640]
    for five, seven in zip(small, large, strict=True):
        assert seven.canonical == pytest.approx(five.canonical * 2**0.5)
        assert seven.side == pytest.approx(five.side * 2**0.5)
    # Twice the kernel of 5 x 5, and as near to twice that of 7 x 7 as 7 is to 5 * sqrt(2).
    assert [scale.side / scale.stride / scale.kernel for scale in small] == [2] * 5
    assert large[0].side / 4 / 7 == pytest.approx(2, abs=0.03)


def test_regions_of_the_kernels_own_cells_are_for_objects_of_half_the_size():
    scales = five_levels(geometry="cells")
    assert [(s.kernel, s.stride, s.side) for s in scales[:4]] == [
        (5, 4, 20),
        (7, 4, 28),
        (5, 8, 40),
        (7, 8, 56),
    ]
    octaves = torch.tensor([scale.canonical for scale in scales]).log2()
    # objects of 16, 22.6, 32 ... 362 pixels
    torch.testing.assert_close(octaves, torch.arange(4, 9, 0.5))


@pytest.mark.parametrize(("levels", "strides"), [(5, [4, 8, 16, 32]), (7, [4, 8, 16, 32, 64, 128])])
def test_levels_have_a_cell_for_every_stride_or_part_of_it(levels, strides):
    model = small(levels=levels).eval()
    features = model.features(torch.zeros(1, 3, 50, 99))
    padded = (64, 128)
    assert [f.shape[-2:] for f in features] == [
        (-(-padded[0] // s), -(-padded[1] // s)) for s in strides
    ]
    assert [scale.stride for scale in model.scales(features)] == [
        s for s in strides for _ in range(2)
    ]
    if levels == 7:
        torch.testing.assert_close(features[4], features[3][:, :, ::2, ::2])


def test_regions_lie_around_the_middle_of_their_cell():
    paper = regions_of([Scale(5, 4, 1, 2)], torch.device("cpu"))
    assert paper.tolist() == [[-18, -18, 22, 22], [-14, -18, 26, 22]]  # (2, 2) and (6, 2), 40 wide
    scales = [deepmask(5, 4, 2, 3), deepmask(7, 8, 1, 2)]
    windows = regions_of(scales, torch.device("cpu"))
    assert windows[:4].tolist() == [
        [-8, -8, 12, 12],
        [-4, -8, 16, 12],
        [0, -8, 20, 12],
        [-8, -4, 12, 16],
    ]
    # middles (4, 4) and (12, 4), 56 wide
    assert windows[6:].tolist() == [
        [-24, -24, 32, 32],
        [-16, -24, 40, 32],
    ]


def test_positions_of_the_padding_are_told_by_their_cells():
    scales = [Scale(5, 4, 2, 3), Scale(5, 8, 1, 2)]
    assert within(scales, (4, 9), torch.device("cpu")).tolist() == [
        True,
        True,
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    assert within(scales, (5, 8), torch.device("cpu")).tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("top", [8, 13])
def test_a_painted_square_comes_back_where_it_was(top):
    square = (37, top, 37 + 56, top + 56)
    target = painted([square], 96, 128)
    scales = [deepmask(7, 8, 12, 16)]
    position, _ = DeepMaskSampling().positives(target.boxes, scales)
    window = regions_of(scales, torch.device("cpu"))[position[:1]]
    for cells in (14, 28):
        mask = mask_targets(target.masks, window, torch.tensor([0]), cells)
        found = segments((96, 128), window, mask, torch.zeros(1).long(), torch.ones(1))
        x, y, width, height = run_lengths.boxes(found.masks)[0]
        cell = 56 / cells  # the square's sides are moved to the sides of cells
        np.testing.assert_allclose(
            [x, y], np.clip([37, top], *window.view(2, 2).numpy()), atol=cell / 2 + 0.5
        )
        assert width >= 52 - cell
        assert height >= 52 - cell


def test_a_square_of_whole_cells_comes_back_to_half_a_pixel():
    square = (32, 24, 48, 40)
    # The window of the cell with its middle at (40, 32): cells of 40 / 10 = 4 pixels.
    window = torch.tensor([[20.0, 12.0, 60.0, 52.0]])
    mask = mask_targets(painted([square], 64, 80).masks, window, torch.tensor([0]), 10)
    assert mask[0].nonzero().amin(0).tolist() == [3, 3]
    assert mask.sum() == 16
    found = segments((64, 80), window, mask, torch.zeros(1).long(), torch.ones(1))
    np.testing.assert_allclose(run_lengths.boxes(found.masks)[0], [32, 24, 16, 16], atol=0.5)


# ---------------------------------------------------------------------- what is learned from


def test_cells_around_a_point_are_those_within_reach_and_the_nearest():
    scale = Scale(5, 8, 4, 6)  # middles at 4, 12, 20, 28 ...
    point, cell, offset = around(
        torch.tensor([[13.0, 20.0], [16.0, 5.0], [-50.0, 500.0]]), 4.0, scale
    )
    assert point.tolist() == [0, 1, 1, 2]
    assert cell.tolist() == [13, 1, 2, 18]  # row 2 column 1; row 0 columns 1 and 2; the corner
    assert offset[:3].tolist() == [[-1, 0], [-4, -1], [4, -1]]
    assert around(torch.zeros(0, 2), 4.0, scale)[1].shape == (0,)


def test_a_position_is_positive_within_one_cell_of_an_objects_middle():
    scale = Scale(5, 4, 6, 8)  # objects of 32 pixels; middles at 2, 6, 10, 14 ...
    rules = Sampling()
    # Its middle (13, 11) is 3 and 1 pixels from those of columns 2 and 3, of rows 2 and 3.
    which, kind = rules.kinds(objects([(-3, -5, 29, 27)]), [scale], (24, 32))
    assert names(kind, scale) == [
        "--------",
        "--------",
        "--++----",
        "--++----",
        "--------",
        "--------",
    ]
    assert which[kind == 1].tolist() == [0] * 4
    # On a position, (14, 10), one cell to either side is 4 pixels: as far as it reaches.
    _, kind = rules.kinds(objects([(-2, -6, 30, 26)]), [scale], (24, 32))
    assert names(kind, scale)[1:4] == ["--+++---"] * 3
    # 7 x 7 reaches as far: one cell of the level, whatever its region.
    seven = Scale(7, 4, 6, 8)
    _, kind = rules.kinds(objects([(-3, -5, 29, 27)]), [seven], (24, 32))
    assert names(kind, seven)[2:4] == ["--++----"] * 2


def by_hand(boxes, crowds, scales, size):
    """The appendix in plain loops: for every position the object that it shows, or 0 / -1."""
    height, width = size
    nearest = {}
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        apart = [abs(np.log2(max(x2 - x1, y2 - y1) / scale.canonical)) for scale in scales]
        nearest[number] = (int(np.argmin(apart)), min(apart))
    told = []
    for k, scale in enumerate(scales):
        for row in range(scale.rows):
            for column in range(scale.columns):
                x, y = (column + 0.5) * scale.stride, (row + 0.5) * scale.stride
                claims = []
                for number, (x1, y1, x2, y2) in enumerate(boxes):
                    right, down = x - (x1 + x2) / 2, y - (y1 + y2) / 2
                    mine = nearest[number][0] == k
                    if mine and max(abs(right), abs(down)) <= scale.stride:
                        claims.append((nearest[number][1], np.hypot(right, down), number))
                seen = column * scale.stride < width and row * scale.stride < height
                a, b = min(x, width - 1), min(y, height - 1)
                crowded = any(x1 <= a < x2 and y1 <= b < y2 for x1, y1, x2, y2 in crowds)
                told.append(
                    (1, min(claims)[2]) if claims else (0 if seen and not crowded else -1, 0)
                )
    return told


def test_what_is_learned_is_what_the_appendix_says_position_by_position():
    size = (100, 140)  # of it P2 to P6 have cells up to 128 x 160
    scales = [
        Scale(kernel, stride, 128 // stride, 160 // stride)
        for stride in (4, 8, 16, 32)
        for kernel in (5, 7)
    ]
    draws = np.random.default_rng(0)
    corners = draws.integers(0, (120, 80), (30, 2))
    boxes = [
        (x, y, min(x + w, 140), min(y + h, 100))
        for (x, y), (w, h) in zip(
            corners.tolist(), draws.integers(4, 140, (30, 2)).tolist(), strict=True
        )
    ]
    crowds = [(90, 10, 131, 55)]
    which, kind = Sampling().kinds(objects(boxes, crowds), scales, size)
    expected = by_hand(boxes, crowds, scales, size)
    assert kind.tolist() == [value for value, _ in expected]
    assert which.tolist() == [owner for _, owner in expected]
    assert (kind == 1).sum() > 60  # about four each
    assert len({owner for value, owner in expected if value == 1}) > 20
    assert (kind == -1).any()


@pytest.mark.parametrize(
    ("side", "scale"),
    [(5, 0), (38, 0), (38.1, 1), (53.7, 1), (53.9, 2), (76, 2), (90, 3), (999, 3)],
)
def test_an_object_is_learned_on_the_scale_nearest_in_octaves_alone(side, scale):
    # Objects of 32, 45.3, 64 and 90.5 pixels; between two of them the border is their product's
    # root, 38.05, 53.8 and 76.1.
    scales = [Scale(k, stride, 32 // stride, 32 // stride) for stride in (4, 8) for k in (5, 7)]
    box = (15 - side / 2, 15 - side / 4, 15 + side / 2, 15 + side / 4)  # its longest side counts
    position, _ = Sampling().positives(torch.tensor([box]), scales)
    stops = np.cumsum([s.rows * s.columns for s in scales])
    assert set(np.searchsorted(stops, position.numpy(), side="right").tolist()) == {scale}
    assert len(position) == 4


def test_in_a_crowd_nothing_is_negative_and_objects_are_learned():
    scale = Scale(5, 4, 4, 6)
    # Its middle (8, 8) is the corner of four cells; the crowd holds columns 0 to 3 of rows 0 to 2.
    _, kind = Sampling().kinds(objects([(-8, -8, 24, 24)], [(0, 0, 16, 12)]), [scale], (16, 24))
    assert names(kind, scale) == ["....--", ".++.--", ".++.--", "------"]


def test_a_position_is_positive_near_the_middle_of_an_object_of_its_size():
    scale = deepmask(5, 8, 5, 6)  # windows of 40 pixels, objects of 32
    which, kind = DeepMaskSampling().kinds(objects([(4, 4, 36, 36)]), [scale], (40, 48))
    # Middle (20, 20), that of row 2, column 2. Negative from 12 pixels on: neighbours at 8 and 11.3
    # are neither.
    assert names(kind, scale) == ["------", "-...--", "-.+.--", "-...--", "------"]
    assert which[kind == 1].tolist() == [0]


def test_a_middle_between_cells_has_four_positives():
    scale = deepmask(5, 8, 5, 6)
    _, kind = DeepMaskSampling().kinds(
        objects([(8, 8, 40, 24)]), [scale], (40, 48)
    )  # middle (24, 16)
    # (20, 12), (28, 12), (20, 20) and (28, 20) are 4 away in x and y: a tenth of the window. The
    # next are 12.6 away.
    assert names(kind, scale) == ["------", "--++--", "--++--", "------", "------"]


def test_a_7_x_7_window_reaches_further_than_its_own_cell():
    scale = deepmask(7, 8, 5, 6)  # windows of 56 pixels: a tenth is 5.6
    _, kind = DeepMaskSampling().kinds(
        objects([(0, 0, 46, 40)]), [scale], (40, 48)
    )  # middle (23, 20)
    # Columns of middle 20 (3 away) and 28 (5 away); rows of middle 20 only. Negative from 16.8
    # pixels on: (28, 4) is 16.76 away, (12, 4) 19.4.
    assert names(kind, scale) == ["--..--", "-....-", "-.++.-", "-....-", "--..--"]


@pytest.mark.parametrize(
    ("side", "shown"),
    [
        (3, [0]),
        (16, [0]),
        (19, [0]),
        (19.5, [1]),
        (22, [1]),
        (26.8, [1]),
        (27.2, [2]),
        (32, [2]),
        (45, [3]),
        (500, [3]),
    ],
)
def test_an_object_is_learned_at_the_scale_of_its_size_the_extreme_ones_at_the_ends(side, shown):
    scales = [
        deepmask(kernel, stride, 32 // stride, 32 // stride)
        for stride in (4, 8)
        for kernel in (5, 7)
    ]
    box = (16 - side / 2, 15 - side / 4, 16 + side / 2, 15 + side / 4)  # its longest side counts
    position, owner = DeepMaskSampling().positives(torch.tensor([box]), scales)
    stops = np.cumsum([scale.rows * scale.columns for scale in scales])
    assert sorted(set(np.searchsorted(stops, position.numpy(), side="right").tolist())) == shown
    assert owner.unique().tolist() == [0]


def test_on_the_border_of_two_scales_an_object_belongs_to_both():
    scales = [deepmask(5, 4, 8, 8), deepmask(7, 4, 8, 8)]
    side = 16 * 2**0.25
    wide = DeepMaskSampling(octaves=0.2501).positives(
        torch.tensor([[1.0, 1.0, 1 + side, 1 + side]]), scales
    )[0]
    assert (wide < 64).any()
    assert (wide >= 64).any()


def test_of_two_objects_on_a_position_the_nearest_in_scale_then_in_place_then_the_first_wins():
    scale = [deepmask(5, 8, 5, 6)]

    def winner(*boxes):
        position, owner = DeepMaskSampling().positives(
            torch.tensor(boxes, dtype=torch.float32), scale
        )
        return owner[position == 14].tolist()  # the middle (20, 20)

    exact = (4, 4, 36, 36)
    smaller = (6, 6, 34, 34)
    moved = (6, 4, 38, 36)
    assert winner(smaller, exact) == [1]
    assert winner(exact, smaller) == [0]
    assert winner(moved, exact) == [1]
    assert winner(exact, moved) == [0]
    assert winner(moved, smaller) == [0]  # scale before place
    assert winner(exact, exact) == [0]


def test_no_negative_lies_on_an_object_of_another_size_within_two_and_a_half_octaves():
    scales = [deepmask(5, 4, 8, 8), deepmask(5, 8, 4, 4)]  # objects of 16 and 32 pixels
    # Both have their middle at (12, 12); 1 pixel is 4 and 5 octaves away.
    near = (2, 2, 22, 22)
    far = (11.5, 11.5, 12.5, 12.5)
    for box, free in ((near, False), (far, True)):
        kind = DeepMaskSampling().kinds(objects([box]), scales, (32, 32))[1]
        assert (kind[64 + 5] == 0) == free  # (12, 12) at stride 8
    assert kind[:64].tolist().count(1) == 4  # 1 pixel is learned at the finest scale all the same


def test_negatives_lie_neither_in_the_padding_nor_in_a_crowd():
    scale = deepmask(5, 8, 4, 5)
    # It holds the middles (12, 4), (20, 4), (12, 12), (20, 12); its right and lower sides are
    # exclusive.
    crowd = (12, 0, 28, 13)
    _, kind = DeepMaskSampling().kinds(objects([], [crowd]), [scale], (24, 33))
    assert names(kind, scale) == ["-..--", "-..--", "-----", "....."]


def test_a_crowd_is_no_object_and_takes_no_position_from_one():
    target = painted([(4, 4, 36, 36), (4, 4, 36, 36)], 40, 48, crowd=[0])
    which, kind = DeepMaskSampling().kinds(usable(target), [deepmask(5, 8, 5, 6)], (40, 48))
    assert which[kind == 1].tolist() == [0]
    assert (kind == 1).sum() == 1
    assert not (
        DeepMaskSampling().kinds(
            usable(painted([(4, 4, 36, 36)], 40, 48, crowd=[0])), [deepmask(5, 8, 5, 6)], (40, 48)
        )[1]
        == 1
    ).any()


def test_at_most_a_quarter_is_positive_and_negatives_fill_up():
    # 54 objects
    boxes = [(8 * i, 8 * j, 8 * i + 16, 8 * j + 16) for i in range(9) for j in range(6)]
    output = small(sampling=Sampling(count=40)).train()(
        batch_with([painted(boxes, 64, 96), painted([], 64, 96)])
    )
    assert output["object_target"].sum() == 10
    assert len(output["object"]) == 80
    assert len(output["mask"]) == len(output["mask_target"]) == 10


def test_targets_belong_to_the_rows_of_the_output():
    model = small(levels=5).eval()
    boxes = [(20, 4, 84, 60), (4, 4, 20, 20), (60, 30, 76, 62)]
    seen = []

    def at(features, scales, image, position):
        for head, here, vectors in FPN.vectors(model, features, scales, image, position):
            vectors[:, 0] = position[here] + 1000 * image[here]  # carried to the output
            yield head, here, vectors

    for head in model.heads:
        for layer in (head.mask, head.object):
            nn.init.zeros_(layer.weight)
            layer.weight.data[:, 0] = 1
    model.vectors = at
    batch = batch_with([painted(boxes, 64, 96), painted(boxes[:1], 64, 96)])
    with torch.no_grad():
        output = model(batch)
    scales = model.scales(model.features(torch.zeros(1, 3, 64, 96)))
    windows = regions_of(scales, torch.device("cpu"))
    for number, target in enumerate(batch.instances):
        which, kind = model.sampling.kinds(usable(target), scales, (64, 96))
        rows = output["object"] // 1000 == number
        places = (output["object"][rows] % 1000).round().long()
        assert (kind[places] >= 0).all()
        assert torch.equal(output["object_target"][rows], kind[places].float())
        rows = output["mask"][:, 0, 0] // 1000 == number
        places = (output["mask"][rows, 0, 0] % 1000).round().long()
        assert torch.equal(places.sort().values, torch.nonzero(kind == 1).flatten())
        expected = mask_targets(target.masks, windows[places], which[places], 7)
        torch.testing.assert_close(output["mask_target"][rows], expected)
        seen.append(len(places))
    assert seen[0] > seen[1] > 0


@pytest.mark.parametrize(
    ("heads", "case"),
    [
        ([5], "objects"),
        ([5, 7], "objects"),
        ([5, 7], "none"),
        ([7], "crowd"),
        ([5, 7], "whole crowd"),
    ],
)
def test_every_parameter_gets_a_gradient_whatever_there_is_to_learn_from(heads, case):
    boxes = {"objects": [(8, 8, 40, 40), (50, 5, 66, 30)], "none": []}.get(case, [(0, 0, 96, 64)])
    crowd = range(len(boxes)) if "crowd" in case else ()
    if case == "crowd":
        boxes = [(0, 0, 50, 64)]
    model = small(heads=heads, levels=6).train()
    batch = batch_with(
        [painted(boxes, 64, 96, crowd), painted([], 64, 96)][: 1 if case == "whole crowd" else 2]
    )
    output = model(batch)
    terms = LOSS(output, batch)
    sum(LOSS.weights[name] * term.sum for name, term in terms.items()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (len(output["mask"]) > 0) == (case == "objects")
    assert (len(output["object"]) > 0) == (case != "whole crowd")
    assert any(p.grad.any() for p in model.heads.parameters()) == (case != "whole crowd")


def test_hundreds_of_objects_fit():
    boxes = [(x, y, x + 9, y + 9) for x in range(0, 80, 4) for y in range(0, 50, 2)]
    assert len(boxes) == 500
    output = small(levels=7).train()(batch_with([painted(boxes, 64, 96)]))
    assert output["object_target"].sum() == 32
    assert len(output["object"]) <= 128


def test_training_draws_anew_and_evaluation_always_the_same():
    model = small()
    batch = batch_with([painted([(8, 8, 40, 40), (50, 5, 66, 30)], 64, 96)])
    with torch.no_grad():
        torch.manual_seed(1)
        first = model.train()(batch)["object"]
        other = model(batch)["object"]
        torch.manual_seed(1)
        assert torch.equal(model(batch)["object"], first)
        assert not torch.equal(first, other)
        calm = model.eval()(batch)
        again = model(batch)
    assert all(torch.equal(calm[name], again[name]) for name in calm)


# ---------------------------------------------------------------------- what is proposed


def test_scores_and_masks_at_positions_are_those_of_the_whole_maps():
    model = small(levels=6).eval()
    features = model.features(torch.randn(2, 3, 50, 70, generator=torch.Generator().manual_seed(0)))
    scales = model.scales(features)
    dense = model.objectness(features)
    hidden = [
        (head, head.conv(level).relu().flatten(2).mT) for level in features for head in model.heads
    ]
    everywhere = torch.cat([head.mask(values) for head, values in hidden], 1)  # (2, A, 49)
    position = torch.arange(0, dense.shape[1], 3)
    for number in (0, 1):
        scores = torch.zeros(len(position))
        masks = torch.zeros(len(position), 49)
        for head, here, vectors in model.vectors(
            features, scales, torch.full_like(position, number), position
        ):
            scores[here] = head.object(vectors).flatten()
            masks[here] = head.mask(vectors)
        torch.testing.assert_close(scores, dense[number, position], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(masks, everywhere[number, position], atol=1e-5, rtol=1e-4)


def test_proposals_are_the_best_positions_of_the_real_image():
    model = small(levels=6).eval()
    image = torch.randint(
        0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    batch = Batch(image, torch.tensor([[64, 96], [33, 50]]), ["", ""])
    with torch.inference_mode():
        features = model.features(model.preprocess(batch.images, batch.sizes))
        dense = model.objectness(features)
        scales = model.scales(features)
        found = model.propose_masks(batch, 40)
        everything = model.propose_masks(batch, 10**6)
    for number, (windows, scores, masks) in enumerate(found):
        inside = within(scales, tuple(batch.sizes[number].tolist()), dense.device)
        torch.testing.assert_close(
            scores, dense[number, inside].sigmoid().sort(descending=True).values[:40]
        )
        middles = (windows[:, :2] + windows[:, 2:]) / 2
        assert windows.shape == (40, 4)
        assert masks.shape == (40, 7, 7)
        assert ((masks > 0) & (masks < 1)).all()
        assert (
            middles - (windows[:, 2:] - windows[:, :2]) / 10 < batch.sizes[number].flip(0)
        ).all()
        assert len(everything[number][0]) == inside.sum()


def test_the_output_does_not_depend_on_the_padding_of_the_batch():
    model = small(levels=6, head_norm="none", norm="batch").eval()
    image = torch.randint(
        0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    wide = nn.functional.pad(image, (0, 64, 0, 32))
    sizes = torch.tensor([[64, 64]])
    with torch.inference_mode():
        own = model.propose_masks(batch_of(image, (64, 64)), 10**6)[0]
        other = model.propose_masks(Batch(wide, sizes, [""]), 10**6)[0]
    assert len(own[0]) == len(other[0])
    assert {tuple(w) for w in own[0].tolist()} == {tuple(w) for w in other[0].tolist()}


class Perfect(nn.Module):
    """Proposes what it is told, in pixels of a picture that was enlarged to twice its size."""

    def propose_masks(self, batch, count):
        assert batch.images.shape[-2:] == (80, 120)
        windows = torch.tensor(
            [[20.0, 12.0, 60.0, 52.0], [60.0, 0.0, 140.0, 80.0], [0.0, 0.0, 10.0, 10.0]]
        )
        masks = torch.zeros(3, 10, 10)
        masks[0, 3:7, 3:7] = 0.9
        masks[1] = 0.4
        return [(windows[:count], torch.tensor([0.9, 0.8, 0.7])[:count], masks[:count])]

    def propose(self, batch):
        boxes = torch.tensor([[20.0, 12.0, 60.0, 52.0], [-20.0, 60.0, 140.0, 80.0]])
        return [(boxes, torch.tensor([0.2, 0.7]))]


def test_masks_are_pasted_at_the_images_own_size():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    found = MaskProposals(Perfect(), shorter=80, longest=200)(image, "7")
    assert found.size == (40, 60)
    assert found.labels.tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7], rtol=1e-6)
    assert found.boxes.tolist()[0] == [16, 12, 8, 8]  # cells 3 to 6 of 2 pixels from (10, 6) on
    assert found.areas.tolist() == [64, 0, 0]
    low = MaskProposals(Perfect(), count=2, shorter=80, longest=200, threshold=0.3)(image)
    assert low.boxes.tolist()[1] == [31, 1, 29, 38]
    assert len(low) == 2


def test_boxes_come_in_the_order_of_their_scores_and_fit_the_metric():
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    found = BoxProposals(Perfect(), shorter=80, longest=200)(image)
    assert found.boxes.tolist() == [[0, 30, 60, 10], [10, 6, 20, 20]]
    assert found.masks is None
    assert len(BoxProposals(Perfect(), count=1, shorter=80, longest=200)(image)) == 1
    truth = Segments(
        (40, 60), np.zeros(1, np.int64), np.array([[10.0, 6, 20, 20]]), None, np.array([400.0])
    )
    evaluator = ProposalEvaluator(["object"], kind="bbox")
    evaluator.update("7", found, truth)
    assert evaluator.compute()["bbox/AR@1000"] == 1


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 200), (64, 64)])
def test_odd_sizes_are_proposed_for_and_learned_from(height, width):
    model = small()
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    found = MaskProposals(model.eval(), count=20, shorter=None)(image)
    assert found.size == (height, width)
    assert len(found) == 20
    assert (np.diff(found.scores) <= 0).all()
    again = MaskProposals(model, count=20, shorter=None)(image)
    assert again.masks == found.masks
    assert np.array_equal(again.scores, found.scores)
    batch = batch_with([painted([(0, 0, width // 2, height)], height, width)], height, width)
    output = model.train()(batch)
    assert output["object_target"].sum() > 0
    assert all(value.isfinite().all() for value in output.values())


def test_a_few_steps_lower_the_loss_and_weights_come_back():
    torch.manual_seed(0)
    model = small(levels=5).train()
    batch = batch_with([painted([(8, 8, 40, 40), (50, 5, 66, 30)], 64, 96)])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    losses = []
    for _ in range(5):
        terms = LOSS(model(batch), batch)
        loss = sum(
            LOSS.weights[n] * t.sum / t.count for n, t in terms.items() if t.count is not None
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    other = small(levels=5).eval()
    other.load_state_dict(model.state_dict())
    ours = model.eval()(batch)
    theirs = other(batch)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_in_half_precision_scores_and_masks_stay_single():
    model = small().train()
    batch = batch_with([painted([(8, 8, 40, 40)], 64, 96)])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
        found = model.eval().propose_masks(batch, 5)[0]
    assert {value.dtype for value in (*output.values(), *found)} == {torch.float32}


def test_frozen_parts_do_not_train_the_others_do():
    assert all(p.requires_grad for p in small().parameters())
    model = small(freeze=2)
    still = {
        name.split(".")[1] + name.split(".")[2]
        for name, p in model.named_parameters()
        if not p.requires_grad
    }
    assert still == {"stem0", "stem1", "stages0"}
    assert {id(p) for p in model.backbone_parameters()} == {
        id(p) for p in model.backbone.parameters()
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"levels": 4}, "levels=4"),
        ({"heads": [5, 5]}, r"heads=\[5, 5\]"),
        ({"heads": [4]}, r"heads=\[4\]"),
        ({"mask_size": 0}, "mask_size=0"),
        ({"geometry": "deepmask"}, "geometry=deepmask: paper or cells"),
        ({"freeze": 6}, "freeze=6"),
    ],
)
def test_values_that_make_no_sense_are_refused(arguments, says):
    with pytest.raises(UserError, match=f"model.{says}"):
        on_meta(**arguments)


def test_settings_that_make_no_sense_are_refused():
    for arguments in ({"count": 3}, {"share": 0.0}, {"shift": 2.0}, {"octaves": -1.0}):
        with pytest.raises(UserError, match=f"model.sampling.{next(iter(arguments))}="):
            DeepMaskSampling(**arguments)
    for arguments in ({"count": 0}, {"shorter": 2000}, {"threshold": 0.0}):
        with pytest.raises(UserError, match=f"inference.{next(iter(arguments))}="):
            MaskProposals(Perfect(), **arguments)
    with pytest.raises(UserError, match="Linear proposes no masks"):
        MaskProposals(nn.Linear(1, 1))
    with pytest.raises(UserError, match="Linear proposes no boxes"):
        BoxProposals(nn.Linear(1, 1))
    with pytest.raises(UserError, match="coco_proposal"):
        small().train()(batch_of(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), (32, 32)))
    assert small().eval()(batch_of(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), (32, 32))) == {}
