"""`reluscope plan`: what an alarm budget costs, asked before anything is deployed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated

import click
from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.options import SECTION, options
from detector.planning.plan import Question, plan, sentence


@dataclass(frozen=True, kw_only=True, config=SECTION)
class PlanSettings:
    """Every option of the command."""

    question: Question
    within: Annotated[float | None, Field(gt=0)] = None
    """Minutes within which it must be found."""


@click.command("plan", context_settings={"auto_envvar_prefix": "RELUSCOPE_PLAN"})
@options(PlanSettings)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(settings: PlanSettings, as_json: bool) -> None:
    """Say which windows and reference a budget needs, and how soon a shift or a death is known."""
    question, within = settings.question, settings.within
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
