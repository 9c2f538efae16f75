"""From samples to batches, in this process or in workers, with the same bytes either way.

A typed error raised in a worker reaches the main process as the same error with the same line:
torch would wrap it in a traceback, so the worker hands it over as a value and the loader raises it.
Any other error of a sample becomes one that names the sample.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segtrain.contracts import Augment, Dataset, MaskMap
from segtrain.data.cache import Cached
from segtrain.data.workers import Workers, quiet_worker
from segtrain.errors import DataError, InternalError, ResourceError, SegtrainError, words_of
from segtrain.rng import seed_for
from segtrain.runtime import heartbeat
from segtrain.runtime.exhausted import exhausted
from segtrain.structures.samples import IGNORE, Batch, Fault, Sample

# Seconds that a worker may take for one batch. A large image from a busy network disk takes
# seconds, so ten minutes mean that the storage hangs.
WORKER_TIMEOUT = 600.0
# torch waits for a batch so long at a time: it asks only then whether its workers live, in threads
# that no signal reaches.
POLL_SECONDS = 5.0
HUNG = "a data worker gave no batch within the time limit: hung storage, or a very slow sample?"


class TrainSet:
    """Augmented samples by (epoch, index).

    The view depends on (seed, epoch, index) and on nothing else. The next sample that can be read
    takes the place, and the view, of one that cannot: of up to `spare` of them, one after the
    other. So what is read does not depend on what was read before, or by whom.
    """

    def __init__(self, dataset: Dataset, augment: Augment, seed: int, spare: int = 0) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.spare = spare
        # Of a cached set only the window that the view shows is read.
        self.read = dataset.lazy if isinstance(dataset, Cached) else dataset.__getitem__

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample | SegtrainError:
        epoch, index = key
        seed = seed_for(self.seed, "augment", epoch, index)
        faults: list[Fault] = []
        while True:
            chosen = (index + len(faults)) % len(self)
            heartbeat.doing("loading", self.dataset.ids[chosen])
            try:
                sample = self.augment(self.read(chosen), seed)
            except Exception as error:
                if ran_out := exhausted(error):  # no fault of the sample, whatever it looks like
                    return ResourceError(ran_out)
                if isinstance(error, DataError) and len(faults) < self.spare:
                    faults.append(Fault(chosen, str(error)))
                    continue
                if isinstance(error, SegtrainError):
                    return error
                traceback.print_exc()  # for whoever wrote what raised it
                words = f"{type(error).__name__}: {words_of(error)}"
                return InternalError(f"{self.dataset.ids[chosen]}: cannot be loaded: {words}")
            else:
                return replace(sample, faults=tuple(faults)) if faults else sample


class EvalSet:
    """Samples as they are, by index, with what the metric compares with."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | SegtrainError:
        heartbeat.doing("loading", self.dataset.ids[index])
        try:
            return self.dataset.scored(index)
        except SegtrainError as error:
            return error


def collate(samples: Sequence[Sample], mask_map: MaskMap | None = None) -> Batch:
    """Return one batch, with what `mask_map` makes of each mask of it.

    Smaller images are padded at the right and bottom, with 0 in the image and IGNORE in a mask.
    Samples that do not say what is `inside` are so altogether, where others do.
    """
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
    padded = collate_masks(masks, height, width) if masks else None
    maps = None
    if mask_map is not None and padded is not None:
        maps = torch.stack([torch.from_numpy(mask_map(mask.numpy())) for mask in padded])
    inside = None
    if any(sample.inside is not None for sample in samples):
        inside = torch.tensor(
            [sample.inside or (0, 0, *sample.image.shape[:2]) for sample in samples]
        )
    return Batch(
        images,
        sizes,
        [sample.id for sample in samples],
        masks=padded,
        instances=instances or None,
        mask_maps=maps,
        truths=truths if any(truth is not None for truth in truths) else None,
        inside=inside,
        faults=tuple(fault for sample in samples for fault in sample.faults),
    )


def collate_masks(masks: Sequence[np.ndarray], height: int, width: int) -> Tensor:
    """Return masks as one tensor (B, height, width) uint8, padded with IGNORE."""
    padded = torch.full((len(masks), height, width), IGNORE, dtype=torch.uint8)
    for row, mask in zip(padded, masks, strict=True):
        row[: mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
    return padded


def collate_or_error(
    samples: list[Sample | SegtrainError], mask_map: MaskMap | None = None
) -> Batch | SegtrainError:
    """Return the batch, or the first error among its samples."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    errors = [sample for sample in samples if isinstance(sample, SegtrainError)]
    return errors[0] if errors else collate(good, mask_map)


class Loader:
    """Iterate a DataLoader in the order of `batches`, and raise the errors that samples became."""

    def __init__(
        self,
        dataset: TrainSet | EvalSet,
        batches: Iterable[list],
        workers: int,
        pin_memory: bool = False,
        timeout: float = WORKER_TIMEOUT,
        mask_map: MaskMap | None = None,
    ) -> None:
        self.dataset = dataset.dataset
        self.batches = batches
        self.timeout = timeout
        # torch's advice on more workers than cores is three lines at each loader and each pass.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        self.loader = DataLoader(
            cast(TorchDataset, dataset),  # torch names its own base class, but only reads by index
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=partial(collate_or_error, mask_map=mask_map),
            pin_memory=pin_memory,
            timeout=min(timeout, POLL_SECONDS) if workers else 0,
            worker_init_fn=quiet_worker if workers else None,
            # Without one of its own every pass would advance the generator that dropout draws from.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Errors: the samples' own; InternalError where a worker died or gave nothing in time.
        """
        workers = Workers()
        ready = workers.start(self.loader)
        for number, keys in enumerate(self.batches):
            if self.loader.num_workers:  # else each sample says so itself
                heartbeat.doing("loading", self.names(keys))
            deadline = time.monotonic() + self.timeout
            batch = None
            fault = ""
            while batch is None and not fault:
                try:
                    with workers.awaited():
                        batch = next(ready)
                except Exception as error:
                    fault = workers.fault(error)
                    late = str(error).startswith("DataLoader timed out")
                    if not fault and not late:
                        raise
                    if not fault and time.monotonic() >= deadline:
                        fault = HUNG
            if fault:
                lost = self._keys_of(workers, number)
                workers.kill()
                del ready  # torch takes the workers off its list
                raise InternalError(f"{fault} Its images: {self.names(lost)}")
            if isinstance(batch, SegtrainError):
                try:
                    raise batch
                finally:
                    # Otherwise error, traceback and this frame keep one another alive, and with
                    # them the workers, until the garbage collector runs.
                    del batch, ready
            yield cast(Batch, batch)

    def _keys_of(self, workers: Workers, number: int) -> list:
        """Return the keys of the first batch, from `number` on, that the lost worker was to make.

        torch hands the batches round, one to each worker. Without a lost one it is the next batch.
        """
        count = self.loader.num_workers
        ahead = list(islice(self.batches, number, number + count))
        mine = [keys for i, keys in enumerate(ahead, number) if i % count == workers.lost()]
        return (mine or ahead)[0]

    def names(self, keys: list) -> str:
        """Return the ids of the samples under `keys`, as text."""
        indices = [key[1] if isinstance(key, tuple) else key for key in keys]
        return ", ".join(self.dataset.ids[index] for index in indices)


def train_loader(
    dataset: Dataset,
    augment: Augment,
    seed: int,
    batches: Iterable[list[tuple[int, int]]],
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = WORKER_TIMEOUT,
    mask_map: MaskMap | None = None,
    spare: int = 0,
) -> Loader:
    """Return training batches in the order of `batches` (a StreamSampler).

    `timeout`: seconds that a worker may take for one. `mask_map`: what the loss needs of each mask.
    `spare`: how many samples that cannot be used are replaced, see `TrainSet`.
    """
    samples = TrainSet(dataset, augment, seed, spare)
    return Loader(samples, batches, workers, pin_memory, timeout, mask_map)


def eval_batches(
    dataset: Dataset,
    indices: Iterable[int],
    workers: int = 0,
    pin_memory: bool = False,
    timeout: float = WORKER_TIMEOUT,
    mask_map: MaskMap | None = None,
) -> Iterator[Batch]:
    """Yield batches of one image at its own size, in the order of `indices`."""
    alone = [[index] for index in indices]
    return iter(Loader(EvalSet(dataset), alone, workers, pin_memory, timeout, mask_map))
