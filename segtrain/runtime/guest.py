"""Work in a process that is not ours, as in a new one, and give it back as it was."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch

from segtrain.runtime.signals import SIGNALS

# How torch computes: the object and its setting, and what a command's own process has there.
COMPUTES = (
    (torch.backends, "fp32_precision", "none"),
    (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    # The type checker does not see what torch puts in place of these modules.
    (torch.backends.mkldnn.matmul, "fp32_precision", "ieee"),  # ty: ignore[missing-attribute]
    (torch.backends.cudnn.conv, "fp32_precision", "tf32"),  # ty: ignore[missing-attribute]
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", False),
)


@contextmanager
def as_new_process() -> Generator[None]:
    """Let torch compute inside the block as in a new process, and put back all that changes there.

    That is how torch computes, its random state and threads, the handlers of signals, the
    environment and the filters of warnings: a run from Python has the bits of the command, and
    whoever called it finds the process as it was.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(_environment())
        stack.enter_context(_handlers())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.enter_context(_random_state())
        stack.enter_context(_computing())
        stack.enter_context(_outside_autocast())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def _computing() -> Generator[None]:
    """Compute inside the block as a new process does; `COMPUTES`, types, devices, determinism."""
    kind = torch.get_default_dtype()
    device = torch.get_default_device()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    before = [getattr(owner, name) for owner, name, _ in COMPUTES]
    try:
        torch.set_default_dtype(torch.float32)
        if device.type != "cpu":
            torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
        for owner, name, value in COMPUTES:
            setattr(owner, name, value)
        yield
    finally:
        torch.set_default_dtype(kind)
        if device.type != "cpu":
            torch.set_default_device(device)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for (owner, name, _), value in zip(COMPUTES, before, strict=True):
            setattr(owner, name, value)


@contextmanager
def _outside_autocast() -> Generator[None]:
    """Be outside of every block of autocast that the caller is in.

    One more block inside them, that is switched off, would not do: what autocast has cast of the
    weights is only forgotten at the end of the outermost block, and updates would not be seen.
    """
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    try:
        for kind in kinds:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        for kind in kinds:
            torch.set_autocast_enabled(kind, True)
        for _ in range(depth):
            torch.autocast_increment_nesting()


@contextmanager
def _environment() -> Generator[None]:
    """Put the variables back that are changed inside the block."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in {*before, *os.environ}:
            if name not in before:
                del os.environ[name]
            elif os.environ.get(name) != before[name]:
                os.environ[name] = before[name]


@contextmanager
def _handlers() -> Generator[None]:
    """Put the handlers back that the loaders' workers and signals take. They are the main thread's.

    One that was not set from Python cannot be set again from here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGCHLD)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def _random_state() -> Generator[None]:
    """Put back the state of torch's generators, those of GPUs too."""
    seed = torch.initial_seed()
    state = torch.get_rng_state()
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if of_gpus is not None:
            torch.cuda.set_rng_state_all(of_gpus)
        elif torch.cuda.is_available():  # they had drawn nothing yet
            torch.cuda.manual_seed_all(seed)
