"""The agent's own metrics: the only module of the agent that knows prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from agent.metrics.tally import Tally

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
DROP_REASONS = (
    "queue_full",
    "queue_share",
    "inflight_bytes",
    "slow_body",
    "disconnected",
    "model_not_ready",
    "model_gone",
    "no_memory",
    "internal",
)
"""Why a request that may have been sampled is lost without anybody's fault in its content."""
CLOSED_REASONS = ("too_many", "slow_request", "large_head", "not_http")
"""Why a connection of a client was closed."""
PAIRED_DROP_REASONS = (
    "rate",
    "queue_full",
    "queue_share",
    "model_gone",
    "join_full",
    "join_ids",
    "join_duplicate",
    "response_missing",
    "request_missing",
)
"""Why a request that was chosen for comparison, or a response, is not compared, without anybody's fault."""
WITHHELD_REASONS = ("stopping", "version_gone", "stale", "width_changed")
"""Why requests are never told of: still too few when the agent stops, when their version goes away, for longer than
--carry-seconds, or when the probe's width changes."""


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class AgentMetrics:
    """All series are named `reluscope_agent_*`; counters that have no labels, or known ones, start at 0."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry or CollectorRegistry()
        self.requests_total = self._counter("requests_total", "Requests that arrived for a known model.", "model")
        self.sampled_total = self._counter("sampled_total", "Requests that sampling chose, dropped or not.", "model")
        self.dropped_total = self._counter("dropped_total", "Requests lost for want of room or time.", "reason")
        self.connections_closed_total = self._counter(
            "connections_closed_total", "Connections closed for want of room, or for what came on them.", "reason"
        )
        self.rejected_total = self._counter("rejected_total", "Requests with bad content.", "model", "reason")
        self.replayed_total = self._counter("replayed_total", "Requests run through the model.", "model", "version")
        self.carried_requests_total = self._counter(
            "carried_requests_total",
            "Requests told of in a later window, for there were fewer than --min-group; counted once for each probe.",
            "model",
        )
        self.withheld_requests_total = self._counter(
            "withheld_requests_total",
            "Requests never told of, for there were fewer than --min-group; counted once for each probe.",
            "model",
            "reason",
        )
        self.replay_seconds = Histogram(
            "reluscope_agent_replay_seconds", "Time of one replayed batch.", buckets=_SECONDS, registry=self.registry
        )
        self.queue_bytes = self._gauge("queue_bytes", "Bytes of sampled requests that wait for replay.")
        self.outbox_messages = self._gauge("outbox_messages", "Messages on disk that the broker has not acknowledged.")
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes on disk that the broker has not acknowledged.")
        self.outbox_dropped_total = self._counter(
            "outbox_dropped_total", "Messages lost: outbox full, failing or damaged, or refused."
        )
        self.outbox_errors_total = self._counter(
            "outbox_errors_total", "Attempts to read or write the outbox that failed."
        )
        self.outbox_damaged_total = self._counter("outbox_damaged_total", "Damaged outbox files that were set aside.")
        self.published_total = self._counter(
            "published_total", "Messages that the broker has acknowledged, but for heartbeats."
        )
        self.publish_errors_total = self._counter("publish_errors_total", "Failed attempts to publish.")
        self.last_publish_timestamp_seconds = self._gauge(
            "last_publish_timestamp_seconds", "When the broker last acknowledged a message, Unix time; 0 for never."
        )
        self.duty_cycle = self._gauge("duty_cycle", "Share of the last ten seconds spent in work of all kinds.")
        self.effective_sample_ratio = self._gauge(
            "effective_sample_ratio", "Share of the last minute's requests that was replayed."
        )
        self.target_sample_ratio = self._gauge(
            "target_sample_ratio", "Share of requests that is sampled now; below --sample-rate where a budget demands."
        )
        self.model_info = self._gauge("model_info", "1 for each model version loaded.", "model", "version", "provider")
        self.capture_overhead_ratio = self._gauge(
            "capture_overhead_ratio",
            "Time of a replay over that of the plain model, timed at load; NaN untimed.",
            "model",
            "version",
        )
        self.probe_groups = self._gauge(
            "probe_groups", "Groups of probes that take turns, to keep the budget.", "model", "version"
        )
        self.absent_probes = self._gauge(
            "absent_probes", "Probes that batches lacked, for their rows were not the requests.", "model", "version"
        )
        self.probe_dropped_total = self._counter(
            "probe_dropped_total", "Requests that windows lack at one probe, summed over probes.", "model", "reason"
        )
        self.gpu_fallback = self._gauge(
            "gpu_fallback", "1 while replay is on the CPU for want of the GPU.", "model", "version"
        )
        self.out_of_memory_total = self._counter(
            "out_of_memory_total", "Batches that did not fit in memory.", "model", "version"
        )
        for reason in DROP_REASONS:
            self.dropped_total.labels(reason)
        for reason in CLOSED_REASONS:
            self.connections_closed_total.labels(reason)
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._add_budget()
        self._add_paired()

    def _add_budget(self) -> None:
        """Series of what the agent takes of its pod."""
        self.overflowed_total = self._counter(
            "overflowed_total", "Requests that the queue had no room for, or pushed out.", "model", "version"
        )
        self.model_sample_ratio = self._gauge(
            "model_sample_ratio", "Share of a version's requests that is sampled now.", "model", "version"
        )
        self.work_seconds_total = self._counter(
            "work_seconds_total",
            "Seconds of work: replay, paired, holdout, calibration, kinship.",
            "work",
            "model",
            "version",
        )
        self.work_deferred_total = self._counter(
            "work_deferred_total", "Times that work had to wait for its share of the duty cycle.", "work"
        )
        self.memory_bytes = self._gauge("memory_bytes", "Memory spoken for, gpu or ram.", "memory", "owner")
        self.memory_limit_bytes = self._gauge("memory_limit_bytes", "Memory that may be spoken for.", "memory")
        self.server_answers_total = self._counter(
            "server_answers_total", "Times that the model server was asked for its versions: ok, failed.", "result"
        )
        self.last_server_answer_timestamp_seconds = self._gauge(
            "last_server_answer_timestamp_seconds", "When the model server last said its versions, Unix time."
        )
        self.memory_refused_total = self._counter(
            "memory_refused_total", "Times that memory was refused.", "memory", "owner"
        )

    def _add_paired(self) -> None:
        """Series of paired replay."""
        self.responses_total = self._counter("responses_total", "Responses that arrived for a known model.", "model")
        self.paired_requests_total = self._counter(
            "paired_requests_total", "Requests compared with a baseline.", "model", "version", "kind"
        )
        self.paired_mismatched_total = self._counter(
            "paired_mismatched_total", "Compared requests with an output beyond tolerance.", "model", "version", "kind"
        )
        self.paired_dropped_total = self._counter(
            "paired_dropped_total", "Requests and responses that could not be compared for want of room.", "reason"
        )
        self.kinship_requests_total = self._counter(
            "kinship_requests_total", "Requests that a former version ran too.", "model", "version"
        )
        self.paired_failed_total = self._counter(
            "paired_failed_total", "Comparisons that failed, and why.", "model", "kind", "reason"
        )
        self.paired_unmatched_probes = self._gauge(
            "paired_unmatched_probes", "Probes without a counterpart in the baseline.", "model", "version", "kind"
        )
        self.paired_queue_bytes = self._gauge("paired_queue_bytes", "Bytes of requests that wait to be compared.")
        self.paired_join_bytes = self._gauge(
            "paired_join_bytes", "Bytes of requests and responses that wait for each other."
        )
        self.validation_accuracy = self._gauge(
            "validation_accuracy", "Share of the labelled holdout that the served model gets right.", "model", "version"
        )
        self.quantized_accuracy_delta = self._gauge(
            "quantized_accuracy_delta",
            "Accuracy on the labelled holdout: served model minus reference model.",
            "model",
            "version",
        )
        for reason in PAIRED_DROP_REASONS:
            self.paired_dropped_total.labels(reason)

    def arrived(self, key: tuple[str, str]) -> None:
        """A request for a model version has come: of its model, and of its heartbeats, as all that is counted here."""
        self.requests_total.labels(key[0]).inc()
        self.tally(*key).count("requests")

    def sampled(self, key: tuple[str, str]) -> None:
        """Sampling chose a request."""
        self.sampled_total.labels(key[0]).inc()
        self.tally(*key).count("sampled")

    def replayed(self, key: tuple[str, str], requests: int) -> None:
        """So many requests ran through the model."""
        self.replayed_total.labels(*key).inc(requests)
        self.tally(*key).count("replayed", requests)

    def rejected(self, key: tuple[str, str], reason: str) -> None:
        """A request's content is bad."""
        self.rejected_total.labels(key[0], reason).inc()
        self.tally(*key).count("rejected")

    def dropped(self, key: tuple[str, str], reason: str, requests: int = 1) -> None:
        """So many requests are lost, for one of `DROP_REASONS`."""
        self.dropped_total.labels(reason).inc(requests)
        self.tally(*key).count("dropped", requests)

    def tally(self, model: str, version: str) -> Tally:
        """The counts of a model version; one for each that was ever loaded here."""
        return self._tallies.setdefault((model, version), Tally())

    def start_model(self, model: str) -> None:
        """Let a model's request counters start at 0, so that the first increase is seen."""
        self.requests_total.labels(model)
        self.sampled_total.labels(model)
        self.responses_total.labels(model)
        self.carried_requests_total.labels(model)
        for reason in WITHHELD_REASONS:
            self.withheld_requests_total.labels(model, reason)

    def watch_duty(self, recent: Callable[[], float]) -> None:
        """Read duty_cycle from `recent() -> share` at each scrape."""
        self.duty_cycle.set_function(recent)

    def watch_memory(self, memory: str, limit: int, used: Callable[[str], int], owners: Iterable[str]) -> None:
        """Read memory_bytes of each owner from `used(owner)` at each scrape; refusals start at 0."""
        self.memory_limit_bytes.labels(memory).set(limit)
        for owner in owners:
            self.memory_bytes.labels(memory, owner).set_function(partial(_float, used, owner))
            self.memory_refused_total.labels(memory, owner)

    def watch_queue(self, depth: Callable[[], tuple[int, int]]) -> None:
        """Read queue_bytes from `depth() -> (items, bytes)` at each scrape."""
        self.queue_bytes.set_function(lambda: float(depth()[1]))

    def watch_outbox(self, depth: Callable[[], tuple[int, int]]) -> None:
        """Read outbox_messages and outbox_bytes from `depth() -> (count, bytes)` at each scrape."""
        self.outbox_messages.set_function(lambda: float(depth()[0]))
        self.outbox_bytes.set_function(lambda: float(depth()[1]))

    def render(self) -> bytes:
        """The text exposition, of type `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"reluscope_agent_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"reluscope_agent_{name}", text, labels, registry=self.registry)


def _float(used: Callable[[str], int], owner: str) -> float:
    return float(used(owner))
