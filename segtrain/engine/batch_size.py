"""`train.batch_size=auto`: before the first step, the largest batch in a GPU's memory is found.

A process tries 1, 2, 4, 8, ... images a micro-batch, from what the network needs on, with the real
network, crops, loss and optimizer. The batch is the last that fits, times micro-batches and
processes; it is no larger than the training split. The network that is tried on is another one, and
every random number of a run follows from its seed and step, so no bit of the training depends on
the search. The number that was found is stored: a resume, and whoever repeats the run, have it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch

from segtrain.config import parts as config_parts
from segtrain.config import recipes
from segtrain.config.bounds import IMAGES
from segtrain.config.files import stored_text
from segtrain.config.schema import ON_A_CPU, RunConf
from segtrain.contracts import Model
from segtrain.engine.parts import Parts, build_network, train_batches
from segtrain.engine.state import new_state
from segtrain.engine.update import update
from segtrain.errors import ResourceError, UserError
from segtrain.logs.progress import Progress
from segtrain.logs.summary import forget_peak_memory
from segtrain.optim.precision import Precision
from segtrain.runtime.distributed import World
from segtrain.runtime.exhausted import gpu_is_full
from segtrain.runtime.run_folder import NewRun
from segtrain.runtime.signals import Signals
from segtrain.weights.backbone_file import unread

# Of the GPU's memory what is left free, for what a first update does not show: fragments, images
# that are larger, a validation. Chosen by hand.
MARGIN = 0.1
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """That of a GPU, in bytes."""

    device: torch.device

    def available(self) -> int:
        """Return what this process has, or may have."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device)

    def forget(self) -> None:
        """Give back what is not in use, and let the largest use count from here on."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Return the largest use at once."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


def memory_of(device: torch.device) -> Memory:
    """Return the memory that the batch is to fit in. Errors: UserError on a CPU."""
    if device.type != "cuda":
        raise UserError(ON_A_CPU)
    return Memory(device)


class Settled(NamedTuple):
    """A run with its number in place of `auto`, as `fit` takes it."""

    run: RunConf
    new: NewRun | None
    config: Mapping[str, Any] | None
    said: str  # what was found; "" where the run had a number


def to_build(run: RunConf, world: World) -> RunConf:
    """Return a run whose parts can be built: with some batch where the number is to be found.

    Errors: UserError where it cannot be found here.
    """
    if not run.train.finds_batch:
        return run
    memory_of(world.device)
    # Two images a process and micro-batch: as many as any network of ours needs.
    return _with(run, 2 * run.train.micro_batches * world.size)


def settled(
    run: RunConf,
    new: NewRun | None,
    config: Mapping[str, Any] | None,
    parts: Parts,
    world: World,
) -> Settled:
    """Find the batch of a run that says `auto`, on which all ranks agree, and store it.

    Errors: ResourceError where not even the smallest fits.
    """
    if not run.train.finds_batch:
        return Settled(run, new, config, "")
    memory = memory_of(world.device)
    share = world.size * run.train.micro_batches
    least = cast(Model, parts.network).min_train_batch
    most = max(least, min(len(parts.train_set), int(IMAGES.high)) // share)
    peaks: dict[int, int] = {}  # images -> bytes, of those that fit
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
        tried = _tried(to_build(run, world), parts, world.device)
        with Progress(most, "trying a batch", run.log.progress and world.main) as bar:
            fits = _Fits(tried, memory, world, peaks, bar.to)
            found = largest(fits, least, most)
        del fits, tried  # and with them the network that was tried on
    memory.forget()
    forget_peak_memory()
    if found is None:
        raise ResourceError(
            f"train.batch_size=auto: {least} images a process do not fit in the GPU's memory: "
            "lower dataset.crop, or take a smaller network or train.precision=bf16"
        )
    batch = found * share
    run = _with(run, batch)
    if config is not None:
        config = {**config, "train": {**config["train"], "batch_size": batch}}
        new = None if new is None else replace(new, config=stored_text(config))
    larger = f"{2 * batch} do not" if 2 * found <= most else "more would be over the training split"
    said = (
        f"batch  train.batch_size=auto: {batch} images fit, {larger} "
        f"({peaks[found] / GIB:.1f} of {memory.available() / GIB:.1f} GiB at most, "
        f"{MARGIN:.0%} stay free); config.yaml has the number. {_belongs(run)}"
    )
    return Settled(run, new, config, said)


def largest(fits: Callable[[int], bool], least: int, most: int) -> int | None:
    """Return the last of `least`, its double, and so on up to `most`, before one does not fit.

    None where not even `least` fits.
    """
    found = None
    images = least
    while images <= most and fits(images):
        found = images
        images *= 2
    return found


@dataclass(frozen=True)
class _Fits:
    """Tell whether an update of so many images a micro-batch fits on every rank."""

    tried: Callable[[int], None]
    memory: Memory
    world: World
    peaks: dict[int, int]
    told: Callable[[int], None] = lambda images: None  # how many fit so far

    def __call__(self, images: int) -> bool:
        self.memory.forget()
        available = self.memory.available()
        peak = None
        try:
            self.tried(images)
            peak = self.memory.peak()
        except RuntimeError as error:
            if not gpu_is_full(error):
                raise
        if self.world.any(peak is None or peak > (1 - MARGIN) * available):
            return False
        self.peaks[images] = peak or 0
        self.told(images)
        return True


def _tried(run: RunConf, parts: Parts, device: torch.device) -> Callable[[int], None]:
    """Return what makes an update of so many images a micro-batch, on a network of its own.

    A rank tries alone: one that runs out of memory leaves nobody waiting. The optimizer's state is
    there from the second try on, as in training.
    """
    alone = World(device=device)
    with unread():  # the weights take the same memory, whatever they are
        network = build_network(run, len(parts.class_names), alone)
    own = replace(
        parts,
        network=network,
        optimizer=config_parts.optimizer(run.optimizer, network),
        precision=Precision(run.train.precision, device.type),
    )
    # What torch.compile learns of sizes here would be in the graphs of the training.
    state = new_state(replace(run.train, compile=False), own, alone)

    def tried(images: int) -> None:
        trial = _with(run, images * run.train.micro_batches)
        micro_batches = next(train_batches(trial, own, alone, 0, 1))
        update(trial, own, state, micro_batches, alone, Signals())

    return tried


def _with(run: RunConf, batch: int) -> RunConf:
    return replace(run, train=replace(run.train, batch_size=batch))


def _belongs(run: RunConf) -> str:
    """Say what of a run belongs to the size of its batch."""
    said = (
        "Rate and length belong to a batch, and are as they were: "
        f"optimizer.lr={run.optimizer.get('lr')}, train.steps={run.train.steps}"
    )
    if run.recipe:
        images = recipes.itself(run.recipe).batch_size
        said += (
            f"; the recipe's are for {images} images, and train.batch_size="
            f"{run.train.batch_size} train.scale_recipe=true would follow it"
        )
    return said
