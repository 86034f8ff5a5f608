"""Free TCP ports on loopback."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment of the call.

    Two calls in a row give different ports as a rule, for the kernel hands ephemeral ports out at random;
    a server that loses the race for its port fails to start with a clear message.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def accepts(host: str, port: int, timeout: float = 0.5) -> bool:
    """Whether somebody accepts TCP connections at this address."""
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False
