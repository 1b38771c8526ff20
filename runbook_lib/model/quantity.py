"""A number and its unit as people read them: at most three significant digits, in the unit that fits."""

from __future__ import annotations

import math

#: The units of time, from the smallest: how many make one of the next, and from how many on the next is used.
_TIMES = {"ms": (1000, 999.5), "s": (60, 600), "min": (60, 120), "h": (24, 48), "d": (1, math.inf)}
#: Units of what is measured; all others are of what is counted.
_MEASURED = (*_TIMES, "%", "ratio")
_MOST, _LEAST = 9995, 0.001


def readable(value: float, unit: str = "") -> tuple[str, str]:
    """Return the number as text, and its unit: a share becomes per cent, a time the unit that fits.

    >>> readable(0.01043, "s"), readable(9000, "s"), readable(2.083e-05, "share"), readable(17955)
    (('10.4', 'ms'), ('2.5', 'h'), ('0.002', '%'), ('17,955', ''))
    """
    if unit == "share":
        value, unit = 100 * value, "%"
    if unit in _TIMES:
        value, unit = _scale_time(value, unit)
    size = abs(value)
    if size and size < _LEAST / 2:
        return "≈0", unit
    if unit in _MEASURED and size > _MOST:
        return (">9,990" if value > 0 else "<-9,990"), unit
    if unit == "%" and 99 <= value < 100:  # what is missing counts
        return f"{math.floor(value * 100 + 1e-6) / 100:g}", unit
    if unit in _MEASURED and size >= 1000:
        return f"{round(value, -1):,.0f}", unit
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value or 0.0:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text, unit


def _scale_time(value: float, unit: str) -> tuple[float, str]:
    names = list(_TIMES)
    n = names.index(unit)
    while n and 0 < abs(value) < 1:
        n -= 1
        value *= _TIMES[names[n]][0]
    while abs(value) >= _TIMES[names[n]][1] and n < len(names) - 1:
        value /= _TIMES[names[n]][0]
        n += 1
    return value, names[n]
