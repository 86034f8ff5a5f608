"""The libraries compared with, where they are installed, and how a detector of theirs is run."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.statistics.peers.exchange import Scores, Streams, read_scores, write_streams

ROOT = Path(__file__).parents[3]
ENVIRONMENTS = ROOT / ".cache" / "peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """One detector of one library."""

    library: str
    detector: str
    """What users call it."""
    environment: str
    """Folder below `ENVIRONMENTS`."""
    module: str
    key: str
    microseconds: float
    """Rough cost per request and channel, by which the number of its streams is chosen."""
    online: bool
    """Whether it looks after every request, not after every window."""
    binary: bool = False
    """Whether it sees no more than whether a request is active, which says nothing where all are."""

    @property
    def name(self) -> str:
        return f"{self.library} {self.detector}"

    @property
    def python(self) -> Path:
        return ENVIRONMENTS / self.environment / "bin" / "python"


PEERS = (
    Peer("alibi-detect", "KSDrift", "numpy1", "with_alibi", "ks", 2, False),
    Peer("alibi-detect", "CVMDriftOnline", "numpy1", "with_alibi", "cvm_online", 300, True),
    Peer("alibi-detect", "FETDriftOnline", "numpy1", "with_alibi", "fet_online", 200, True, binary=True),
    Peer("river", "ADWIN", "numpy2", "with_river", "adwin", 8, True),
    Peer("river", "PageHinkley", "numpy2", "with_river", "page_hinkley", 1, True),
    Peer("frouros", "CUSUM", "numpy1", "with_frouros", "cusum", 12, True),
    Peer("frouros", "PSI", "numpy1", "with_frouros", "psi", 1, False),
    Peer("evidently", "default test", "numpy2", "with_evidently", "default", 3, False),
)


def version(peer: Peer) -> str:
    """The pinned version."""
    pins = (ROOT / "requirements" / f"peers-{peer.environment}.txt").read_text()
    found = re.search(rf"(?m)^{re.escape(peer.library)}==(\S+)", pins)
    return found[1] if found else "?"


@cache
def unavailable(peer: Peer) -> str | None:
    """Why a peer cannot be run; None where it can."""
    if not peer.python.exists():
        return f"no {peer.python.relative_to(ROOT)}: make peers"
    probe = subprocess.run(
        [peer.python, "-c", f"import {peer.library.replace('-', '_')}"], capture_output=True, text=True, check=False
    )
    if probe.returncode == 0:
        return None
    log = peer.python.parents[1] / "install.log"
    errors = [line for line in log.read_text().splitlines() if "ERROR" in line] if log.exists() else []
    return (errors or probe.stderr.strip().splitlines() or ["unknown"])[-1]


def score(peer: Peer, streams: Streams) -> Scores:
    """Runs a detector in its own interpreter; raises RuntimeError with its last words where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "streams.npz"), Path(folder, "scores.npz")
        write_streams(source, streams)
        module = f"tests.statistics.peers.{peer.module}"
        command = [str(peer.python), "-m", module, peer.key, str(source), str(target)]
        # One core for each peer, as for reluscope; alibi-detect's compiled loops would take them all.
        environment = {"PATH": "", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{peer.name} failed: {done.stderr.strip()[-500:]}")
        return read_scores(target)
