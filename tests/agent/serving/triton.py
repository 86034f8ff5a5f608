"""A model server in name: answers over real HTTP what Triton and KServe answer, byte by byte."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

INDEX = (
    b'[{"name":"cold"},{"name":"digits","version":"1","state":"READY"},'
    b'{"name":"digits","version":"2","state":"READY"},'
    b'{"name":"digits","version":"3","state":"UNAVAILABLE","reason":"unloaded"},'
    b'{"name":"broken","version":"1","state":"UNAVAILABLE","reason":"failed to load"}]'
)
"""As Triton writes it: no blanks, and a model that was never loaded without version and state."""
METADATA = (
    b'{"name":"digits","versions":["1","2","3"],"platform":"onnxruntime_onnx","inputs":[{"name":"image",'
    b'"datatype":"FP32","shape":[-1,1,8,8]}],"outputs":[{"name":"p","datatype":"FP32","shape":[-1,3]}]}'
)
UNKNOWN = b'{"error":"Request for unknown model: \'cold\' is not found"}'


class FakeServer:
    """What it answers is in `answers`: by method and path, a status and a body. Nothing else is found."""

    def __init__(self, port: int = 0) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[tuple[str, bytes]] = []
        self.delay = 0.0
        """Seconds before an answer."""
        self.drip = 0.0
        """Seconds between the bytes of an answer."""
        self.port = port

    def has_index(self, body: bytes = INDEX) -> None:
        self.answers["POST /v2/repository/index"] = 200, body

    def has_no_index(self, ready: dict[str, int]) -> None:
        self.answers = {"GET /v2/models/digits": (200, METADATA), "GET /v2/models/cold": (400, UNKNOWN)}
        for version, status in ready.items():
            self.answers[f"GET /v2/models/digits/versions/{version}/ready"] = status, b""

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its URL, while it runs."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                fake.asked.append((f"{self.command} {self.path}", self.rfile.read(length)))
                time.sleep(fake.delay)
                status, body = fake.answers.get(f"{self.command} {self.path}", (404, b'{"error":"Not Found"}'))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    for byte in (body[place : place + 1] for place in range(len(body))) if fake.drip else [body]:
                        self.wfile.write(byte)
                        time.sleep(fake.drip)
                except OSError:
                    return  # the agent did not wait

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            self.port = int(server.server_address[1])
            yield f"http://127.0.0.1:{self.port}"
        finally:
            server.shutdown()
            thread.join(10)
            server.server_close()
