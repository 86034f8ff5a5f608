"""What the user decides: about checks, about comparisons with a baseline, and which data commands look at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from agent.options import SECTION, Option

FalsePageDays = Annotated[
    float,
    Field(gt=0, description="The alarm budget: at most one false page per model version in so many days."),
]
MinEffect = Annotated[float, Field(ge=0, lt=2, description="Cohen's omega up to which a shift does not matter.")]
FALSE_PAGE_DAYS, MIN_EFFECT = 90.0, 0.1


def as_time(value: Any) -> Any:
    """A text as a moment; UTC where it names no zone. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        parsed = datetime.fromisoformat(value.strip())
    except ValueError:
        raise ValueError(f"{value!r} is no ISO 8601 time, such as 2026-01-31T12:00:00Z") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


Time = Annotated[datetime, BeforeValidator(as_time), Option(metavar="TIME")]
"""UTC where no zone is given."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Database:
    """Where everything is kept."""

    url: Annotated[str, Option("database_url", envvar="RELUSCOPE_DATABASE_URL")] = Field(repr=False)
    """postgresql+psycopg://user:password@host:port/database"""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class Target:
    """The model version that a command looks at."""

    database: Database
    model: str
    """Model name."""
    version: str | None = None
    """Model version; the newest if left out."""


@dataclass(frozen=True, slots=True, config=SECTION)
class CheckSettings:
    """Of checks of activations. Raises ValueError, naming the settings, where one is out of range."""

    false_page_days: FalsePageDays = FALSE_PAGE_DAYS
    fdr: float = Field(default=0.05, gt=0, lt=1)
    """Share of false channels among those that a finding lists; pages are governed by the budget alone."""
    min_effect: MinEffect = MIN_EFFECT
    min_requests: int = Field(default=200, ge=1)
    """Requests that a check needs."""
    lookback_windows: int = Field(default=12, ge=1)
    """Closed windows that may be joined to reach --min-requests."""
    lookback_seconds: float = Field(default=86_400.0, gt=0)
    """Windows older than this are not used any more; after a silence as long, evidence begins anew."""
    reference_requests: int = Field(default=1000, ge=1)
    """First requests of a deployment that become its reference."""
    reference_windows: int = Field(default=10, ge=1)
    """Windows that this reference has at least: fewer do not tell how much requests hang together."""
    min_active_rate: float = Field(default=0.01, gt=0, lt=1)
    """Channels active more seldom in the reference are not called dead."""
    grace_seconds: float = Field(default=5.0, ge=0)
    """How long after its end a window may still receive late summaries."""
    explosion_factor: float = Field(default=10.0, gt=1)
    """Growth over the reference's largest value that counts as an explosion."""
    fleet_effect: float = Field(default=0.1, gt=0)
    """Standard deviations of the reference up to which one pod may differ from the others."""
    fleet_requests: int = Field(default=30, ge=1)
    """Requests of a pod in a batch from which on it is compared with the others."""
    check_interval: float = Field(default=60.0, ge=0.1, le=86_400)
    """Seconds between checks."""
    active_seconds: float = Field(default=3600.0, gt=0)
    """Activations of versions without a window for this long are neither checked nor alerted on."""


@dataclass(frozen=True, slots=True, config=SECTION)
class PairedSettings:
    """Of comparisons with a baseline. Raises ValueError, naming the settings, where one is out of range."""

    max_disagreement: float = Field(default=0.02, ge=0, lt=1)
    """Share of requests whose top-1 class may differ from the reference model's."""
    max_accuracy_drop: float = Field(default=0.01, ge=0, lt=1)
    """Accuracy, as a share, that may be lost against the reference model on a holdout."""
    # Sound int8 layers have 20 to 40 dB; at 10 the error has a tenth of the signal's power, a cosine of about 0.95.
    min_sqnr_db: float = 10.0
    """Layers below this signal-to-noise ratio against the reference model lost their signal."""
    min_compared: int = Field(default=50, ge=1)
    """Compared requests from which on a low SQNR at an output alone is a finding."""
    max_mismatch: float = Field(default=0.001, ge=0, lt=1)
    """Share of requests whose output may differ from the CPU's or the served one."""
    # Also the false discovery rate of the channels that a finding lists.
    paired_level: float = Field(default=0.001, gt=0, lt=1)
    """Chance that the test of a holdout errs; that of other paired tests is the alarm budget's."""
    paired_seconds: float = Field(default=3600.0, gt=0)
    """Comparisons older than this are not looked at."""
    # Thrice what agents have by default.
    holdout_seconds: float = Field(default=10_800.0, gt=0)
    """How long a holdout's result counts after agents said it last (--holdout-repeat-seconds)."""

    @property
    def lookback(self) -> timedelta:
        """What is older says nothing of any kind."""
        return timedelta(seconds=max(self.paired_seconds, self.holdout_seconds))
