"""Plants a fault in the training processes of a command that has this folder on PYTHONPATH.

SEGTRAIN_TEST_FAULT="KIND RANK STEP": at that step that rank raises, is killed, stops, sleeps in its
forward pass or finds its GPU `full` there, once; KIND `item`: it sleeps while it reads sample
number STEP. The file that SEGTRAIN_TEST_STRUCK names then holds the time of the monotonic clock.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

KIND, RANK, STEP = (os.environ.get("SEGTRAIN_TEST_FAULT", "") + " 0 0 0").split()[:3]
HOUR = 3600


def strike() -> None:
    Path(os.environ["SEGTRAIN_TEST_STRUCK"]).write_text(str(time.monotonic()))


def full(hook: Any) -> None:
    import torch

    hook.remove()
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")


def plant(module: ModuleType) -> None:
    """Put the fault into `segtrain.engine.train`, once it is imported."""
    from segtrain.data.loader import TrainSet

    module: Any = module
    made = module.update
    read = TrainSet.__getitem__

    def update(run: Any, parts: Any, state: Any, *others: Any) -> Any:
        if state.step == int(STEP) and KIND != "item":
            strike()
            if KIND == "raise":
                raise ValueError("planted")
            if KIND == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if KIND == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if KIND == "sleep":
                state.network.register_forward_pre_hook(lambda *_: time.sleep(HOUR))
            if KIND == "full":
                hook = state.network.register_forward_pre_hook(lambda *_: full(hook))
        return made(run, parts, state, *others)

    def item(self: TrainSet, key: tuple[int, int]) -> Any:
        if KIND == "item" and key[1] == int(STEP):
            strike()
            time.sleep(HOUR)
        return read(self, key)

    module.update = update
    TrainSet.__getitem__ = item


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "segtrain.engine.train":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            plant(module)

        loader.exec_module = exec_module
        return spec


if KIND != "0" and os.environ.get("RANK", "0") == RANK:
    sys.meta_path.insert(0, Finder())
