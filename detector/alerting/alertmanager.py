"""Alertmanager's API, version 2: which alerts it has now, whether they are held back, and who silenced them.

The client follows no redirects, so that its credentials go nowhere else, and reads no more than `MAX_BYTES`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pydantic import Field
from pydantic.dataclasses import dataclass

from agent.options import SECTION, Option

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 16 * 1024 * 1024


class AlertmanagerError(Exception):
    """Alertmanager does not answer, or not as its API says; the message says which request and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class LiveAlert:
    """An alert that Alertmanager has and that has not ended."""

    fingerprint: str
    alertname: str
    starts_at: datetime
    silenced_by: tuple[str, ...]
    """Ids of silences."""
    inhibited_by: tuple[str, ...]
    """Fingerprints of alerts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Silence:
    """Who silenced, and why."""

    id: str
    created_by: str
    comment: str


@dataclass(frozen=True, slots=True, config=SECTION)
class AlertmanagerSettings:
    """Whom to ask about alerts that end without a notice."""

    url: Annotated[str | None, Option("alertmanager_url")] = None
    """Alertmanager's, to learn how alerts end that it holds back; without, they stay open."""
    authorization_file: Annotated[Path | None, Option("alertmanager_authorization_file")] = None
    """Holds the Authorization header for it, such as "Bearer ..."."""
    settle_seconds: Annotated[float, Option("alertmanager_settle_seconds")] = Field(default=300.0, ge=0)
    """How long after its own start it ends no alert: it may not have been told of them yet."""

    def client(self) -> Alertmanager | None:
        """None where there is nobody to ask; raises ValueError where the URL is none."""
        return None if self.url is None else Alertmanager(self.url, self.authorization_file)


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Alertmanager:
    """One Alertmanager; of a cluster any member, as each knows all alerts and silences."""

    def __init__(self, url: str, authorization_file: Path | None = None) -> None:
        """``authorization_file`` holds the value of the Authorization header, such as "Bearer ..." or "Basic ...", and
        is read at every request; raises ValueError where ``url`` is no plain http(s) URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"{parts.scheme}://{parts.hostname or ''} is no URL such as http://alertmanager:9093")
        self._base = url.rstrip("/")
        self._authorization_file = authorization_file
        self._opener = build_opener(_NoRedirects)

    def started_at(self) -> datetime:
        """When it started: before its senders have told it anew, it knows of no alert."""
        return _time(_of(self._get("/api/v2/status"), "uptime", str), "uptime")

    def alerts(self, names: Collection[str]) -> list[LiveAlert]:
        """The alerts of these names that fire now, held back or not."""
        pattern = "|".join(re.escape(name) for name in sorted(names))
        matcher = f'alertname=~"{_quoted(pattern)}"'
        found = self._get(f"/api/v2/alerts?filter={quote(matcher, safe='')}")
        return [_alert(one) for one in _list(found, "alerts")]

    def silences(self) -> dict[str, Silence]:
        """By id, the expired ones that it still knows too."""
        found = [_silence(one) for one in _list(self._get("/api/v2/silences"), "silences")]
        return {one.id: one for one in found}

    def _get(self, path: str) -> Any:
        where = f"GET {self._base}{path.partition('?')[0]}"
        try:
            headers = {"Accept": "application/json"}
            if self._authorization_file is not None:
                headers["Authorization"] = self._authorization_file.read_text("utf-8").strip()
            request = Request(self._base + path, headers=headers)  # noqa: S310 - the scheme was checked
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                body = response.read(MAX_BYTES + 1)
        except HTTPError as error:
            raise AlertmanagerError(f"{where}: status {error.code}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise AlertmanagerError(f"{where}: {error}") from error
        if len(body) > MAX_BYTES:
            raise AlertmanagerError(f"{where}: more than {MAX_BYTES} bytes")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise AlertmanagerError(f"{where}: not JSON: {error}") from error


def _quoted(pattern: str) -> str:
    """As a string in Alertmanager's matchers."""
    return pattern.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _alert(one: Any) -> LiveAlert:
    status, labels = _of(one, "status", dict), _of(one, "labels", dict)
    return LiveAlert(
        _of(one, "fingerprint", str),
        str(labels.get("alertname", "")),
        _time(_of(one, "startsAt", str), "startsAt"),
        tuple(map(str, _list(status.get("silencedBy"), "status.silencedBy"))),
        tuple(map(str, _list(status.get("inhibitedBy"), "status.inhibitedBy"))),
    )


def _silence(one: Any) -> Silence:
    return Silence(_of(one, "id", str), _of(one, "createdBy", str), _of(one, "comment", str))


def _of(value: Any, name: str, kind: type) -> Any:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise AlertmanagerError(f"the answer has no {name}, or not as the API says: is this an Alertmanager?")
    return found


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise AlertmanagerError(f"{name} is no list in the answer: is this an Alertmanager?")
    return value


def _time(value: str, name: str) -> datetime:
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise AlertmanagerError(f"{name} is no RFC 3339 time in the answer: {value!r:.80}") from error
