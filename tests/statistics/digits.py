"""Real activations: the demo's CNN on handwritten digits, captured by the agent, under graded corruption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import rotate, uniform_filter

from agent.instrument import instrument
from agent.instrument.pooled import Pooled
from agent.replay import Replayer
from agent.wire import Probe
from deploy.demo import cnn

Pictures = NDArray[np.float32]
Change = Callable[[Pictures, np.random.Generator], Pictures]
BATCH = 500


@dataclass(frozen=True, slots=True)
class Corruption:
    """A way and a degree of going wrong."""

    kind: str
    degree: str
    change: Change
    only: tuple[int, ...] = ()
    """Digits that a share of the pictures is taken from; empty for the usual mix."""
    share: float = 0.0


def corruptions() -> list[Corruption]:
    """Five kinds in three degrees each."""
    noise = [Corruption("noise", f"σ {s:g}", partial(_noisy, s)) for s in (0.005, 0.01, 0.03)]
    blur = [Corruption("blur", f"{s:.0%}", partial(_blurred, s)) for s in (0.01, 0.03, 0.1)]
    light = [Corruption("brightness", f"{s:.0%}", partial(_dimmed, s)) for s in (0.99, 0.98, 0.96)]
    turn = [Corruption("rotation", f"{s}°", partial(_turned, s)) for s in (0.5, 1, 2)]
    mix = [
        Corruption("label mix", f"{s:.0%} more ones and sevens", partial(_dimmed, 1.0), only=(1, 7), share=s)
        for s in (0.1, 0.2, 0.4)
    ]
    return [*noise, *blur, *light, *turn, *mix]


class Camera:
    """Pictures in, pooled values of every probe out, as the agent captures them."""

    def __init__(self, epochs: int = 12) -> None:
        self.digits = cnn.load()
        instrumented = instrument(cnn.to_onnx(cnn.train(self.digits, epochs=epochs)))
        self.probes: tuple[Probe, ...] = instrumented.probes
        self._replayer = Replayer(instrumented, threads=1, gpu_mem_limit=1 << 28, provider="cpu")

    def shoot(self, n: int, rng: np.random.Generator, what: Corruption | None = None) -> dict[str, Pooled]:
        """``n`` held-out pictures, drawn with replacement, corrupted and run through the instrumented network."""
        labels = self.digits.held_out_labels
        chosen = rng.integers(len(labels), size=n)
        if what is not None and what.only:
            some = np.flatnonzero(np.isin(labels, what.only))
            chosen = np.where(rng.random(n) < what.share, rng.choice(some, size=n), chosen)
        pictures = self.digits.held_out[chosen]
        if what is not None:
            pictures = np.clip(what.change(pictures, rng), 0, 1).astype(np.float32)
        return self.pooled(pictures)

    def pooled(self, pictures: Pictures) -> dict[str, Pooled]:
        """What the instrumented network makes of these pictures."""
        parts = [self._replayer.run({"image": pictures[i : i + BATCH]}) for i in range(0, len(pictures), BATCH)]
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}


@cache
def camera() -> Camera:
    """One network for all streams."""
    return Camera()


def _joined(parts: list[Pooled]) -> Pooled:
    return Pooled(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "maximum", "fraction"))
    )


def _noisy(deviation: float, pictures: Pictures, rng: np.random.Generator) -> Pictures:
    return np.asarray(pictures + rng.normal(0, deviation, pictures.shape), np.float32)


def _blurred(share: float, pictures: Pictures, rng: np.random.Generator) -> Pictures:
    smooth = uniform_filter(pictures, size=(1, 1, 3, 3), mode="constant")
    return np.asarray((1 - share) * pictures + share * smooth, np.float32)


def _dimmed(share: float, pictures: Pictures, rng: np.random.Generator) -> Pictures:
    return np.asarray(share * pictures, np.float32)


def _turned(degrees: float, pictures: Pictures, rng: np.random.Generator) -> Pictures:
    return np.asarray(rotate(pictures, degrees, axes=(2, 3), reshape=False, order=1), np.float32)
