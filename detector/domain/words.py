"""Numbers in words, the same in all sentences and tables."""

from __future__ import annotations

import math

NOTHING = "–"
"""In place of a number that there is not."""


def percent(share: float | None) -> str:
    """0.314 as "31.4 %"; a dash where there is no number.

    To a tenth, with as many digits more as it takes to tell a share from none and from all.
    """
    return NOTHING if share is None or not math.isfinite(share) else f"{points(share)} %"


def points(share: float) -> str:
    """`percent` without the sign."""
    shown = round(100 * share, 9)
    rest = min(abs(shown), abs(100 - shown))
    digits = 1 if rest >= 0.1 or rest == 0 else math.ceil(-math.log10(rest))
    text = f"{shown:.{digits}f}"
    return text.rstrip("0").rstrip(".")


def p_text(p: float) -> str:
    """A p-value for people; what underflows is given as a bound."""
    return f"p = {p:.1e}" if p > 1e-300 else "p < 1e-300"
