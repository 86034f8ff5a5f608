"""`python -m deploy.demo`: one command from nothing to a page with its runbook, on this machine."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from deploy.demo import cnn, review
from deploy.demo.acts import Director, Outcome
from deploy.demo.stage import MODEL, alerting, stage
from deploy.demo.traffic import Player
from deploy.demo.view import Story, View, view_for
from deploy.demo.watch import Watcher
from deploy.local.process import ServerError

REQUESTS_PER_SECOND = 150.0
LEAST_ACCURACY = 0.95
# kill and a closing terminal end the demo as Ctrl-C does, with everything put away.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def prepare(repository: Path, seed: int, story: Story, view: View) -> tuple[cnn.Digits, cnn.Weights]:
    """Train the network and put it into the repository as version 1."""
    story.say("step", "training a small ReLU network on scikit-learn's handwritten digits, in numpy")
    view.show(story)
    begun, digits = time.monotonic(), cnn.load(seed)
    weights = cnn.train(digits, seed)
    accuracy = cnn.accuracy(weights, digits.held_out, digits.held_out_labels)
    took = time.monotonic() - begun
    if accuracy < LEAST_ACCURACY:
        raise ServerError(f"the network reached {accuracy:.1%} on held-out pictures only; try another --seed")
    cnn.deploy(cnn.to_onnx(weights), repository, MODEL, 1)
    story.say("step", f"{accuracy:.1%} of held-out pictures right after {took:.1f} s; deployed {MODEL}/1/model.onnx")
    story.say("step", "starting Postgres, a broker, `reluscope migrate`, `reluscope detector`, `reluscope agent`")
    view.show(story)
    return digits, weights


def play(director: Director, weights: cnn.Weights) -> list[Outcome]:
    """The three acts, up to the first that fails."""
    broken, channels = cnn.with_dead_channels(weights)
    outcomes = [director.healthy()]
    if not outcomes[-1].problems:
        outcomes.append(director.shifted())
    if not outcomes[-1].problems:
        outcomes.append(director.dead(cnn.to_onnx(broken), channels))
    player = director.player
    if player.failed:
        outcomes[-1].problems.append(f"{player.failed} requests were not answered with 200: {player.last_failure}")
    return outcomes


def run(directory: Path, keep: bool, seed: int, report: Path, console: Console) -> bool:
    """Everything; whether all acts passed. Raises ServerError where something does not start or dies."""
    story, view = Story(time.monotonic()), view_for(console)
    with ExitStack() as stack:
        with view:
            digits, weights = prepare(directory / "models", seed, story, view)
            built = stack.enter_context(stage(directory))
            routing = stack.enter_context(alerting(built))
            story.say("step", "all up" + " (with Prometheus, Alertmanager and the shipped rules)" * routing)
            player = Player(built.agent_url, MODEL, digits.held_out, REQUESTS_PER_SECOND, seed)
            stack.callback(player.stop)
            watcher = Watcher(built)
            outcomes = play(Director(built, player, watcher, story, view, routing), weights)
        passed = not any(outcome.problems for outcome in outcomes)
        if passed:
            review.ask(console, watcher, routing)
            console.print(f"\n{review.routed(watcher, routing)}", markup=False, highlight=False, soft_wrap=True)
            console.print(
                f"Report: {review.write_report(built, report)}", style="bold", highlight=False, soft_wrap=True
            )
        else:
            for outcome in outcomes:
                for problem in outcome.problems:
                    say(console, f"act {outcome.act}: {problem}", style="bold red")
            for process in built.processes:
                say(console, f"\n--- {process.name}, end of its log\n{process.tail()}")
        if keep:
            say(console, "\nThe services stay up, and the traffic goes on, until Ctrl-C:")
            for name, address in built.addresses().items():
                say(console, f"  {name:13}{address}")
        verdict = {
            "verdict": "passed" if passed else "failed",
            "seconds": round(time.monotonic() - story.started, 1),
            "acts": [asdict(outcome) for outcome in outcomes],
            "requests": player.sent,
            "requests_failed": player.failed,
        }
        print(json.dumps(verdict), flush=True)
        if keep:
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    return passed


def say(console: Console, text: str, style: str = "") -> None:
    """A line as it is: addresses and logs may hold what rich takes for markup."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _interrupt(*_: object) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave servers behind
    raise KeyboardInterrupt


@click.command(context_settings={"show_default": True})
@click.option("--keep", is_flag=True, envvar="KEEP", help="Leave the services up until Ctrl-C, with their addresses.")
@click.option("--seed", default=0, help="Of training, pictures and light.")
@click.option(
    "--report",
    default=Path("out/demo-report.html"),
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the HTML report goes.",
)
def main(keep: bool, seed: int, report: Path) -> None:
    """Train a small network, serve it real traffic, break its camera and then its weights, and watch what is found."""
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="reluscope-demo-") as directory:
            passed = run(Path(directory), keep, seed, report, console)
    except KeyboardInterrupt:
        say(console, "\ninterrupted; everything is stopped and put away")
        sys.exit(130)
    except ServerError as error:
        say(console, f"the demo cannot go on: {error}", style="bold red")
        print(json.dumps({"verdict": "failed", "error": str(error).splitlines()[0]}))
        sys.exit(1)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
