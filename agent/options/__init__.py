"""Options, each described once as a field of a settings class, and the settings that several commands share."""

from __future__ import annotations

from agent.options.generate import INTERNAL, KIB, MIB, SECTION, Option, options
from agent.options.shared import Kafka

__all__ = ["INTERNAL", "KIB", "MIB", "SECTION", "Kafka", "Option", "options"]
