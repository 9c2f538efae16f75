"""From samples to batches, in this process or in workers, with the same bytes either way.

A typed error raised in a worker reaches the main process as the same error with the same line: torch would wrap it in a
traceback, so the worker hands it over as a value and the loader raises it.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segtrain.errors import InternalError, SegtrainError
from segtrain.rng import seed_for
from segtrain.structures.samples import IGNORE, Batch, Sample

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SampleSource(Protocol):
    """What the loader needs of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class TrainSet:
    """Augmented samples by (epoch, index): the view depends on (seed, epoch, index) and on nothing else."""

    def __init__(
        self, dataset: SampleSource, augment: Callable[[Sample, int], Sample], seed: int
    ) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample | SegtrainError:
        epoch, index = key
        try:
            # a cached data set has `lazy`: then only the window that the view shows is read
            sample = getattr(self.dataset, "lazy", self.dataset.__getitem__)(index)
            return self.augment(sample, seed_for(self.seed, "augment", epoch, index))
        except SegtrainError as error:
            return error


class EvalSet:
    """Samples as they are, by index; with their `truth` where the data set knows more than it trains on."""

    def __init__(self, dataset: SampleSource) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | SegtrainError:
        try:
            return getattr(self.dataset, "scored", self.dataset.__getitem__)(index)
        except SegtrainError as error:
            return error


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch. Smaller images are padded right and bottom, with 0 in the image and IGNORE in a mask."""
    sizes = torch.tensor([sample.image.shape[:2] for sample in samples], dtype=torch.int64)
    height, width = sizes.amax(0).tolist()
    images = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    for row, sample in zip(images, samples, strict=True):
        h, w = sample.image.shape[:2]
        row[:, :h, :w] = torch.from_numpy(sample.image).permute(2, 0, 1)
    instances = [sample.instances for sample in samples if sample.instances is not None]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    if len(instances) + len(masks) != len(samples) or (instances and masks):
        raise InternalError(f"{samples[0].id}: a batch has masks or instances, of every image")
    truths = [sample.truth for sample in samples]
    return Batch(
        images,
        sizes,
        [sample.id for sample in samples],
        masks=collate_masks(masks, height, width) if masks else None,
        instances=instances or None,
        truths=truths if any(truth is not None for truth in truths) else None,
    )


def collate_masks(masks: Sequence[np.ndarray], height: int, width: int) -> Tensor:
    """Return masks as one tensor (B, height, width) uint8, padded with IGNORE."""
    padded = torch.full((len(masks), height, width), IGNORE, dtype=torch.uint8)
    for row, mask in zip(padded, masks, strict=True):
        row[: mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
    return padded


def collate_or_error(samples: list[Sample | SegtrainError]) -> Batch | SegtrainError:
    """The batch, or the first error among its samples."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    errors = [sample for sample in samples if isinstance(sample, SegtrainError)]
    return errors[0] if errors else collate(good)


class Loader:
    """Iterates a DataLoader in the order of `batches` and raises the errors that its samples came back as."""

    def __init__(
        self,
        dataset: TrainSet | EvalSet,
        batches: Iterable[list],
        workers: int,
        pin_memory: bool = False,
        timeout: float = 600.0,
    ) -> None:
        self.source, self.batches = dataset.dataset, batches
        self.loader = DataLoader(
            cast(Dataset, dataset),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate_or_error,
            pin_memory=pin_memory,
            timeout=timeout if workers else 0,
            worker_init_fn=quiet_worker if workers else None,
            generator=torch.Generator(),  # without it every pass would advance the generator that dropout draws from
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Raises the samples' own errors, and InternalError where a worker died or gave nothing within `timeout`."""
        ready = iter(self.loader)
        for keys in self.batches:
            fault = ""
            try:
                batch = next(ready)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader"):
                    raise
                fault = worker_fault(error)
            if fault:
                with children_unwatched():
                    end_workers()
                    del ready  # torch takes the workers off its list
                raise InternalError(f"{fault} Waiting for: {self.names(keys)}")
            if isinstance(batch, SegtrainError):
                try:
                    raise batch
                finally:  # else error, traceback and this frame keep one another, and the workers, until a collection
                    del batch, ready
            yield batch

    def names(self, keys: list) -> str:
        """Ids of the samples under `keys`, or their indices where the data set lists no ids."""
        indices = [key[1] if isinstance(key, tuple) else key for key in keys]
        ids = getattr(self.source, "ids", None)
        return ", ".join(str(ids[i] if ids else i) for i in indices)


def train_loader(
    dataset: SampleSource,
    augment: Callable[[Sample, int], Sample],
    seed: int,
    batches: Iterable[list[tuple[int, int]]],
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = 600.0,
) -> Loader:
    """Batches in the order of `batches` (a StreamSampler); `timeout` is how many seconds a worker may take."""
    return Loader(TrainSet(dataset, augment, seed), batches, workers, pin_memory, timeout)


def eval_batches(
    dataset: SampleSource,
    indices: Iterable[int],
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = 600.0,
) -> Iterator[Batch]:
    """Batches of one image at its own size, in the order of `indices`."""
    return iter(
        Loader(EvalSet(dataset), [[index] for index in indices], workers, pin_memory, timeout)
    )


def quiet_worker(worker_id: int) -> None:
    """Signals are the trainer's to answer, also when sent to the whole process group; a worker ends with its parent."""
    gc.freeze()  # what a fork inherited, such as another loader's iterator, is the parent's to finalise
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # a killed trainer leaves no worker that still holds the run's lock
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_workers() -> None:
    """Kill this process's workers: they ignore SIGTERM, and a hung one would keep the process from ending."""
    for child in multiprocessing.active_children():
        child.kill()


@contextmanager
def children_unwatched() -> Generator[None]:
    """Without torch's handler, which raises once more for every worker that ends by a signal."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # handlers belong to the main thread
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def worker_fault(error: RuntimeError) -> str:
    """What happened to the worker, in one sentence."""
    if "timed out" in str(error):
        return "a data worker gave no batch within the time limit: hung storage, or a very slow sample?"
    return "a data worker was killed: out of memory? Try fewer workers."
