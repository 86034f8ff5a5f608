"""Production traffic for the demo: pictures from a camera, sent as Open Inference Protocol v2 requests."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Camera = Callable[[Array, np.random.Generator], Array]


def healthy_camera(pictures: Array, rng: np.random.Generator) -> Array:
    """The pictures as the model knows them, under slightly varying light."""
    light = rng.uniform(0.9, 1.0, (len(pictures), 1, 1, 1))
    return np.asarray(pictures * light, np.float32)


def shifted_camera(pictures: Array, rng: np.random.Generator) -> Array:
    """A lens out of focus at dusk: every pixel is the mean of its 3x3 neighbourhood, at half the light."""
    padded = np.pad(healthy_camera(pictures, rng), ((0, 0), (0, 0), (1, 1), (1, 1)))
    blurred = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3)).mean(axis=(4, 5))
    return np.asarray(0.5 * blurred, np.float32)


def encode(picture: Array, request_id: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of one infer request with a binary tensor; `picture` is (1,1,8,8)."""
    raw = np.ascontiguousarray(picture, dtype="<f4").tobytes()
    tensor = {
        "name": "image",
        "shape": list(picture.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"id": request_id, "inputs": [tensor]}).encode()
    return head + raw, {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
        "X-Request-Id": request_id,
    }


class Player:
    """Plays requests at a steady rate from a thread of its own, over one kept-alive connection.

    `camera` may be changed at any time. Answers other than 200 and broken connections are counted, never raised:
    the demo judges them at its end.
    """

    def __init__(self, url: str, model: str, pictures: Array, rate: float, seed: int) -> None:
        self.camera: Camera = healthy_camera
        self.sent = self.failed = 0
        self.last_failure = ""
        self._times: deque[float] = deque(maxlen=400)
        self._latencies: deque[float] = deque(maxlen=1000)
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = f"/v2/models/{model}/infer"
        self._pictures, self._interval = pictures, 1 / rate
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End after the request under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def rate(self) -> float:
        """Requests answered per second, over the last 400 or the last 2 s, whichever is shorter."""
        since = time.monotonic() - 2
        recent = [at for at in list(self._times) if at >= since]
        span = time.monotonic() - recent[0] if len(recent) > 1 else 0
        return len(recent) / span if span > 0 else 0.0

    def latency_ms(self, quantile: float) -> float:
        """A quantile of the last 1000 answers' times."""
        latest = list(self._latencies)
        return float(np.quantile(latest, quantile)) * 1e3 if latest else 0.0

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=5)
        due = time.monotonic()
        while not self._stop.is_set():
            # After a stall the schedule starts anew: catching up would be a burst that no camera makes.
            due = max(due + self._interval, time.monotonic() - 5 * self._interval)
            self._stop.wait(max(0.0, due - time.monotonic()))
            chosen = self._pictures[self._rng.integers(len(self._pictures), size=1)]
            body, headers = encode(self.camera(chosen, self._rng), f"demo-{self.sent + self.failed:08d}")
            begun = time.monotonic()
            try:
                connection.request("POST", self._path, body=body, headers=headers)
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._fail(f"{type(error).__name__}: {error}")
                self._stop.wait(0.2)
                continue
            if answer.status != 200:
                self._fail(f"{answer.status}: {text[:200].decode(errors='replace')}")
                continue
            self.sent += 1
            self._times.append(time.monotonic())
            self._latencies.append(time.monotonic() - begun)
        connection.close()

    def _fail(self, reason: str) -> None:
        self.failed += 1
        self.last_failure = reason
