"""The optimizers without torch's compiler wrappers take torch's steps, bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segtrain.optim import eager


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (eager.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (eager.AdamW, torch.optim.AdamW, {"betas": (0.8, 0.95)}),
    ],
)
def test_steps_and_states_are_torchs(ours: type, theirs: type, settings: dict) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin = copy.deepcopy(model)
    one = ours(model.parameters(), lr=0.1, fused=True, **settings)
    other = theirs(twin.parameters(), lr=0.1, fused=True, **settings)
    inputs = torch.randn(5, 3)
    for step in range(4):
        for network, optimizer in ((model, one), (twin, other)):
            optimizer.zero_grad()
            network(inputs).square().sum().backward()
            optimizer.step()
        for mine, torchs in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(mine, torchs)
        if step == 1:
            one.load_state_dict(copy.deepcopy(other.state_dict()))
    assert torch.is_grad_enabled()
