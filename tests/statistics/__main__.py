"""`python -m tests.statistics`: the whole calibration suite; writes a page for each part into docs/calibration.

The sizes are for forty minutes on two cores; `--quick` is for trying it out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.statistics import fleets, lives, lives_page, pages, sparsity
from tests.statistics.calibrate import calibrate
from tests.statistics.exactness import agreements, merging
from tests.statistics.pages import Page
from tests.statistics.parallel import cores
from tests.statistics.run_length import changed_lives, live, moody_lives, quiet_lives
from tests.statistics.versus import Sizes, real, synthetic

DELAY_SHARE = 4
"""Of the models of a quiet life, one in so many lives through a change."""
SPARSITY_SHARE = 15
"""Likewise, of layers whose sparsity is watched."""
DELAY_WINDOWS = 300
"""Nobody waits for longer to be told."""
LIVES_SHARE = 30
"""Likewise, of whole models."""
FLEET_SHARE = 15
"""Likewise, of fleets."""
FLEET_BATCHES = 60


def main() -> None:
    """Runs the parts asked for, one after the other."""
    parts: dict[str, Callable[[argparse.Namespace], Page]] = {
        "calibration": _calibration,
        "run-length": _run_length,
        "exactness": _exactness,
        "peers": _peers,
        "fleet": _fleet,
        "sparsity": _sparsity,
        "lives": _lives,
    }
    parser = argparse.ArgumentParser(prog="python -m tests.statistics", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/calibration"))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--p-values", type=int, default=1_000_000, help="per test and null")
    parser.add_argument("--models", type=int, default=300, help="per null, for run lengths")
    parser.add_argument("--windows", type=int, default=600, help="that each model is followed for")
    parser.add_argument("--streams", type=int, default=200, help="healthy ones per family; half as many per change")
    parser.add_argument("--peer-seconds", type=float, default=50, help="per peer and family: slow ones get less to do")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the work")
    options = parser.parse_args()
    if options.quick:
        options.p_values, options.models, options.windows, options.streams, options.peer_seconds = 20_000, 50, 60, 40, 3
    for name in options.parts:
        begun = time.monotonic()
        parts[name](options).write(options.out, name)
        print(f"{name}: {time.monotonic() - begun:.0f} s in all", file=sys.stderr, flush=True)


def _calibration(options: argparse.Namespace) -> Page:
    return pages.calibration(calibrate(options.p_values, options.workers, options.seed))


def _run_length(options: argparse.Namespace) -> Page:
    quiet = live(quiet_lives(), options.models, options.windows, options.workers, options.seed)
    models, windows = max(options.models // DELAY_SHARE, 20), min(options.windows, DELAY_WINDOWS)
    moody = live(moody_lives(), models, options.windows, options.workers, options.seed + 2)
    return pages.run_lengths(quiet, moody, live(changed_lives(), models, windows, options.workers, options.seed + 1))


def _exactness(options: argparse.Namespace) -> Page:
    return pages.exactness(merging(seed=options.seed), agreements(seed=options.seed))


def _peers(options: argparse.Namespace) -> Page:
    sizes = Sizes(options.streams, options.streams // 2, options.peer_seconds)
    small = Sizes(3 * options.streams // 10, max(options.streams // 20, 5), 3 * options.peer_seconds)
    contests = synthetic(sizes, options.workers, options.seed)
    return pages.peers([*contests, real(small, options.workers, options.seed + 1)])


def _fleet(options: argparse.Namespace) -> Page:
    models, batches = max(options.models // FLEET_SHARE, 3), min(options.windows, FLEET_BATCHES)
    scenes = (fleets.quiet(), fleets.spread_out(), fleets.odd())
    found = [
        fleets.live(each, models, batches, options.workers, options.seed + number) for number, each in enumerate(scenes)
    ]
    return fleets.page(*found)


def _sparsity(options: argparse.Namespace) -> Page:
    layers, windows = max(options.models // SPARSITY_SHARE, 2), options.windows // 3
    return sparsity.page(layers, windows, max(layers // 2, 2), options.workers, options.seed)


def _lives(options: argparse.Namespace) -> Page:
    models = max(options.models // LIVES_SHARE, 2)
    nulls = [*lives.nulls(), *lives.real()]
    return lives_page.page(lives.live(nulls, models, options.windows, options.workers, options.seed))


if __name__ == "__main__":
    main()
