"""A run goes on with other numbers of processes (matrix row R9).

Members: 1, 2 and 4 processes in any order, on a model without batch statistics or dropout, in fp32
and fp64; ranks take their turns in one process, with the loader, the loss and the sums of a real
run. And a chain of real processes.

The images of a step, their order and their views are the same to the byte, whoever loads them. The
loss differs by the order of sums alone: in fp64 by 2e-16, at any rate (1e-10 is asserted). In fp32
it is 1.6e-7 after one update, and a last bit may then put a value on the other side of a ReLU, or
let another pixel win a max-pool: one gradient of four in 64 x 64 pixels was off by 4e-3 of its
length. At a rate of 0.05 that grew to 1.1e-3 of the loss in six steps with 4 processes; one process
whose convolutions sum in another order (`torch.backends.mkldnn.enabled = False`) was off by the
same 1.1e-3. So the fp32 chains run at 0.001, where 1e-5 holds.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import segtrain
from rows import Tally, amount
from torch import Tensor, nn

from segtrain.config import parts as config_parts
from segtrain.config.compose import check, compose_config
from segtrain.config.schema import RunConf
from segtrain.data.loader import train_loader
from segtrain.data.sampler import StreamSampler
from segtrain.engine.objective import objective
from segtrain.logs.metrics_file import METRICS, read_lines_of
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch

STEPS = 6
BATCH = 4
CHAINS = [[1, 2, 4, 1], [1, 4, 2, 1], [2, 1, 4, 2], [4, 1, 2, 4], [1, 2, 1, 4], [4, 2, 1, 2]]
COUNT = amount(1, 6, 24)  # of chains
SMALL = ["model=unet_32", "model.width=4", "model.norm=group", "dataset.train=10"]
SMALL += ["dataset.size=[32,32]", "dataset.crop=[32,32]", "dataset.val=1"]
REAL = [*SMALL, "model.dropout=0", "optimizer=sgd", "optimizer.lr=0.001", f"train.steps={STEPS}"]
REAL += ["train.batch_size=4", "train.save_every=1", "train.keep=9", "train.precision=fp32"]
REAL += ["train.device=cpu", "train.threads=1", "train.processes=1", "log.every=1", "writer=[]"]


@pytest.fixture(scope="module")
def run() -> RunConf:
    """A small network with group norm, and a data set whose epochs end inside a batch."""
    return check(compose_config(SMALL)[0])


class Ranks(World):
    """One of several processes that take their turns in this one."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


def chain(seed: int) -> list[int]:
    """Four starts with their numbers of processes; the step before each follows from the seed."""
    return CHAINS[seed] if seed < len(CHAINS) else random.Random(seed).choices([1, 2, 4], k=4)


@pytest.fixture
def in_fp64() -> Iterator[None]:
    """Make every tensor one of fp64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(run: RunConf, sizes: list[int], cuts: list[int], rate: float = 0.001) -> tuple:
    """Train with `sizes[i]` processes from step `cuts[i]` on; return (order, images, losses)."""
    torch.manual_seed(0)
    dataset = config_parts.dataset(run.dataset, "train")
    augment = config_parts.augment(run.augment)
    network: nn.Module = config_parts.model(run.model, len(dataset.labels.names))
    for module in network.modules():  # which draws by rank
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    criterion = config_parts.loss(run.loss)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
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
                images = batch.images.to(torch.get_default_dtype()) / 255
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
        np.testing.assert_allclose(others[2][0], losses[0], rtol=1e-6)
        np.testing.assert_allclose(others[2], losses, rtol=1e-5)
        tally(seed=seed)


@pytest.mark.row("R9")
@pytest.mark.usefixtures("in_fp64")
def test_in_fp64_the_loss_is_the_same_to_1e_10_at_a_high_rate(run: RunConf, tally: Tally) -> None:
    losses = trained(run, [1], [0], rate=0.05)[2]
    for seed in range(COUNT):
        cuts = [0, *sorted(random.Random(seed).sample(range(1, STEPS), 3))]
        others = trained(run, chain(seed), cuts, rate=0.05)[2]
        np.testing.assert_allclose(others, losses, rtol=1e-10)
        tally(seed=seed)


@pytest.mark.slow
@pytest.mark.row("R9")
def test_real_processes_go_on_with_the_same_losses(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    subprocess.run(segtrain("segtrain", f"hydra.run.dir={folder}", *REAL), check=True, timeout=120)
    alone = losses_of(folder)
    assert len(alone) == STEPS
    for size, step in ((2, 1), (4, 3), (1, 5)):  # as if it had been killed after each of these
        for later in (folder / "checkpoints").glob("step_*"):
            if int(later.name.removeprefix("step_")) > step:
                shutil.rmtree(later)
        (folder / "summary.json").unlink()
        words = segtrain("segtrain", f"resume={folder}", f"train.processes={size}")
        subprocess.run(words, check=True, timeout=120)
    np.testing.assert_allclose(losses_of(folder), alone, rtol=1e-5)
    assert losses_of(folder) != alone  # other sums were made


def losses_of(folder: Path) -> list[float]:
    """Return the loss of each step of a run."""
    lines = read_lines_of(folder / METRICS)
    return [line["loss"] for line in lines if line["phase"] == "train"]
