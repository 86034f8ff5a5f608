"""What the user decides about checks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """Raises ValueError, naming the settings, where one is out of range."""

    false_page_days: float = 90.0
    """The alarm budget: at most one false page per model version in so many days."""
    fdr: float = 0.05
    """Share of false channels among those that a finding lists; pages are governed by the budget alone."""
    min_effect: float = 0.1
    """Cohen's omega up to which a shift does not matter."""
    min_requests: int = 200
    lookback_windows: int = 12
    """Closed windows that may be joined to reach ``min_requests``."""
    lookback_seconds: float = 86_400.0
    """Windows older than this are not used any more; after a silence as long, evidence begins anew."""
    reference_requests: int = 1000
    """Requests after a deployment that make the automatic reference."""
    reference_windows: int = 10
    """Windows that it has at least: what they differ by tells how much requests hang together."""
    min_active_rate: float = 0.01
    """Channels active more seldom than this in the reference are not called dead."""
    grace_seconds: float = 5.0
    """How long after its end a window may still receive late summaries."""
    explosion_factor: float = 10.0
    fleet_effect: float = 0.1
    """Standard deviations of the reference up to which an agent may differ from the others."""
    fleet_requests: int = 30
    """Requests in a batch that an agent needs to be compared with the others."""
    check_interval: float = 60.0
    """Seconds between checks of a version, however many detectors there are."""
    active_seconds: float = 3600.0
    """Versions without a window for this long are not checked any more."""

    def __post_init__(self) -> None:
        bounds = {
            "false_page_days": self.false_page_days > 0,
            "fdr": 0 < self.fdr < 1,
            "min_effect": 0 <= self.min_effect < 2,
            "min_requests": self.min_requests >= 1,
            "lookback_windows": self.lookback_windows >= 1,
            "lookback_seconds": self.lookback_seconds > 0,
            "reference_requests": self.reference_requests >= 1,
            "reference_windows": self.reference_windows >= 1,
            "min_active_rate": 0 < self.min_active_rate < 1,
            "grace_seconds": self.grace_seconds >= 0,
            "explosion_factor": self.explosion_factor > 1,
            "fleet_effect": self.fleet_effect > 0,
            "fleet_requests": self.fleet_requests >= 1,
            "check_interval": 0.1 <= self.check_interval <= 86_400,
            "active_seconds": self.active_seconds > 0,
        }
        wrong = [f"{name} = {getattr(self, name)}" for name, good in bounds.items() if not good]
        if wrong:
            raise ValueError(f"check settings out of range: {', '.join(wrong)}")
