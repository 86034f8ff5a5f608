"""The gauges that are made from a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily

from detector.domain.finding import Agreement, Check
from detector.metrics.snapshot import Watched
from detector.statistics.dead import LABELS

DEAD = ("dead_at_reference", "newly_dead")
"""Labels that count as dead; a dormant channel still responds now and then."""


def check_metrics(live: Collection[Watched]) -> Iterator[GaugeMetricFamily]:
    """The gauges of the versions that are watched now."""
    model, layer = ("model", "version"), ("model", "version", "layer")
    finding = (*layer, "test", "cause")
    checked = [(watched, watched.check) for watched in live if watched.check is not None]
    found = [((w.model, w.version, f.layer, f.test, f.cause), f) for w, check in checked for f in check.findings]
    yield family(
        "reluscope_finding_channels",
        "Channels that the latest check reports, by layer, test and cause.",
        finding,
        ((key, float(len(f.channels))) for key, f in found),
    )
    yield family(
        "reluscope_finding_origin",
        "1 for the first layer, in graph order, where the change begins.",
        finding,
        ((key, 1.0) for key, f in found if f.origin),
    )
    for name, help_text, labels in (
        ("dead", "Share of a layer's channels that are dead, at the reference or newly.", DEAD),
        ("drifted", "Share of a layer's channels that drifted.", ("drifted",)),
    ):
        ratios = (
            ((w.model, w.version, name), sum(counts.get(label, 0) for label in labels) / counts["channels"])
            for w, check in checked
            for name, counts in check.layers.items()
            if counts.get("channels")
        )
        yield family(f"reluscope_layer_{name}_ratio", help_text, layer, ratios)
    yield from _sparsity_metrics(checked)
    yield from _alarm_metrics(checked)
    yield family(
        "reluscope_last_check_timestamp_seconds",
        "When the latest check ended, or when the version was first seen before the first one.",
        model,
        (((w.model, w.version), w.last_check.timestamp()) for w in live),
    )
    yield family(
        "reluscope_check_requests",
        "Requests behind the latest check.",
        model,
        (((w.model, w.version), float(check.n)) for w, check in checked),
    )
    yield from _agreement_metrics([((w.model, w.version), one) for w, check in checked for one in check.comparisons])


def _agreement_metrics(seen: Sequence[tuple[tuple[str, str], Agreement]]) -> Iterator[GaugeMetricFamily]:
    """What paired replay said by the latest check; of several baselines of one kind, the worst speaks."""
    model = ("model", "version")
    yield family(
        "reluscope_validation_accuracy",
        "Accuracy of the served model on the newest run of its labelled holdout.",
        model,
        ((key, one.accuracy) for key, one in seen if one.accuracy is not None),
        worst=min,
    )
    yield family(
        "reluscope_quantized_accuracy_delta",
        "Served minus reference accuracy on the same labelled holdout: a loss is negative.",
        model,
        ((key, one.accuracy_delta) for key, one in seen if one.accuracy_delta is not None),
        worst=min,
    )
    yield family(
        "reluscope_top1_agreement",
        "Share of compared requests with the same top-1 class as the baseline.",
        (*model, "baseline_kind"),
        (((*key, one.kind), one.top1_agreement) for key, one in seen if one.top1_agreement is not None),
        worst=min,
    )
    yield family(
        "reluscope_probe_sqnr_db",
        "Signal-to-noise ratio of a layer against the reference model, in decibels.",
        (*model, "layer"),
        (
            ((*key, probe.layer), probe.sqnr_db)
            for key, one in seen
            if one.kind == "reference_model"
            for probe in one.probes
        ),
        worst=min,
    )
    yield family(
        "reluscope_mismatch_ratio",
        "Share of compared requests with an output beyond the agent's tolerance.",
        (*model, "baseline_kind"),
        (((*key, one.kind), one.mismatch_share) for key, one in seen if one.mismatch_share is not None),
    )


def _sparsity_metrics(checked: Collection[tuple[Watched, Check]]) -> Iterator[GaugeMetricFamily]:
    layers = [
        ((w.model, w.version, name), counts)
        for w, check in checked
        for name, counts in check.layers.items()
        if "sparsity" in counts
    ]
    yield family(
        "reluscope_layer_sparsity",
        "Share of zeros in a rectifier's layer, over requests, channels and positions.",
        ("model", "version", "layer"),
        ((key, counts["sparsity"]) for key, counts in layers),
    )
    yield family(
        "reluscope_layer_sparsity_band",
        "What the layer's share of zeros may be by its reference; bound is low or high.",
        ("model", "version", "layer", "bound"),
        (((*key, bound), counts[f"sparsity_{bound}"]) for key, counts in layers for bound in ("low", "high")),
    )


def _alarm_metrics(checked: Collection[tuple[Watched, Check]]) -> Iterator[GaugeMetricFamily]:
    yield family(
        "reluscope_alarm_evidence",
        "Evidence of change as a share of the alarm threshold, by test family; an alarm holds from 1 on.",
        ("model", "version", "family"),
        (((w.model, w.version, name), one["evidence"]) for w, check in checked for name, one in check.alarms.items()),
    )
    shares = []
    for watched, check in checked:
        # Layers without any label are no rectifiers: their channels cannot be dead.
        layers = [counts for counts in check.layers.values() if sum(counts.get(label, 0) for label in LABELS)]
        channels = sum(counts["channels"] for counts in layers)
        if channels:
            dead = sum(counts.get(label, 0) for counts in layers for label in DEAD)
            shares.append(((watched.model, watched.version), dead / channels))
    yield family(
        "reluscope_dead_ratio",
        "Share of all rectifier channels that are dead, at the reference or newly; the objective is below 0.01.",
        ("model", "version"),
        shares,
    )


def family(
    name: str,
    documentation: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], float]],
    worst: Callable[[float, float], float] = max,
) -> GaugeMetricFamily:
    """One gauge with its samples; of samples with the same labels the ``worst`` is exported."""
    made = GaugeMetricFamily(name, documentation, labels=labels)
    merged: dict[tuple[str, ...], float] = {}
    for key, value in samples:  # A repeated series would make Prometheus refuse the whole scrape.
        merged[key] = worst(value, merged.get(key, value))
    for key, value in merged.items():
        made.add_metric(key, value)
    return made
