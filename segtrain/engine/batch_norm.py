"""Running statistics of batch norm estimated once the weights stand still, instead of gathered while they move.

DeconvNet (arXiv:1505.04366) trains without running statistics; its release averages those of 500 batches afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn

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
    """What is asked of `guard.Signals`."""

    received: str | None


def estimate(
    network: nn.Module,
    steps: Iterable[list[Batch]],
    count: int,
    precision: AbstractContextManager,
    world: World,
    signals: Stopping | None = None,
) -> None:
    """Set mean and variance of every batch norm of `network` to the plain mean over `count` batches and all ranks.

    A batch is one forward pass of one process, as in training; `steps` holds the micro-batches of each step. Dropout is
    off, so nothing is random and nothing depends on what ran before. Frozen batch norm is not touched. All ranks call it
    together; once one of them has received a signal, all leave early. The network is left in training mode.
    """
    norms = [
        layer
        for layer in network.modules()
        if isinstance(layer, NORMS) and layer.track_running_stats
    ]
    if not norms:
        return
    momenta = [layer.momentum for layer in norms]
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in norms]  # ty: ignore
    network.train()
    for layer in network.modules():
        if isinstance(layer, DROPOUTS):
            layer.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches since the reset
    try:
        for batch in itertools.islice(itertools.chain.from_iterable(steps), count):
            told = float(signals is not None and signals.received is not None)
            if world.sum(torch.full((), told, device=world.device)).item():
                for layer, (mean, variance) in zip(
                    norms, before, strict=True
                ):  # half an estimate is worse than none
                    layer.running_mean.copy_(mean)  # ty: ignore
                    layer.running_var.copy_(variance)  # ty: ignore
                break  # the caller sees the signal too, and saves
            with torch.no_grad(), precision:
                network(batch)
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
    network.train()
    for layer in norms:
        for statistic in (layer.running_mean, layer.running_var):
            assert statistic is not None  # they are tracked
            world.sum(statistic).div_(world.size)
