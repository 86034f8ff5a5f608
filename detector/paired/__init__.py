"""Verdicts from paired replay: the same requests on the served model and on a baseline."""

from detector.domain.settings import PairedSettings
from detector.paired.check import ComparisonStore, extended

__all__ = ["ComparisonStore", "PairedSettings", "extended"]
