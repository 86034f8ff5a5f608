"""Brings stored alerts up to what Alertmanager has: it sends no notice of an alert that ends while it is held back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from detector.alerting.alertmanager import LiveAlert, Silence
from detector.domain.holds import HeldBack, Hold, OpenAlert, Settled

log = structlog.get_logger()
_SAME_START = timedelta(seconds=1)
"""The API rounds times."""
_REOPEN = timedelta(days=1)
"""What was ended by mistake is looked for again for so long."""
_MOST_HOLDS = 20
"""Kept of one alert, the newest."""


class AlertStore(Protocol):
    """The part of the store that keeps alerts."""

    def open_alerts(self, since: datetime) -> list[OpenAlert]: ...
    def settle_alerts(self, settled: Sequence[Settled]) -> None: ...


class AlertSource(Protocol):
    """What `detector.alerting.alertmanager.Alertmanager` answers."""

    def started_at(self) -> datetime: ...
    def alerts(self, names: set[str]) -> list[LiveAlert]: ...
    def silences(self) -> Mapping[str, Silence]: ...


def reconcile(store: AlertStore, source: AlertSource, now: datetime, settle: timedelta) -> list[Settled]:
    """Settles what is open; raises AlertmanagerError or StoreError, and then settles nothing.

    An Alertmanager that started less than ``settle`` ago ends no alert, for it may not have been told of them yet.
    """
    opened = store.open_alerts(now - _REOPEN)  # first, so that no alert is missed that is stored after the question
    if not opened:
        return []
    live = source.alerts({one.alertname for one in opened})
    known = {hold.id for one in opened for hold in one.holds}
    unknown = {id_ for one in live for id_ in one.silenced_by} - known
    silences = source.silences() if unknown else {}
    settled = settle_all(opened, live, silences, now, knows_all=now - source.started_at() >= settle)
    store.settle_alerts(settled)
    ended = [one for one in settled if one.ends_at is not None]
    if ended:
        log.info("alerts.reconciled", ended=len(ended), fire=len(settled) - len(ended))
    return settled


def settle_all(
    opened: Sequence[OpenAlert],
    live: Sequence[LiveAlert],
    silences: Mapping[str, Silence],
    now: datetime,
    *,
    knows_all: bool,
) -> list[Settled]:
    """What becomes of stored alerts. Pure.

    One that Alertmanager has is firing, held back or not. One that it has not has ended by ``now``, or, where the same
    labels fire again, by their new start; unless Alertmanager does not know all yet. Of ended ones only those that fire
    after all are settled.
    """
    by_fingerprint = {one.fingerprint: one for one in live}
    settled = []
    for stored in opened:
        found = by_fingerprint.get(stored.fingerprint)
        same = found is not None and found.starts_at <= stored.starts_at + _SAME_START
        if found is not None and same:
            held_back: HeldBack = "silenced" if found.silenced_by else "inhibited" if found.inhibited_by else ""
            holds = _holds(stored, found, by_fingerprint, silences, now)
            settled.append(Settled(stored.id, None, now, held_back, holds))
        elif stored.status == "firing" and (found is not None or knows_all):
            ends_at = now if found is None else min(now, found.starts_at)
            settled.append(Settled(stored.id, ends_at, None, "", stored.holds))
    return settled


def _holds(
    stored: OpenAlert,
    found: LiveAlert,
    live: Mapping[str, LiveAlert],
    silences: Mapping[str, Silence],
    now: datetime,
) -> tuple[Hold, ...]:
    """What has ever held the alert back, in the order of time."""
    known = {(hold.kind, hold.id): hold for hold in stored.holds}
    for id_ in found.silenced_by:
        one = silences.get(id_)
        known.setdefault(
            ("silence", id_), Hold("silence", id_, one.created_by if one else "", one.comment if one else "", now)
        )
    for id_ in found.inhibited_by:
        by = live[id_].alertname if id_ in live else ""
        known.setdefault(("inhibition", id_), Hold("inhibition", id_, by, "", now))
    return tuple(known.values())[-_MOST_HOLDS:]
