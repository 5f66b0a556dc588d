"""Numbers as people read them: scores, counts, sizes, durations, intervals."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 3) -> str:
    """A score or a loss: `digits` significant ones from 1 on (30.3, 1,204), as many decimals below 1."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size and size < 0.1 ** (digits - 1):
        return f"{value:.{digits}g}".replace("-", "−", 1) if value < 0 else f"{value:.{digits}g}"
    return _fixed(value, digits if size < 1 else max(0, digits - 1 - int(math.log10(size))))


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, `digits` decimals: +0.53, −0.14."""
    return ("+" if value >= 0 else "") + _fixed(value, digits)


def count(value: int) -> str:
    """A whole number with its thousands: 18,412."""
    return f"{value:,}"


def millions(value: int) -> str:
    """A number of parameters: 6.2 M, 1.5 B, below a million in full."""
    if value < 1_000_000:
        return count(value)
    return f"{value / 1e9:.1f} B" if value >= 1_000_000_000 else f"{value / 1e6:.1f} M"


def gib(num_bytes: float) -> str:
    """An amount of memory or disk: 1.2 GiB; what is under 0.1 GiB in MiB or KiB."""
    if num_bytes >= 0.1 * 2**30:
        return f"{num_bytes / 2**30:,.1f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 0.1 * 2**20 else f"{num_bytes / 2**10:.1f} KiB"


def duration(seconds: float) -> str:
    """A time: 5 ms, 0.4 s, 14 s, 2 min 40 s, 1 h 2 min, 3 days 2 h."""
    if seconds < 0.95:
        return f"{seconds * 1000:.0f} ms" if seconds < 0.095 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, inner_size, inner in ((86_400, "days", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            many, rest = divmod(whole, size)
            name = "day" if unit == "days" and many == 1 else unit
            return f"{many} {name}" + (f" {rest // inner_size} {inner}" if rest // inner_size else "")
    return f"{whole} s"


def interval(value: float, low: float, high: float) -> str:
    """A value with its interval, all three with the same decimals: 0.78 [0.69, 0.86]."""
    decimals = _shared_decimals(value, low, high)
    return f"{_fixed(value, decimals)} [{_fixed(low, decimals)}, {_fixed(high, decimals)}]"


def _shared_decimals(*values: float) -> int:
    largest = max((abs(value) for value in values if math.isfinite(value)), default=1.0)
    if largest >= 0.01:
        return max(0, 2 - max(0, int(math.log10(largest)))) if largest >= 1 else 2
    return min(8, 1 - math.floor(math.log10(largest))) if largest else 2


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.,") else "−" + text[1:]
    return text
