"""`reluscope report`: one HTML file on what happened to a model version."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from agent.options import SECTION, Option, options
from detector.domain.settings import Target, as_time
from detector.report.data import UnknownModel
from detector.report.page import build_report
from detector.store import Store, StoreError

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _since(value: Any) -> Any:
    """A span stays relative here, because only the command knows what time it is."""
    if not isinstance(value, str):
        return value
    if match := re.fullmatch(r"([1-9]\d{0,4})([mhdw])", value.strip()):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        return as_time(value)
    except ValueError:
        raise ValueError(f"{value!r} is neither a span such as 90m, 24h or 7d nor an ISO 8601 time") from None


@dataclass(frozen=True, kw_only=True, config=SECTION)
class ReportSettings:
    """Every option of the command."""

    target: Target
    since: Annotated[timedelta | datetime, BeforeValidator(_since), Option(metavar="SPAN|TIME", default="24h")] = (
        timedelta(hours=24)
    )
    """How far back: 90m, 24h, 7d, 2w, or an ISO 8601 time; UTC where no zone is given."""
    output: Annotated[Path, Option(metavar="FILE")] = Path("report.html")
    """The file to write."""


@click.command("report", context_settings={"auto_envvar_prefix": "RELUSCOPE_REPORT"})
@options(ReportSettings)
def command(settings: ReportSettings) -> None:
    """Write one self-contained HTML file: verdict, findings with their evidence, layers, timeline, alerts, SQL."""
    target, since, output = settings.target, settings.since, settings.output
    now = datetime.now(UTC)
    start = now - since if isinstance(since, timedelta) else since
    if start >= now:
        raise click.BadParameter(f"{start.isoformat()} lies in the future", param_hint="--since")
    try:
        store = Store(target.database.url)
        try:
            page = build_report(store, target.model, target.version, start, now)
        finally:
            store.close()
        output.write_text(page, encoding="utf-8")
    except (StoreError, UnknownModel) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from error
    click.echo(f"wrote {output} ({len(page.encode()) // 1024} KiB)")
