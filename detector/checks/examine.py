"""All tests of one batch of windows: first measured layer by layer, then judged with the evidence of the past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.summary import Summary
from agent.summary.histogram import Floats
from agent.wire import Probe
from detector.checks import fleet_findings
from detector.checks.layer_findings import LayerResult, RateVerdict
from detector.domain.finding import Finding
from detector.domain.settings import CheckSettings
from detector.statistics import fleet
from detector.statistics.correction import Mask, reject_together, reject_together_e
from detector.statistics.dead import DORMANT_FALL, Dead, dead, label, requests_needed
from detector.statistics.design_effect import DesignEffect, unknown
from detector.statistics.drift import Drift, drift
from detector.statistics.explosion import Explosion, explosion
from detector.statistics.reference_error import REFERENCE_RISK
from detector.statistics.sequential import FAMILIES, MAX_E, AlarmEvidence, advance, calibrate, channel_e, threshold
from detector.statistics.sparsity import Sparsity, sparsity

CAUSE_LEVEL = 0.001
"""False discovery rate at which a batch's inputs are said to have moved, which tells a cause and raises nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One batch's tests, by layer, in graph order."""

    probes: tuple[Probe, ...]
    reference: Mapping[str, Summary]
    current: Mapping[str, Summary]
    drifts: Mapping[str, Drift]
    explosions: Mapping[str, Explosion]
    deaths: Mapping[str, Dead]
    """Of layers with an exact zero only."""
    sparsities: Mapping[str, Sparsity]
    """As above."""
    fleet: fleet.Fleet | None
    """The agents beside each other; None where there are too few of them."""
    left_out: tuple[str, ...]
    """Sentences on layers that could not be compared."""

    def e_values(self, family: str) -> dict[str, Floats]:
        """Per layer, of one of `FAMILIES`: shape (channels,), (channels, parts) for drift, (1,) for sparsity.

        Of "fleet" per agent, see `detector.statistics.fleet.e_values`.
        """
        if family == "fleet":
            return fleet.e_values(AlarmEvidence(), self.fleet)
        if family == "dead":
            return {name: np.minimum(result.e_value, MAX_E) for name, result in self.deaths.items()}
        if family == "drift":
            return {name: calibrate(result.p_parts) for name, result in self.drifts.items()}
        if family == "sparsity":
            return {name: calibrate(np.array([one.p_value])) for name, one in self.sparsities.items()}
        return {name: calibrate(result.p_value) for name, result in self.explosions.items()}


def measure(
    probes: Sequence[Probe],
    before: Mapping[str, Summary],
    now: Mapping[str, Summary],
    settings: CheckSettings,
    effects: Mapping[str, DesignEffect] | None = None,
    requests_per_window: float = 0.0,
    agents: fleet.Agents | None = None,
) -> Measured:
    """Tests every layer of a batch against the reference; ``effects`` are the reference's design effects by layer.

    ``agents`` are the same requests agent by agent, to be compared with each other.
    """
    left_out: list[str] = []
    compared: list[Probe] = []
    for probe in sorted(probes, key=lambda probe: probe.position):
        old, new = before.get(probe.name), now.get(probe.name)
        if old is None or new is None:
            left_out.append(f"{probe.name} not compared: no data in the {'reference' if old is None else 'windows'}")
        elif old.channels != new.channels:
            left_out.append(f"{probe.name} not compared: {new.channels} channels, the reference has {old.channels}")
        else:
            compared.append(probe)
    drifts, explosions, deaths, sparsities = {}, {}, {}, {}
    for probe in compared:
        name, old, new = probe.name, before[probe.name], now[probe.name]
        effect = (effects or {}).get(name) or unknown(old.channels)
        divisor = effect.at(requests_per_window)
        drifts[name] = drift(old, new, settings.min_effect, design_effect=divisor, reference_risk=REFERENCE_RISK)
        explosions[name] = explosion(
            old, new, settings.explosion_factor, design_effect=divisor, reference_risk=REFERENCE_RISK
        )
        if probe.exact_zero:
            deaths[name] = dead(old, new, settings.min_active_rate, design_effect=divisor)
            zeros = sparsity(old, new, effect, settings.min_effect, requests_per_window)
            if zeros is not None:
                sparsities[name] = zeros
    beside = fleet.compare(
        agents or {}, probes, before, now, effects or {}, requests_per_window,
        settings.fleet_effect, settings.fleet_requests,
    )  # fmt: skip
    return Measured(tuple(compared), before, now, drifts, explosions, deaths, sparsities, beside, tuple(left_out))


def accumulate(
    before: Mapping[str, AlarmEvidence], measured: Measured, days: float, settings: CheckSettings
) -> dict[str, AlarmEvidence]:
    """The evidence of all families after a batch of ``days`` days."""
    limit = threshold(settings.false_page_days)
    after = {}
    for family in FAMILIES:
        past, newest = before.get(family, AlarmEvidence()), measured.e_values(family)
        if family == "fleet":
            past = fleet.fitted(past, measured.fleet)
            newest = fleet.e_values(past, measured.fleet)
        after[family] = advance(past, newest, days, limit)
    return after


def judge(
    measured: Measured, evidence: Mapping[str, AlarmEvidence], days: float, settings: CheckSettings
) -> tuple[list[LayerResult], bool]:
    """Which channels to report, and whether the inputs moved. Without a family's alarm none of its channels is.

    The channels of a family in alarm are listed by e-BH over all layers: at most a share ``settings.fdr`` of them is
    false in expectation, however they depend on each other.
    """
    listed = {
        family: _listed(measured.e_values(family), evidence[family], settings.fdr)
        for family in FAMILIES
        if evidence[family].alarm and family != "fleet"  # whose groups are agents, see `judge_fleet`
    }

    def of(family: str, name: str, width: int) -> Mask:
        return listed.get(family, {}).get(name, np.zeros(width, np.bool_))

    revived = reject_together({name: result.p_revived for name, result in measured.deaths.items()}, CAUSE_LEVEL)
    # The level is a mean over layers of means over channels, so one silent channel must bring in the sum of both alone.
    dead_layers = measured.deaths.keys() | evidence["dead"].layers.keys()
    layer_sum = threshold(settings.false_page_days) * len(dead_layers)
    results = []
    for probe in measured.probes:
        name, width = probe.name, measured.current[probe.name].channels
        verdict = None
        if (death := measured.deaths.get(name)) is not None:
            labels = label(death, of("dead", name, width) & death.fallen, revived[name])
            level = days / (layer_sum * width)
            needed = requests_needed(death.lower, level, DORMANT_FALL, death.design_effect)
            verdict = RateVerdict(death, labels, needed)
        results.append(
            LayerResult(
                probe=probe,
                reference=measured.reference[name],
                current=measured.current[name],
                drift=measured.drifts[name],
                drifted=of("drift", name, width),
                explosion=measured.explosions[name],
                exploded=of("explosion", name, width),
                dead=verdict,
                sparsity=measured.sparsities.get(name),
                left_band=bool(of("sparsity", name, 1)[0]),
            )
        )
    return results, _inputs_moved(measured, evidence["drift"], settings.fdr)


def judge_fleet(measured: Measured, evidence: AlarmEvidence, settings: CheckSettings) -> tuple[Finding, ...]:
    """Which agents to report, listed by e-BH like channels; none without the family's alarm.

    An agent that the batch lacks is not reported: it has most likely been drained.
    """
    if measured.fleet is None or not evidence.alarm:
        return ()
    listed = _listed(fleet.e_values(evidence, measured.fleet), evidence, settings.fdr)
    return fleet_findings.findings(measured.fleet, listed, CAUSE_LEVEL, settings.fleet_effect)


def _listed(newest: Mapping[str, Floats], evidence: AlarmEvidence, rate: float) -> dict[str, Mask]:
    """Channels of one family in alarm, by layer: at least the one that most of the evidence is against."""
    combined = channel_e(evidence, newest)
    masks = reject_together_e(combined, rate)
    if not any(mask.any() for mask in masks.values()):
        known = {name: float(values.mean()) for name, values in combined.items() if len(values)}
        # What the batch lacks may hold the evidence: then no other is to blame, and the alarm is about to end.
        days = max(evidence.days, 1e-9)
        absent = [float(r.mean()) / days / 2 for name, r in evidence.layers.items() if name not in newest and r.size]
        worst = max(known, key=lambda name: known[name], default=None)
        if worst is not None and known[worst] >= max(absent, default=0.0):
            masks[worst][int(combined[worst].argmax())] = True
    return masks


def _inputs_moved(measured: Measured, evidence: AlarmEvidence, rate: float) -> bool:
    """A test of the inputs alone, which is sharper than one among all layers; it only helps to tell the cause."""
    inputs = [probe.name for probe in measured.probes if probe.kind == "input"]
    now = reject_together({name: measured.drifts[name].p_value for name in inputs}, CAUSE_LEVEL)
    moved = any(mask.any() for mask in now.values())
    if moved or not evidence.alarm:
        return moved
    newest = {name: e for name, e in measured.e_values("drift").items() if name in inputs}
    return any(bool(mask.any()) for mask in reject_together_e(channel_e(evidence, newest), rate).values())
