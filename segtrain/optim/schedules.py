"""Learning-rate schedules: pure functions of the step, evaluated every iteration, not every epoch.

`schedule(step)` is the factor in [0, 1] on each group's own learning rate for the update number
`step`, counted from 0 to `steps - 1`; from `steps` on it stays as it is. Without state there is
nothing to save and nothing to resume wrongly. Warm-up multiplies the curve by a line from
`warmup_factor` at step 0 to 1 at step `warmup`, the same in all of them; the factor 1/1000 is
detectron2's default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from segtrain.errors import UserError


@dataclass(frozen=True)
class Poly:
    """Fall as end + (1 - end) * (1 - step / steps) ** power.

    ParseNet, DeepLabv2 and later, PSPNet and EncNet use power 0.9. `hold` updates in a row have the
    factor of the first of them (kazuto1011's deeplab-pytorch: 10).
    """

    steps: int
    power: float = 0.9
    end: float = 0.0  # factor at the last step
    warmup: int = 0  # updates
    warmup_factor: float = 0.001
    hold: int = 1  # updates

    def __post_init__(self) -> None:
        """Refuse values that cannot work. Errors: UserError."""
        _check(self.steps, self.warmup, self.warmup_factor)
        _require(self.power > 0, "power", self.power, "above 0")
        _require(self.hold >= 1, "hold", self.hold, "1 or more updates")
        _require(0 <= self.end <= 1, "end", self.end, "in [0, 1]")

    def __call__(self, step: int) -> float:
        """Return the factor at `step`."""
        left = 1 - min(step - step % self.hold, self.steps) / self.steps
        curve = self.end + (1 - self.end) * left**self.power
        return _warmup_share(step, self.warmup, self.warmup_factor) * curve


@dataclass(frozen=True)
class Step:
    """Fall to gamma ** (milestones passed) (DeepLabv1, DeconvNet, Mask R-CNN, PANet: gamma 0.1).

    Milestones are fractions of the run, so that a shorter run keeps the shape; each is rounded to
    the nearest step, which is the first one at the lower learning rate.
    """

    steps: int
    milestones: list[float]
    gamma: float = 0.1
    warmup: int = 0  # updates
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        """Refuse values that cannot work. Errors: UserError."""
        _check(self.steps, self.warmup, self.warmup_factor)
        _require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        fractions = all(0 < milestone <= 1 for milestone in self.milestones)
        wanted = "fractions of the run, above 0 and up to 1"
        _require(fractions, "milestones", self.milestones, wanted)

    def __call__(self, step: int) -> float:
        """Return the factor at `step`."""
        passed = sum(step >= round(milestone * self.steps) for milestone in self.milestones)
        return _warmup_share(step, self.warmup, self.warmup_factor) * self.gamma**passed


@dataclass(frozen=True)
class Cosine:
    """Fall as end + (1 - end) * (1 + cos(pi * step / steps)) / 2.

    That is one cycle of SGDR (Loshchilov and Hutter 2017, equation 5).
    """

    steps: int
    end: float = 0.0  # factor at the last step
    warmup: int = 0  # updates
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        """Refuse values that cannot work. Errors: UserError."""
        _check(self.steps, self.warmup, self.warmup_factor)
        _require(0 <= self.end <= 1, "end", self.end, "in [0, 1]")

    def __call__(self, step: int) -> float:
        """Return the factor at `step`."""
        wave = (1 + math.cos(math.pi * min(step, self.steps) / self.steps)) / 2
        curve = self.end + (1 - self.end) * wave
        return _warmup_share(step, self.warmup, self.warmup_factor) * curve


@dataclass(frozen=True)
class Constant:
    """Stay at 1 (FCN)."""

    steps: int
    warmup: int = 0  # updates
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        """Refuse values that cannot work. Errors: UserError."""
        _check(self.steps, self.warmup, self.warmup_factor)

    def __call__(self, step: int) -> float:
        """Return the factor at `step`."""
        return _warmup_share(step, self.warmup, self.warmup_factor)


def _warmup_share(step: int, warmup: int, factor: float) -> float:
    """Return what warm-up leaves of the factor at `step`: a line from `factor` to 1."""
    return 1.0 if step >= warmup else factor + (1 - factor) * step / warmup


def _check(steps: int, warmup: int, warmup_factor: float) -> None:
    """Refuse values that no schedule can work with. Errors: UserError."""
    _require(steps >= 1, "steps", steps, "1 or more")
    _require(warmup >= 0, "warmup", warmup, "0 or more updates")
    _require(0 <= warmup_factor <= 1, "warmup_factor", warmup_factor, "in [0, 1]")


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    """Refuse an argument by the name of its setting. Errors: UserError."""
    if not good:
        raise UserError(f"schedule.{name}={value} cannot work; it must be {wanted}")
