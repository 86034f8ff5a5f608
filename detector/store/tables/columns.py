"""Columns that several tables have."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    DateTime,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
)

metadata = MetaData()


def id_column() -> Column[int]:
    """A surrogate key that the database counts."""
    return Column("id", Integer, primary_key=True)


def time(name: str, *, null: bool = False, primary_key: bool = False) -> Column[Any]:
    """A moment, with its time zone."""
    return Column(name, DateTime(timezone=True), nullable=null, primary_key=primary_key)


def text(*names: str, null: bool = False) -> list[Column[str]]:
    """Columns of text."""
    return [Column(name, Text, nullable=null) for name in names]


def numbers(kind: Any, *names: str) -> list[Column[Any]]:
    """Columns of one type that are never null."""
    return [Column(name, kind, nullable=False) for name in names]


def summary_columns() -> list[Column[Any]]:
    """A summary of one layer: typed arrays by channel and a versioned sketch."""
    counts: list[Column[Any]] = [Column(name, ARRAY(BigInteger), nullable=False) for name in ("active", "nonfinite")]
    values: list[Column[Any]] = [
        Column(name, ARRAY(Double), nullable=False)
        for name in ("fraction_sum", "fraction_sq_sum", "mean", "m2", "min", "max")
    ]
    sketch: list[Column[Any]] = [
        Column("sketch", LargeBinary, nullable=False),
        Column("sketch_version", SmallInteger, nullable=False),
    ]
    return [Column("n", BigInteger, nullable=False), *counts, *values, *sketch]


def design_columns() -> list[Column[Any]]:
    """What a reference says of its layers' design effects; null where it says nothing."""
    return [
        Column("design_effect", ARRAY(Double)),
        Column("design_estimate", Double),
        Column("design_windows", Integer),
        Column("design_requests", Double),
        Column("sparsity_variance", Double),
        Column("sparsity_design", Double),
    ]
