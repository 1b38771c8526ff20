"""The receiver's clock: waits and time windows do not change when the machine's clock is set."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """A clock that starts at the machine's time, in seconds since 1970, and then advances monotonically."""

    def __init__(
        self, wall: Callable[[], float] = lambda: time.time(), steady: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the clock. `wall` is the machine's clock, which can be set; `steady` is monotonic."""
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def now(self) -> float:
        """Return the present, for comparisons."""
        return self._offset + self._steady()

    def to_wall_clock(self, moment: float) -> float:
        """Return a moment of this clock in the machine's present time, for people."""
        return moment + round(self._wall() - self.now())  # whole seconds: the two clocks drift by less
