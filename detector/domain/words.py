"""Numbers in words, the same in all sentences."""

from __future__ import annotations


def percent(share: float) -> str:
    """0.31 as "31 %", with a digit more where it is small."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def p_text(p: float) -> str:
    """A p-value for people; what underflows is given as a bound."""
    return f"p = {p:.1e}" if p > 1e-300 else "p < 1e-300"
