"""The order of samples: a function of position, the same for any number of ranks, resumes and
accumulation steps.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.data.cache import Cached, build_cache
from segtrain.data.sampler import StreamSampler, aspect_groups, batches, grouped, shard
from segtrain.datasets.coco import CocoJson
from segtrain.datasets.folder import Folder
from segtrain.datasets.shapes import Shapes
from segtrain.errors import DataError, UserError
from segtrain.rng import permutation


def flat(
    length: int, start: int, stop: int, rank: int = 0, world: int = 1, accumulate: int = 1
) -> list[tuple[int, int]]:
    return list(chain.from_iterable(batches(length, 8, 3, start, stop, rank, world, accumulate)))


def test_position_p_is_place_p_modulo_n_of_epoch_p_over_n() -> None:
    orders = [permutation(3, epoch, 10) for epoch in range(4)]
    assert flat(10, 0, 4) == [(p // 10, int(orders[p // 10][p % 10])) for p in range(32)]


def test_every_epoch_holds_each_sample_once_and_batches_span_its_end() -> None:
    keys = flat(10, 0, 5)  # 40 positions, 4 epochs, batches of 8
    for epoch in range(4):
        assert sorted(index for e, index in keys if e == epoch) == list(range(10))
    assert {epoch for epoch, _ in keys[8:16]} == {0, 1}


def test_a_batch_larger_than_the_data_set_is_still_full() -> None:
    assert [epoch for epoch, _ in flat(3, 0, 1)] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_resumed_run_continues_the_same_stream() -> None:
    assert flat(10, 0, 7) == flat(10, 0, 3) + flat(10, 3, 7)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_ranks_and_micro_batches_are_contiguous_slices_of_the_global_batch(
    world: int, accumulate: int
) -> None:
    whole = [flat(10, step, step + 1) for step in range(6)]
    per_rank = [list(batches(10, 8, 3, 0, 6, rank, world, accumulate)) for rank in range(world)]
    for step in range(6):
        parts = [
            per_rank[rank][step * accumulate + a]
            for rank in range(world)
            for a in range(accumulate)
        ]
        assert {len(part) for part in parts} == {8 // (world * accumulate)}
        assert list(chain.from_iterable(parts)) == whole[step]


@pytest.mark.row("R10")
def test_a_batch_that_does_not_divide_names_the_sizes_that_do() -> None:
    with pytest.raises(
        UserError, match=r"batch_size=10 .* 2 processes x 3 .* multiple of 6, such as 6 or 12"
    ):
        StreamSampler(10, 10, 0, 0, 1, world=2, accumulate=3)
    with pytest.raises(UserError, match=r"batch_size=0 .* such as 1$"):
        StreamSampler(10, 0, 0, 0, 1)


def test_an_empty_split_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no samples"):
        list(StreamSampler(0, 8, 0, 0, 1))


def test_the_sampler_counts_its_batches_and_repeats_exactly() -> None:
    sampler = StreamSampler(10, 8, 3, 2, 5, rank=1, world=2, accumulate=2)
    assert len(sampler) == len(list(sampler)) == 6
    assert list(sampler) == list(sampler) == list(batches(10, 8, 3, 2, 5, 1, 2, 2))
    assert len(StreamSampler(10, 8, 3, 5, 5)) == 0


@pytest.mark.row("R11")
def test_shards_cover_each_index_once_without_padding() -> None:
    assert [shard(7, rank, 3) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [shard(1, rank, 2) for rank in range(2)] == [[0], []]


WIDE = np.array([1, 1, 1, 0, 1, 0, 0, 1, 1, 0], bool)  # wide 0 1 2 4 7 8, tall 3 5 6 9


@pytest.mark.parametrize(
    ("order", "head", "expected"),
    [
        # four wide are together at 4, four tall at 9; two wide are left
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 0, [0, 1, 2, 4, 3, 5, 6, 9, 7, 8]),
        # the batch that the epoch before began takes 0 and 1 as they come
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 2, [0, 1, 2, 4, 7, 8, 3, 5, 6, 9]),
        # here the tall ones are together first
        ([3, 0, 5, 6, 1, 9, 2, 8, 4, 7], 0, [3, 5, 6, 9, 0, 1, 2, 8, 4, 7]),
        # three wide and three tall are left: the wide ones and one tall are a mixed batch, two tall
        # begin the next
        ([9, 0, 1, 4, 2, 3, 7, 5, 8, 6], 4, [9, 0, 1, 4, 2, 7, 8, 3, 5, 6]),
        # an epoch shorter than the rest of a batch
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_an_epoch_is_grouped_as_written_by_hand(
    order: list[int], head: int, expected: list[int]
) -> None:
    assert grouped(np.array(order), WIDE, 4, head).tolist() == expected


GROUPS = {
    length: np.random.default_rng(5).random(length) < 0.7 for length in (1, 3, 7, 10, 12, 50, 101)
}


def stream(length: int, batch: int, start: int, stop: int) -> list[tuple[int, int]]:
    return list(
        chain.from_iterable(batches(length, batch, 3, start, stop, 0, 1, 1, GROUPS[length]))
    )


@pytest.mark.parametrize(
    ("length", "batch"), [(10, 4), (12, 4), (7, 3), (3, 8), (1, 1), (50, 6), (101, 12)]
)
def test_grouped_epochs_hold_each_sample_once_and_at_most_two_batches_of_an_epoch_mix(
    length: int, batch: int
) -> None:
    epochs = 2 * batch  # then also the batches come out even
    keys = stream(length, batch, 0, epochs * length // batch)
    groups = GROUPS[length]
    for epoch in range(epochs):
        assert sorted(index for e, index in keys if e == epoch) == list(range(length))
    # position alone tells the epoch
    assert [epoch for epoch, _ in keys] == [p // length for p in range(epochs * length)]
    whole = [keys[k : k + batch] for k in range(0, len(keys), batch)]
    inside = [part for part in whole if len({epoch for epoch, _ in part}) == 1]
    for epoch in range(epochs):
        mine = [
            {bool(groups[index]) for _, index in part} for part in inside if part[0][0] == epoch
        ]
        assert all(len(kinds) == 1 for kinds in mine[:-1])  # only the last can be mixed


def test_grouping_stops_and_goes_on_at_every_step() -> None:
    straight = stream(10, 4, 0, 15)
    assert len(straight) == 60
    for step in range(16):
        assert stream(10, 4, 0, step) + stream(10, 4, step, 15) == straight


@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 1), (2, 3), (3, 1), (3, 2), (6, 1)])
def test_grouped_batches_are_the_same_on_any_ranks_and_micro_batches(
    world: int, accumulate: int
) -> None:
    per_rank = [
        list(batches(10, 6, 3, 0, 9, rank, world, accumulate, GROUPS[10])) for rank in range(world)
    ]
    for step in range(9):
        parts = [
            per_rank[rank][step * accumulate + a]
            for rank in range(world)
            for a in range(accumulate)
        ]
        assert list(chain.from_iterable(parts)) == stream(10, 6, step, step + 1)


def test_images_of_one_shape_come_in_the_order_they_would_have_come() -> None:
    for wide in (True, False):
        sampler = StreamSampler(10, 8, 3, 0, 5, groups=np.full(10, wide))
        assert list(chain.from_iterable(sampler)) == flat(10, 0, 5)


def test_sizes_come_from_headers_from_an_annotation_file_and_from_a_cache(tmp_path: Path) -> None:
    """Three images: 4 x 6, 6 x 4 and 5 x 5, which counts as wide."""
    for name, size in {"a": (4, 6), "b": (6, 4), "c": (5, 5)}.items():
        for kind, shape in (("images", (*size, 3)), ("masks", size)):
            (tmp_path / "root" / kind / "train").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros(shape, np.uint8)).save(
                tmp_path / "root" / kind / "train" / f"{name}.png"
            )
    files = Folder(
        str(tmp_path / "root"), "train", labels=[{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    )
    build_cache(files, tmp_path / "cache", 0)
    listed = [
        {"id": k, "file_name": f"{k}", "height": h, "width": w}
        for k, (h, w) in enumerate([(4, 6), (6, 4), (5, 5)])
    ]
    made = {"images": listed, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "made.json").write_text(json.dumps(made))
    for images in (
        files,
        Cached(files, tmp_path / "cache"),
        CocoJson(str(tmp_path / "made.json"), "train"),
    ):
        assert images.sizes().tolist() == [[4, 6], [6, 4], [5, 5]]
        assert aspect_groups(images).tolist() == [True, False, True]


def test_a_data_set_that_knows_no_sizes_is_named() -> None:
    with pytest.raises(UserError, match=r"train.aspect_groups=true: Shapes does not tell"):
        aspect_groups(Shapes("train"))
