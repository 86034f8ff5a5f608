"""What people and Alertmanager write: runbooks, and notifications of alerts."""

from __future__ import annotations

import json
from pathlib import Path

from detector import resources
from detector.alerting import runbooks, webhook
from detector.alerting.runbooks import RunbookError
from detector.alerting.webhook import PayloadError
from tests.fuzz.mutations import of_bytes, of_json, of_lines
from tests.fuzz.runner import Target

_NAME = "ReluscopeDeadNeurons"


def targets(folder: Path) -> list[Target]:
    """Runbooks are read from a file in `folder`."""
    folder.mkdir()
    shipped = (resources.runbooks() / f"{_NAME}.md").read_bytes()
    short = (
        f"---\nalert: {_NAME}\nversion: 7\nseverity: critical\ncause: dead_neurons\nowner: a\n---\n\n# {_NAME}\n\n"
        "## Meaning\na\n## Impact\nb\n```sh\n# c\n```\n## Diagnosis\nd\n## Mitigation\ne\n"
    ).encode()
    urls = [b"http://d:8500/runbooks/ReluscopeDeadNeurons/v3", b"https://x/y/runbooks/ReluscopeOddPod/v12/?a#b"]
    return [
        Target(
            "runbook",
            [shipped, short],
            (of_lines, of_lines, of_bytes),
            _Runbooks(folder / f"{_NAME}.md"),
            (RunbookError,),
        ),
        Target("runbook-url", urls, (of_bytes,), _pinned, ()),
        Target(
            "webhook",
            [_payload("firing"), _payload("resolved")],
            (of_json, of_json, of_bytes),
            _webhook,
            (PayloadError,),
        ),
    ]


class _Runbooks:
    """A folder with one runbook."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, data: bytes) -> bool:
        """What is taken can be stored."""
        self._path.write_bytes(data)
        (runbook,) = runbooks.read(self._path.parent)
        assert runbook.name == _NAME
        assert runbook.version >= 1
        assert "\0" not in runbook.body + runbook.cause + runbook.owner
        runbook.body.encode()
        return True


def _pinned(data: bytes) -> bool:
    return runbooks.pinned(data.decode("utf-8", "surrogateescape")) is not None


def _payload(status: str) -> bytes:
    alert = {
        "status": status,
        "labels": {"alertname": _NAME, "model": "digits", "version": "2", "severity": "critical"},
        "annotations": {"summary": "3 channels are dead", "runbook_url": f"http://d/runbooks/{_NAME}/v3"},
        "startsAt": "2026-03-01T12:00:00.123456789Z",
        "endsAt": "2026-03-01T12:05:00+01:00" if status == "resolved" else "0001-01-01T00:00:00Z",
        "generatorURL": "http://p/graph",
        "fingerprint": "0123456789abcdef",
    }
    return json.dumps({"version": "4", "groupKey": "{}", "status": status, "alerts": [alert, alert]}).encode()


def _webhook(data: bytes) -> bool:
    """What is taken can be stored: text without NUL that is UTF-8, times that Postgres holds."""
    for alert in webhook.parse(data):
        json.dumps([alert.labels, alert.annotations], ensure_ascii=False).encode()
        assert "\0" not in str(alert.labels) + str(alert.annotations) + alert.fingerprint
        alert.fingerprint.encode()
        assert 1 <= alert.starts_at.year <= 9999
        assert (alert.ends_at is not None) == (alert.status == "resolved")
        assert alert.runbook is None or alert.runbook[1] > 0
    return True
