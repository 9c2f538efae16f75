"""Whole images by their shorter edge: sizes, boxes and pixels that can be checked by hand.

What is left out is counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import refused, save, trained

import segtrain.engine.parts
from segtrain.config import parts
from segtrain.config.files import load_yaml
from segtrain.config.schema import CONF_DIR
from segtrain.data.coco_index import to_instances
from segtrain.data.loader import collate, train_loader
from segtrain.data.sampler import StreamSampler, aspect_groups
from segtrain.data.shorter_edge import ShorterEdge
from segtrain.data.transforms import Augment
from segtrain.datasets.coco import CocoInstances
from segtrain.errors import DataError, UserError
from segtrain.inference.maps import rescaled
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import IGNORE, Sample


def picture(height: int, width: int, target: np.ndarray | Instances | None = None) -> Sample:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 5, (height, width), np.uint8) if target is None else target
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    if isinstance(mask, Instances):
        return Sample("picture", image, instances=mask)
    return Sample("picture", image, mask)


def objects(masks: torch.Tensor, dropped: int = 0) -> Instances:
    """Their boxes are never used: they come from the masks."""
    crowd = torch.arange(len(masks)) == 1
    return Instances(
        torch.full((len(masks), 4), -1.0),
        torch.arange(len(masks)) + 10,
        masks,
        crowd,
        dropped=dropped,
    )


def instances(sample: Sample) -> Instances:
    assert sample.instances is not None
    return sample.instances


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((480, 640), (800, 1067)),  # 640 x 800 / 480 = 1066.7
        ((427, 640), (800, 1199)),  # 640 x 800 / 427 = 1199.1
        ((640, 427), (1199, 800)),
        ((500, 500), (800, 800)),
        ((300, 900), (444, 1333)),  # 2400 would be too long: 300 x 1333 / 900 = 444.3
        ((900, 300), (1333, 444)),
        ((1600, 2400), (800, 1200)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_the_shorter_edge_decides_the_size_unless_the_longer_would_be_too_long(
    source: tuple[int, int], size: tuple[int, int]
) -> None:
    view = ShorterEdge().draw(source, np.random.default_rng(0))
    assert view.crop == view.shown == size
    assert view.window == (0, 0, *source)


@pytest.mark.parametrize("size", [(30, 41), (90, 123), (60, 82)])
def test_pixels_are_those_that_evaluation_makes(size: tuple[int, int]) -> None:
    """Smaller, larger, unchanged; by two libraries, so up to a rounding."""
    sample = picture(60, 82)
    image = ShorterEdge((size[0],), flip=0)(sample, 0).image
    other = rescaled(torch.from_numpy(sample.image).permute(2, 0, 1), size).permute(1, 2, 0).numpy()
    assert image.shape == other.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - other).max() <= 1


def test_a_mirrored_sample_is_the_other_mirrored() -> None:
    masks = torch.zeros(2, 6, 9, dtype=torch.bool)
    masks[0, 1:3, 0:4] = masks[1, 5, 8] = True
    sample = picture(6, 9, objects(masks))
    plain, turned = (ShorterEdge((12,), flip=flip)(sample, 3) for flip in (0.0, 1.0))
    assert np.array_equal(turned.image, plain.image[:, ::-1])
    assert turned.image.shape == (12, 18, 3)
    assert torch.equal(instances(turned).masks, instances(plain).masks.flip(2))
    assert instances(plain).boxes.tolist() == [[0, 2, 8, 6], [16, 10, 18, 12]]  # twice as large
    assert instances(turned).boxes.tolist() == [[10, 2, 18, 6], [0, 10, 2, 12]]  # 18 - x2, 18 - x1


def test_objects_that_shrink_to_nothing_are_dropped_and_counted() -> None:
    """A third of the size: centres fall on pixels 1, 4 and 7 of each side."""
    masks = torch.zeros(5, 6, 9, dtype=torch.bool)
    # 2 and 3 lie between, 4 is empty
    masks[0, 1, 1] = masks[1, 4:6, 3:9] = masks[2, 0, 0] = masks[3, 2:4, 0:9] = True
    sample = picture(6, 9, objects(masks, dropped=2))
    shown = instances(ShorterEdge((2,), flip=0)(sample, 0))
    assert shown.boxes.tolist() == [[0, 0, 1, 1], [1, 1, 3, 2]]
    assert shown.labels.tolist() == [10, 11]
    assert shown.crowd is not None
    assert shown.crowd.tolist() == [False, True]
    assert shown.dropped == 2 + 3
    assert shown.to(torch.device("cpu")).dropped == 5
    # the empty one alone
    assert instances(Augment((6, 9), scale=(1, 1), flip=0)(sample, 0)).dropped == 2 + 1


def test_boxes_are_the_tightest_and_at_least_a_pixel() -> None:
    rng = np.random.default_rng(1)
    masks = torch.zeros(40, 50, 70, dtype=torch.bool)
    for mask in masks:
        top, left, height, width = rng.integers(0, 48), rng.integers(0, 68), *rng.integers(1, 9, 2)
        mask[top : top + height, left : left + width] = True
    for seed in range(6):
        shown = instances(ShorterEdge((17, 33, 60))(picture(50, 70, objects(masks)), seed))
        assert len(shown.labels) + shown.dropped == 40
        assert len(shown.labels) > 20
        assert ((shown.boxes[:, 2:] - shown.boxes[:, :2]) >= 1).all()
        for mask, box in zip(shown.masks.numpy(), shown.boxes.tolist(), strict=True):
            y, x = np.nonzero(mask)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_objects_without_pixels_or_with_a_flat_box_are_counted_where_they_are_read() -> None:
    masks = np.zeros((4, 3, 5), bool)
    masks[:3, 1, 1:3] = True
    # x, y, width, height
    boxes = np.array([[1, 1, 2, 1], [1, 1, 0, 1], [1.25, 1, 0.3, 1], [0, 0, 2, 2]], np.float64)
    segments = Segments(
        (3, 5), np.arange(4), boxes, run_lengths.encode(masks), np.array([2.0, 2, 2, 4])
    )
    target = to_instances(segments, Path("made.json"))
    assert target.labels.tolist() == [0, 2]
    assert target.dropped == 2
    again = instances(ShorterEdge((3,), flip=0)(picture(3, 5, target), 0))
    assert again.boxes.tolist() == [[1, 1, 3, 2], [1, 1, 3, 2]]
    assert again.dropped == 2


def test_an_image_without_objects_stays() -> None:
    shown = instances(
        ShorterEdge((8,))(picture(4, 6, objects(torch.zeros(0, 4, 6, dtype=torch.bool))), 0)
    )
    assert shown.masks.shape == (0, 8, 12)
    assert shown.boxes.shape == (0, 4)
    assert shown.dropped == 0


def test_a_label_mask_keeps_its_classes_and_gets_no_padding() -> None:
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6)
    shown = ShorterEdge((8,), flip=1)(picture(4, 6, mask), 0).mask
    assert shown is not None
    assert IGNORE not in shown
    assert np.array_equal(shown, mask[:, ::-1].repeat(2, 0).repeat(2, 1))


def test_lengths_are_drawn_alike() -> None:
    edges = ShorterEdge((640, 800, 800))
    scales = ShorterEdge((400, 403), 1400, between=True)
    drawn = Counter(
        min(edges.draw((900, 900), np.random.default_rng(seed)).crop) for seed in range(900)
    )
    assert drawn.keys() == {640, 800}
    assert 250 < drawn[640] < 350
    drawn = Counter(
        min(scales.draw((900, 900), np.random.default_rng(seed)).crop) for seed in range(900)
    )
    assert drawn.keys() == {400, 401, 402, 403}
    assert min(drawn.values()) > 180
    assert [scales.pick(u) for u in (0.0, 0.2499, 0.25, 0.9999)] == [400, 400, 401, 403]


def test_equal_seeds_give_equal_bytes_and_the_length_shifts_no_flip() -> None:
    sample = picture(20, 30)
    one = ShorterEdge((20, 25))
    other = ShorterEdge((40, 60), 90, between=True)
    mirrored = []
    for seed in range(60):
        first = one(sample, seed)
        again = one(sample, seed)
        assert first.image.tobytes() == again.image.tobytes()
        assert first.image.flags.c_contiguous
        views = [edges.draw((20, 30), np.random.default_rng(seed)) for edges in (one, other)]
        assert views[0].mirrored == views[1].mirrored
        mirrored.append(views[0].mirrored)
    assert 18 < sum(mirrored) < 42


def test_a_batch_of_wide_and_tall_is_padded_right_and_below() -> None:
    masks = torch.ones(1, 4, 6, dtype=torch.bool)
    wide = picture(4, 6, objects(masks))
    tall = picture(6, 4, objects(masks.transpose(1, 2)))
    batch = collate([ShorterEdge((8,), flip=0)(sample, 0) for sample in (wide, tall)])
    assert batch.images.shape == (2, 3, 12, 12)
    assert batch.sizes.tolist() == [[8, 12], [12, 8]]
    assert not batch.images[0, :, 8:].any()
    assert not batch.images[1, :, :, 8:].any()
    assert batch.instances is not None
    assert [each.masks.shape[1:] for each in batch.instances] == [(8, 12), (12, 8)]
    semantic = collate(
        [ShorterEdge((8,), flip=0)(picture(*size), 0) for size in ((4, 6), (6, 4))]
    ).masks
    assert semantic is not None
    assert (semantic[0, 8:] == IGNORE).all()
    assert (semantic[1] < 5).sum() == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shorter": ()}, r"augment.shorter=\[\]: give at least one"),
        ({"shorter": (0, 8)}, r"augment.shorter=\[0, 8\]: .* at least 1"),
        (
            {"shorter": (800, 400), "between": True},
            r"augment.shorter=\[800, 400\]: .*\[lowest, highest\]",
        ),
        ({"shorter": (800,), "between": True}, r"augment.shorter=\[800\]: .*\[lowest, highest\]"),
        ({"longest": 799}, "augment.longest=799: below the shorter edge 800"),
        ({"flip": 1.5}, "augment.flip=1.5"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShorterEdge(**arguments)


def test_a_target_of_another_size_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"picture: image is \(8, 8\) but its mask is \(8, 9\)"):
        ShorterEdge()(replace(picture(8, 8), mask=np.zeros((8, 9), np.uint8)), 0)


@pytest.mark.parametrize(
    ("name", "shorter", "longest"),
    [("detection", (800,), 1333), ("detection_scales", (400, 1400), 1400)],
)
def test_the_configs_say_what_the_papers_do(
    name: str, shorter: tuple[int, ...], longest: int
) -> None:
    node = load_yaml(CONF_DIR / "augment" / f"{name}.yaml")
    parts.check_part("augment", node)
    made = parts.augment(node)
    assert isinstance(made, ShorterEdge)
    assert made.between == (len(shorter) == 2)
    assert (made.shorter, made.longest, made.flip) == (shorter, longest, 0.5)


def test_real_batches_hold_images_of_one_shape_with_their_objects(data_root: Path) -> None:
    """94 wide and 34 tall images in batches of 8: 11 wide ones, 4 tall ones, and one of what is
    left.
    """
    images = CocoInstances(str(data_root / "coco"), "train2017")
    edges = ShorterEdge((96,), 160)
    order = StreamSampler(len(images), 8, 0, 0, 16, groups=aspect_groups(images))
    kinds = [{bool(aspect_groups(images)[index]) for _, index in batch} for batch in order]
    assert [kinds.count({True}), kinds.count({False}), len(kinds[-1])] == [11, 4, 2]
    loader = train_loader(
        images, edges, 0, StreamSampler(len(images), 8, 0, 0, 2, groups=aspect_groups(images))
    )
    for batch, kind in zip(loader, kinds, strict=False):
        height, width = batch.sizes.T
        # 639 x 640 becomes 96 x 96
        assert (width >= height).all() if kind == {True} else (width <= height).all()
        assert (batch.sizes.amin(1) <= 96).all()
        assert batch.sizes.max() <= 160
        assert batch.instances is not None
        for target, (h, w) in zip(batch.instances, batch.sizes.tolist(), strict=True):
            assert target.masks.shape[1:] == (h, w)
            assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
            assert target.boxes.isfinite().all()


def test_a_run_groups_its_batches_and_names_a_data_set_without_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide a, c, e and tall b, d, f in batches of two."""
    for name, size in zip("abcdef", [(16, 24), (24, 16)] * 3, strict=True):
        save(tmp_path / "data" / "images" / "train" / f"{name}.png", np.zeros((*size, 3), np.uint8))
        save(
            tmp_path / "data" / "masks" / "train" / f"{name}.png",
            np.arange(384, dtype=np.uint8).reshape(size) % 2,
        )
    orders: list[StreamSampler] = []

    def watched(
        images: object,
        augment: object,
        seed: int,
        order: StreamSampler,
        *others: object,
        **named: object,
    ) -> object:
        orders.append(order)
        return train_loader(images, augment, seed, order, *others, **named)  # ty: ignore

    monkeypatch.setattr(segtrain.engine.parts, "train_loader", watched)
    settings = [
        "train.aspect_groups=true",
        "train.steps=1",
        "train.batch_size=2",
        "train.device=cpu",
        "log.images=0",
        "train.threads=1",
        "writer=[]",
        "eval.loss=false",
    ]
    data = [
        "dataset=folder",
        f"dataset.root={tmp_path / 'data'}",
        "dataset.val_split=train",
        "dataset.labels=[{id: 0, name: a}, {id: 1, name: b}]",
        "augment=detection",
        "augment.shorter=[32]",
    ]
    trained(tmp_path / "run", *settings, *data)
    (order,) = orders
    assert order.groups is not None
    assert order.groups.tolist() == [True, False] * 3
    refused(
        2,
        ["train.aspect_groups=true", "Shapes"],
        "segtrain",
        *settings,
        f"hydra.run.dir={tmp_path / 'none'}",
    )
