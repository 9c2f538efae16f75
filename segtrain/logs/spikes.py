"""Tell which numbers of a training lie far above what was usual. Nothing here changes them."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

# All chosen by hand. Six median absolute deviations are four standard deviations of normal noise,
# which one number in 30,000 lies above; three times the median is what a curve shows at a glance.
WINDOW = 100  # the newest numbers, of which the median is what was usual
ENOUGH = 20  # so many of them, before anything is told
TIMES = 3.0  # a spike is above this times the median,
DEVIATIONS = 6.0  # and above the median by so many median absolute deviations


class Usual:
    """Remember the newest numbers of one kind."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=WINDOW)

    def before(self, value: float) -> float | None:
        """Return the median before a `value` that lies far above it, None for any other value.

        The value is remembered, unless it is not finite: a new level is a spike until half of the
        numbers that are remembered lie there.
        """
        if not math.isfinite(value):
            return None
        usual = median(self._newest) if len(self._newest) >= ENOUGH else math.inf
        far = value > usual and value - usual > (TIMES - 1) * abs(usual)
        if far:
            spread = median(abs(each - usual) for each in self._newest)
            far = value - usual > DEVIATIONS * spread
        self._newest.append(value)
        return usual if far else None
