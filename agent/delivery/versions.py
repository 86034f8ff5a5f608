"""Whose windows and comparisons they are."""

from __future__ import annotations

Version = tuple[str, str, str]
"""Model, version, digest of the model file."""
