"""Compute in fp32, bf16 or fp16: autocast, loss scaling, and an update that a flag can cancel.

Weights and optimizer state stay fp32 in all three. The fused optimizers read `optimizer.found_inf`
in their kernels: at 1 they leave weights, momentum and step counters untouched, so the host need
not wait for the flag before it goes on.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from segtrain.errors import InternalError, UserError

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 1.0  # a loss scaled by less than this loses more than fp16 gains


class Precision:
    """Compute in one way on one type of device: `with precision:` around the forward pass.

    The methods follow it in this order: backward (once per micro-batch), unscale, step.
    Errors: UserError where name or device cannot do it.
    """

    def __init__(self, name: str, device_type: str = "cpu") -> None:
        if name not in DTYPES:
            raise UserError(f"train.precision={name} is unknown; choose one of {', '.join(DTYPES)}")
        if (
            name == "bf16"
            and device_type == "cuda"
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            raise UserError(
                "train.precision=bf16 is not supported by this GPU; "
                "use train.precision=fp16 or fp32"
            )
        self.name = name
        self.device_type = device_type
        self._scaler = GradScaler(device_type, enabled=name == "fp16")
        # The updates that the scaler skipped; on the device once there was a step.
        self._skipped: Tensor | int = 0
        self._unscaled = False
        self._entered: list[AbstractContextManager[Any]] = []

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a fresh context that computes in this precision; it does nothing for fp32."""
        dtype = DTYPES[self.name]
        return nullcontext() if dtype is None else torch.autocast(self.device_type, dtype=dtype)

    def __enter__(self) -> Self:
        """Begin to compute in this precision; may be entered within itself."""
        context = self.autocast()
        context.__enter__()
        self._entered.append(context)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the innermost computation in this precision."""
        self._entered.pop().__exit__(kind, error, trace)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` (scalar, fp32, computed outside autocast), scaled in fp16."""
        self._scaler.scale(loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients back to their true size, as clipping needs them. Once per step."""
        self._scaler.unscale_(optimizer)
        self._unscaled = True

    def ruins(self, norm: Tensor, optimizer: Optimizer) -> Tensor:
        """Tell of unscaled gradients of this `norm` whether they would ruin what they update.

        Returns a bool scalar on the device. The square of the norm must be finite, not the norm
        alone: one gradient above 1.8e19 leaves inf in Adam's second moments for good, and its
        weights never learn again. An overflow of fp16 is none: the scaler skips that update.
        """
        ruined = ~torch.isfinite(norm.square())
        for flag in (
            self._scaler._found_inf_per_device(optimizer).values() if self.name == "fp16" else ()
        ):
            ruined = ruined & (flag.reshape(()) == 0)
        return ruined

    def step(self, optimizer: Optimizer, bad: Tensor | None = None) -> None:
        """Update by a fused `optimizer`, unless `bad` (scalar on the device) is not zero.

        In fp16 nothing changes after a gradient overflow either; then the scale is halved and the
        skip counted.
        """
        # The kernels test for exactly 1 and Adam subtracts the flag from its counter, so a sum
        # over ranks must become 1.
        stop = None if bad is None else (bad.detach() != 0).float().reshape(())
        if self.name == "fp16":
            self._scaled_step(optimizer, stop)
        elif stop is None:
            optimizer.step()
        else:
            _cancellable_step(optimizer, stop)
        self._unscaled = False

    def skipped(self) -> int:
        """Return how many updates fp16 skipped so far. Waits for the device."""
        return int(self._skipped)

    def scale(self) -> float | None:
        """Return what fp16 multiplies losses by; None in other precisions. Waits for the device."""
        return self._scaler.get_scale() if self.name == "fp16" else None

    def check(self) -> None:
        """Raise InternalError where fp16 cannot go on.

        It waits for the device: call it where losses are read.
        """
        if self.name == "fp16" and self._scaler.get_scale() < SMALLEST_SCALE:
            raise InternalError(
                f"train.precision=fp16: the loss scale fell to {self._scaler.get_scale():g} after "
                f"{self.skipped()} skipped updates: the gradients overflow or are not finite; "
                "use train.precision=bf16 or fp32, or a lower optimizer.lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return as plain types the name, the state of the fp16 scale, and the skipped updates."""
        return {"name": self.name, "scaler": self._scaler.state_dict(), "skipped": self.skipped()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`. Errors: UserError where it was saved in another precision."""
        if state["name"] != self.name:
            raise UserError(
                f"the checkpoint was trained with train.precision={state['name']}, "
                f"not {self.name}; resume with {state['name']}, "
                "or start a new run from its weights with train.init"
            )
        if self.name == "fp16":
            self._scaler.load_state_dict(state["scaler"])
        self._skipped = state["skipped"]

    def _scaled_step(self, optimizer: Optimizer, stop: Tensor | None) -> None:
        """Update by the scaler, which `stop` can cancel."""
        if not self._unscaled:
            self.unscale(optimizer)
        # The scaler's own flags, filled by unscale: writing into them lets `stop` cancel the update
        # without a wait.
        flags = list(self._scaler._found_inf_per_device(optimizer).values())
        for flag in flags:
            if stop is not None:
                flag.copy_(torch.maximum(flag, stop))
            self._skipped = self._skipped + flag.detach().clone()
        self._scaler.step(optimizer)
        self._scaler.update()


def _cancellable_step(optimizer: Any, stop: Tensor) -> None:
    """Update by a fused optimizer, unless `stop` is 1.

    The two attributes are those that torch's own GradScaler sets on a fused optimizer; its kernels
    read them. Errors: UserError for an optimizer whose kernels do not.
    """
    if not all(group.get("fused") for group in optimizer.param_groups):
        raise UserError(
            f"{type(optimizer).__name__} cannot cancel an update; build it with fused=True"
        )
    optimizer.grad_scale = None
    optimizer.found_inf = stop
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale
        del optimizer.found_inf
