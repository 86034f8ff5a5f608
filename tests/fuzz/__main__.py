"""`python -m tests.fuzz`: mutated messages for every decoder. The last line is one JSON object."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import structlog

from tests.fuzz.runner import Tally, Target, check, run
from tests.fuzz.targets import targets

OUT = Path("out/fuzz")


def main() -> int:
    """Returns the exit status: 1 where an input broke the promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, unless --rounds is given")
    parser.add_argument("--rounds", type=int, help="how many inputs for each decoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only these decoders")
    parser.add_argument("--replay", type=Path, help="a file that was kept of an input, with one --target")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of zip archives with a name twice, and of numbers out of range
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        chosen = [one for one in targets(Path(folder)) if not options.target or one.name in options.target]
        if not chosen:
            parser.error(f"no such decoder: {options.target}")
        if options.replay:
            tallies = {chosen[0].name: _replayed(chosen[0], options.replay)}
        else:
            end = time.monotonic() + options.seconds
            rounds = options.rounds
            tallies = run(chosen, options.seed, lambda done: done < rounds if rounds else time.monotonic() < end)
    return _told(tallies)


def _replayed(target: Target, file: Path) -> Tally:
    tally = Tally()
    for number in (0, 1):  # with memory traced, and timed
        check(target, file.read_bytes(), number, tally)
    return tally


def _told(tallies: dict[str, Tally]) -> int:
    print(f"{'decoder':<16}{'inputs':>10}{'values':>10}{'refused':>10}{'mean us':>9}{'slowest ms':>12}{'most KiB':>10}")
    for name, tally in tallies.items():
        mean, refused = tally.seconds / max(1, tally.inputs) * 1e6, sum(tally.refused.values())
        figures = f"{mean:>9.0f}{tally.slowest * 1e3:>12.1f}{tally.largest / 1024:>10.0f}"
        print(f"{name:<16}{tally.inputs:>10}{tally.values:>10}{refused:>10}{figures}")
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    for failure in failures[:20]:
        OUT.mkdir(parents=True, exist_ok=True)
        file = OUT / f"{failure.target}-{hashlib.sha256(failure.data).hexdigest()[:12]}"
        file.write_bytes(failure.data)
        print(f"\n{failure.target}: input {failure.number}: {failure.reason}", file=sys.stderr)
        print(f"again: python -m tests.fuzz --target {failure.target} --replay {file}", file=sys.stderr)
    total = {
        "inputs": sum(tally.inputs for tally in tallies.values()),
        "failures": len(failures),
        "slowest_ms": round(max(tally.slowest for tally in tallies.values()) * 1e3, 1),
        "largest_kib": round(max(tally.largest for tally in tallies.values()) / 1024),
    }
    print(json.dumps(total))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
