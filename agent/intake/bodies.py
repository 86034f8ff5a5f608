"""Receiving a body within bounds, and what its headers say of it. Nothing is parsed or decompressed here."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from agent.intake.tensors import OipError
from agent.intake.unpacking import Limits


class NotReceived(HTTPException):
    """A message is lost without its content's fault; ``reason`` is one of `agent.metrics.DROP_REASONS`."""

    def __init__(self, status: int, detail: str, reason: str) -> None:
        super().__init__(status, detail)
        self.reason = reason


class Bodies:
    """Receives bodies, and knows how many bytes of all of them are being received now. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._receiving = 0

    async def receive(self, request: Request) -> bytes:
        """The body. Holds no more than its limit, and with all other bodies no more than theirs.

        Raises:
            OipError: "too_large", before anything is read where the client gives the length.
            NotReceived: 408, 499 or 503.
        """
        limit = self._limits.max_body_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise OipError("too_large", f"the body has {announced} bytes, more than {limit}")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.max_receive_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    self._receiving += len(chunk)
                    if size > limit:
                        raise OipError("too_large", f"the body has more than {limit} bytes")
                    if self._receiving > self._limits.max_receiving_bytes:
                        raise NotReceived(503, "too many bytes are being received", "inflight_bytes")
                    chunks.append(chunk)
        except TimeoutError as error:
            raise NotReceived(408, "the body did not come in time", "slow_body") from error
        except ClientDisconnect as error:
            raise NotReceived(499, "the client has gone", "disconnected") from error
        finally:
            self._receiving -= size
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def header_length_of(request: Request) -> int | None:
    """Length of the body's JSON part, where the client says it; raises OipError where that is no length."""
    text = request.headers.get("inference-header-content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise OipError("bad_header", "Inference-Header-Content-Length is no length")
    return int(text)


def encoding_of(request: Request) -> str | None:
    """The Content-Encoding, None where the body is as it is; raises OipError for one that nothing here unpacks."""
    text = request.headers.get("content-encoding", "identity").lower()
    if text not in ("identity", "gzip", "deflate"):
        raise OipError("bad_encoding", "the Content-Encoding is not supported, only gzip and deflate")
    return None if text == "identity" else text
