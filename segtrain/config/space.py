"""What a search may set a setting to, written as Hydra's Optuna sweeper has it. No torch.

`interval(a,b)` is every number from a to b, as likely at one place as at another;
`tag(log, interval(a,b))` draws the exponent so, as fits a learning rate. Where a setting takes
whole numbers only, and as `int(interval(a,b))`, it is the whole numbers from a to b.
`range(a,b,step)` is that of Python, in which b is missing. `choice(a,b,c)`, `a,b,c` and `glob(a*)`
are texts without an order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from segtrain.config import settings
from segtrain.config.settings import Setting
from segtrain.errors import UserError

# Of a number that is drawn, as many digits as tell anything: they stand in the name of a folder.
DRAWN_DIGITS = 6
# A number of a range is a multiple of its step: digits beyond these come of adding floats.
DIGITS = 12
_CALL = re.compile(r"(tag|int|float|sort|shuffle|interval|range)\(.*\)", re.DOTALL)


class Numbers(NamedTuple):
    """The numbers from `low` to `high`, both included."""

    low: float
    high: float
    step: float | None = None  # between two of them; None: any number
    log: bool = False  # the exponent is drawn, not the number
    whole: bool = False

    def text(self, value: float) -> str:
        """Return one of the numbers as it would be typed."""
        if self.whole:
            return str(int(value))
        return repr(_rounded(value, DRAWN_DIGITS if self.step is None else DIGITS))

    @property
    def ends(self) -> list[str]:
        """The texts of the least and the greatest."""
        return [str(int(end)) if self.whole else repr(end) for end in (self.low, self.high)]


class Texts(NamedTuple):
    """Values without an order."""

    ends: list[str]


Parameter = Numbers | Texts


def _rounded(value: float, digits: int = DIGITS) -> float:
    return float(f"{value:.{digits}g}")


def parameter(setting: Setting, names: list[str], hint: Any) -> Parameter | None:
    """Return what a setting of a search may be, None where it is one value.

    `names` are those that a glob chooses from, `hint` is the annotation of the setting. Errors:
    UserError naming the setting.
    """
    sweep = _parsed(setting.text) if _CALL.fullmatch(setting.text) else None
    if sweep is None:
        texts = settings.several(setting, names)
        if not texts or not all(texts):
            raise UserError(f"{setting.word}: a value between its commas is missing")
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise UserError(f"{setting.word}: {twice} stands there twice")
        return Texts(texts) if len(texts) > 1 else None
    integral = settings.options(hint)
    return _numbers(setting, sweep, int in integral and float not in integral)


class _Sweep(NamedTuple):
    """Numbers as Hydra's grammar reads them."""

    start: float
    stop: float
    values: Sequence[float] | None  # those of a range
    tags: frozenset[str]


def _parsed(text: str) -> _Sweep | None:
    """Return numbers of a text that is an interval or a range, None where it is neither."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    try:
        sweep = OverridesParser.create().parse_override(f"value={text}").value()
    except HydraException:
        return None  # `settings.several` names what is wrong with it
    if not isinstance(sweep, IntervalSweep | RangeSweep):
        return None
    tags = frozenset(map(str, sweep.tags))
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        return _Sweep(sweep.start, sweep.end, None, tags)
    numbers = sweep.range()
    values: list[float] = []
    for value in numbers:
        values.append(value)
        if len(values) > settings.MAX_RUNS:
            return None  # `settings.several` says that these are too many
    return _Sweep(values[0], values[-1], values, tags) if values else None


def _numbers(setting: Setting, sweep: _Sweep, integral: bool) -> Numbers:
    """Return numbers that a search can draw from. Errors: UserError."""
    word = setting.word
    if others := sweep.tags - {"log"}:
        raise UserError(
            f"{word}: the tag `{min(others)}` says nothing here; there is tag(log, ...)"
        )
    log = "log" in sweep.tags
    if sweep.values is not None:
        if log:
            raise UserError(f"{word}: a range has a step; write tag(log, interval(a,b))")
        if len(sweep.values) == 1:
            raise UserError(f"{word}: is one value, {sweep.values[0]}; write that")
        whole = all(type(value) is int for value in sweep.values)
        low, high, step = map(
            _rounded,
            (min(sweep.values), max(sweep.values), abs(sweep.values[1] - sweep.values[0])),
        )
        return Numbers(low, high, step, whole=whole)
    if not (math.isfinite(sweep.start) and math.isfinite(sweep.stop)):
        raise UserError(f"{word}: an interval ends at numbers")
    if not sweep.start < sweep.stop:
        raise UserError(f"{word}: an interval begins below its end; write interval(LOW,HIGH)")
    if log and sweep.start <= 0:
        raise UserError(f"{word}: tag(log, ...) needs ends above 0")
    if integral and not (sweep.start % 1 == sweep.stop % 1 == 0):
        raise UserError(f"{word}: {setting.key} takes whole numbers; let it end at such")
    whole = integral or type(sweep.start) is int  # of `int(interval(a,b))`
    step = 1 if whole and not log else None
    return Numbers(sweep.start, sweep.stop, step, log, whole)
