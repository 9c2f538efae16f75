"""The processes that load samples: what they leave to the trainer, and how their end is noticed."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from segtrain.runtime.parent import killed_with_parent
from segtrain.runtime.signals import SIGNALS

REAP_SECONDS = 1.0  # between the end of a process and the system's word of it; generous


def quiet_worker(worker_id: int) -> None:
    """Set up a worker: it leaves signals to the trainer, and ends with it.

    A signal from a terminal or a cluster goes to the whole process group.
    """
    # What a fork inherited, such as another loader's iterator, is the parent's to finalise.
    gc.freeze()
    _awaited.clear()
    torch.set_num_threads(1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    killed_with_parent()  # a killed trainer leaves no worker that still holds the run's lock


def end_workers() -> None:
    """Kill this process's workers.

    They ignore SIGTERM, and a hung one would keep the process from ending.
    """
    for child in multiprocessing.active_children():
        child.kill()


class WorkerLost(Exception):
    """A worker ended while its batch was waited for."""


class Workers:
    """The processes of one loader: whether they live is asked only where a batch is waited for.

    torch's own handler of SIGCHLD raises wherever the main thread is, in the middle of an update or
    of a save.
    """

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []
        self.thread = threading.get_ident()

    def start(self, loader: DataLoader) -> Iterator[Any]:
        """Return `iter(loader)`, whose processes these are, and take SIGCHLD over from torch."""
        before = multiprocessing.active_children()
        _watch_children()
        try:
            batches = iter(loader)
        except Exception as error:
            for child in multiprocessing.active_children():
                if child not in before:
                    child.kill()
            _abandon(error)
            raise
        finally:
            _watch_children()
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            # As torch counts them. The system's list lacks one that has ended already.
            self.processes = list(batches._workers)
            _started.add(self)
        return batches

    @contextmanager
    def awaited(self) -> Generator[None]:
        """Let the end of one of the processes raise WorkerLost inside the block."""
        if self.processes and threading.current_thread() is threading.main_thread():
            _awaited.append(self)
        try:
            if self.lost() is not None:
                raise WorkerLost
            yield
        finally:
            if _awaited and _awaited[-1] is self:
                _awaited.pop()

    def lost(self) -> int | None:
        """Return the number of the first process that has ended; None while all live.

        None ends by itself before the last batch was taken.
        """
        ended = (i for i, each in enumerate(self.processes) if each.exitcode is not None)
        return next(ended, None)

    def fault(self, error: Exception) -> str:
        """Say how a process ended, in one sentence; "" where all live, and it is another error."""
        if not self.processes:
            return ""
        # What it was sending breaks off before its end is known.
        broken = isinstance(error, OSError | EOFError | RuntimeError)
        wait = REAP_SECONDS if broken and "timed out" not in str(error) else 0
        deadline = time.monotonic() + wait
        while self.lost() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        number = self.lost()
        if number is None:
            return ""
        code = self.processes[number].exitcode or 0
        if code == -signal.SIGBUS:
            return "a data worker was killed by SIGBUS: is /dev/shm full? Try fewer workers."
        if code < 0:
            name = signal.Signals(-code).name
            return f"a data worker was killed by {name}: out of memory? Try fewer workers."
        return f"a data worker ended with exit code {code}."

    def kill(self) -> None:
        """Kill them. They ignore SIGTERM, and a hung one would keep the process from ending."""
        for process in self.processes:
            process.kill()


@contextmanager
def none_left() -> Generator[None]:
    """End, with the block, the workers that this thread started inside it.

    An error on its way out holds the frames of a loop, and with them its loader. At its end Python
    would wait for the workers of one that is held still, who ignore its SIGTERM.
    """
    before = set(_started)
    try:
        yield
    finally:
        mine = [each for each in _started if each.thread == threading.get_ident()]
        for workers in mine:
            if workers not in before:
                workers.kill()
                for process in workers.processes:
                    process.join(REAP_SECONDS)


_started: WeakSet[Workers] = WeakSet()
_awaited: list[Workers] = []  # those whose batch the main thread waits for
_others: list[Callable[[int, FrameType | None], object]] = []  # a handler that was there before


def _child_ended(number: int, frame: FrameType | None) -> None:
    """Answer SIGCHLD."""
    for handler in _others:
        handler(number, frame)
    if _awaited and _awaited[-1].lost() is not None:
        raise WorkerLost


def _watch_children() -> None:
    """Put our handler in place of torch's, beside another program's. They are the main thread's."""
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if handler is _child_ended:
        return
    if callable(handler) and not handler.__module__.startswith("torch."):
        _others[:] = [handler]
    signal.signal(signal.SIGCHLD, _child_ended)


def _abandon(error: Exception) -> None:
    """Let go of the iterator whose making `error` broke off, for want of descriptors or processes.

    torch would wait 5 s for each worker that it has started, and then print a traceback, as it
    looks for what it had not made yet.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        maker = frame.f_locals.get("self")
        if isinstance(maker, _MultiProcessingDataLoaderIter):
            maker._shutdown = True
