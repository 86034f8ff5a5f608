"""What can go wrong in the store, in words that name neither a password nor a statement's parameters."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot do what was asked."""


class StoreUnavailable(StoreError):
    """Postgres is out of reach, restarting, out of space or gave way to another transaction: trying again may help."""


class StoreRefused(StoreError):
    """Postgres, or what it already holds, contradicts the data: trying the same again cannot help."""


class LostOwnership(StoreError):
    """Another process has moved the partition's offset: nothing was written; read the offsets again."""
