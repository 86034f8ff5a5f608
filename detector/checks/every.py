"""The checks of all versions that are due: each by one detector, however many there are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import structlog

from detector.checks.check import blank, prepare
from detector.checks.needs import CheckStore
from detector.domain.finding import Check
from detector.domain.settings import CheckSettings
from detector.paired import PairedSettings, extended

log = structlog.get_logger()


def run_all(
    store: CheckStore,
    settings: CheckSettings,
    now: datetime,
    runbook_versions: Mapping[str, int],
    paired: PairedSettings | None = None,
) -> list[Check]:
    """Checks every version that serves and is due, and stores the result; what another process is at is left to it.

    A version serves if it has recent windows or comparisons and no agent has deployed another in its place: a
    superseded version's last windows would repeat their verdict for as long as they count as recent. ``paired`` are the
    limits for comparisons with a baseline, which are judged also where there is no reference yet, and before the first
    request: a holdout runs at the deployment.

    One version's failure does not keep the others from being checked: all failures are raised together at the end,
    as an ExceptionGroup.
    """
    paired = paired or PairedSettings()
    done: list[Check] = []
    failures: list[Exception] = []
    current = store.current_versions(now)
    active = store.versions(now - timedelta(seconds=settings.active_seconds))
    observed = {version.id for version in active}
    active += [version for version, _ in store.compared_versions(now - paired.lookback) if version.id not in observed]
    for version in active:
        if version.superseded(current):
            continue
        try:
            with store.turn(version.id, now, settings.check_interval) as turn:
                if turn is None:
                    continue
                check, advance = blank(version, now), None
                if version.id in observed:  # a silent version's last windows are judged no more
                    check, advance = prepare(store, version, settings, now)
                check = extended(store, version, paired, now, check, settings)
                store.save_check(check, runbook_versions, advance, turn)
        except Exception as error:
            log.error("check.failed", model=version.model, version=version.version, error=str(error), exc_info=True)
            failures.append(error)
            continue
        done.append(check)
        log.info(
            "check.finished",
            model=version.model,
            version=version.version,
            status=check.status,
            requests=check.n,
            findings=len(check.findings),
        )
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(failures) + len(done)} checks failed", failures)
    return done
