"""Tensors that say they are on a GPU, on a machine without one: no values, only shapes and devices.

torch's FakeTensorMode does the forward pass: who mixes devices gets the error of a real GPU, and
who asks for a value (`.item()`, `nonzero`, a branch on a tensor) gets one too. Backward would need
a driver, as the engine of autograd looks for the device's streams. Here all that is written in C++
is told that the tensors are on the CPU, while everything that is written in Python sees `cuda`.
Autocast is C++, so it does not act on them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

HOST = torch.device("cpu")
GPU = torch.device("cuda", 0)
NO_BACKWARD = -1  # the number of the running backward pass where there is none
DEVICE = torch.ops.prim.device.default
dispatch = FakeTensor.__torch_dispatch__


def said_to_python(tensor: FakeTensor) -> torch.device:
    """The device that the tensor claims; inside a kernel it is the one that has no values."""
    inside = tensor.fake_mode.in_kernel_invocation
    return torch.device("meta") if inside else tensor.fake_device


def said_to_cpp(arguments: Sequence[FakeTensor]) -> torch.device:
    """A device without streams."""
    return torch.device("meta") if arguments[0].fake_mode.in_kernel_invocation else HOST


def answer(cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
    """Dispatch as FakeTensor does, but for the question where a tensor is."""
    return said_to_cpp(args) if func is DEVICE else dispatch(func, types, args, kwargs or {})


def no_copy(tensor: FakeTensor) -> Tensor:
    """Refuse a copy to the host, for which it waits."""
    raise AssertionError(f"a copy of {tuple(tensor.shape)} values to the host, which waits for it")


def converted(tensor: FakeTensor, *args: Any, **kwargs: Any) -> Tensor:
    """Convert as `Tensor.to` does. C++ would think that a tensor on the GPU is on the host."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype)
    target = torch._C._nn._parse_to(*args, **kwargs)[0]
    if target is not None and (tensor.device.type, target.type) == ("cuda", "cpu"):
        no_copy(tensor)
    return Tensor.to(tensor, *args, **kwargs)


class Corrected(TorchDispatchMode):
    """Put right what follows from the answer of `said_to_cpp`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        if kwargs.get("device") == HOST and torch._C._current_graph_task_id() != NO_BACKWARD:
            # Autograd makes a tensor where it was told that the others are.
            kwargs = {**kwargs, "device": GPU}
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], FakeTensor):
            args[0].constant = None  # a known value would really be copied to the GPU
        return func(*args, **kwargs)


@contextmanager
def fake_cuda() -> Generator[torch.device]:
    """Give a device on which new tensors are fake. Values do not exist, so nothing is computed."""
    with ExitStack() as stack:
        for patch in (
            mock.patch.dict(fake_tensor._DISPATCH_META_HANDLERS, {DEVICE: said_to_cpp}),
            mock.patch.object(FakeTensor, "__torch_dispatch__", classmethod(answer)),
            mock.patch.object(FakeTensor, "device", property(said_to_python), create=True),
            mock.patch.object(FakeTensor, "cpu", no_copy, create=True),
            mock.patch.object(FakeTensor, "to", converted, create=True),
        ):
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode())
        stack.enter_context(Corrected())
        yield GPU


def moved(network: nn.Module, device: torch.device) -> nn.Module:
    """Move parameters and buffers as `Module.to` does, which cannot exchange fake tensors.

    A tensor that is neither stays where it is, as it does there.
    """
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    parameter.detach().to(device), parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return network
