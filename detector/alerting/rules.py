"""`reluscope rules`: the shipped Prometheus rules, with runbook links to where people reach the detector."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import click

from detector import resources
from detector.resources import MissingResource

FILE = "reluscope.rules.yml"
SHIPPED_URL = "http://reluscope-detector:8500"
# What may stand unquoted in YAML, in a URL, and inside Prometheus' templates.
_SAFE_URL = re.compile(r"https?://[A-Za-z0-9.\-\[\]:_~%/]+")


def shipped() -> str:
    """The rules file's text; raises MissingResource."""
    return (resources.prometheus() / FILE).read_text("utf-8")


def rules(detector_url: str = SHIPPED_URL) -> str:
    """The rules with links below ``detector_url``; raises ValueError where that is no plain http(s) URL."""
    base = detector_url.rstrip("/")
    if not _SAFE_URL.fullmatch(base) or not urlsplit(base).hostname:
        raise ValueError(f"{detector_url!r} is no URL such as https://reluscope.example.com")
    return shipped().replace(f"{SHIPPED_URL}/runbooks/", f"{base}/runbooks/")


@click.command("rules", context_settings={"auto_envvar_prefix": "RELUSCOPE_RULES", "show_default": True})
@click.option("--detector-url", default=SHIPPED_URL, help="Where the people on call reach the detector.")
def command(detector_url: str) -> None:
    """Print the Prometheus alerting rules, with their runbook links."""
    try:
        click.echo(rules(detector_url), nl=False)
    except (ValueError, MissingResource) as error:
        raise click.ClickException(str(error)) from error
