"""The options of capture, from the command line to the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from agent.capture.options import budgets, capture_options, capture_settings
from agent.capture.settings import CaptureSettings
from agent.rates.governor import Budgets
from agent.service import command as agent_command


def parsed(*arguments: str, env: dict[str, str] | None = None) -> tuple[CaptureSettings, Budgets]:
    found: list[tuple[CaptureSettings, Budgets]] = []

    @click.command(context_settings={"auto_envvar_prefix": "RELUSCOPE_AGENT"})
    @capture_options
    def command(**values: Any) -> None:
        found.append((capture_settings(values, Path("/state")), budgets(values)))

    result = CliRunner().invoke(command, arguments, env=env)
    assert result.exit_code == 0, result.output
    return found[0]


def test_defaults_are_those_of_the_documentation() -> None:
    settings, allowed = parsed()
    assert (settings.overhead_budget, settings.calibration_seconds, settings.nice) == (0.10, 10.0, 10)
    assert (settings.device.provider, settings.device.gpu_mem_limit) == ("auto", 2048 << 20)
    assert (settings.probes, settings.session_memory) == ((), 1 << 30)
    assert allowed == Budgets(0.25, None)


def test_values_arrive() -> None:
    settings, allowed = parsed(
        *("--probes", "a*,b", "--probes", "!c", "--overhead-budget", "0.2", "--provider", "tensorrt", "--nice", "3"),
        *("--threads", "2", "--max-requests-per-second", "7.5", "--session-memory-mib", "0"),
    )
    assert settings.probes == ("a*", "b", "!c")
    assert (settings.overhead_budget, settings.nice, settings.device.threads) == (0.2, 3, 2)
    assert settings.device.engine_cache == Path("/state/tensorrt")
    assert (settings.session_memory, allowed.requests_per_second) == (0, 7.5)


@pytest.mark.parametrize("value", ["off", "OFF", "0", "0.0"])
def test_a_budget_can_be_switched_off(value: str) -> None:
    assert parsed("--overhead-budget", value)[0].overhead_budget is None


def test_options_come_from_the_environment_too() -> None:
    settings, _ = parsed(env={"RELUSCOPE_AGENT_PROBES": "a,!b", "RELUSCOPE_AGENT_OVERHEAD_BUDGET": "off"})
    assert (settings.probes, settings.overhead_budget) == (("a", "!b"), None)


def test_a_provider_that_is_not_there_ends_the_agent_with_a_reason(tmp_path: Path) -> None:
    arguments = ["--repository", str(tmp_path), "--state-dir", str(tmp_path / "state"), "--bootstrap-servers", "none:1"]
    result = CliRunner().invoke(agent_command, [*arguments, "--provider", "tensorrt"])
    assert result.exit_code == 1
    assert "provider tensorrt was asked for, but this onnxruntime has only" in result.output
