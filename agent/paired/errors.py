"""The one error of paired replay."""

from __future__ import annotations

from typing import Literal

FailureReason = Literal[
    "baseline_unusable", "served_changed", "run_failed", "bad_response", "other_version", "holdout_unusable",
    "no_memory", "internal",
]  # fmt: skip
"""A metric label: bounded."""


class PairedError(RuntimeError):
    """A comparison that cannot be made, and why."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason: FailureReason = reason
