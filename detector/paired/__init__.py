"""Verdicts from paired replay: the same requests on the served model and on a baseline."""

from detector.paired.check import ComparisonStore, extended
from detector.paired.groups import PairedSettings

__all__ = ["ComparisonStore", "PairedSettings", "extended"]
