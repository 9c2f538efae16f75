"""Estimate the statistics of batch norm once the weights stand still, not while they move.

`estimate` changes what the network computes: DeconvNet (arXiv:1505.04366) trains without running
statistics; its release averages those of 500 batches afterwards.

`unfold` does not. Files made for phones hold networks whose batch norms were folded into the
convolutions: what stands in their place neither shifts nor scales, and its mean of 0 and variance
of 1 are nobody's. As they are they compute the right thing, but in training a batch norm takes the
batch's own mean and variance, and from the first step on the network is another one.
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
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
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
    norms = _with_statistics(network)
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


def folded(network: nn.Module) -> list[Norm]:
    """Return the batch norms of `network` that were folded into the convolutions before them.

    Their variance is 1, as in a new norm, but they shift: the convolution's bias became theirs.
    """
    return [layer for layer in _with_statistics(network) if _is_folded(layer)]


@torch.no_grad()
def unfold(network: nn.Module, batches: Iterable[Batch | Tensor], world: World) -> int:
    """Give each folded batch norm the mean and variance of what it reads, and keep its function.

    They are taken over all positions of all `batches` of all ranks, which the network reads in
    evaluation mode. A norm s x + t then has the weight s sqrt(variance + eps) and the bias
    t + s mean, so outputs stay equal up to rounding (1e-4 in float). All ranks call it together,
    and the network keeps its mode. Returns how many norms were folded and are no more: one that
    evaluation does not call stays.
    """
    sums = {layer: _Moments(layer.get_buffer("running_mean")) for layer in folded(network)}
    hooks = [layer.register_forward_pre_hook(moments.add) for layer, moments in sums.items()]
    training = network.training
    network.eval()
    try:
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)
    changed = 0
    for layer, moments in sums.items():
        count, *totals = (world.sum(total) for total in moments.totals)
        if count.item():
            mean, square = (total / count for total in totals)
            _hold(layer, mean, (square - mean.square()).clamp(min=0))
            changed += 1
    return changed


class _Moments:
    """Sums over all positions of what a batch norm reads: how many, values, squares."""

    def __init__(self, like: Tensor) -> None:
        zeros = torch.zeros_like(like, dtype=torch.float64)
        self.totals = (zeros[0].clone(), zeros, zeros.clone())

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add a map (B, C, ...); it is a layer's forward pre-hook."""
        x = inputs[0].transpose(0, 1).flatten(1).double()
        for total, more in zip(self.totals, (x.shape[1], x.sum(1), x.square().sum(1)), strict=True):
            total.add_(more)


def _hold(layer: Norm, mean: Tensor, variance: Tensor) -> None:
    """Give a batch norm these statistics, and the weight and bias that keep its function."""
    running_mean, running_var = _statistics(layer)
    weight = layer.get_parameter("weight")
    bias = layer.get_parameter("bias")
    scale = weight.double() * (running_var.double() + layer.eps).rsqrt()
    bias.copy_(bias.double() + scale * (mean - running_mean))
    weight.copy_(scale * (variance + layer.eps).sqrt())
    running_mean.copy_(mean)
    running_var.copy_(variance)


def _is_folded(layer: Norm) -> bool:
    mean, variance = _statistics(layer)
    shifts = layer.affine and bool(layer.get_parameter("bias").any() or mean.any())
    return shifts and bool((variance == 1).all())


def _with_statistics(network: nn.Module) -> list[Norm]:
    """Return the batch norms of `network` that track running statistics."""
    norms = (layer for layer in network.modules() if isinstance(layer, NORMS))
    return [layer for layer in norms if layer.track_running_stats]


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return running mean and variance of a batch norm that tracks them."""
    return layer.get_buffer("running_mean"), layer.get_buffer("running_var")
