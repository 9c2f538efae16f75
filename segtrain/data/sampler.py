"""Which sample comes when, as a pure function of position.

So a resume needs only the step, and ranks need no exchange. The training stream is endless:
position p holds sample permutation(seed, epoch)[p % length] of epoch p // length. Global batch t is
positions t * B to (t + 1) * B - 1, also across the end of an epoch, so no batch is short. Where
samples are grouped, `grouped` rearranges the order within each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from segtrain.contracts import Dataset
from segtrain.errors import DataError, UserError
from segtrain.rng import permutation


def micro_batch_size(global_batch: int, world: int, accumulate: int) -> int:
    """Return the samples per rank and forward pass.

    Errors: UserError where the global batch does not divide evenly.
    """
    shares = world * accumulate
    if global_batch > 0 and global_batch % shares == 0:
        return global_batch // shares
    below = global_batch // shares * shares
    near = " or ".join(str(size) for size in (below, below + shares) if size > 0)
    raise UserError(
        f"batch_size={global_batch} does not divide by {world} processes x "
        f"{accumulate} accumulation steps: use a multiple of {shares}, such as {near}"
    )


def aspect_groups(dataset: Dataset) -> np.ndarray:
    """Return (N,) bool, which images of a data set are at least as wide as high.

    Errors: UserError where it does not know their sizes.
    """
    sizes = dataset.sizes()
    if sizes is None:
        raise UserError(
            f"train.aspect_groups=true: {type(dataset).__name__} does not tell its images' sizes "
            "(sets of whole image files do, and COCO's)"
        )
    height, width = sizes.T
    return width >= height


def grouped(order: np.ndarray, groups: np.ndarray, global_batch: int, head: int) -> np.ndarray:
    """Return the `order` (N,) of an epoch, rearranged so that global batches hold one group each.

    `groups` (N,) bool is by sample. The first `head` positions belong to the batch that the epoch
    before began: they stay, a mixed batch. From there on the order is gone through once, with a
    queue for each group; a group in whose queue a whole batch waits gives it. At the end fewer than
    a batch wait in each: those of the first group come first, then the others. That is at most one
    mixed whole batch, and the beginning of the one that goes on in the next epoch.
    """
    rest = order[head:]
    # Positions in `rest`, ascending.
    queues = [np.flatnonzero(groups[rest] == group) for group in (True, False)]
    ends = [len(queue) - len(queue) % global_batch for queue in queues]
    whole = np.concatenate(
        [queue[:end].reshape(-1, global_batch) for queue, end in zip(queues, ends, strict=True)]
    )
    left = [queue[end:] for queue, end in zip(queues, ends, strict=True)]
    given = whole[np.argsort(whole[:, -1])].ravel()  # a batch is whole when its last sample comes
    return np.concatenate([order[:head], rest[np.concatenate([given, *left])]])


def epoch_order(
    length: int, global_batch: int, seed: int, epoch: int, groups: np.ndarray | None
) -> np.ndarray:
    """Return (length,) the samples of an epoch in the order they come."""
    order = permutation(seed, epoch, length)
    if groups is None:
        return order
    head = min(-epoch * length % global_batch, length)  # of the batch that the epoch before began
    return grouped(order, groups, global_batch, head)


def batches(
    length: int,
    global_batch: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rank: int,
    world: int,
    accumulate: int,
    groups: np.ndarray | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Yield this rank's micro-batches of steps [start_step, stop_step), as lists of (epoch, index).

    There are `accumulate` per step. Rank r takes the r-th contiguous slice of each global batch,
    cut into `accumulate` contiguous pieces. Which samples make up a global batch therefore depends
    on neither the ranks nor the accumulation.
    """
    size = micro_batch_size(global_batch, world, accumulate)
    if length < 1:
        raise DataError(
            "the training split has no samples; check dataset.train_split and the data folder"
        )
    epoch = -1
    order = np.empty(0, np.int64)
    for step in range(start_step, stop_step):
        first = step * global_batch + rank * size * accumulate
        for start in range(first, first + size * accumulate, size):
            batch = []
            for position in range(start, start + size):
                # Positions only grow, so one order is kept at a time.
                if position // length != epoch:
                    epoch = position // length
                    order = epoch_order(length, global_batch, seed, epoch, groups)
                batch.append((epoch, int(order[position % length])))
            yield batch


@dataclass(frozen=True)
class StreamSampler:
    """Give a DataLoader the `batches` of a run, or of the rest of one after a resume."""

    length: int
    global_batch: int
    seed: int
    start_step: int
    stop_step: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    groups: np.ndarray | None = field(default=None, compare=False)  # (length,) bool, see `grouped`

    def __post_init__(self) -> None:
        # Only for its error, which would else come with the first batch.
        micro_batch_size(self.global_batch, self.world, self.accumulate)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return batches(**vars(self))

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step) * self.accumulate


def shard(length: int, rank: int, world: int) -> list[int]:
    """Return this rank's evaluation indices: over all ranks each index once, none padded."""
    return list(range(rank, length, world))
