"""Kafka: the detector's only use of it."""

from detector.transport.consumer import Consumer, Handler
from detector.transport.letters import ApiVersion, DeadLetters, Letter

__all__ = ["ApiVersion", "Consumer", "DeadLetters", "Handler", "Letter"]
