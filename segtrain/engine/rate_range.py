"""The learning-rate range test: train with a rate that grows, and look where the loss falls.

Smith, "Cyclical Learning Rates for Training Neural Networks" (WACV 2017, arXiv:1506.01186),
section 3.3. As in fastai the rate grows by the same factor with each update, and the rate to take
is where the loss falls fastest over the logarithm of the rate (its rule `steep`). The curve is
smoothed to both sides: a mean of past losses alone, such as fastai's, lags behind, and the rate
would come out several times too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segtrain.config.schema import RunConf
from segtrain.engine.parts import build_parts, train_batches
from segtrain.engine.state import begin, new_state
from segtrain.engine.update import read, update
from segtrain.errors import UserError
from segtrain.runtime.distributed import World
from segtrain.runtime.signals import Signals

# Of all updates, the share that one deviation of the smoothing spans. Chosen by hand on networks of
# ours: half of it follows the noise, twice of it blurs the fall.
WIDTH = 0.05
# A loss has diverged where the mean of so many is so many times the least of such means; fastai
# takes the same factor.
WINDOW = 5
DIVERGED = 4.0
FEWEST = 20  # updates that a curve must have to be read


@dataclass(frozen=True)
class Ramp:
    """A rate that grows from `lowest` to `highest`, by the same factor with each update."""

    lowest: float
    highest: float
    updates: int

    def rate(self, step: int) -> float:
        """Return the rate of the update after `step` of them."""
        return self.lowest * (self.highest / self.lowest) ** (step / (self.updates - 1))


class Point(NamedTuple):
    """One update: its rate, and the loss that it found."""

    rate: float
    loss: float


class Reading(NamedTuple):
    """What a curve says."""

    smooth: list[float]  # of every point
    steepest: int  # index of the point to take


def range_test(
    run: RunConf, folder: Path, ramp: Ramp, world: World, shown: Callable[[int], None]
) -> list[Point]:
    """Train `run` with a growing rate until the loss diverges or the ramp ends; return the curve.

    Other rates keep their ratio to `optimizer.lr`. A curve that diverged ends where it did; nothing
    of the training is kept. `folder` is where it would lie. `shown` is told the updates made.
    Errors: those of the parts.
    """
    base = base_rate(run)
    start = run.train.begin
    parts = build_parts(run, world)
    parts = replace(parts, schedule=lambda step: ramp.rate(step) / base)
    begin(run, folder, parts, world)
    state = new_state(run.train, parts, world)
    state.step = start
    never = Signals()  # is not entered: a signal ends the command at once
    curve: list[Point] = []
    for micro_batches in train_batches(run, parts, world, start, start + ramp.updates):
        (outcome,) = read([update(run, parts, state, micro_batches, world, never)])
        state.step += 1
        curve.append(Point(ramp.rate(len(curve)), outcome.losses["loss"]))
        shown(len(curve))
        if outcome.bad or diverged([point.loss for point in curve]):
            break
    return curve


def base_rate(run: RunConf) -> float:
    """Return `optimizer.lr`. Errors: UserError for an optimizer of somebody's without one."""
    rate = run.optimizer.get("lr")
    if not isinstance(rate, int | float) or not rate > 0:
        raise UserError(f"optimizer: find_lr needs one with a setting `lr` above 0, not {rate}")
    return rate


def diverged(losses: Sequence[float]) -> bool:
    """Tell whether the newest losses have left what was learned, or are not finite."""
    if not math.isfinite(losses[-1]):
        return True
    means = [sum(losses[i : i + WINDOW]) / WINDOW for i in range(len(losses) - WINDOW + 1)]
    return bool(means) and means[-1] > DIVERGED * min(means)


def reading(curve: Sequence[Point]) -> Reading:
    """Return what a curve says. Errors: UserError where it is too short, or never falls."""
    finite = [point for point in curve if math.isfinite(point.loss)]
    if len(finite) < FEWEST:
        raise UserError(
            f"find_lr: the loss diverged after {len(finite)} updates, at optimizer.lr="
            f"{curve[-1].rate:.2g}; too few to read, begin lower: lowest={curve[0].rate / 1e3:.2g}"
        )
    losses = np.array([point.loss for point in finite])
    # What diverges is told by one point as by ten; higher ones would reach far into the smoothing.
    losses = losses.clip(max=losses[:FEWEST].max())
    places = np.arange(len(losses))
    width = WIDTH * len(losses)
    weights = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    smooth = weights @ losses / weights.sum(1)
    lowest = int(smooth.argmin())
    scatter = float((losses - smooth).std())
    if not smooth[0] - smooth[lowest] > scatter:
        raise UserError(
            f"find_lr: the loss does not fall by more than it scatters between optimizer.lr="
            f"{finite[0].rate:.2g} and {finite[-1].rate:.2g}; take more updates=, or another "
            "lowest= and highest="
        )
    slopes = np.gradient(smooth, np.log([point.rate for point in finite]))
    steepest = int(slopes[: lowest + 1].argmin())
    return Reading([float(value) for value in smooth], steepest)
