"""Numbers that are not finite: in the weights, in a loss, in the monitored scalar."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from segtrain.config.schema import TrainConf
from segtrain.engine.state import TrainState
from segtrain.engine.update import Report, read
from segtrain.engine.validate import patience_exhausted, remember_best
from segtrain.errors import InternalError
from segtrain.optim.precision import Precision
from segtrain.runtime.distributed import World


def failed_update(step: int) -> Report:
    """Return what an update tells whose loss was NaN."""
    vector = torch.tensor([1.0, 0.0, math.nan])
    return Report(step, vector, ["loss"], ["street", "garden"], torch.tensor(1.0))


def state_of(network: nn.Module) -> TrainState:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return TrainState(network, network, optimizer, Precision("fp32"), None)


def test_a_loss_that_is_not_finite_is_put_down_to_its_images_where_the_weights_are_finite() -> None:
    with pytest.raises(InternalError) as caught:
        read([failed_update(4)], nn.Linear(2, 1), World())
    message = "step 5: the loss is not finite (nan) on images street, garden; it changed no weight."
    assert str(caught.value).startswith(message)


def test_images_are_not_blamed_for_weights_that_an_update_before_ruined() -> None:
    network = nn.Linear(2, 1)
    with torch.no_grad():
        network.weight[0, 1] = math.inf
    with pytest.raises(InternalError) as caught:
        read([failed_update(4)], network, World())
    assert "an update, most likely one before it, ruined them" in str(caught.value)
    assert "street" not in str(caught.value)
    assert "changed no weight" not in str(caught.value)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_first_number_becomes_the_best_after_a_validation_that_gave_nan(mode: str) -> None:
    train = TrainConf(monitor="mIoU", monitor_mode=mode, patience=2)
    state = state_of(nn.Linear(2, 1))
    best = []
    for step, value in [(10, math.nan), (20, 0.5), (30, math.nan), (40, 0.5)]:
        state.step = step
        state.metrics = {"mIoU": value}
        remember_best(train, state)
        assert state.best is not None
        best.append(state.best["step"])
    assert best == [10, 20, 20, 20]
    assert state.best == {"step": 20, "value": 0.5}
    assert patience_exhausted(train, state, 10)


def test_patience_ends_also_where_no_validation_ever_gives_a_number() -> None:
    train = TrainConf(monitor="mIoU", patience=2)
    state = state_of(nn.Linear(2, 1))
    ended = []
    for step in (10, 20, 30):
        state.step = step
        state.metrics = {"mIoU": math.nan}
        remember_best(train, state)
        ended.append(patience_exhausted(train, state, 10))
    assert ended == [False, False, True]
