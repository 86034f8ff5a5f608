"""The pages that the detector serves to people: a runbook, and the list of runbooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from markdown_it import MarkdownIt

from detector.alerting.runbooks import split
from detector.domain.runbook import Runbook

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2rem }
pre { overflow-x: auto; padding: .75rem; border: 1px solid #8886; border-radius: 6px; font-size: .875rem }
code { font-family: ui-monospace, monospace } table { border-collapse: collapse } .wide { overflow-x: auto }
td, th { border: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top }
.meta { color: #666 } .note { border-left: 4px solid #c60; padding: .25rem .75rem }
@media (prefers-color-scheme: dark) { .meta { color: #aaa } }
"""
# Raw HTML stays text: a runbook is content, not code.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


def runbook_page(runbook: Runbook, newest: int) -> str:
    """One version of a runbook; says so where a newer one exists."""
    note = ""
    if newest > runbook.version:
        link = f"/runbooks/{runbook.name}/v{newest}"
        note = (
            f'<p class="note">This is version {runbook.version}, the one that the alert named. '
            f'The newest is <a href="{link}">version {newest}</a>.</p>'
        )
    meta = " · ".join(
        (f"version {runbook.version}", runbook.severity, f"cause {runbook.cause}", f"owner {runbook.owner}")
    )
    html = _MARKDOWN.render(split(runbook.body)[1])
    html = html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    foot = f'<p class="meta">sha256 {runbook.sha256} · <a href="/runbooks">all runbooks</a></p>'
    return _page(runbook.name, f'<p class="meta">{escape(meta)}</p>{note}<main>{html}</main>{foot}')


def index_page(runbooks: Iterable[Runbook]) -> str:
    """The newest version of every runbook, with links to the older ones."""
    versions: dict[str, dict[int, Runbook]] = {}
    for runbook in runbooks:
        versions.setdefault(runbook.name, {})[runbook.version] = runbook
    rows = []
    for name, known in sorted(versions.items()):
        newest = known[max(known)]
        links = ", ".join(f'<a href="/runbooks/{name}/v{v}">v{v}</a>' for v in sorted(known, reverse=True))
        rows.append(
            f'<tr><td><a href="/runbooks/{name}/v{newest.version}">{escape(name)}</a></td>'
            f"<td>{escape(newest.severity)}</td><td>{escape(newest.cause)}</td><td>{links}</td></tr>"
        )
    table = "<tr><th>Alert</th><th>Severity</th><th>Cause</th><th>Versions</th></tr>" + "".join(rows)
    return _page("Runbooks", f'<h1>Runbooks</h1><div class="wide"><table>{table}</table></div>')


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – Reluscope</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )
