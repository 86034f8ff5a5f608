from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from click.testing import CliRunner

from agent.metrics import AgentMetrics
from detector import resources
from detector.alerting import rules, runbooks
from detector.domain.alerts import alert_for, severity_of
from detector.domain.finding import Cause
from detector.domain.finding import Test as TestName
from detector.metrics import DetectorMetrics
from detector.store import StoredCheck
from tests.detector.alerting.test_runbooks import SHIPPED, blocks
from tests.detector.samples import NOW, MemoryStore, check, finding, version

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(rules.shipped())["groups"] for rule in group["rules"] if "alert" in rule
]
BOOKS = {runbook.name: runbook for runbook in SHIPPED}
_METRIC = re.compile(r"\breluscope_[a-z_]+\b")


def exported() -> set[str]:
    """The names of all that detector and agent export."""
    detector = DetectorMetrics(lambda: NOW, 3600.0, list(BOOKS))
    store = MemoryStore([version(1)], [StoredCheck(1, "digits", "2", check(1, finding()))])
    detector.refresh(store, {name: book.version for name, book in BOOKS.items()})
    text = detector.render().decode() + AgentMetrics().render().decode()
    names = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    return names


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_alerts_and_runbooks_match_one_to_one() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    assert set(names) == set(BOOKS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_rule_agrees_with_its_runbook(rule: dict[str, Any]) -> None:
    book = BOOKS[rule["alert"]]
    assert runbooks.pinned(rule["annotations"]["runbook_url"]) == (book.name, book.version)
    assert rule["annotations"]["runbook_url"].startswith(rules.SHIPPED_URL)
    assert rule["labels"]["severity"] == book.severity == severity_of(book.name)
    assert rule["annotations"]["summary"]
    assert book.cause in get_args(Cause)


def test_rules_and_runbooks_use_metrics_that_are_exported() -> None:
    known = exported()
    assert known >= set(_METRIC.findall("".join(rule["expr"] for rule in RULES)))
    for name, query in blocks("promql"):
        assert known >= set(_METRIC.findall(query)), f"{name}: {query}"


def test_rules_use_every_exported_verdict() -> None:
    text = rules.shipped()
    for name in (
        "finding_channels", "finding_origin", "last_window_timestamp_seconds", "last_check_timestamp_seconds",
        "top1_agreement", "quantized_accuracy_delta", "mismatch_ratio",
    ):  # fmt: skip
        assert f"reluscope_{name}" in text


def test_queries_in_runbooks_parse(promtool: str, tmp_path: Path) -> None:
    queries = [
        {"record": "a:b", "expr": query, "labels": {"n": str(n)}} for n, (_, query) in enumerate(blocks("promql"))
    ]
    assert queries
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": queries}]}))
    run(promtool, "check", "rules", file)


def test_promtool_accepts_rules_and_configuration(promtool: str) -> None:
    run(promtool, "check", "rules", "--lint-fatal", DEPLOY / "prometheus" / rules.FILE)
    run(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_promtool_unit_tests(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", DEPLOY / "prometheus" / "tests" / "reluscope.test.yml")


def test_every_finding_leads_to_exactly_the_alert_that_it_names(promtool: str, tmp_path: Path) -> None:
    tests = []
    for test, cause in itertools.product(get_args(TestName), get_args(Cause)):
        labels = {"model": "m", "version": "1", "cause": cause}
        series = ",".join(f'{k}="{v}"' for k, v in {**labels, "layer": "l", "test": test}.items())
        wanted = alert_for(test, cause)
        firing = {"alertname": wanted, "alertstate": "firing", "severity": severity_of(wanted), **labels}
        text = "ALERTS{" + ", ".join(f'{k}="{v}"' for k, v in firing.items()) + "}"
        tests.append(
            {
                "name": f"{test} {cause}",
                "interval": "1m",
                "input_series": [{"series": f"reluscope_finding_channels{{{series}}}", "values": "2 2 2"}],
                "promql_expr_test": [
                    {
                        "expr": 'ALERTS{alertname!="ReluscopeTelemetryGap"}',
                        "eval_time": "1m",
                        "exp_samples": [{"labels": text, "value": 1}],
                    }
                ],
            }
        )
    file = tmp_path / "all.test.yml"
    path = str(DEPLOY / "prometheus" / rules.FILE)
    file.write_text(json.dumps({"rule_files": [path], "evaluation_interval": "1m", "tests": tests}))
    run(promtool, "test", "rules", file)


def test_command_prints_the_rules_with_another_base(promtool: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(rules.command, ["--detector-url", "https://reluscope.example.com/base/"])
    assert result.exit_code == 0
    assert result.output.count("https://reluscope.example.com/base/runbooks/Reluscope") == len(RULES)
    assert rules.SHIPPED_URL not in result.output
    file = tmp_path / "rules.yml"
    file.write_text(result.output)
    run(promtool, "check", "rules", file)


@pytest.mark.parametrize(
    "url", ["", "detector:8500", "ftp://x", "http://", "http://x\n  y: z", "http://{{ x }}", "http://a b"]
)
def test_command_refuses_what_is_no_url(url: str) -> None:
    result = CliRunner().invoke(rules.command, ["--detector-url", url])
    assert result.exit_code == 1
    assert "is no URL" in result.output


def test_alertmanager_routes_by_severity_and_tells_the_detector(amtool: str) -> None:
    file = DEPLOY / "alertmanager" / "alertmanager.yml"
    run(amtool, "check-config", file)
    for rule in RULES:
        receiver = {"critical": "page", "warning": "ticket"}[rule["labels"]["severity"]]
        labels = (f"alertname={rule['alert']}", f"severity={rule['labels']['severity']}")
        assert run(amtool, "config", "routes", "test", f"--config.file={file}", *labels).split() == [receiver]
    config = yaml.safe_load(file.read_text())
    for receiver in config["receivers"]:
        assert [hook["url"] for hook in receiver["webhook_configs"]] == [f"{rules.SHIPPED_URL}/api/v1/alerts"]
    for inhibition in config["inhibit_rules"]:
        matchers = " ".join(inhibition["source_matchers"] + inhibition["target_matchers"])
        assert set(re.findall(r"Reluscope[A-Za-z]+", matchers)) <= set(BOOKS)


def test_checksums_lie_beside_the_runbooks() -> None:
    assert set(runbooks.checksums(resources.runbooks())) == set(BOOKS)
