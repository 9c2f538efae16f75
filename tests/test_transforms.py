"""Augmentation: the same views as scaling the whole image and cropping it, image and mask together, by seed alone."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler

import cv2
import numpy as np
import pytest
import torch

from segtrain.contracts import IGNORE, Instances, Sample
from segtrain.datasets.transforms import Augment, SourceWindow, View, draw_view
from segtrain.errors import DataError, UserError


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
    assert isinstance(sample.target, np.ndarray)
    return sample.target


def test_equal_seeds_give_equal_bytes_and_different_seeds_different_views() -> None:
    augment, again = (
        Augment((32, 48), rotate=10, color=0.3, blur=0.5),
        Augment((32, 48), rotate=10, color=0.3, blur=0.5),
    )
    sample = noise(60, 70)
    again(sample, 99)  # what was drawn before must not matter
    for seed in range(8):
        one, two = augment(sample, seed), again(sample, seed)
        assert np.array_equal(one.image, two.image) and np.array_equal(mask_of(one), mask_of(two))
    assert len({augment(sample, seed).image.tobytes() for seed in range(20)}) == 20


def test_a_view_has_the_size_of_the_crop_and_leaves_its_sample_alone() -> None:
    augment = Augment((33, 17), rotate=15, color=0.3, blur=0.5)
    for height, width in [(10, 200), (33, 17), (200, 10), (1, 1), (64, 64)]:
        sample = noise(height, width)
        before = sample.image.copy()
        for seed in range(6):
            view = augment(sample, seed)
            assert view.image.shape == (33, 17, 3) and view.image.dtype == np.uint8 and view.image.flags.c_contiguous
            assert mask_of(view).shape == (33, 17) and mask_of(view).dtype == np.uint8
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
    """On a ramp of coordinates: each pixel shows the place that it shows when the whole image is scaled, then cropped.

    To less than one pixel of the scaled image, or of the source where that is finer.
    """
    source, crop = (300, 400), (120, 150)
    ramps = [ramp.astype(np.float32) for ramp in np.mgrid[:300, :400]]
    scaled = [cv2.resize(ramp, (round(400 * scale), round(300 * scale))) for ramp in ramps]
    for position in [(0.0, 0.0), (0.999999, 0.999999), (0.0, 0.999999), *np.random.default_rng(1).random((9, 2))]:
        view = draw_view(source, crop, scale, (position[0], position[1]))
        y, x = (int(p * (round(side * scale) - c + 1)) for p, side, c in zip(position, source, crop, strict=True))
        top, left, height, width = view.window
        for whole, ramp in zip(scaled, ramps, strict=True):
            ours = cv2.resize(ramp[top : top + height, left : left + width], view.shown[::-1])
            assert np.abs(ours - whole[y : y + 120, x : x + 150]).max() < max(1, 1 / scale) + 0.01


def test_scales_and_places_are_uniform() -> None:
    window = SourceWindow((50, 50), (0.5, 2.0), 0.0, 0.0)
    window.random_generator = np.random.default_rng(0)
    views = [window.get_params_dependent_on_data({"shape": (200, 300)}, {})["view"] for _ in range(4000)]
    scales = np.array([50 / view.window[2] for view in views])
    assert scales.mean() == pytest.approx(1.25, abs=0.03)
    assert scales.std() == pytest.approx(1.5 / np.sqrt(12), abs=0.02)
    places = np.array([view.window[0] / (200 - view.window[2]) for view in views])
    assert places.mean() == pytest.approx(0.5, abs=0.02)
    assert places.std() == pytest.approx(1 / np.sqrt(12), abs=0.01)


def test_stepped_scales_are_exactly_the_steps_equally_often() -> None:
    window = SourceWindow((8, 8), (0.5, 2.0), 0.25, 0.0)
    drawn = [window.pick_scale(u) for u in (np.arange(7000) + 0.5) / 7000]
    assert sorted(set(drawn)) == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert {drawn.count(scale) for scale in set(drawn)} == {1000}


def test_a_smaller_image_is_padded_right_and_below_with_mean_and_ignore() -> None:
    sample = noise(20, 30)
    view = Augment((32, 48), scale=(1, 1), flip=0, color=0.5, blur=1.0, mean=(1, 2, 3))(sample, 0)
    assert np.array_equal(mask_of(view)[:20, :30], mask_of(sample))
    assert (mask_of(view)[20:] == IGNORE).all() and (mask_of(view)[:, 30:] == IGNORE).all()
    assert (view.image[20:] == (1, 2, 3)).all() and (view.image[:, 30:] == (1, 2, 3)).all()


def test_ignored_pixels_inside_the_image_keep_their_colours() -> None:
    sample = noise(20, 30)
    mask_of(sample)[5:10] = IGNORE
    view = Augment((20, 30), scale=(1, 1), flip=0)(sample, 0)
    assert np.array_equal(view.image, sample.image) and np.array_equal(mask_of(view), mask_of(sample))


@pytest.mark.parametrize("rotate", [0.0, 20.0])
def test_image_and_mask_stay_aligned_at_every_scale_and_angle(rotate: float) -> None:
    """The painted square is where the mask says: pixels above half white agree with it but for the blended border."""
    augment = Augment((80, 100), rotate=rotate, mean=(0, 0, 0))
    for seed in range(40):
        view = augment(square(), seed)
        inside, white = mask_of(view) == 1, view.image[..., 0] > 127
        band = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3))) - cv2.erode(
            inside.astype(np.uint8), np.ones((3, 3))
        )
        assert not (inside ^ white)[band == 0].any()
        # no shift to one side: half a pixel of it would move the centre of mass by half a pixel of the crop
        if inside.sum() > 500 and inside[1:-1, 1:-1].sum() == inside.sum():
            gap = [np.argwhere(inside).mean(0)[a] - np.argwhere(white).mean(0)[a] for a in (0, 1)]
            assert np.abs(gap).max() < 0.3


def test_a_shifted_image_gives_the_shifted_view() -> None:
    """At scale 2 one pixel of the source is exactly two of the view."""
    sample = noise(60, 60)
    one, two = (draw_view((60, 60), (40, 40), 2.0, (place, 0.0)) for place in (10.5 / 41, 11.5 / 41))
    assert (one.window, two.window) == ((10, 0, 20, 20), (11, 0, 20, 20))
    window = SourceWindow((40, 40), (2, 2), 0, 0)
    a, b = window.apply(sample.image, one), window.apply(sample.image, two)
    assert np.array_equal(a[4:38], b[2:36])
    assert np.array_equal(
        window.apply_to_mask(mask_of(sample), one), np.kron(mask_of(sample)[10:30, :20], np.ones((2, 2)))
    )


def test_the_matrix_of_an_unturned_view_maps_centres_like_resizing() -> None:
    view = View((10, 20, 30, 40), (60, 120), 0.0)  # twice as high, three times as wide
    matrix = view.matrix()
    assert matrix @ (0, 0, 1) == pytest.approx((20 + 1 / 6 - 0.5, 10 + 1 / 4 - 0.5))
    assert matrix @ (119, 59, 1) == pytest.approx((60 - 1 / 6 - 0.5, 40 - 1 / 4 - 0.5))


def test_a_quarter_turn_maps_corners_to_corners() -> None:
    matrix = View((0, 0, 9, 9), (9, 9), 90.0).matrix()
    assert matrix @ (0, 0, 1) == pytest.approx((8, 0))
    assert matrix @ (8, 0, 1) == pytest.approx((8, 8))
    assert matrix @ (4, 4, 1) == pytest.approx((4, 4))


def test_rotation_shows_padding_only_where_the_source_ends() -> None:
    sample = noise(400, 400)
    window = SourceWindow((60, 60), (1, 1), 0, 0)
    inner = draw_view((400, 400), (60, 60), 1.0, (0.5, 0.5), 30.0)
    corner = draw_view((400, 400), (60, 60), 1.0, (0.0, 0.0), 30.0)
    assert not (window.apply_to_mask(mask_of(sample), inner) == IGNORE).any()
    assert (window.apply_to_mask(mask_of(sample), corner) == IGNORE).any()


def test_half_of_the_samples_are_rotated_within_the_angle() -> None:
    window = SourceWindow((50, 50), (1, 1), 0, 10.0)
    window.random_generator = np.random.default_rng(0)
    angles = np.array([window.get_params_dependent_on_data({"shape": (99, 99)}, {})["view"].angle for _ in range(2000)])
    assert (angles != 0).mean() == pytest.approx(0.5, abs=0.04)
    assert np.abs(angles).max() <= 10 and angles.min() < -9.5 and angles.max() > 9.5


def test_the_flip_does_not_follow_from_scale_or_blur() -> None:
    """Transforms seeded alike would draw alike: with equal probabilities, mirrored would mean blurred, always."""
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


def test_instances_are_refused_with_one_line() -> None:
    none = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool))
    with pytest.raises(UserError, match="img7: .* not instances"):
        Augment((8, 8))(Sample("img7", np.zeros((8, 8, 3), np.uint8), none), 0)


def test_a_mask_of_another_size_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"img7: image is \(8, 8\) but its mask is \(8, 9\)"):
        Augment((8, 8))(Sample("img7", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.uint8)), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, 8)}, r"augment.crop=\[0, 8\]"),
        ({"scale": (2.0, 0.5)}, r"augment.scale=\[2.0, 0.5\]"),
        ({"scale": (0.0, 1.0)}, r"augment.scale=\[0.0, 1.0\]"),
        ({"scale_step": -1.0}, "augment.scale_step=-1.0"),
        ({"flip": 1.5}, "augment.flip=1.5"),
        ({"blur": -0.1}, "augment.blur=-0.1"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augment(**{"crop": (8, 8), **arguments})
