"""The command-line options of paired replay, as one decorator for `reluscope agent`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from agent.options import Finite
from agent.paired.settings import PairedSettings
from agent.paired.sums import Tolerance

_MIB = 1 << 20
_OPTIONS = (
    click.option(
        "--paired-rate", default=0.02, type=Finite(0, 1), help="Share of the sampled requests that is compared."
    ),
    click.option("--paired-per-minute", default=60, type=click.IntRange(1), help="Most requests compared in a minute."),
    click.option(
        "--paired-duty-cycle", default=0.05, type=Finite(0.001, 1), help="Largest share of time spent comparing."
    ),
    click.option(
        "--compare-previous/--no-compare-previous",
        default=False,
        help="Without a reference.onnx, compare with the former version in the repository.",
    ),
    click.option(
        "--paired-fetch-mib", default=128, type=click.IntRange(1), help="Activations held at a time to be compared."
    ),
    click.option(
        "--paired-queue-mib", default=32, type=click.IntRange(1), help="Memory for requests that wait to be compared."
    ),
    click.option(
        "--paired-model-mib", default=1024, type=click.IntRange(1), help="Largest model file loaded as a baseline."
    ),
    click.option(
        "--join-mib", default=32, type=click.IntRange(1), help="Memory for responses that wait for their requests."
    ),
    click.option("--join-seconds", default=30.0, type=Finite(0.1), help="How long they wait."),
    click.option("--holdout-mib", default=256, type=click.IntRange(1), help="Largest holdout.npz, unpacked."),
    click.option(
        "--holdout-repeat-seconds",
        default=3600.0,
        type=Finite(1),
        help="A holdout's result is sent again so often; the detector's --holdout-seconds has to be longer.",
    ),
    click.option(
        "--kinship-requests",
        default=100,
        type=click.IntRange(0),
        help="Requests after a deployment that the former version runs too, to tell whether the new one is near it.",
    ),
    click.option(
        "--mismatch-rtol", default=0.02, type=Finite(0), help="Tolerated error of an output element, per its size."
    ),
    click.option(
        "--mismatch-atol", default=0.02, type=Finite(0), help="The same, per root mean square of the whole output."
    ),
)
_NAMES = (
    "paired_rate",
    "paired_per_minute",
    "paired_duty_cycle",
    "compare_previous",
    "paired_fetch_mib",
    "paired_queue_mib",
    "paired_model_mib",
    "join_mib",
    "join_seconds",
    "holdout_mib",
    "holdout_repeat_seconds",
    "kinship_requests",
    "mismatch_rtol",
    "mismatch_atol",
)


def paired_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, which gets them together as the keyword argument ``paired``.

    What other options decide (limits, threads, batch size) is left at its default for the command to replace.
    """

    @functools.wraps(command)
    def with_settings(**values: Any) -> None:
        own = {name: values.pop(name) for name in _NAMES}
        command(paired=_settings(own), **values)

    for option in reversed(_OPTIONS):
        option(with_settings)
    return with_settings


def _settings(values: dict[str, Any]) -> PairedSettings:
    return PairedSettings(
        rate=values["paired_rate"],
        per_minute=values["paired_per_minute"],
        duty_cycle=values["paired_duty_cycle"],
        compare_previous=values["compare_previous"],
        fetch_bytes=values["paired_fetch_mib"] * _MIB,
        queue_bytes=values["paired_queue_mib"] * _MIB,
        model_bytes=values["paired_model_mib"] * _MIB,
        join_bytes=values["join_mib"] * _MIB,
        join_seconds=values["join_seconds"],
        holdout_bytes=values["holdout_mib"] * _MIB,
        holdout_repeat_seconds=values["holdout_repeat_seconds"],
        kinship_requests=values["kinship_requests"],
        tolerance=Tolerance(values["mismatch_rtol"], values["mismatch_atol"]),
    )
