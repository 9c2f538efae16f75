"""Augmentation: the same views as scaling the whole image and cropping it, image and mask together,
by seed alone.
"""

from __future__ import annotations

from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from segtrain.data.loader import collate
from segtrain.data.transforms import Augment
from segtrain.data.view import View, draw_bend, draw_view
from segtrain.errors import DataError, UserError
from segtrain.layers.blocks import model_input
from segtrain.layers.preprocess import preprocess
from segtrain.structures.instances import Instances
from segtrain.structures.samples import IGNORE, Sample


def noise(height: int, width: int, classes: int = 5) -> Sample:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, classes, (height, width), np.uint8)
    return Sample("noise", rng.integers(0, 256, (height, width, 3), np.uint8), mask)


def square(height: int = 90, width: int = 120) -> Sample:
    """White on black, the mask exactly below it."""
    mask = np.zeros((height, width), np.uint8)
    mask[20:70, 30:90] = 1
    return Sample("square", np.repeat(mask[..., None] * np.uint8(255), 3, 2), mask)


def mask_of(sample: Sample) -> np.ndarray:
    assert sample.mask is not None
    return sample.mask


def test_equal_seeds_give_equal_bytes_and_different_seeds_different_views() -> None:
    augment = Augment((32, 48), rotate=10, color=0.3, blur=0.5)
    again = Augment((32, 48), rotate=10, color=0.3, blur=0.5)
    sample = noise(60, 70)
    again(sample, 99)  # what was drawn before must not matter
    for seed in range(8):
        one = augment(sample, seed)
        two = again(sample, seed)
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(mask_of(one), mask_of(two))
    assert len({augment(sample, seed).image.tobytes() for seed in range(20)}) == 20


def test_a_view_has_the_size_of_the_crop_and_leaves_its_sample_alone() -> None:
    augment = Augment((33, 17), rotate=15, color=0.3, blur=0.5)
    for height, width in [(10, 200), (33, 17), (200, 10), (1, 1), (64, 64)]:
        sample = noise(height, width)
        before = sample.image.copy()
        for seed in range(6):
            view = augment(sample, seed)
            assert view.image.shape == (33, 17, 3)
            assert view.image.dtype == np.uint8
            assert view.image.flags.c_contiguous
            assert mask_of(view).shape == (33, 17)
            assert mask_of(view).dtype == np.uint8
        assert np.array_equal(sample.image, before)


def test_a_view_travels_to_a_spawned_worker_and_draws_the_same_there() -> None:
    augment = Augment((20, 20), rotate=10, color=0.2, blur=0.5)
    copy = ForkingPickler.loads(ForkingPickler.dumps(augment))
    assert np.array_equal(copy(noise(40, 40), 7).image, augment(noise(40, 40), 7).image)


def test_scale_one_without_flip_copies_pixels_of_some_place() -> None:
    sample = noise(40, 50)
    augment = Augment((40, 30), scale=(1, 1), flip=0)
    lefts = set()
    for seed in range(300):
        view = augment(sample, seed)
        left = next(i for i in range(21) if np.array_equal(view.image, sample.image[:, i : i + 30]))
        assert np.array_equal(mask_of(view), mask_of(sample)[:, left : left + 30])
        lefts.add(left)
    assert lefts == set(range(21))  # every place is drawn, both ends included


@pytest.mark.parametrize("scale", [0.5, 0.77, 1.0, 1.31, 2.0])
def test_source_coordinates_match_scale_then_crop(scale: float) -> None:
    """On a ramp of coordinates: each pixel shows the place that it shows when the whole image is
    scaled, then cropped.

    To less than one pixel of the scaled image, or of the source where that is finer.
    """
    source = (300, 400)
    crop = (120, 150)
    ramps = [ramp.astype(np.float32) for ramp in np.mgrid[:300, :400]]
    scaled = [cv2.resize(ramp, (round(400 * scale), round(300 * scale))) for ramp in ramps]
    for position in [
        (0.0, 0.0),
        (0.999999, 0.999999),
        (0.0, 0.999999),
        *np.random.default_rng(1).random((9, 2)),
    ]:
        view = draw_view(source, crop, scale, (position[0], position[1]))
        y, x = (
            int(p * (round(side * scale) - c + 1))
            for p, side, c in zip(position, source, crop, strict=True)
        )
        top, left, height, width = view.window
        for whole, ramp in zip(scaled, ramps, strict=True):
            ours = cv2.resize(ramp[top : top + height, left : left + width], view.shown[::-1])
            assert np.abs(ours - whole[y : y + 120, x : x + 150]).max() < max(1, 1 / scale) + 0.01


def test_scales_and_places_are_uniform() -> None:
    augment = Augment((50, 50), scale=(0.5, 2.0))
    rng = np.random.default_rng(0)
    views = [augment.draw((200, 300), rng) for _ in range(4000)]
    scales = np.array([50 / view.window[2] for view in views])
    assert scales.mean() == pytest.approx(1.25, abs=0.03)
    assert scales.std() == pytest.approx(1.5 / np.sqrt(12), abs=0.02)
    places = np.array([view.window[0] / (200 - view.window[2]) for view in views])
    assert places.mean() == pytest.approx(0.5, abs=0.02)
    assert places.std() == pytest.approx(1 / np.sqrt(12), abs=0.01)


def test_stepped_scales_are_exactly_the_steps_equally_often() -> None:
    augment = Augment((8, 8), scale=(0.5, 2.0), scale_step=0.25)
    drawn = [augment.pick_scale(u, (60, 70)) for u in (np.arange(7000) + 0.5) / 7000]
    assert sorted(set(drawn)) == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert {drawn.count(scale) for scale in set(drawn)} == {1000}


def test_the_shorter_side_is_any_whole_number_of_its_range_equally_often() -> None:
    augment = Augment((480, 480), short_side=(260, 1040))
    sides = [500 * augment.pick_scale(u, (700, 500)) for u in (np.arange(7810) + 0.5) / 7810]
    assert [round(side) for side in sides] == pytest.approx(sides)
    assert sorted({round(side) for side in sides}) == list(range(260, 1041))
    assert {sides.count(side) for side in set(sides)} == {10}
    twice = Augment((480, 480), short_side=(1000, 1000))
    assert twice.draw((700, 500), np.random.default_rng(0)).window[2:] == (240, 240)


@pytest.mark.parametrize(
    ("padding", "mirrored", "top", "left"),
    [
        # A 21 x 30 image in a crop of 32 x 49: 11 rows and 19 columns are padding, of which semseg
        # puts int(11 / 2) and int(19 / 2) before.
        ("mirrored", False, 0, 0),
        ("mirrored", True, 0, 19),
        ("middle", False, 5, 9),
        ("middle", True, 5, 9),
        ("end", False, 0, 0),
        ("end", True, 0, 0),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_padding_lies_where_it_is_asked_for(
    padding: Any, mirrored: bool, top: int, left: int, turned: bool
) -> None:
    sample = noise(21, 30)
    augment = Augment(
        (32, 49),
        scale=(1, 1),
        flip=float(mirrored),
        # so small a turn moves no pixel, but takes the way of turned views
        rotate=1e-7 if turned else 0.0,
        rotate_share=1.0,
        mean=(1, 2, 3),
        padding=padding,
        padding_label=7,
    )
    view = augment(sample, 0)
    shown = slice(top, top + 21), slice(left, left + 30)
    source = mask_of(sample)[:, ::-1] if mirrored else mask_of(sample)
    assert np.array_equal(mask_of(view)[shown], source)
    assert np.array_equal(view.image[shown], sample.image[:, ::-1] if mirrored else sample.image)
    outside = np.ones((32, 49), bool)
    outside[shown] = False
    assert (mask_of(view)[outside] == 7).all()
    assert (view.image[outside] == (1, 2, 3)).all()


def test_semsegs_blur_is_a_kernel_of_5_with_a_deviation_of_1_1() -> None:
    """OpenCV takes 0.3 * ((5 - 1) / 2 - 1) + 0.8 = 1.1 for a kernel of 5 and no deviation."""
    image = np.zeros((11, 11, 3), np.uint8)
    image[5, 5] = 255
    sample = Sample("point", image, np.zeros((11, 11), np.uint8))
    augment = Augment((11, 11), (1, 1), flip=0, blur=1, blur_sigma=(1.1, 1.1), blur_kernel=5)
    blurred = augment(sample, 0).image.astype(int)
    assert np.abs(blurred - cv2.GaussianBlur(image, (5, 5), 0)).max() <= 1
    assert (blurred[..., 0] > 0).sum() == 25


def test_all_samples_are_turned_where_the_share_is_1() -> None:
    augment = Augment((32, 32), rotate=10, rotate_share=1.0)
    rng = np.random.default_rng(0)
    angles = np.array([augment.draw((99, 99), rng).angle for _ in range(500)])
    assert (angles != 0).all()
    assert np.abs(angles).max() <= 10


def test_a_smaller_image_is_padded_right_and_below_with_mean_and_ignore() -> None:
    sample = noise(20, 30)
    view = Augment((32, 48), scale=(1, 1), flip=0, color=0.5, blur=1.0, mean=(1, 2, 3))(sample, 0)
    assert np.array_equal(mask_of(view)[:20, :30], mask_of(sample))
    assert (mask_of(view)[20:] == IGNORE).all()
    assert (mask_of(view)[:, 30:] == IGNORE).all()
    assert (view.image[20:] == (1, 2, 3)).all()
    assert (view.image[:, 30:] == (1, 2, 3)).all()


def test_ignored_pixels_inside_the_image_keep_their_colours() -> None:
    sample = noise(20, 30)
    mask_of(sample)[5:10] = IGNORE
    view = Augment((20, 30), scale=(1, 1), flip=0)(sample, 0)
    assert np.array_equal(view.image, sample.image)
    assert np.array_equal(mask_of(view), mask_of(sample))


@pytest.mark.parametrize("rotate", [0.0, 20.0])
def test_image_and_mask_stay_aligned_at_every_scale_and_angle(rotate: float) -> None:
    """The painted square is where the mask says: pixels above half white agree with it but for the
    blended border.
    """
    augment = Augment((80, 100), rotate=rotate, mean=(0, 0, 0))
    for seed in range(40):
        view = augment(square(), seed)
        inside = mask_of(view) == 1
        white = view.image[..., 0] > 127
        band = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3))) - cv2.erode(
            inside.astype(np.uint8), np.ones((3, 3))
        )
        assert not (inside ^ white)[band == 0].any()
        # no shift to one side: half a pixel of it would move the centre of mass by half a pixel of
        # the crop
        if inside.sum() > 500 and inside[1:-1, 1:-1].sum() == inside.sum():
            gap = [np.argwhere(inside).mean(0)[a] - np.argwhere(white).mean(0)[a] for a in (0, 1)]
            assert np.abs(gap).max() < 0.3


def test_a_shifted_image_gives_the_shifted_view() -> None:
    """At scale 2 one pixel of the source is exactly two of the view."""
    sample = noise(60, 60)
    one, two = (
        draw_view((60, 60), (40, 40), 2.0, (place, 0.0)) for place in (10.5 / 41, 11.5 / 41)
    )
    assert (one.window, two.window) == ((10, 0, 20, 20), (11, 0, 20, 20))
    a = one.show(sample.image, smooth=True)
    b = two.show(sample.image, smooth=True)
    assert np.array_equal(a[4:38], b[2:36])
    assert np.array_equal(
        one.show(mask_of(sample), smooth=False),
        np.kron(mask_of(sample)[10:30, :20], np.ones((2, 2))),
    )


def test_the_matrix_of_an_unturned_view_maps_centres_like_resizing() -> None:
    # twice as high, three times as wide
    view = View((90, 90), (60, 120), (10, 20, 30, 40), (60, 120))
    matrix = view.matrix()
    assert matrix @ (0, 0, 1) == pytest.approx((20 + 1 / 6 - 0.5, 10 + 1 / 4 - 0.5))
    assert matrix @ (119, 59, 1) == pytest.approx((60 - 1 / 6 - 0.5, 40 - 1 / 4 - 0.5))


def test_a_quarter_turn_maps_corners_to_corners() -> None:
    matrix = View((9, 9), (9, 9), (0, 0, 9, 9), (9, 9), 90.0).matrix()
    assert matrix @ (0, 0, 1) == pytest.approx((8, 0))
    assert matrix @ (8, 0, 1) == pytest.approx((8, 8))
    assert matrix @ (4, 4, 1) == pytest.approx((4, 4))


def test_a_mirrored_view_maps_its_right_side_to_the_left_of_the_source() -> None:
    view = View((90, 90), (60, 120), (10, 20, 30, 40), (60, 120))
    mirrored = replace(view, mirrored=True)
    assert mirrored.matrix() @ (119, 7, 1) == pytest.approx(view.matrix() @ (0, 7, 1))
    assert mirrored.matrix() @ (4, 7, 1) == pytest.approx(view.matrix() @ (115, 7, 1))


def outside_by_definition(view: View) -> np.ndarray:
    """(H, W) bool: pixel centres that the view's matrix maps beyond the source's edges."""
    height, width = view.crop
    outside = np.zeros(view.crop, bool)
    for y in range(height):
        for x in range(width):
            place = view.matrix() @ (x, y, 1)
            outside[y, x] = not (
                -0.5 <= place[0] < view.source[1] - 0.5 and -0.5 <= place[1] < view.source[0] - 0.5
            )
    return outside


def test_rotation_shows_padding_only_where_the_source_ends() -> None:
    sample = noise(400, 400)
    inner = draw_view((400, 400), (60, 60), 1.0, (0.5, 0.5), 30.0)
    corner = draw_view((400, 400), (60, 60), 1.0, (0.0, 0.0), 30.0)
    assert not outside_by_definition(inner).any()
    assert outside_by_definition(corner).mean() > 0.05
    for view in (inner, corner, replace(corner, mirrored=True)):
        mask = view.show(mask_of(sample), smooth=False)
        view.paint(mask, IGNORE)
        assert np.array_equal(mask == IGNORE, outside_by_definition(view))


class Recorder:
    """Pixels that are read by two slices and nothing else, and how many were read."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.shape = pixels.shape
        self.read = 0

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        part = self.pixels[window]
        self.read += part.shape[0] * part.shape[1]
        return part


@pytest.mark.parametrize("rotate", [0.0, 20.0])
def test_only_the_window_below_the_view_is_read_and_it_suffices(rotate: float) -> None:
    sample = noise(500, 600)
    augment = Augment((40, 50), scale=(0.8, 2.0), rotate=rotate, color=0.2)
    for seed in range(60):
        image = Recorder(sample.image)
        mask = Recorder(mask_of(sample))
        view = augment(replace(sample, image=cast(Any, image), mask=cast(Any, mask)), seed)
        # at scale 0.8 the window is 50 x 63; turned by 20 degrees it needs 69 x 76 and the
        # neighbours of interpolation
        assert image.read == mask.read <= (75 * 82 if rotate else 50 * 63)
        whole = augment(sample, seed)
        assert np.array_equal(view.image, whole.image)
        assert np.array_equal(mask_of(view), mask_of(whole))


def test_a_turned_window_shows_what_the_whole_source_shows() -> None:
    """Sampled pixel by pixel from the whole source.

    By thirds of a degree, so at many offsets of the window.
    """
    sample = noise(90, 120)
    for step in range(60):
        view = draw_view(
            (90, 120), (30, 40), 0.5 + step / 40, (step % 7 / 7, step % 5 / 5), 20 - step / 3 or 1.0
        )
        mask = view.show(mask_of(sample), smooth=False)
        places = (
            np.stack(np.meshgrid(np.arange(40), np.arange(30)), -1) @ view.matrix()[:, :2].T
            + view.matrix()[:, 2]
        )
        x, y = (
            np.clip(np.rint(places[..., i]), 0, side - 1).astype(int)
            for i, side in enumerate((120, 90))
        )
        # where a centre falls on the border of two pixels to 1/16, the library's fixed-point steps
        # may take either
        clear = (np.abs(places - np.floor(places) - 0.5) > 1 / 16).all(-1)
        assert np.array_equal(mask[clear], mask_of(sample)[y, x][clear])
        assert clear.mean() > 0.7


def test_half_of_the_samples_are_rotated_within_the_angle() -> None:
    augment = Augment((50, 50), scale=(1, 1), rotate=10.0)
    rng = np.random.default_rng(0)
    angles = np.array([augment.draw((99, 99), rng).angle for _ in range(2000)])
    assert (angles != 0).mean() == pytest.approx(0.5, abs=0.04)
    assert np.abs(angles).max() <= 10
    assert angles.min() < -9.5
    assert angles.max() > 9.5


@pytest.mark.parametrize(("flip", "inside"), [(0, (0, 0, 20, 30)), (1, (0, 18, 20, 48))])
def test_a_blank_view_says_what_of_it_is_no_padding(flip: float, inside: tuple) -> None:
    settings: dict[str, Any] = {"scale": (1, 1), "flip": flip}
    view = Augment((32, 48), blank=True, **settings)(noise(20, 30), 0)
    assert view.inside == inside
    plain = Augment((32, 48), **settings)(noise(20, 30), 0)
    assert plain.inside is None
    assert np.array_equal(view.image, plain.image)


def test_the_padding_of_a_blank_view_is_exactly_zero_to_a_network_and_nothing_else_is() -> None:
    views = [
        Augment((32, 48), scale=(1, 1), flip=flip, blank=blank)(noise(20, 30), 0)
        for flip, blank in ((0, True), (1, True), (0, False))
    ]
    batch = collate(
        [*views, Sample("a", *(x[:9, :9] for x in (views[0].image, mask_of(views[0]))))]
    )
    zero = torch.ones(4, 32, 48, dtype=torch.bool)
    zero[0, :20, :30] = zero[1, :20, 18:] = zero[2] = zero[3, :9, :9] = False
    for name in ("tensorflow", "deeplab_caffe"):  # 127.5 and 122.675: no bytes
        found = model_input(batch, preprocess(name))
        assert torch.equal((found == 0).all(1), zero)
    assert batch.to(torch.device("cpu")).inside is batch.inside


def test_only_upright_views_are_blanked() -> None:
    with pytest.raises(
        UserError, match=r"augment\.blank=true with augment\.rotate=10 .* set these"
    ):
        Augment((32, 48), rotate=10, blank=True)
    with pytest.raises(UserError, match=r"augment\.elastic=4"):
        Augment((32, 48), elastic=4, blank=True)


def test_the_padding_of_a_mirrored_view_is_mirrored_too() -> None:
    sample = noise(20, 30)
    view = Augment((32, 48), scale=(1, 1), flip=1, color=0.5, blur=1.0, mean=(1, 2, 3))(sample, 0)
    assert np.array_equal(mask_of(view)[:20, 18:], mask_of(sample)[:, ::-1])
    assert (mask_of(view)[20:] == IGNORE).all()
    assert (mask_of(view)[:, :18] == IGNORE).all()
    assert (view.image[20:] == (1, 2, 3)).all()
    assert (view.image[:, :18] == (1, 2, 3)).all()


def test_the_flip_does_not_follow_from_scale_or_blur() -> None:
    """Transforms seeded alike would draw alike: with equal probabilities, mirrored would mean
    blurred, always.
    """
    step = np.zeros((40, 40, 3), np.uint8)
    step[:, 20:] = 200
    sample = Sample("step", step, np.zeros((40, 40), np.uint8))
    augment = Augment((40, 40), scale=(1, 1), flip=0.5, blur=0.5)
    seen = [augment(sample, seed).image[20] for seed in range(400)]
    mirrored = np.array([row[0, 0] > 100 for row in seen])
    blurred = np.array([len(np.unique(row[:, 0])) > 2 for row in seen])
    for flip in (False, True):
        for blur in (False, True):
            assert ((mirrored == flip) & (blurred == blur)).mean() == pytest.approx(0.25, abs=0.07)


def test_color_jitter_changes_colours_and_never_the_mask() -> None:
    sample = noise(30, 30)
    view = Augment((30, 30), scale=(1, 1), flip=0, color=0.4)(sample, 3)
    assert not np.array_equal(view.image, sample.image)
    assert np.array_equal(mask_of(view), mask_of(sample))


def objects(height: int = 60, width: int = 80) -> Sample:
    """Six overlapping rectangles, small and large, one of them a crowd, and one object without a
    pixel.
    """
    rng = np.random.default_rng(4)
    masks = np.zeros((7, height, width), bool)
    for mask in masks[:6]:
        top = rng.integers(0, height - 4)
        left = rng.integers(0, width - 4)
        mask[top : top + rng.integers(1, 30), left : left + rng.integers(1, 40)] = True
    target = Instances(
        torch.full((7, 4), -1.0),  # never used: boxes come from the masks
        torch.arange(10, 17),
        torch.from_numpy(masks),
        crowd=torch.tensor([False, False, True, False, False, False, False]),
    )
    return Sample("objects", rng.integers(0, 256, (height, width, 3), np.uint8), instances=target)


@pytest.mark.parametrize("rotate", [0.0, 20.0])
def test_each_instance_is_what_the_view_makes_of_its_mask_alone(rotate: float) -> None:
    """Labels, crowd, masks and boxes against one label mask per object, which another path
    augments.
    """
    sample = objects()
    target = sample.instances
    assert target is not None
    assert target.crowd is not None
    augment = Augment((40, 50), rotate=rotate, color=0.3, blur=0.5)
    dropped = 0
    for seed in range(40):
        view = augment(sample, seed)
        alone = [
            augment(replace(sample, mask=mask.numpy().astype(np.uint8), instances=None), seed)
            for mask in target.masks
        ]
        visible = [number for number, one in enumerate(alone) if (mask_of(one) == 1).any()]
        dropped += 7 - len(visible)
        shown = view.instances
        assert shown is not None
        assert shown.crowd is not None
        assert np.array_equal(view.image, alone[0].image)
        assert shown.labels.tolist() == [10 + number for number in visible]
        assert shown.crowd.tolist() == [number == 2 for number in visible]
        assert shown.masks.dtype == torch.bool
        assert shown.masks.shape == (len(visible), 40, 50)
        assert shown.boxes.dtype == torch.float32
        assert shown.boxes.shape == (len(visible), 4)
        for number, mask, box in zip(
            visible, shown.masks.numpy(), shown.boxes.tolist(), strict=True
        ):
            assert np.array_equal(mask, mask_of(alone[number]) == 1)
            y, x = np.nonzero(mask)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert 40 < dropped < 200  # the empty one always, others often


def test_instances_at_scale_one_are_cut_where_the_crop_ends() -> None:
    """Boxes written down by hand: a bar over columns 1 to 8, a single pixel in the corner, and all
    of the image.
    """
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, 2:5, 1:9] = masks[1, 9, 9] = masks[2] = True
    # each pixel tells its column
    image = np.repeat(np.arange(10, dtype=np.uint8)[None, :, None], 10, 0).repeat(3, 2)
    sample = Sample(
        "a", image, instances=Instances(torch.zeros(3, 4), torch.tensor([4, 5, 6]), masks)
    )
    augment = Augment((12, 6), scale=(1, 1), flip=0)
    lefts = set()
    for seed in range(60):
        view = augment(sample, seed)
        left = int(view.image[0, 0, 0])
        shown = view.instances
        assert shown is not None
        assert shown.crowd is None
        assert shown.labels.tolist() == ([4, 5, 6] if left == 4 else [4, 6])
        assert shown.boxes[0].tolist() == [max(0, 1 - left), 2, min(6, 9 - left), 5]
        # rows 10 and 11 are padding and belong to no object
        assert shown.boxes[-1].tolist() == [
            0,
            0,
            6,
            10,
        ]
        if left == 4:
            assert shown.boxes[1].tolist() == [5, 9, 6, 10]
        lefts.add(left)
    assert lefts == {0, 1, 2, 3, 4}


def test_a_sample_may_have_no_instances_and_may_lose_all() -> None:
    none = Instances(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool)
    )
    one = Instances(
        torch.zeros(1, 4), torch.ones(1, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.bool)
    )
    for target in (none, one):
        sample = Sample("a", np.zeros((8, 8, 3), np.uint8), instances=target)
        shown = Augment((6, 5))(sample, 0).instances
        assert shown is not None
        assert shown.boxes.shape == (0, 4)
        assert shown.labels.shape == (0,)
        assert shown.masks.shape == (0, 6, 5)
        assert shown.boxes.dtype == torch.float32
        assert shown.labels.dtype == torch.int64


def test_instance_masks_of_another_size_are_a_data_error() -> None:
    none = Instances(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 9, dtype=torch.bool)
    )
    with pytest.raises(DataError, match=r"img7: image is \(8, 8\) but its mask is \(8, 9\)"):
        Augment((8, 8))(Sample("img7", np.zeros((8, 8, 3), np.uint8), instances=none), 0)


def test_a_mask_of_another_size_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"img7: image is \(8, 8\) but its mask is \(8, 9\)"):
        Augment((8, 8))(
            Sample("img7", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.uint8)), 0
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, 8)}, r"augment.crop=\[0, 8\]"),
        ({"scale": (2.0, 0.5)}, r"augment.scale=\[2.0, 0.5\]"),
        ({"scale": (0.0, 1.0)}, r"augment.scale=\[0.0, 1.0\]"),
        ({"scale_step": -1.0}, "augment.scale_step=-1.0"),
        ({"flip": 1.5}, "augment.flip=1.5"),
        ({"blur": -0.1}, "augment.blur=-0.1"),
        ({"blur_sigma": (2.0, 0.5)}, r"augment.blur_sigma=\[2.0, 0.5\]"),
        ({"blur_kernel": 4}, "augment.blur_kernel=4"),
        ({"short_side": (0, 9)}, r"augment.short_side=\[0, 9\]"),
        ({"padding": "left"}, "augment.padding=left is unknown. Known: mirrored, middle, end"),
        ({"padding_label": 256}, "augment.padding_label=256"),
        ({"rotate_share": 2.0}, "augment.rotate_share=2.0"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augment(**{"crop": (8, 8), **arguments})


def test_a_bent_view_shows_what_its_definition_says() -> None:
    """Scipy's sampling at the matrix's places of the displaced pixels: bilinear image, nearest
    label, IGNORE outside.
    """
    sample = noise(150, 170)
    smooth = replace(sample, image=cv2.GaussianBlur(sample.image, (0, 0), 3))
    augment = Augment((90, 99), scale=(0.8, 1.3), rotate=30, elastic=6, mean=(1, 2, 3))
    outside = 0
    for seed in range(20):
        view = augment.draw((150, 170), np.random.default_rng(seed))
        assert view.bend is not None
        y, x = np.indices((90, 99))
        matrix = view.matrix()
        moved = np.stack([x + view.bend[..., 0], y + view.bend[..., 1], np.ones_like(x)])
        places = np.einsum("ij,jhw->ihw", matrix, moved)[::-1]  # y, x
        shown = augment(smooth, seed)
        limits = np.array([149.5, 169.5])[:, None, None]
        beyond = ((places < -0.5) | (places >= limits)).any(0)
        unclear = (np.abs(np.stack([places + 0.5, places - limits])) < 1e-3).any((0, 1))
        assert np.array_equal((mask_of(shown) == IGNORE)[~unclear], beyond[~unclear])
        inside = ~beyond & ~unclear
        expected = ndimage.map_coordinates(
            smooth.image[..., 1].astype(float), places, order=1, mode="nearest"
        )
        # 1/32 pixel of a smooth image, and rounding
        assert np.abs(shown.image[..., 1] - expected)[inside].max() < 2
        # a label is one of the source, the one at the nearest centre
        clear = inside & (np.abs(places - np.floor(places) - 0.5) > 1 / 16).all(0)
        rows, columns = np.rint(places).astype(int)
        assert np.array_equal(mask_of(shown)[clear], mask_of(sample)[rows[clear], columns[clear]])
        outside += int(beyond.any())
    assert outside > 5


def test_displacements_are_normal_on_a_grid_of_three_by_three() -> None:
    """In the middle of each third of the crop the field is the vector that was drawn."""
    rng = np.random.default_rng(0)
    fields = []
    for _ in range(300):
        expected = replace_state(rng).normal(0, 10, (3, 3, 2))
        field = draw_bend((99, 57), 10.0, rng)
        assert field.shape == (99, 57, 2)
        np.testing.assert_allclose(field[16::33, 9::19], expected, atol=1e-3)
        fields.append(expected)
    assert np.std(fields) == pytest.approx(10, rel=0.05)
    assert abs(np.mean(fields)) < 0.5


def test_between_the_displacements_the_field_is_bicubic() -> None:
    """Against the cubic convolution kernel with a = -0.75.

    A border vector repeats beyond the border.
    """

    def rows(length: int) -> np.ndarray:
        weights = np.zeros((length, 3))
        for i, place in enumerate((np.arange(length) + 0.5) * 3 / length - 0.5):
            for node in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                d = abs(place - node)
                a = -0.75
                near = (a + 2) * d**3 - (a + 3) * d**2 + 1
                far = a * (d**3 - 5 * d**2 + 8 * d - 4)
                weights[i, min(max(node, 0), 2)] += near if d <= 1 else far
        return weights

    grid = np.random.default_rng(5).normal(0, 10, (3, 3, 2))
    expected = np.einsum("ia,abc,jb->ijc", rows(41), grid, rows(64))
    np.testing.assert_allclose(
        draw_bend((41, 64), 10.0, np.random.default_rng(5)), expected, atol=1e-3
    )


def replace_state(rng: np.random.Generator) -> np.random.Generator:
    """A generator that will draw what `rng` will, and leaves it alone."""
    twin = np.random.default_rng()
    twin.bit_generator.state = rng.bit_generator.state
    return twin


def test_bending_shifts_no_other_setting_and_none_is_the_old_view() -> None:
    plain, bent = (Augment((40, 50), rotate=10, elastic=elastic) for elastic in (0.0, 5.0))
    sample = noise(90, 120)
    for seed in range(20):
        one, other = (
            augment.draw((90, 120), np.random.default_rng(seed)) for augment in (plain, bent)
        )
        assert one == other
        assert one.bend is None
        assert other.bend is not None
        assert np.array_equal(
            plain(sample, seed).image, Augment((40, 50), rotate=10)(sample, seed).image
        )
        assert np.array_equal(bent(sample, seed).image, bent(sample, seed).image)


def test_image_and_mask_of_a_bent_view_stay_aligned() -> None:
    augment = Augment((80, 100), rotate=20, elastic=4, mean=(0, 0, 0))
    for seed in range(40):
        view = augment(square(), seed)
        inside = (mask_of(view) == 1).astype(np.uint8)
        white = view.image[..., 0] > 127
        band = cv2.dilate(inside, np.ones((3, 3))) - cv2.erode(inside, np.ones((3, 3)))
        assert not ((inside == 1) ^ white)[band == 0].any()


def test_a_bent_instance_is_what_the_view_makes_of_its_mask_alone() -> None:
    sample = objects()
    augment = Augment((40, 50), elastic=5)
    target = sample.instances
    assert target is not None
    for seed in range(10):
        shown = augment(sample, seed).instances
        alone = [
            mask_of(augment(replace(sample, mask=m.numpy().astype(np.uint8), instances=None), seed))
            == 1
            for m in target.masks
        ]
        assert shown is not None
        assert np.array_equal(shown.masks.numpy(), np.stack(alone)[[m.any() for m in alone]])


def test_only_the_window_below_a_bent_view_is_read() -> None:
    sample = noise(500, 600)
    augment = Augment((40, 50), scale=(1, 1), elastic=3)
    for seed in range(30):
        image = Recorder(sample.image)
        mask = Recorder(mask_of(sample))
        view = augment(replace(sample, image=cast(Any, image), mask=cast(Any, mask)), seed)
        assert image.read == mask.read <= 76 * 86  # 4.5 deviations to each side
        assert np.array_equal(view.image, augment(sample, seed).image)


def test_a_negative_displacement_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"augment\.elastic=-1\.0: give 0, or the standard deviation"
    ):
        Augment((8, 8), elastic=-1.0)
