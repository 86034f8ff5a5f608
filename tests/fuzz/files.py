"""Files that a disk or a colleague may have spoilt: holdouts, references made offline, the outbox."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

import numpy as np

from agent.delivery.outbox import Outbox, Watch
from agent.intake.tensors import TensorSpec
from agent.paired.holdout import HoldoutError, check_classes, read_holdout, unpacked_size
from detector.domain.types import ModelVersion
from detector.ingestion import offline
from detector.ingestion.offline import OfflineError
from tests.detector.builders import START
from tests.fuzz.mutations import of_archive, of_bytes, of_protobuf
from tests.fuzz.protobuf import varint
from tests.fuzz.runner import Target
from tests.fuzz.wires import NOW, messages

_SPECS = (TensorSpec("x", "FP32", (-1, 3)),)


def targets(folder: Path) -> list[Target]:
    """Each has a file of its own in `folder`."""
    return [_holdout(folder / "holdout.npz"), _offline(folder / "reference.bin"), _outbox(folder / "outbox")]


def _holdout(path: Path) -> Target:
    def archive(**arrays: np.ndarray) -> bytes:
        out = io.BytesIO()
        np.savez(out, **arrays)  # type: ignore[arg-type]
        return out.getvalue()

    def decode(data: bytes) -> bool:
        path.write_bytes(data)
        unpacked_size(path)
        holdout = read_holdout(path, _SPECS, {"x": 0}, 1 << 20)
        check_classes(path, holdout.labels, 10)
        assert holdout.inputs["x"].dtype == np.float32
        assert holdout.inputs["x"].shape == (len(holdout.labels), 3)
        assert np.isfinite(holdout.inputs["x"]).all()
        return True

    seeds = [
        archive(x=np.ones((4, 3), np.float32), labels=np.array([0, 1, 2, 9])),
        archive(x=np.zeros((2, 3), np.float64), labels=np.array([1, 1], np.uint8)),
    ]
    return Target("holdout", seeds, (of_archive, of_archive, of_bytes), decode, (HoldoutError,))


def _offline(path: Path) -> Target:
    version = ModelVersion(1, "digits", "1", "d1", START, START, START)
    windows = messages()[:2]

    def decode(data: bytes) -> bool:
        path.write_bytes(data)
        return bool(offline.read(path, version, NOW))

    def framed(random: Random, data: bytes, others: object) -> bytes:
        """Valid lengths around a message that was changed."""
        changed = of_protobuf(random, random.choice(windows), windows)
        return data + varint(len(changed)) + changed

    seeds = [b"".join(varint(len(one)) + one for one in windows), varint(len(windows[0])) + windows[0]]
    return Target("offline", seeds, (framed, of_bytes), decode, (OfflineError,))


def _outbox(folder: Path) -> Target:
    folder.mkdir()
    path = folder / "outbox.db"
    first = Outbox(path, 1 << 20, watch=Watch(clock=lambda: 1.0, random_bits=lambda bits: 5))
    made = {seq: Random(seq).randbytes(size) for seq, size in enumerate([10, 700, 700, 700, 9000, 700, 20, 5000], 1)}
    for _ in made:
        first.append("m@1", made.__getitem__)
    epoch = first.boot_epoch
    first.close()
    seed = path.read_bytes()

    def decode(data: bytes) -> bool:
        """Whatever the file holds: the outbox starts, gives nothing that was not appended, and takes more."""
        for file in folder.iterdir():
            file.unlink()
        path.write_bytes(data)
        outbox = Outbox(path, 1 << 20)
        try:
            items = outbox.pending(100)
            assert all((item.key, item.epoch, item.payload) == ("m@1", epoch, made[item.seq]) for item in items)
            assert outbox.append("m@1", lambda seq: b"more")
            assert outbox.pending(100)[-1].payload == b"more"
            outbox.acknowledge([item.rowid for item in outbox.pending(100)])
            assert outbox.depth() == (0, 0)
        finally:
            outbox.close()
        return len(items) == len(made)

    return Target("outbox", [seed], (of_bytes,), decode, ())
