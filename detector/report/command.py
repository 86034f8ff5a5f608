"""`reluscope report`: one HTML file on what happened to a model version."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from detector.report.data import UnknownModel
from detector.report.page import build_report
from detector.store import Store, StoreError

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _since(context: click.Context, parameter: click.Parameter, value: str) -> timedelta | datetime:
    """A span stays relative here, because only the command knows what time it is."""
    if match := re.fullmatch(r"([1-9]\d{0,4})([mhdw])", value.strip()):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        time = datetime.fromisoformat(value.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a span such as 90m, 24h or 7d nor an ISO 8601 time") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@click.command("report", context_settings={"auto_envvar_prefix": "RELUSCOPE_REPORT"})
@click.option(
    "--database-url",
    envvar="RELUSCOPE_DATABASE_URL",
    required=True,
    help="postgresql+psycopg://user:password@host:port/database",
)
@click.option("--model", required=True, help="Model name.")
@click.option("--version", default=None, help="Model version; the newest if left out.")
@click.option(
    "--since",
    callback=_since,
    default="24h",
    show_default=True,
    metavar="SPAN|TIME",
    help="How far back: 90m, 24h, 7d, 2w, or an ISO 8601 time; UTC where no zone is given.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"), show_default=True,
    help="The file to write.",
)  # fmt: skip
def command(database_url: str, model: str, version: str | None, since: datetime | timedelta, output: Path) -> None:
    """Write one self-contained HTML file: verdict, findings with their evidence, layers, timeline, alerts, SQL."""
    now = datetime.now(UTC)
    start = now - since if isinstance(since, timedelta) else since
    if start >= now:
        raise click.BadParameter(f"{start.isoformat()} lies in the future", param_hint="--since")
    try:
        store = Store(database_url)
        try:
            page = build_report(store, model, version, start, now)
        finally:
            store.close()
        output.write_text(page, encoding="utf-8")
    except (StoreError, UnknownModel) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from error
    click.echo(f"wrote {output} ({len(page.encode()) // 1024} KiB)")
