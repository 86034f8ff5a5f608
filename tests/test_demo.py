"""The demo's own parts: the network, its traffic, its pages. The whole play is `make demo`."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from agent.intake.oip import parse_request
from agent.intake.tensors import TensorSpec
from deploy.demo import cnn, review, traffic
from deploy.demo.acts import Director
from deploy.demo.stage import Stage
from deploy.demo.view import Layer, LiveView, PlainView, Story, sparkline, view_for
from deploy.demo.watch import Found, Seen, Watcher, metric_sums, parse_check
from deploy.local.broker import Broker

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def digits() -> cnn.Digits:
    return cnn.load(seed=0)


@pytest.fixture(scope="module")
def weights(digits: cnn.Digits) -> cnn.Weights:
    return cnn.train(digits, seed=0)


def answers(model: onnx.ModelProto, pictures: cnn.Array) -> cnn.Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: cnn.Array = session.run(["logits"], {"image": pictures})[0]
    return result


def test_gradients_agree_with_finite_differences(digits: cnn.Digits) -> None:
    pictures, labels = digits.train[:8].astype(np.float64), digits.train_labels[:8]
    weights: cnn.Weights = {
        name: value.astype(np.float64) for name, value in cnn.initial(digits.train[:64], seed=3).items()
    }

    def loss(at: cnn.Weights) -> float:
        logits = cnn.forward(at, pictures)["logits"]
        logits = logits - logits.max(axis=1, keepdims=True)
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), labels]).mean())

    step, rng = 1e-6, np.random.default_rng(0)
    for name, gradient in cnn.gradients(weights, pictures, labels).items():
        index = tuple(int(rng.integers(size)) for size in gradient.shape)
        sides = []
        for sign in (1, -1):
            moved = {key: value.copy() for key, value in weights.items()}
            moved[name][index] += sign * step
            sides.append(loss(moved))
        assert gradient[index] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-5), name


@pytest.mark.parametrize("seed", [0, 1])
def test_training_takes_seconds_and_reaches_the_accuracy(seed: int) -> None:
    digits, begun = cnn.load(seed), time.process_time()
    weights = cnn.train(digits, seed)
    assert time.process_time() - begun < 20
    assert cnn.accuracy(weights, digits.held_out, digits.held_out_labels) >= 0.95
    convolutions = cnn.forward(weights, digits.held_out)
    for layer in ("conv1_relu", "conv2_relu"):
        assert (convolutions[layer] > 0).any(axis=(0, 2, 3)).all(), "healthy weights have no dead channel"


def test_exported_model_agrees_with_numpy(digits: cnn.Digits, weights: cnn.Weights) -> None:
    model = cnn.to_onnx(weights)
    expected = cnn.forward(weights, digits.held_out)["logits"]
    np.testing.assert_allclose(answers(model, digits.held_out), expected, rtol=1e-4, atol=1e-4)
    assert [node.name for node in model.graph.node if node.op_type == "Relu"] == [
        "conv1_relu",
        "conv2_relu",
        "fc1_relu",
    ]


def test_version_2_has_the_dead_channels_and_nothing_else_changed(digits: cnn.Digits, weights: cnn.Weights) -> None:
    before = {name: value.copy() for name, value in weights.items()}
    broken, channels = cnn.with_dead_channels(weights)
    assert len(channels) == cnn.CONV2 // 2
    for name, value in broken.items():
        np.testing.assert_array_equal(weights[name], before[name])
        same = value == weights[name]
        if name == "conv2.bias":
            assert np.flatnonzero(~same).tolist() == list(channels)
        else:
            assert same.all(), name
    healthy, dead = cnn.forward(weights, digits.held_out), cnn.forward(broken, digits.held_out)
    assert not dead["conv2_relu"][:, list(channels)].any()
    others = [channel for channel in range(cnn.CONV2) if channel not in channels]
    np.testing.assert_array_equal(dead["conv2_relu"][:, others], healthy["conv2_relu"][:, others])
    # Not even a white picture wakes them.
    assert not cnn.forward(broken, np.ones((1, 1, 8, 8), np.float32))["conv2_relu"][:, list(channels)].any()


def test_deploy_puts_whole_versions_into_the_repository(tmp_path: Path, weights: cnn.Weights) -> None:
    path = cnn.deploy(cnn.to_onnx(weights), tmp_path, "digits", 1)
    assert path == tmp_path / "digits" / "1" / "model.onnx"
    assert [entry.name for entry in (tmp_path / "digits").iterdir()] == ["1"]
    onnx.checker.check_model(onnx.load(path))


def test_shifted_camera_is_darker_and_less_sharp(digits: cnn.Digits) -> None:
    rng = np.random.default_rng(0)
    healthy, shifted = (camera(digits.held_out, rng) for camera in (traffic.healthy_camera, traffic.shifted_camera))
    assert shifted.shape == healthy.shape
    assert shifted.dtype == healthy.dtype == np.float32
    assert shifted.mean() < 0.55 * healthy.mean()
    assert np.abs(np.diff(shifted, axis=3)).mean() < 0.4 * np.abs(np.diff(healthy, axis=3)).mean()


def test_requests_are_what_the_agent_understands(digits: cnn.Digits) -> None:
    body, headers = traffic.encode(digits.held_out[:1], "r-1")
    spec = TensorSpec("image", "FP32", (-1, 1, 8, 8))
    parsed = parse_request(body, int(headers["Inference-Header-Content-Length"]), [spec])
    assert parsed.id == "r-1"
    np.testing.assert_array_equal(parsed.inputs["image"], digits.held_out[:1])


class _Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(type(self).status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    _Server.status = 200
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def test_player_keeps_its_rate_and_counts_failures(server: str, digits: cnn.Digits) -> None:
    player = traffic.Player(server, "digits", digits.held_out, rate=100, seed=0)
    player.start()
    time.sleep(1.0)
    assert 60 <= player.sent <= 110
    assert player.rate() == pytest.approx(100, rel=0.35)
    assert player.failed == 0
    _Server.status = 503
    time.sleep(0.3)
    player.stop()
    assert player.failed > 0
    assert player.last_failure.startswith("503")


def test_metric_sums_adds_series() -> None:
    text = '# HELP a_total x\na_total{reason="x"} 2.0\na_total{reason="y"} 3\nb 1e3\n'
    assert metric_sums(text) == {"a_total": 5.0, "b": 1000.0}


RAW_CHECK = {
    "id": 7,
    "model": "digits",
    "version": "2",
    "status": "findings",
    "note": "",
    "n": 400,
    "window_end": "2026-01-01T00:00:05+00:00",
    "layers": {"conv2_relu": {"newly_dead": 8, "channels": 16}},
    "findings": [
        {
            "layer": "conv2_relu",
            "kind": "activation",
            "test": "dead",
            "cause": "dead_neurons",
            "origin": True,
            "channels": [0, 2],
            "summary": "2 of 16 channels died",
            "alert": "ReluscopeDeadNeurons",
            "severity": "critical",
        }
    ],
}


def test_checks_are_read_from_the_findings_api() -> None:
    check = parse_check(json.loads(json.dumps(RAW_CHECK)))
    assert check.window_end == datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert check.findings[0].channels == (0, 2)
    assert parse_check({**RAW_CHECK, "window_end": None}).window_end is None


def story() -> Story:
    told = Story(started=time.monotonic() - 60)
    told.pipeline |= {"requests/s": "150", "answer p99": "2.0 ms"}
    layer = Layer("conv2_relu", "activation", 16)
    layer.sparsity.extend([0.3, 0.9])
    told.layers["conv2_relu"] = layer
    told.say("finding", "finding [origin]: 8 of 16 channels died")
    return told


def test_plain_view_prints_each_event_once() -> None:
    out = io.StringIO()
    console = Console(file=out, width=60)
    view, told = view_for(console), story()
    assert isinstance(view, PlainView)
    with view:
        view.show(told)
        view.show(told)
    text = out.getvalue()
    assert text.count("finding [origin]: 8 of 16 channels died") == 1
    assert text.count("requests/s 150, answer p99 2.0 ms; sparsity: conv2_relu 90%") == 1
    assert "\x1b" not in text


def test_live_view_draws_the_page() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, height=40, force_terminal=True, color_system=None)
    view = view_for(console)
    assert isinstance(view, LiveView)
    with view:
        view.show(story())
    for expected in ("conv2_relu", "90%", "150", "finding [origin]: 8 of 16 channels died"):
        assert expected in out.getvalue()


def test_sparkline_takes_the_ends_of_its_range() -> None:
    assert sparkline(story().layers["conv2_relu"].sparsity) == "▃█"


def test_answers_are_laid_out_like_psql() -> None:
    assert review.answer(["layer", "dead"], [("conv2[relu]", [0, 2]), ("fc1", None)]) == [
        "layer       | dead",
        "------------+-----",
        "conv2[relu] | 0, 2",
        "fc1         |",
        "(2 rows)",
    ]


START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class _Script:
    """Stands for the Watcher: each poll gives the next list of checks."""

    polls: list[list[Seen]]
    version: str = "1"
    shown: list[str] = field(default_factory=list)

    def poll(self, story: Story) -> list[Seen]:
        return self.polls.pop(0) if self.polls else []

    def runbook_url(self, alert: str) -> str:
        return f"http://detector/runbooks/{alert}/v1"


def seen(identity: int, seconds: float, *findings: Found, version: str = "1") -> Seen:
    status = "findings" if findings else "ok"
    return Seen(identity, version, status, "", 400, START + timedelta(seconds=seconds), {}, findings)


def found(layer: str, kind: str, test: str, cause: str, origin: bool, channels: tuple[int, ...] = (0,)) -> Found:
    return Found(layer, kind, test, cause, origin, channels, f"{layer} {test}", "ReluscopeInputShift", "warning")


SHIFT = found("image", "input", "drift", "input_shift", True)
DEAD = found("conv2_relu", "activation", "dead", "dead_neurons", True, (0, 2, 4))


def director(tmp_path: Path, polls: list[list[Seen]], monkeypatch: pytest.MonkeyPatch) -> Director:
    monkeypatch.setattr("deploy.demo.acts.POLL_SECONDS", 0.0)
    monkeypatch.setattr("deploy.demo.acts.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("deploy.demo.acts.REFERENCE_TIMEOUT", 0.2)
    monkeypatch.setattr("deploy.demo.acts.WINDOW_SECONDS", 0.25)
    monkeypatch.setattr(Director, "_next_window", lambda self: None)  # it would poll, too
    stage = Stage(tmp_path, tmp_path / "models", "", Broker("x"), "", "")
    player = traffic.Player("http://127.0.0.1:9", "digits", np.zeros((1, 1, 8, 8), np.float32), 1, 0)
    player.stop()
    monkeypatch.setattr(player, "start", lambda: None)
    watcher: Watcher = _Script(polls)  # type: ignore[assignment]
    view = PlainView(Console(file=io.StringIO()))
    return Director(stage, player, watcher, Story(time.monotonic()), view, now=lambda: START)


def test_act_1_passes_on_silence_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [[seen(i, 5.0 * i)] for i in range(1, 6)]
    outcome = director(tmp_path, silent, monkeypatch).healthy()
    assert (outcome.problems, outcome.windows, outcome.checks) == ([], 4, 4)
    loud = director(tmp_path, [[seen(1, 5)], [seen(2, 10, SHIFT)]], monkeypatch).healthy()
    assert loud.problems == ["act 1 must be silent, but: image drift"]
    assert "only 0 windows" in director(tmp_path, [], monkeypatch).healthy().problems[0]


def test_act_2_wants_the_input_as_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polls = [[seen(1, -1, DEAD)], [seen(2, 3)], [seen(3, 0.6, SHIFT)]]
    outcome = director(tmp_path, polls, monkeypatch).shifted()
    assert (outcome.problems, outcome.windows, outcome.found) == ([], 3, "image drift")
    wrong = director(tmp_path, [[seen(1, 0.2, DEAD)]], monkeypatch).shifted()
    assert (
        "input_shift was expected, the first findings were: conv2_relu: dead, dead_neurons, origin" in wrong.problems[0]
    )
    assert "nothing was found" in director(tmp_path, [], monkeypatch).shifted().problems[0]


@pytest.mark.parametrize(
    ("findings", "passes"),
    [
        ((DEAD,), True),
        ((DEAD, SHIFT), False),
        ((SHIFT,), False),
        ((found("conv2_relu", "activation", "dead", "dead_neurons", True, (0, 2)),), False),
        ((found("fc1_relu", "activation", "dead", "dead_neurons", True, (0, 2, 4)),), False),
    ],
)
def test_act_3_wants_the_dead_channels_of_conv2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: cnn.Weights,
    findings: tuple[Found, ...],
    passes: bool,
) -> None:
    polls = [[seen(1, 0.2, SHIFT)], [seen(2, 0.2, *findings, version="2")]]
    lead = director(tmp_path, polls, monkeypatch)
    outcome = lead.dead(cnn.to_onnx(weights), (0, 2, 4))
    assert (not outcome.problems) == passes, outcome.problems
    assert lead.watcher.version == "2"
