"""Runs batches of sampled requests through models. The only package that knows onnxruntime."""

from __future__ import annotations

from agent.replay.errors import DeviceError, NoMemory, OutOfMemory, ReplayError
from agent.replay.full import FullSession
from agent.replay.providers import CPU, Device, Provider, resolve
from agent.replay.session import Port, Replayer
from agent.replay.types import output_types

__all__ = [
    "CPU",
    "Device",
    "DeviceError",
    "FullSession",
    "NoMemory",
    "OutOfMemory",
    "Port",
    "Provider",
    "ReplayError",
    "Replayer",
    "output_types",
    "resolve",
]
