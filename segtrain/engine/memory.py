"""`train.accumulate=auto`: smaller micro-batches once a GPU has run out of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

from segtrain.config.schema import RunConf, TrainConf
from segtrain.contracts import Model
from segtrain.engine.parts import Parts
from segtrain.engine.state import TrainState
from segtrain.errors import ResourceError, UserError
from segtrain.runtime.distributed import World
from segtrain.runtime.exhausted import gpu_is_full
from segtrain.structures.samples import Batch

T = TypeVar("T")


def fitted(
    run: RunConf,
    parts: Parts,
    state: TrainState,
    micro_batches: list[Batch],
    world: World,
    attempt: Callable[[list[Batch]], T],
) -> tuple[list[Batch], T]:
    """Return micro-batches that fit in memory, and what `attempt` made of them.

    All ranks call it together, and take as many. An attempt begins from nothing, and runs backward
    on this rank alone: the gradients are averaged here. Errors: ResourceError where a micro-batch
    cannot be smaller; UserError for a loss that ranks count together while they compute.
    """
    if world.size > 1:
        _check_counts(parts, micro_batches)
    while True:
        pieces = [piece for batch in micro_batches for piece in batch.split(state.pieces)]
        made: list[T] = []
        try:
            made.append(attempt(pieces))
        except RuntimeError as error:
            if not gpu_is_full(error):
                raise
        if not world.any(not made):
            world.average([p.grad for p in state.network.parameters() if p.grad is not None])
            return pieces, made[0]
        made.clear()
        state.pieces = _more(run.train, parts, state.pieces, world)
        if world.device.type == "cuda":
            torch.cuda.empty_cache()  # what is left is in pieces that are too small


def told(train: TrainConf, state: TrainState, world: World) -> str:
    """Say that micro-batches are smaller from this step on, and what that changes."""
    images = train.global_batch // (world.size * state.pieces)
    return (
        f"memory step {state.step}: a GPU ran out of it; from here on {state.pieces} micro-batches "
        f"of {images} images: the same gradient, but batch statistics are of {images} images"
    )


def _more(train: TrainConf, parts: Parts, pieces: int, world: World) -> int:
    """Return twice as many pieces, or the next number that divides a rank's images."""
    share = train.global_batch // world.size
    least = cast(Model, parts.network).min_train_batch
    for more in range(2 * pieces, share // least + 1):
        if share % more == 0:
            return more
    raise ResourceError(
        f"the GPU ran out of memory with {share // pieces} images in a micro-batch, and fewer "
        f"cannot be: lower dataset.crop or train.batch_size={train.batch_size}"
    )


def _check_counts(parts: Parts, micro_batches: list[Batch]) -> None:
    """Refuse a loss with counts that only the forward pass knows, summed over ranks inside it."""
    if unknown := parts.loss.weights.keys() - parts.loss.counts(micro_batches[0]).keys():
        raise UserError(
            f"train.accumulate=auto: processes wait for each other in the loss {min(unknown)}, "
            "also for one that runs out of memory; give a number, or take one process"
        )
