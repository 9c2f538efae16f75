"""A run that stops at any step of two epochs goes on with the very samples (row R8).

The same images in the same order, augmented to the same bytes, whatever the number of loader
workers, of processes and of micro-batches.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from rows import Tally, amount

from segtrain.config.compose import check, compose_config
from segtrain.config.schema import RunConf
from segtrain.engine.parts import Parts, build_parts, train_batches
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch

IMAGES = 36
BATCH = 4
EPOCHS = 2
STEPS = EPOCHS * IMAGES // BATCH  # 18
WORDS = (
    *("dataset=shapes", "dataset.size=[32,32]", "dataset.crop=[24,24]", f"dataset.train={IMAGES}"),
    *("dataset.val=1", "model=unet_32", "model.width=8", f"train.batch_size={BATCH}"),
    *(f"train.steps={STEPS}", "train.device=cpu", "train.threads=1"),
)
# (loader workers, processes, micro-batches)
FEW = [(0, 1, 1), (2, 2, 1)]
ALL = [
    *itertools.product((0, 2), (1, 2, 4), (1,)),
    *itertools.product((0, 2), (1, 2), (2,)),
    *itertools.product((0, 1), (1,), (4,)),
]
CASES = amount(FEW[:1], FEW, ALL)


@cache
def made(workers: int, micro: int) -> tuple[RunConf, Parts]:
    """A run and its parts."""
    words = (*WORDS, f"train.workers={workers}", f"train.accumulate={micro}")
    run = check(compose_config(words)[0])
    return run, build_parts(run, World())


def updates(start: int, workers: int, micro: int, rank: int, processes: int) -> list[list[Batch]]:
    """The micro-batches of each update from `start` on, of one rank."""
    run, parts = made(workers, micro)
    return list(train_batches(run, parts, World(rank, processes), start, STEPS))


def shown(update: list[Batch]) -> list[str]:
    """The names of an update's images, in their order."""
    return [name for batch in update for name in batch.ids]


def same(one: list[Batch], other: list[Batch]) -> bool:
    """Whether two updates see the same images, and the same bytes of them and of their masks."""
    return len(one) == len(other) and all(
        a.ids == b.ids
        and torch.equal(a.images, b.images)
        and a.masks is not None
        and b.masks is not None
        and torch.equal(a.masks, b.masks)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.row("R8")
@pytest.mark.parametrize(("workers", "processes", "micro"), CASES)
def test_a_run_stopped_at_any_step_of_two_epochs_goes_on_with_the_same_samples_in_order(
    workers: int, processes: int, micro: int, tally: Tally
) -> None:
    unbroken = updates(0, 0, 1, 0, 1)
    assert len(unbroken) == STEPS
    seen = [name for update in unbroken for name in shown(update)]
    for epoch in range(EPOCHS):  # each once, in an order of its own
        assert len(set(seen[epoch * IMAGES : (epoch + 1) * IMAGES])) == IMAGES
    assert seen[:IMAGES] != seen[IMAGES:]
    for stop in range(1, STEPS):
        rests = [updates(stop, workers, micro, rank, processes) for rank in range(processes)]
        for step, whole in enumerate(unbroken[stop:]):
            parts = [batch for rest in rests for batch in rest[step]]
            assert [name for part in parts for name in part.ids] == shown(whole), (stop, step)
            assert same([joined(parts)], whole), (stop, step)
        tally()


def joined(parts: list[Batch]) -> Batch:
    """Ranks and micro-batches as the one batch that they are slices of."""
    masks = [part.masks for part in parts if part.masks is not None]
    return Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.sizes for part in parts]),
        [name for part in parts for name in part.ids],
        masks=torch.cat(masks),
    )
