"""What the viewer sees: one live page on a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Kind = Literal["step", "act", "check", "finding", "alert", "good", "bad"]
STYLES: dict[Kind, str] = {
    "step": "dim",
    "act": "bold cyan",
    "check": "",
    "finding": "yellow",
    "alert": "bold red",
    "good": "bold green",
    "bad": "bold red",
}
EVENTS_SHOWN = 14
STATUS_SECONDS = 10.0
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a line; `at` is seconds since the start."""

    at: float
    kind: Kind
    text: str


@dataclass(slots=True)
class Layer:
    """One probe's row: newest values and the sparsity of the windows so far."""

    name: str
    kind: str
    channels: int
    sparsity: deque[float] = field(default_factory=lambda: deque(maxlen=10))
    mean: float = 0.0
    dead: int = 0
    drifted: int = 0


@dataclass(slots=True)
class Story:
    """All that is shown. `started` is on the monotonic clock."""

    started: float
    act: str = "getting ready"
    pipeline: dict[str, str] = field(default_factory=lambda: {"requests/s": "0", "answer p99": ""})
    layers: dict[str, Layer] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def say(self, kind: Kind, text: str) -> None:
        """Add an event, now."""
        self.events.append(Event(time.monotonic() - self.started, kind, text))


class View(Protocol):
    """Shows a story; `show` is called several times a second."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def show(self, story: Story) -> None: ...


class LiveView:
    """Redraws one page in place; the last state stays on the terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, story: Story) -> None:
        """Draw the page."""
        self._live.update(page(story), refresh=True)


class PlainView:
    """Prints each event once, and the flow of data every ten seconds and after each act; for logs and CI."""

    def __init__(self, console: Console) -> None:
        self._console, self._shown, self._last_status = console, 0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, story: Story) -> None:
        """Print what is new."""
        for event in story.events[self._shown :]:
            self._line(event.at, event.text)
        ended = any(event.kind in ("good", "bad") for event in story.events[self._shown :])
        self._shown = len(story.events)
        elapsed = time.monotonic() - story.started
        if story.layers and (ended or elapsed - self._last_status >= STATUS_SECONDS):
            self._last_status = elapsed
            flow = ", ".join(f"{name} {value}" for name, value in story.pipeline.items())
            sparsity = ", ".join(
                f"{layer.name} {layer.sparsity[-1]:.0%}"
                for layer in story.layers.values()
                if layer.kind == "activation" and layer.sparsity
            )
            self._line(elapsed, f"    flow: {flow}; sparsity: {sparsity}")

    def _line(self, at: float, text: str) -> None:
        self._console.print(f"[{at:6.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)


def view_for(console: Console) -> View:
    """The live page where the console is a terminal, plain lines where it is not."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def sparkline(values: deque[float]) -> str:
    """Bars for values in [0, 1]."""
    return "".join(_BARS[min(int(value * len(_BARS)), len(_BARS) - 1)] for value in values)


def page(story: Story) -> RenderableType:
    """The whole page: act, flow of data, layers, events; fits 80 columns."""
    elapsed = time.monotonic() - story.started
    title = Text.assemble(("reluscope demo", "bold"), "   ", (story.act, "bold cyan"), f"   {elapsed:5.1f} s")
    flow = Text(" · ").join(
        Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in story.pipeline.items() if value
    )
    lines = [
        Text(f"{event.at:6.1f} s  {event.text}", style=STYLES[event.kind]) for event in story.events[-EVENTS_SHOWN:]
    ]
    return Group(
        title,
        Panel(flow, title="flow of data", title_align="left"),
        Panel(_layers(story), title="layers, newest window", title_align="left"),
        Panel(Group(*lines), title="what happens", title_align="left"),
    )


def _layers(story: Story) -> Table:
    table = Table(box=None, padding=(0, 1), expand=True)
    for heading in ("layer", "kind", "channels", "mean", "sparsity", "", "dead", "drifted"):
        justify: Literal["left", "right"] = "left" if heading in ("layer", "kind", "") else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for layer in story.layers.values():
        rectified = layer.kind == "activation" and layer.sparsity
        table.add_row(
            layer.name,
            layer.kind,
            str(layer.channels),
            f"{layer.mean:.3f}",
            f"{layer.sparsity[-1]:.0%}" if rectified else "",
            sparkline(layer.sparsity) if rectified else "",
            Text(str(layer.dead), style="bold red" if layer.dead else "dim"),
            Text(str(layer.drifted), style="yellow" if layer.drifted else "dim"),
        )
    return table
