"""Every semantic system trains a step on fake CUDA tensors: no mixed devices, no wait for the host.

A fake tensor has no values, so systems of objects, which branch on what they propose, cannot.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import zoo
from fake_cuda import fake_cuda, moved
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

import segtrain
from segtrain.config import parts
from segtrain.contracts import MapsMasks
from segtrain.engine.objective import global_counts, objective
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.runtime.distributed import World

QUICK = ("parsenet_vgg11", "unet")
SIDES = {"unet_paper": 188}  # without padding it needs more: 4 pixels remain


class Careless(nn.Module):
    """A convolution and a mistake."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, zoo.CLASSES, 1)
        self.mistake = mistake

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.mistake == "mixed":
            return x * torch.ones(zoo.CLASSES, 1, 1)
        if self.mistake == "value":
            return x / x.max().item()
        return x.cpu().to(x.device)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in zoo.ZOO]
)
def test_a_semantic_system_trains_a_step_on_fake_cuda(name: str) -> None:
    node = segtrain.compose([f"model={name}"]).loss
    side = SIDES.get(name, 64)
    with fake_cuda() as device:
        network = moved(zoo.bare(name), device).train()
        loss = parts.loss(node)
        assert isinstance(loss, nn.Module)
        moved(loss, device).train()
        batch = zoo.batch_of(side, side).to(device)
        if isinstance(loss, MapsMasks):  # the data workers make it
            batch = replace(batch, mask_maps=torch.zeros(batch.images[:, 0].shape, device=device))
        world = World(device=device)
        counts = global_counts(loss, [batch], world)
        total, _ = objective(loss(network(batch), batch), counts, loss.weights, world, 1)
        assert total.device == device
        total.backward()
        learned = {n: p.grad for n, p in network.named_parameters() if p.requires_grad}
        assert learned
        assert not [n for n, grad in learned.items() if grad is None or grad.device != device]


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        ("mixed", RuntimeError, "Expected all tensors to be on the same device"),
        ("value", DataDependentOutputException, "_local_scalar_dense"),
        ("copy", AssertionError, r"a copy of .* to the host"),
    ],
)
def test_a_planted_mistake_is_found(mistake: str, error: type[Exception], message: str) -> None:
    with fake_cuda() as device:
        network = moved(Careless(mistake), device)
        with pytest.raises(error, match=message):
            network(torch.zeros(1, 3, 4, 4, device=device))


def test_a_border_loss_without_its_map_would_wait_for_the_gpu() -> None:
    with fake_cuda() as device:
        loss = parts.loss(segtrain.compose(["loss=border"]).loss)
        batch = zoo.batch_of(16, 16).to(device)
        with pytest.raises(AssertionError, match=r"a copy of .* to the host"):
            loss.counts(batch)
        pixel = moved(PixelCrossEntropy(), device)
        assert pixel.counts(batch)["seg"].device == device
