"""Command-line options of capture: what is observed, on which device, and what it may cost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from agent.budget.duty import DutyLimits
from agent.budget.owner import BudgetLimits
from agent.capture.choice import parse_globs
from agent.capture.settings import CaptureSettings
from agent.options import Finite
from agent.rates.governor import Budgets
from agent.replay import Device, Provider

_MIB = 1 << 20

F = TypeVar("F", bound=Callable[..., Any])


class Share(Finite):
    """A share of at least 0; ``off`` and 0 are none."""

    name = "share|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.lower() == "off":
            return None
        return super().convert(value, param, ctx) or None


def _spare_threads() -> int:
    """Half the cores, so that the server keeps the rest."""
    return max(1, (os.cpu_count() or 1) // 2)


_OPTIONS = (
    click.option(
        "--probes",
        "globs",
        multiple=True,
        metavar="GLOB",
        envvar="RELUSCOPE_AGENT_PROBES",
        help="Observe only layers of such names; !GLOB leaves out. Repeat, or part with commas.",
    ),
    click.option(
        "--overhead-budget",
        default="0.10",
        type=Share(0, 100),
        help="Most that observing may add to a plain run, as a share; over it, groups of layers take turns.",
    ),
    click.option("--calibration-seconds", default=10.0, type=Finite(0.1), help="Longest timing of a model at load."),
    click.option(
        "--calibration-extent",
        default=1,
        type=click.IntRange(1),
        help="Extent of free axes other than the batch while timing, such as a usual sequence length.",
    ),
    click.option(
        "--session-memory-mib",
        default=1024,
        type=click.IntRange(0),
        help="Weights that the sessions of all groups may hold at once; over it, they are built in turn.",
    ),
    click.option(
        "--provider",
        default="auto",
        type=click.Choice(get_args(Provider)),
        help="Where to replay; auto: CUDA where there is, else the CPU.",
    ),
    click.option("--gpu-mem-limit-mib", default=2048, type=click.IntRange(1), help="GPU memory for replay of a model."),
    click.option(
        "--threads",
        default=_spare_threads,
        show_default="half the cores",
        type=click.IntRange(1),
        help="CPU threads of replay.",
    ),
    click.option("--nice", default=10, type=click.IntRange(0, 19), help="Nice level of replay's threads."),
    click.option("--max-batch", default=32, type=click.IntRange(1), help="Requests replayed at a time."),
    click.option(
        "--duty-cycle",
        default=0.25,
        type=Finite(0.001, 1),
        help="Largest share of time in work of all kinds: replay, comparing, holdouts, timing.",
    ),
    click.option(
        "--background-share",
        default=0.2,
        type=Finite(0.01, 1),
        help="Of --duty-cycle, what is kept for work other than replay while replay could use all.",
    ),
    click.option(
        "--gpu-memory-mib",
        default=6144,
        type=click.IntRange(1),
        help="GPU memory for the sessions of all models and all work together.",
    ),
    click.option(
        "--memory-mib",
        default=8192,
        type=click.IntRange(1),
        help="RAM for the weights, activations, holdouts and queues of all models and all work together.",
    ),
    click.option(
        "--max-requests-per-second",
        type=Finite(0, min_open=True),
        show_default="no limit",
        help="Most requests that are replayed.",
    ),
)


def capture_options(command: F) -> F:
    """Adds the options, in the order in which --help shows them; `capture_settings` and `budgets` read them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def capture_settings(values: dict[str, Any], state_dir: Path) -> CaptureSettings:
    """The settings that the options' values mean."""
    return CaptureSettings(
        Device(
            values["threads"],
            values["gpu_mem_limit_mib"] * _MIB,
            values["provider"],
            state_dir / "tensorrt" if values["provider"] == "tensorrt" else None,
        ),
        max_batch=values["max_batch"],
        probes=parse_globs(values["globs"]),
        overhead_budget=values["overhead_budget"],
        calibration_seconds=values["calibration_seconds"],
        calibration_extent=values["calibration_extent"],
        session_memory=values["session_memory_mib"] * _MIB,
        nice=values["nice"],
    )


def budget_limits(values: dict[str, Any], paired_duty_cycle: float) -> BudgetLimits:
    """The limits of all work together that the options' values mean."""
    duty = DutyLimits(values["duty_cycle"], values["background_share"], paired_duty_cycle)
    return BudgetLimits(duty, values["gpu_memory_mib"] * _MIB, values["memory_mib"] * _MIB)


def budgets(values: dict[str, Any]) -> Budgets:
    """The budgets that the options' values mean."""
    return Budgets(values["duty_cycle"], values["max_requests_per_second"])
