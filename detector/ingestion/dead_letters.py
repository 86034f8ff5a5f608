"""`reluscope dead-letters`: look at what ingest set aside, and send it back once the cause is mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import click

from agent.options import Kafka, options
from agent.wire import WireError, decode
from detector.ingestion.plausible import Implausible, check
from detector.ingestion.records import RetryLater
from detector.ingestion.transport import DeadLetters, Letter


@click.group("dead-letters", context_settings={"auto_envvar_prefix": "RELUSCOPE_DEAD_LETTERS"})
@options(Kafka)
@click.pass_context
def command(context: click.Context, settings: Kafka) -> None:
    """Messages that ingest could not use, kept in <topic>.dead-letter."""
    letters = DeadLetters(settings.bootstrap_servers, settings.topic, settings.api_version)
    context.obj = context.with_resource(closing(letters))


_reason = click.option(
    "--reason",
    type=click.Choice(["undecodable", "implausible", "refused"]),
    help="Only letters set aside for this reason.",
)


@command.command("list")
@_reason
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def list_letters(letters: DeadLetters, reason: str | None, as_json: bool) -> None:
    """Shows the letters: where they came from, why they were set aside."""
    count = 0
    for letter in _read(letters, reason):
        count += 1
        row = _row(letter)
        click.echo(
            json.dumps(row) if as_json else "{at}  {topic}/{partition}@{offset}  {reason}: {error}".format(**row)
        )
    if not as_json:
        click.echo(f"{count} letters in {letters.topic}")


@command.command("replay")
@_reason
@click.option("--dry-run", is_flag=True, help="Send nothing.")
@click.pass_obj
def replay(letters: DeadLetters, reason: str | None, dry_run: bool) -> None:
    """Sends letters back to the topic, those that this release still cannot use excepted.

    Letters stay in the dead-letter topic. Sending one twice does no harm: ingest knows it by its key.
    """
    sent = kept = 0
    for letter in _read(letters, reason):
        if (wrong := _still_wrong(letter)) is not None:
            kept += 1
            click.echo(f"still unusable: {_row(letter)['partition']}@{_row(letter)['offset']}: {wrong}", err=True)
            continue
        sent += 1
        if not dry_run:
            try:
                letters.send_back(letter)
            except RetryLater as error:
                raise click.ClickException(f"sent {sent - 1} letters, then: {error}") from error
    click.echo(f"{'would send' if dry_run else 'sent'} {sent} letters to {letters.source}; {kept} are still unusable")


def _read(letters: DeadLetters, reason: str | None) -> Iterator[Letter]:
    try:
        yield from (letter for letter in letters.read() if reason in (None, letter.header("dead-letter-reason")))
    except RetryLater as error:
        raise click.ClickException(f"cannot read {letters.topic}: {error}") from error


def _still_wrong(letter: Letter) -> str | None:
    if letter.header("dead-letter-truncated"):
        return "only its beginning was kept"
    try:
        check(decode(letter.value or b""), datetime.now(UTC))
    except (WireError, Implausible) as error:
        return str(error)
    return None


def _row(letter: Letter) -> dict[str, object]:
    names = ("at", "topic", "partition", "offset", "reason", "error")
    told = {name: letter.header(f"dead-letter-{name}") for name in names}
    return {**told, "bytes": len(letter.value or b""), "letter": f"{letter.partition}@{letter.offset}"}
