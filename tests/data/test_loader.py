"""Loading: the same tensors with any number of workers and ranks, errors with type and line,
nothing left over.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import segtrain.data.loader
import segtrain.data.workers
from segtrain.data.base import BaseDataset
from segtrain.data.loader import collate, eval_batches, train_loader
from segtrain.data.sampler import StreamSampler, shard
from segtrain.data.transforms import Augment
from segtrain.errors import DataError, InternalError
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE, Batch, Sample

LABELS = LabelMap.load("voc")


class Tiny(BaseDataset):
    """Eight random images; `fault` says what happens at index 3."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(LABELS, [f"img{i}" for i in range(8)])
        self.fault = fault

    def __getitem__(self, index: int) -> Sample:
        if index == 3 and self.fault == "damaged":
            raise DataError("img3.png: damaged; download it again")
        if index == 3 and self.fault == "killed":
            time.sleep(0.3)  # until the earlier images have left the worker
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "slow":
            time.sleep(0.05)
        if index == 3 and self.fault == "hung":
            time.sleep(3600)
        rng = np.random.default_rng(index)
        size = (20 + index, 30 - index)
        return Sample(
            self.ids[index],
            rng.integers(0, 256, (*size, 3), np.uint8),
            rng.integers(0, 4, size, np.uint8),
        )


def train(
    workers: int, rank: int = 0, world: int = 1, accumulate: int = 1, start: int = 0
) -> list[Batch]:
    sampler = StreamSampler(8, 4, 5, start, 5, rank, world, accumulate)
    return list(
        train_loader(Tiny(), Augment((16, 24), rotate=10, color=0.2, blur=0.5), 5, sampler, workers)
    )


def masks(batch: Batch) -> Tensor:
    assert batch.masks is not None
    assert batch.instances is None
    return batch.masks


def assert_equal(one: list[Batch], two: list[Batch]) -> None:
    assert [batch.ids for batch in one] == [batch.ids for batch in two]
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(masks(a), masks(b))
        assert torch.equal(a.sizes, b.sizes)


def joined(batches: list[Batch]) -> Batch:
    images = torch.cat([b.images for b in batches])
    sizes = torch.cat([b.sizes for b in batches])
    return Batch(
        images,
        sizes,
        [i for b in batches for i in b.ids],
        masks=torch.cat([masks(b) for b in batches]),
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_byte(workers: int) -> None:
    assert_equal(train(0), train(workers))


def test_ranks_and_accumulation_do_not_change_a_byte() -> None:
    whole = train(0)
    ranks = [train(0, rank, world=2, accumulate=2) for rank in (0, 1)]
    parts = [
        joined(ranks[0][2 * step : 2 * step + 2] + ranks[1][2 * step : 2 * step + 2])
        for step in range(5)
    ]
    assert_equal(whole, parts)


def test_a_resume_does_not_change_a_byte() -> None:
    assert_equal(train(0)[3:], train(0, start=3))


def test_epochs_show_other_views_of_the_same_image() -> None:
    views = [
        image
        for batch in train(0)
        for name, image in zip(batch.ids, batch.images, strict=True)
        if name == "img2"
    ]
    assert len(views) >= 2
    assert not torch.equal(views[0], views[1])


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    train(0)
    list(eval_batches(Tiny(), [0, 1]))
    assert torch.equal(torch.get_rng_state(), before)


def test_smaller_images_are_padded_right_and_below_and_sizes_recorded() -> None:
    one = Sample("a", np.full((2, 3, 3), 7, np.uint8), np.ones((2, 3), np.uint8))
    two = Sample("b", np.full((4, 1, 3), 9, np.uint8), np.zeros((4, 1), np.uint8))
    batch = collate([one, two])
    assert batch.images.shape == (2, 3, 4, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[2, 3], [4, 1]]
    assert batch.ids == ["a", "b"]
    assert batch.images.sum((1, 2, 3)).tolist() == [7 * 18, 9 * 12]
    assert masks(batch)[0].tolist() == [[1, 1, 1]] * 2 + [[IGNORE] * 3] * 2
    assert masks(batch)[1].tolist() == [[0, IGNORE, IGNORE]] * 4


def test_instances_stay_a_list() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    none, three = (
        Instances(torch.zeros(n, 4), torch.zeros(n), torch.zeros(n, 2, 2)) for n in (0, 3)
    )
    samples = [Sample("none", image, instances=none), Sample("three", image, instances=three)]
    batch = collate(samples)
    assert batch.masks is None
    assert batch.instances == [none, three]


def test_masks_and_instances_do_not_mix_in_a_batch() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    objects = Instances(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 2, 2))
    with pytest.raises(InternalError, match="a batch has masks or instances"):
        collate([Sample("a", image, instances=objects), Sample("b", image, mask=image[..., 0])])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_native_sizes_in_the_order_of_the_shard(workers: int) -> None:
    batches = list(eval_batches(Tiny(), shard(8, 1, 3), workers))
    assert [batch.ids for batch in batches] == [["img1"], ["img4"], ["img7"]]
    assert [batch.sizes.tolist() for batch in batches] == [[[21, 29]], [[24, 26]], [[27, 23]]]
    assert np.array_equal(batches[1].images[0].permute(1, 2, 0).numpy(), Tiny()[4].image)
    assert np.array_equal(masks(batches[1])[0].numpy(), Tiny()[4].mask)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_keeps_its_type_and_its_line(workers: int) -> None:
    loading = eval_batches(Tiny("damaged"), range(8), workers)
    assert [next(loading).ids for _ in range(3)] == [["img0"], ["img1"], ["img2"]]
    with pytest.raises(DataError) as caught:
        next(loading)
    assert str(caught.value) == "img3.png: damaged; download it again"
    loader = train_loader(
        Tiny("damaged"), Augment((8, 8)), 0, StreamSampler(8, 8, 0, 0, 1), workers
    )
    with pytest.raises(DataError, match=r"^img3.png: damaged; download it again$"):
        list(loader)


@pytest.mark.parametrize(("fault", "word"), [("killed", "killed"), ("hung", "time limit")])
def test_a_lost_worker_ends_the_run_naming_the_sample_and_leaves_no_process(
    fault: str, word: str
) -> None:
    with pytest.raises(InternalError, match=rf"{word}.* img3$"):
        consume(eval_batches(Tiny(fault), [0, 3], workers=1, timeout=1.0))
    no_worker_is_left()


@pytest.mark.row("R20")
@pytest.mark.parametrize("moment", ["waiting", "between", "sending", "stopped"])
def test_a_worker_that_is_killed_is_told_where_the_next_batch_is_waited_for(moment: str) -> None:
    """Whenever it dies, nothing is raised in the middle of an update or a save."""
    loader = train_loader(Tiny("slow"), Augment((8, 8)), 0, StreamSampler(8, 2, 0, 0, 9), workers=2)
    batches = iter(loader)
    keys = list(StreamSampler(8, 2, 0, 0, 9))
    assert next(batches).ids == loader.names(keys[0]).split(", ")
    children = sorted(multiprocessing.active_children(), key=lambda child: child.pid or 0)
    second = children[1].pid or 0  # which makes the second batch, the fourth, ...
    if moment == "waiting":
        threading.Timer(0.1, os.kill, (second, signal.SIGKILL)).start()
    else:
        if moment == "stopped":
            os.kill(second, signal.SIGSTOP)
        os.kill(second, signal.SIGKILL)
        end = time.monotonic() + (0 if moment == "sending" else 0.2)
        while time.monotonic() < end:  # an update, in which torch's handler would raise
            pass
    with pytest.raises(InternalError) as caught:
        consume(batches)
    said = str(caught.value)
    assert said.startswith("a data worker was killed by SIGKILL: out of memory? Try fewer workers.")
    assert said.partition("Its images: ")[2] in {loader.names(each) for each in keys[1::2]}
    no_worker_is_left()


@pytest.mark.row("R20")
def test_a_worker_that_is_killed_while_others_are_started_is_told_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = segtrain.data.workers._watch_children

    def slowly() -> None:
        time.sleep(0.1)
        multiprocessing.active_children()  # forgets those that have ended
        watch()

    def dies(worker_id: int) -> None:
        if worker_id == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(segtrain.data.workers, "_watch_children", slowly)
    monkeypatch.setattr(segtrain.data.loader, "quiet_worker", dies)
    with pytest.raises(InternalError, match=r"was killed by SIGKILL.* Its images: img1$"):
        consume(eval_batches(Tiny(), [0, 1, 2, 3], workers=2))
    no_worker_is_left()


def test_a_lost_worker_is_noticed_in_a_thread_that_no_signal_reaches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segtrain.data.loader, "POLL_SECONDS", 0.2)
    said: list[str] = []

    def load() -> None:
        try:
            consume(eval_batches(Tiny("killed"), [0, 3], workers=1))
        except InternalError as error:
            said.append(str(error))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join(20)
    assert len(said) == 1
    assert said[0].endswith("Its images: img3")


def test_loaders_left_in_the_middle_end_their_workers_at_once() -> None:
    """Also when one loader failed and another is still open: a fork inherits both and must finalise
    neither.
    """
    start = time.monotonic()
    for _ in range(2):
        training = iter(
            train_loader(Tiny(), Augment((8, 8)), 0, StreamSampler(8, 2, 0, 0, 4000), workers=2)
        )
        next(training)
        with pytest.raises(DataError):
            consume(eval_batches(Tiny("damaged"), range(8), workers=2))
        next(training)
        del training
        assert not multiprocessing.active_children()
    assert time.monotonic() - start < 5  # a worker that does not end by itself is waited for 5 s


def test_workers_ignore_the_signals_that_the_trainer_answers() -> None:
    loader = train_loader(Tiny(), Augment((8, 8)), 0, StreamSampler(8, 2, 0, 0, 40), workers=2)
    batches = iter(loader)
    assert len([next(batches), next(batches)]) == 2  # one of each worker: both have begun
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(child.pid or 0, number)
    assert len(list(batches)) == 38


def test_the_loader_knows_its_length() -> None:
    assert (
        len(train_loader(Tiny(), Augment((8, 8)), 0, StreamSampler(8, 4, 0, 2, 5, accumulate=2)))
        == 6
    )


def no_worker_is_left() -> None:
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()


def consume(batches: Iterator[Batch]) -> None:
    for _ in batches:
        pass
