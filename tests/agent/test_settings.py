"""The options of `reluscope agent`, from the command line and the environment to the settings."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agent.capture.settings import CaptureSettings
from agent.options import options
from agent.paired.settings import PairedSettings
from agent.paired.sums import Tolerance
from agent.rates.governor import Budgets
from agent.replay import Device
from agent.service import command as agent_command
from agent.settings import AgentSettings

NEEDED = ("--repository", "/models", "--state-dir", "/state", "--bootstrap-servers", "kafka:9092")
MIB = 1 << 20


def invoked(*arguments: str, env: dict[str, str] | None = None) -> tuple[str, list[AgentSettings]]:
    """The output, and the settings that the command got."""
    found: list[AgentSettings] = []

    @click.command(context_settings={"auto_envvar_prefix": "RELUSCOPE_AGENT"})
    @options(AgentSettings)
    def command(settings: AgentSettings) -> None:
        found.append(settings)

    return CliRunner().invoke(command, [*NEEDED, *arguments], env=env).output, found


def parsed(*arguments: str, env: dict[str, str] | None = None) -> AgentSettings:
    output, (settings,) = invoked(*arguments, env=env)
    assert output == ""
    return settings


def test_defaults_are_those_of_the_documentation() -> None:
    settings = parsed()
    capture = settings.capture
    assert (capture.overhead_budget, capture.calibration_seconds, capture.nice) == (0.10, 10.0, 10)
    assert (capture.device.provider, capture.device.gpu_mem_limit) == ("auto", 2048 * MIB)
    assert (capture.probes, capture.session_memory) == ((), 1 << 30)
    assert settings.budgets == Budgets(0.25, None)
    assert (settings.sample_rate, settings.port, settings.max_message_bytes) == (0.05, 8400, 896 << 10)
    assert settings.kafka.topic == "reluscope.windows"


def test_the_defaults_are_those_of_the_settings() -> None:
    settings = parsed()
    assert (settings.capture, settings.paired) == (CaptureSettings(Device()), PairedSettings())


def test_values_of_capture_arrive() -> None:
    settings = parsed(
        *("--probes", "a*,b", "--probes", "!c", "--overhead-budget", "0.2", "--provider", "tensorrt", "--nice", "3"),
        *("--threads", "2", "--max-requests-per-second", "7.5", "--session-memory-mib", "0"),
    )
    capture = settings.capture
    assert capture.probes == ("a*", "b", "!c")
    assert (capture.overhead_budget, capture.nice, capture.device.threads) == (0.2, 3, 2)
    assert (capture.session_memory, settings.budgets.requests_per_second) == (0, 7.5)


def test_values_of_paired_replay_arrive() -> None:
    told = """--paired-rate 0.5 --paired-per-minute 7 --paired-duty-cycle 0.2 --compare-previous --paired-fetch-mib 1
        --paired-queue-mib 2 --paired-model-mib 3 --join-mib 4 --join-seconds 5 --holdout-mib 6 --mismatch-rtol 0.1
        --mismatch-atol 0.3 --holdout-repeat-seconds 60"""
    assert parsed(*told.split()).paired == PairedSettings(
        rate=0.5,
        per_minute=7,
        duty_cycle=0.2,
        compare_previous=True,
        fetch_bytes=MIB,
        queue_bytes=2 * MIB,
        model_bytes=3 * MIB,
        join_bytes=4 * MIB,
        join_seconds=5.0,
        holdout_bytes=6 * MIB,
        holdout_repeat_seconds=60,
        tolerance=Tolerance(0.1, 0.3),
    )


@pytest.mark.parametrize("value", ["off", "OFF", "0", "0.0"])
def test_a_budget_can_be_switched_off(value: str) -> None:
    assert parsed("--overhead-budget", value).capture.overhead_budget is None


def test_options_come_from_the_environment_too() -> None:
    told = {"PROBES": "a,!b", "OVERHEAD_BUDGET": "off", "PAIRED_RATE": "0.25", "COMPARE_PREVIOUS": "true"}
    settings = parsed(env={f"RELUSCOPE_AGENT_{name}": value for name, value in told.items()})
    assert (settings.capture.probes, settings.capture.overhead_budget) == (("a", "!b"), None)
    assert (settings.paired.rate, settings.paired.compare_previous) == (0.25, True)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--paired-rate", "1.5", "1.5 is not in the range 0<=x<=1."),
        ("--mismatch-rtol", "nan", "'nan' should be a finite number"),
        ("--mismatch-atol", "inf", "'inf' should be a finite number"),
        ("--paired-per-minute", "0", "0 is not in the range x>=1."),
        ("--kafka-api-version", "new", "'new' is no version such as 2.3"),
        ("--compression", "lz4", "'lz4' is not one of 'gzip', 'zstd', 'none'."),
    ],
)
def test_bad_values_are_refused_with_a_reason(option: str, value: str, reason: str) -> None:
    output, found = invoked(option, value)
    assert found == []
    assert f"Invalid value for '{option}': {reason}" in output


def test_a_provider_that_is_not_there_ends_the_agent_with_a_reason(tmp_path: Path) -> None:
    arguments = ["--repository", str(tmp_path), "--state-dir", str(tmp_path / "state"), "--bootstrap-servers", "none:1"]
    result = CliRunner().invoke(agent_command, [*arguments, "--provider", "tensorrt"])
    assert result.exit_code == 1
    assert "provider tensorrt was asked for, but this onnxruntime has only" in result.output


def test_budgets_of_all_work_together_and_versions_arrive() -> None:
    settings = parsed()
    assert (settings.budget.background_share, settings.budget.gpu_memory) == (0.2, 6144 * MIB)
    assert (settings.budget.memory, settings.following.max_versions) == (8192 * MIB, 2)
    assert (settings.following.server_url, settings.following.versions) == (None, ())
    settings = parsed(
        *("--background-share", "0.5", "--gpu-memory-mib", "7", "--memory-mib", "9", "--max-versions", "3"),
        *("--server-url", "http://localhost:8000", "--versions", "digits=1,02", "--versions", "a=b=3"),
    )
    assert (settings.budget.background_share, settings.budget.gpu_memory) == (0.5, 7 * MIB)
    assert (settings.budget.memory, settings.following.max_versions) == (9 * MIB, 3)
    assert settings.following.versions == (("digits", ("1", "2")), ("a=b", ("3",)))
    assert settings.following.server_url == "http://localhost:8000"
    told = parsed(env={"RELUSCOPE_AGENT_VERSIONS": "digits=1,2 other=3"}).following.versions
    assert told == (("digits", ("1", "2")), ("other", ("3",)))


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--server-url", "localhost:8000", "no http:// or https:// URL"),
        ("--versions", "digits=new", "not of the form MODEL=1,2"),
        ("--versions", "1,2", "not of the form MODEL=1,2"),
        ("--background-share", "2", "background-share"),
    ],
)
def test_bad_versions_and_budgets_are_refused(option: str, value: str, reason: str) -> None:
    output, found = invoked(option, value)
    assert found == [] and reason in " ".join(output.split())


def test_queues_that_are_more_than_all_memory_end_the_agent_with_a_reason(tmp_path: Path) -> None:
    arguments = ["--repository", str(tmp_path), "--state-dir", str(tmp_path / "state"), "--bootstrap-servers", "none:1"]
    result = CliRunner().invoke(agent_command, [*arguments, "--memory-mib", "100"])
    assert result.exit_code == 1
    assert "MiB of RAM for queues" in result.output and "--memory-mib" in result.output
