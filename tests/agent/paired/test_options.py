"""The options of paired replay reach its settings, from the command line and the environment; bad ones are refused."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from agent.paired.options import paired_options
from agent.paired.settings import PairedSettings
from agent.paired.sums import Tolerance


def run(*args: str, env: dict[str, str] | None = None) -> tuple[str, PairedSettings | None]:
    """Output, and the settings that a command got."""
    got: list[PairedSettings] = []

    @click.command(context_settings={"auto_envvar_prefix": "RELUSCOPE_AGENT"})
    @paired_options
    @click.option("--other", default=1)
    def command(other: int, paired: PairedSettings) -> None:
        assert other == 1
        got.append(paired)

    result = CliRunner().invoke(command, list(args), env=env)
    return result.output, got[0] if got else None


def test_the_defaults_are_those_of_the_settings() -> None:
    _, got = run()
    assert got == PairedSettings()


def test_every_option_reaches_its_setting() -> None:
    options = """--paired-rate 0.5 --paired-per-minute 7 --paired-duty-cycle 0.2 --compare-previous --paired-fetch-mib 1
        --paired-queue-mib 2 --paired-model-mib 3 --join-mib 4 --join-seconds 5 --holdout-mib 6 --mismatch-rtol 0.1
        --mismatch-atol 0.3 --holdout-repeat-seconds 60"""
    mib = 1 << 20
    _, got = run(*options.split())
    assert got == PairedSettings(
        rate=0.5,
        per_minute=7,
        duty_cycle=0.2,
        compare_previous=True,
        fetch_bytes=mib,
        queue_bytes=2 * mib,
        model_bytes=3 * mib,
        join_bytes=4 * mib,
        join_seconds=5.0,
        holdout_bytes=6 * mib,
        holdout_repeat_seconds=60,
        tolerance=Tolerance(0.1, 0.3),
    )


def test_the_environment_serves_too() -> None:
    _, got = run(env={"RELUSCOPE_AGENT_PAIRED_RATE": "0.25", "RELUSCOPE_AGENT_COMPARE_PREVIOUS": "true"})
    assert got is not None
    assert (got.rate, got.compare_previous) == (0.25, True)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--paired-rate", "1.5"), ("--mismatch-rtol", "nan"), ("--mismatch-atol", "inf"), ("--paired-per-minute", "0")],
)
def test_bad_values_are_refused(option: str, value: str) -> None:
    output, got = run(option, value)
    assert got is None
    assert option in output
