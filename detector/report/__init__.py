"""The drift report: one self-contained HTML file about one model version."""

from detector.report.data import UnknownModel
from detector.report.page import build_report

__all__ = ["UnknownModel", "build_report"]
