"""Which sample comes when: a pure function of position, so a resume needs only the step, and ranks need no exchange.

The training stream is endless: position p holds sample permutation(seed, epoch)[p % length] of epoch p // length.
Global batch t is positions t * B to (t + 1) * B - 1, also across the end of an epoch, so no batch is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import DataError, UserError
from ..rng import permutation


def micro_batch_size(global_batch: int, world: int, accumulate: int) -> int:
    """Samples per rank and forward pass; UserError where the global batch does not divide evenly."""
    shares = world * accumulate
    if global_batch > 0 and global_batch % shares == 0:
        return global_batch // shares
    below = global_batch // shares * shares
    near = " or ".join(str(size) for size in (below, below + shares) if size > 0)
    raise UserError(
        f"batch_size={global_batch} does not divide by {world} processes x {accumulate} accumulation steps: "
        f"use a multiple of {shares}, such as {near}"
    )


def batches(
    length: int, global_batch: int, seed: int, start_step: int, stop_step: int, rank: int, world: int, accumulate: int
) -> Iterator[list[tuple[int, int]]]:
    """This rank's micro-batches of steps [start_step, stop_step), `accumulate` per step, as lists of (epoch, index).

    Rank r takes the r-th contiguous slice of each global batch, cut into `accumulate` contiguous pieces. Which samples
    make up a global batch therefore depends on neither the ranks nor the accumulation.
    """
    size = micro_batch_size(global_batch, world, accumulate)
    if length < 1:
        raise DataError("the training split has no samples; check dataset.train_split and the data folder")
    epoch, order = -1, np.empty(0, np.int64)
    for step in range(start_step, stop_step):
        first = step * global_batch + rank * size * accumulate
        for start in range(first, first + size * accumulate, size):
            batch = []
            for position in range(start, start + size):
                if position // length != epoch:  # positions only grow, so one order is kept at a time
                    epoch = position // length
                    order = permutation(seed, epoch, length)
                batch.append((epoch, int(order[position % length])))
            yield batch


@dataclass(frozen=True)
class StreamSampler:
    """The batch sampler of a DataLoader: `batches` of a whole run, or of the rest of one after a resume."""

    length: int
    global_batch: int
    seed: int
    start_step: int
    stop_step: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        micro_batch_size(self.global_batch, self.world, self.accumulate)  # refuse now, not at the first batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return batches(**vars(self))

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step) * self.accumulate


def shard(length: int, rank: int, world: int) -> list[int]:
    """This rank's evaluation indices: over all ranks each index exactly once, none padded."""
    return list(range(rank, length, world))
