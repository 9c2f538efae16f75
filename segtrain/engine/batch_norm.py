"""Estimate the statistics of batch norm once the weights stand still, not while they move.

DeconvNet (arXiv:1505.04366) trains without running statistics; its release averages those of 500
batches afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


class Stopping(Protocol):
    """What is asked of `runtime.signals.Signals`."""

    received: str | None


def estimate(
    network: nn.Module,
    steps: Iterable[list[Batch]],
    count: int,
    precision: AbstractContextManager,
    world: World,
    signals: Stopping | None = None,
) -> bool:
    """Set mean and variance of every batch norm of `network` to their plain mean over batches.

    The mean is over the first `count` batches and over all ranks. A batch is one forward pass of
    one process, as in training; `steps` holds the micro-batches of each step. Dropout is off, so
    nothing is random and nothing depends on what ran before. Frozen batch norm is not touched. All
    ranks call it together. The network is left in training mode.

    Returns whether the statistics were estimated: once a rank has received a signal, all leave
    early, each with its statistics as they were.
    """
    norms = [
        layer
        for layer in network.modules()
        if isinstance(layer, NORMS) and layer.track_running_stats
    ]
    if not norms:
        return True
    momenta = [layer.momentum for layer in norms]
    before = [[statistic.clone() for statistic in _statistics(layer)] for layer in norms]
    network.train()
    for layer in network.modules():
        if isinstance(layer, DROPOUTS):
            layer.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches since the reset
    stopped = False
    try:
        for batch in itertools.islice(itertools.chain.from_iterable(steps), count):
            told = float(signals is not None and signals.received is not None)
            stopped = bool(world.sum(torch.full((), told, device=world.device)).item())
            if stopped:
                # Half an estimate is worse than none.
                for layer, kept in zip(norms, before, strict=True):
                    for statistic, value in zip(_statistics(layer), kept, strict=True):
                        statistic.copy_(value)
                break
            with torch.no_grad(), precision:
                network(batch)
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
    network.train()
    if stopped:
        return False
    for layer in norms:
        for statistic in _statistics(layer):
            world.sum(statistic).div_(world.size)
    return True


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return running mean and variance of a batch norm that tracks them."""
    return layer.get_buffer("running_mean"), layer.get_buffer("running_var")
