"""A run goes on with other numbers of processes (matrix row R9).

Members: 1, 2 and 4 processes in any order, on a model without batch statistics or dropout. Ranks
take their turns in one process, with the loader, the loss and the sums of a real run.
The images of a step, their order and their views are the same to the byte, whoever loads them; the
loss differs by the order of sums alone.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from rows import Tally, amount
from torch import Tensor, nn

from segtrain.config import parts as config_parts
from segtrain.config.compose import check, compose_config
from segtrain.config.schema import RunConf
from segtrain.data.loader import train_loader
from segtrain.data.sampler import StreamSampler
from segtrain.engine.objective import objective
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch

STEPS = 6
BATCH = 4
CHAINS = [[1, 2, 4, 1], [1, 4, 2, 1], [2, 1, 4, 2], [4, 1, 2, 4], [1, 2, 1, 4], [4, 2, 1, 2]]
COUNT = amount(1, 6, 24)  # of chains


@pytest.fixture(scope="module")
def run() -> RunConf:
    """A small network with group norm, and a data set whose epochs end inside a batch."""
    words = ["model=unet_32", "model.width=4", "model.norm=group", "dataset.train=10"]
    words += ["dataset.size=[32,32]", "dataset.crop=[32,32]", "dataset.val=1"]
    return check(compose_config(words)[0])


class Ranks(World):
    """One of several processes that take their turns in this one."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


def chain(seed: int) -> list[int]:
    """Four starts with their numbers of processes; the step before each follows from the seed."""
    return CHAINS[seed] if seed < len(CHAINS) else random.Random(seed).choices([1, 2, 4], k=4)


def trained(run: RunConf, sizes: list[int], cuts: list[int]) -> tuple:
    """Train with `sizes[i]` processes from step `cuts[i]` on; return (order, images, losses)."""
    torch.manual_seed(0)
    dataset = config_parts.dataset(run.dataset, "train")
    augment = config_parts.augment(run.augment)
    network: nn.Module = config_parts.model(run.model, len(dataset.labels.names))
    for module in network.modules():  # which draws by rank
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    criterion = config_parts.loss(run.loss)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    order: list[list[str]] = []
    seen: list[np.ndarray] = []
    found: list[float] = []
    for size, start, stop in zip(sizes, cuts, [*cuts[1:], STEPS], strict=True):
        shares = [
            iter(
                train_loader(
                    dataset,
                    augment,
                    0,
                    StreamSampler(len(dataset), BATCH, 0, start, stop, rank, size),
                )
            )
            for rank in range(size)
        ]
        for _ in range(start, stop):
            batches: list[Batch] = [next(share) for share in shares]
            order.append([name for batch in batches for name in batch.ids])
            seen.append(np.concatenate([batch.images.numpy() for batch in batches]))
            counts = [criterion.counts(batch) for batch in batches]
            whole = {name: torch.stack([c[name] for c in counts]).sum() for name in counts[0]}
            optimizer.zero_grad()
            total = 0.0
            for rank, batch in enumerate(batches):  # what data-parallel processes add up
                images = batch.images.float() / 255
                terms = criterion(network(images), batch)
                loss, _ = objective(terms, whole, criterion.weights, Ranks(rank, size), 1)
                loss.backward()
                total += loss.item()
            optimizer.step()
            found.append(total)
    return order, seen, found


@pytest.mark.row("R9")
def test_other_numbers_of_processes_see_the_same_images_and_have_the_same_loss(
    run: RunConf, tally: Tally
) -> None:
    order, seen, losses = trained(run, [1], [0])
    assert len({name for step in order for name in step}) == 10
    for seed in range(COUNT):
        cuts = [0, *sorted(random.Random(seed).sample(range(1, STEPS), 3))]
        others = trained(run, chain(seed), cuts)
        assert others[0] == order
        for mine, theirs in zip(seen, others[1], strict=True):
            assert np.array_equal(mine, theirs)
        np.testing.assert_allclose(others[2], losses, rtol=1e-5)
        tally(seed=seed)
