"""Prometheus and Alertmanager on this machine, from the system's packages, with second-long intervals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from deploy.local import process
from deploy.local.ports import free_port

_SHIPPED = Path(__file__).parents[1] / "alertmanager/alertmanager.yml"

# Debian installs Alertmanager under a longer name than upstream does.
_PROGRAMS = {
    "prometheus": ("prometheus",),
    "promtool": ("promtool",),
    "alertmanager": ("prometheus-alertmanager", "alertmanager"),
    "amtool": ("amtool",),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
}


def program(name: str) -> str | None:
    """The path of a program under any of its names, None where it is not installed."""
    return next(filter(None, map(shutil.which, _PROGRAMS[name])), None)


def require(name: str) -> str:
    """The path of a program; raises ServerError where it is not installed."""
    path = program(name)
    if path is None:
        raise process.ServerError(f"{' or '.join(_PROGRAMS[name])} is not installed")
    return path


@contextmanager
def prometheus(
    directory: Path,
    rules: Sequence[Path],
    targets: Mapping[str, Sequence[str]],
    alertmanager: str | None = None,
    interval: str = "1s",
) -> Iterator[str]:
    """A Prometheus that scrapes `targets` (job to "host:port"s) and evaluates `rules`; yields its URL.

    `alertmanager` is the URL of an Alertmanager to tell. Raises ServerError when it is missing or does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(path.resolve()) for path in rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": list(addresses)}]} for job, addresses in targets.items()
        ],
    }
    if alertmanager is not None:
        address = alertmanager.removeprefix("http://")
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]}
    # JSON is YAML.
    (directory / "prometheus.yml").write_text(json.dumps(config, indent=2))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        require("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--web.enable-lifecycle",
        "--log.level=warn",
    ]
    log = directory / "prometheus.log"
    with process.running("prometheus", command, log, ready=lambda: process.http_ok(f"{url}/-/ready")):
        yield url


@contextmanager
def alertmanager(directory: Path, webhook_url: str, config: Path | None = None) -> Iterator[str]:
    """An Alertmanager that sends every alert to `webhook_url` at once, inhibited as shipped; yields its URL.

    With `config`, that file is used as it is and `webhook_url` is not looked at.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if config is None:
        config = directory / "alertmanager.yml"
        route = {
            "receiver": "webhook",
            "group_by": ["..."],
            "group_wait": "0s",
            "group_interval": "1s",
            "repeat_interval": "1h",
        }
        receiver = {"name": "webhook", "webhook_configs": [{"url": webhook_url, "send_resolved": True}]}
        settings = {
            "global": {"resolve_timeout": "5s"},
            "route": route,
            "receivers": [receiver],
            "inhibit_rules": yaml.safe_load(_SHIPPED.read_text())["inhibit_rules"],
        }
        config.write_text(json.dumps(settings, indent=2))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        require("alertmanager"),
        f"--config.file={config}",
        f"--storage.path={directory / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        # An empty address switches clustering off.
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
    log = directory / "alertmanager.log"
    with process.running("alertmanager", command, log, ready=lambda: process.http_ok(f"{url}/-/ready")):
        yield url
