"""`reluscope plan`: what an alarm budget costs, asked before anything is deployed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from typing import Any

import click

from detector.planning.plan import Question, plan, sentence

_HELP = {
    "requests_per_second": "Requests that will be replayed, after sampling, all agents together.",
    "effect": "Cohen's omega of the smallest shift that must be found, in a single channel.",
    "false_page_days": "The alarm budget: at most one false page per model version in so many days.",
    "layers": "Layers observed.",
    "channels": "Channels of the layer with the shift.",
    "min_effect": "Cohen's omega up to which a shift does not matter.",
    "reference_requests": "Requests in the reference.",
    "design_effect": "How much less requests say than independent ones would; 1 if they are.",
    "active_rate": "Of a channel whose death must be found.",
}


def _options(command: Any) -> Any:
    for field in reversed(fields(Question)):
        name = f"--{field.name.replace('_', '-')}"
        if field.name == "requests_per_second":
            command = click.option(name, type=float, required=True, help=_HELP[field.name])(command)
        else:
            command = click.option(name, default=field.default, show_default=True, help=_HELP[field.name])(command)
    return command


@click.command("plan", context_settings={"auto_envvar_prefix": "RELUSCOPE_PLAN"})
@_options
@click.option("--within", type=click.FloatRange(min=0, min_open=True), help="Minutes within which it must be found.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(within: float | None, as_json: bool, **stated: Any) -> None:
    """Say which windows and reference a budget needs, and how soon a shift or a death is known."""
    try:
        question = Question(**stated)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    answer = plan(question)
    requests = answer.requests_per_window * answer.windows
    rate = requests / within / 60 if within else None
    if as_json:
        numbers = {**asdict(answer), "within_requests_per_second": rate}
        finite = {key: value if value is None or math.isfinite(value) else None for key, value in numbers.items()}
        click.echo(json.dumps({"asked": asdict(question), "within_minutes": within, **finite}))
        return
    click.echo(sentence(question, answer))
    if math.isfinite(answer.reference_good) and answer.reference_good > 1.5 * question.reference_requests:
        click.echo(
            f"the reference limits this: with {answer.reference_good:.0f} requests in place of "
            f"{question.reference_requests} the same takes at most half as long again as with an endless one"
        )
    if rate is not None and math.isfinite(rate):
        verdict = "the stated rate is enough" if rate <= question.requests_per_second else "raise the sampling rate"
        click.echo(f"to know within {within:g} minutes takes {rate:.3g} requests/s: {verdict}")
