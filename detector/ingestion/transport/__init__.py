"""Kafka: the detector's only use of it."""

from detector.ingestion.transport.consumer import Consumer, Handler
from detector.ingestion.transport.letters import ApiVersion, DeadLetters, Letter, Unreachable, reach

__all__ = ["ApiVersion", "Consumer", "DeadLetters", "Handler", "Letter", "Unreachable", "reach"]
