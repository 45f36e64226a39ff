"""Numbers for people. A value that was not recorded is a dash, never a guess."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"
THIN = "\u202f"  # narrow no-break space: between a number and its unit, and between thousands


def number(value: Any) -> float | None:
    """Take a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def integer(value: Any) -> str:
    """Write a whole number, such as 12 345."""
    found = number(value)
    return NONE if found is None else f"{found:,.0f}".replace(",", THIN)


def decimal(value: Any, digits: int = 2) -> str:
    """Write a fixed number of decimals."""
    found = number(value)
    return NONE if found is None else f"{found:,.{digits}f}".replace(",", THIN)


def significant(value: Any, digits: int = 3) -> str:
    """Write so many digits that count, without an exponent where people can do without."""
    found = number(value)
    if found is None:
        return NONE
    if found == 0:
        return "0"
    if 1e-6 <= abs(found) < 1e6:
        decimals = max(digits - 1 - math.floor(math.log10(abs(found))), 0)
        return f"{found:.{decimals}f}".replace("-", "−")
    return f"{found:.{digits - 1}e}".replace("-", "−")


def size(value: Any) -> str:
    """Write bytes in kB, MB or GB (powers of ten, as on a disk's label)."""
    found = number(value)
    if found is None:
        return NONE
    for limit, unit, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if abs(found) >= limit:
            return f"{found / limit:.{digits}f}{THIN}{unit}"
    return f"{found:.0f}{THIN}bytes"


def share(value: Any, digits: int = 3) -> str:
    """Write a share as a percentage."""
    found = number(value)
    return NONE if found is None else f"{significant(100 * found, digits)}{THIN}%"


def limit(value: Any) -> str:
    """Write a share that a person chose, such as 2 % or 0.5 %, without zeros at its end."""
    found = number(value)
    return NONE if found is None else f"{100 * found:.4g}{THIN}%"


def rise(nats: Any, digits: int = 4) -> str:
    """Write a change of the perplexity as a signed percentage, from nats per token."""
    found = number(nats)
    if found is None:
        return NONE
    value = 100 * math.expm1(found)
    return f"{'+' if value > 0 else ''}{significant(value, digits)}{THIN}%"


def at_most(nats: Any) -> str:
    """Write a bound on the perplexity's change as a percentage, rounded towards the weaker claim, three digits."""
    found = number(nats)
    if found is None:
        return NONE
    return f"{rounded_up(100 * math.expm1(found))}{THIN}%"


def rounded_up(value: float, digits: int = 3) -> str:
    """Write the smallest number of so many digits that is not below the value."""
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    # rounded first, or 0.8 would become 0.801 for the sake of its last bit
    ceiling = math.ceil(round(value * 10.0**decimals, 6)) / 10.0**decimals
    return f"{ceiling:.{decimals}f}".replace("-", "−")


def duration(seconds: Any) -> str:
    """Write seconds, or minutes and seconds, or hours and minutes."""
    found = number(seconds)
    if found is None:
        return NONE
    if found < 60:
        return f"{found:.1f}{THIN}s"
    minutes, rest = divmod(round(found), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {rest}{THIN}s"
    return f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"


def count(amount: int, noun: str) -> str:
    """Write an amount, such as `1 site` or `3 sites`."""
    return f"{integer(amount)} {noun}{'' if amount == 1 else 's'}"
