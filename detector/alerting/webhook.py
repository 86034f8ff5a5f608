"""Alertmanager's webhook payload (version 4) turned into alert rows; everything malformed is named and refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from detector.alerting.runbooks import pinned

MAX_ALERTS = 10_000


class PayloadError(ValueError):
    """The payload is not Alertmanager's; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Received:
    """One alert of a payload."""

    fingerprint: str
    alertname: str
    status: str
    """firing or resolved."""
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: datetime
    ends_at: datetime | None
    """None while it fires."""
    runbook: tuple[str, int] | None
    """What its runbook_url is pinned to."""

    def about(self, name: str) -> str | None:
        """A label, else the annotation of that name, else None."""
        return self.labels.get(name) or self.annotations.get(name) or None


def parse(body: bytes) -> list[Received]:
    """All alerts of one notification; raises `PayloadError` and takes none where one is malformed."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise PayloadError(f"expected an object, got {_kind(payload)}")
    if payload.get("version", "4") != "4":
        raise PayloadError(f"version: expected '4', Alertmanager's webhook format, got {payload['version']!r:.80}")
    alerts = payload.get("alerts")
    if not isinstance(alerts, list):
        raise PayloadError(f"alerts: expected a list, got {_kind(alerts)}")
    if len(alerts) > MAX_ALERTS:
        raise PayloadError(f"alerts: {len(alerts)} are more than {MAX_ALERTS}")
    return [_alert(alert, f"alerts[{index}]") for index, alert in enumerate(alerts)]


def _alert(alert: Any, where: str) -> Received:
    if not isinstance(alert, dict):
        raise PayloadError(f"{where}: expected an object, got {_kind(alert)}")
    labels = _texts(alert.get("labels"), f"{where}.labels")
    annotations = _texts(alert.get("annotations", {}), f"{where}.annotations")
    if not labels.get("alertname"):
        raise PayloadError(f"{where}.labels.alertname: missing")
    status = alert.get("status")
    if status not in ("firing", "resolved"):
        raise PayloadError(f"{where}.status: expected 'firing' or 'resolved', got {status!r:.80}")
    fingerprint = alert.get("fingerprint")
    if not isinstance(fingerprint, str) or not 0 < len(fingerprint) <= 64 or not fingerprint.isalnum():
        raise PayloadError(f"{where}.fingerprint: expected Alertmanager's hexadecimal digest, got {fingerprint!r:.80}")
    return Received(
        fingerprint=fingerprint,
        alertname=labels["alertname"],
        status=status,
        labels=labels,
        annotations=annotations,
        starts_at=_time(alert.get("startsAt"), f"{where}.startsAt"),
        ends_at=_time(alert.get("endsAt"), f"{where}.endsAt") if status == "resolved" else None,
        runbook=pinned(annotations.get("runbook_url", "")),
    )


def _texts(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise PayloadError(f"{where}: expected an object, got {_kind(value)}")
    for key, text in value.items():
        if not isinstance(text, str):
            raise PayloadError(f"{where}.{key:.80}: expected a string, got {_kind(text)}")
        if "\0" in text or "\0" in key:  # Postgres keeps no NUL, so the row could never be stored.
            raise PayloadError(f"{where}.{key!r:.80}: holds a NUL character")
        try:
            (key + text).encode()
        except UnicodeEncodeError:
            raise PayloadError(f"{where}.{key!r:.80}: holds half a surrogate pair") from None
    return dict(value)


def _time(value: Any, where: str) -> datetime:
    if not isinstance(value, str):
        raise PayloadError(f"{where}: expected an RFC 3339 time, got {_kind(value)}")
    try:
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise ValueError("no time zone")
        return at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise PayloadError(f"{where}: expected an RFC 3339 time, got {value!r:.80} ({error})") from None


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
