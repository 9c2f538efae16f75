"""The order of samples: a function of position, the same for any number of ranks, resumes and accumulation steps."""

from __future__ import annotations

from itertools import chain

import pytest

from segtrain.datasets.sampler import StreamSampler, batches, shard
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
def test_ranks_and_micro_batches_are_contiguous_slices_of_the_global_batch(world: int, accumulate: int) -> None:
    whole = [flat(10, step, step + 1) for step in range(6)]
    per_rank = [list(batches(10, 8, 3, 0, 6, rank, world, accumulate)) for rank in range(world)]
    for step in range(6):
        parts = [per_rank[rank][step * accumulate + a] for rank in range(world) for a in range(accumulate)]
        assert {len(part) for part in parts} == {8 // (world * accumulate)}
        assert list(chain.from_iterable(parts)) == whole[step]


def test_a_batch_that_does_not_divide_names_the_sizes_that_do() -> None:
    with pytest.raises(UserError, match=r"batch_size=10 .* 2 processes x 3 .* multiple of 6, such as 6 or 12"):
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


def test_shards_cover_each_index_once_without_padding() -> None:
    assert [shard(7, rank, 3) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [shard(1, rank, 2) for rank in range(2)] == [[0], []]
