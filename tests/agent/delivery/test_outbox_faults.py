"""The outbox against a model of it, on a disk that fails: crashes between writes, torn files, no room, errors."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from agent.delivery.outbox import Item, Outbox, OutboxError, Watch
from tests.agent.delivery.disk import AVAILABLE, WHY_NOT, Disk

Name = tuple[int, int]
"""Boot epoch and sequence number."""
ROOM = 60_000
LEAST = 80_000
"""A new outbox takes less."""
KEPT = 2
FAST = Path("/dev/shm")  # fsync costs nothing there


@dataclass(frozen=True)
class Damage:
    """What is done to a file, at a share of its length."""

    place: float
    length: int
    """Bytes of noise; 0 cuts the file off."""
    seed: int

    def do(self, file: Path) -> None:
        size = file.stat().st_size if file.exists() else 0
        place = int(self.place * size)
        if size and not self.length:
            os.truncate(file, place)
        elif size:
            with file.open("r+b") as stream:
                stream.seek(place)
                stream.write(random.Random(self.seed).randbytes(min(self.length, size - place)))


damages = st.builds(
    Damage, st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 40, 5000]), st.integers(0, 1 << 30)
)


class Model(RuleBasedStateMachine):
    """What was appended is pending until acknowledged, in order, whatever happens to the process and its disk."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet = capture_logs()
        self.quiet.__enter__()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-", dir=FAST if FAST.is_dir() else None))
        self.disk = Disk(self.folder)
        self.installed = self.disk.installed()
        self.installed.__enter__()
        self.lives = 0
        self.chance = random.Random(0)
        self.now, self.passed = 1_000_000.0, 0.0
        self.epochs: list[int] = []
        self.greatest = 0
        """Epoch that something on the disk remembers."""
        self.made: dict[Name, tuple[str, bytes]] = {}
        """Every message that was ever given to an append."""
        self.waiting: list[Name] = []
        """What has to be pending, in order."""
        self.maybe: set[Name] = set()
        """What may be pending too: a kill came in the middle, or a failing disk refused it."""
        self.refused = self.told_drops = self.told_damage = 0
        self.outbox = self.start()

    @property
    def path(self) -> Path:
        return self.folder / str(self.lives) / "outbox.db"

    def start(self) -> Outbox:
        self.path.parent.mkdir(exist_ok=True)
        watch = Watch(
            on_drop=lambda: setattr(self, "told_drops", self.told_drops + 1),
            on_damage=lambda: setattr(self, "told_damage", self.told_damage + 1),
            clock=lambda: self.now,
            monotonic=lambda: self.passed,
            random_bits=self.chance.getrandbits,
        )
        self.refused = self.told_drops = 0
        outbox = Outbox(self.path, ROOM, keep_damaged=KEPT, watch=watch)
        assert outbox.boot_epoch > self.greatest
        assert outbox.boot_epoch not in self.epochs
        assert outbox.boot_epoch < 1 << 62
        self.greatest = outbox.boot_epoch
        self.epochs.append(self.greatest)
        return outbox

    def teardown(self) -> None:
        self.disk.heal()
        self.outbox.close()
        self.installed.__exit__(None, None, None)
        self.quiet.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    # What an agent does.

    def try_append(self, key: str, size: int) -> bool:
        names: list[Name] = []

        def make(seq: int) -> bytes:
            name = (self.outbox.boot_epoch, seq)
            names.append(name)
            self.made[name] = (key, random.Random(f"{name}").randbytes(size))
            return self.made[name][1]

        stored = self.outbox.append(key, make)
        if stored:
            self.waiting += names
        else:
            self.refused += 1
            self.maybe |= set(names)
        return stored

    @rule(key=st.sampled_from(["m@1", "modèle@2"]), size=st.sampled_from([0, 1, 300, 4000, 9000, 30_000]))
    def append(self, key: str, size: int) -> None:
        waiting = self.outbox.depth()[1]
        stored = self.try_append(key, size)
        assert stored == (waiting + size + len(key.encode()) + 64 <= ROOM)
        self.maybe.clear()

    @rule(limit=st.integers(1, 8), most=st.sampled_from([None, 1, 5000]), share=st.sampled_from([0.0, 0.5, 1.0]))
    def send(self, limit: int, most: int | None, share: float) -> None:
        items = self.outbox.pending(limit, most)
        self.check_content(items)
        assert [name_of(item) for item in items] == self.waiting[: len(items)]
        if most is None:
            assert len(items) == min(limit, len(self.waiting))
        sent = [item for item in items if random.Random(f"{name_of(item)}{share}").random() < share]
        self.outbox.acknowledge([item.rowid for item in sent] + [1 << 40])
        gone = {name_of(item) for item in sent}
        self.waiting = [name for name in self.waiting if name not in gone]

    # What befalls it.

    @rule(back=st.sampled_from([-1000.0, 0.0, 5.0]))
    def restart(self, back: float) -> None:
        self.outbox.close()
        self.now += back
        self.outbox = self.start()
        self.resolve()

    @rule(nth=st.integers(1, 14), what=st.sampled_from(["append", "send", "restart"]), size=st.sampled_from([10, 9000]))
    def crash(self, nth: int, what: str, size: int) -> None:
        """A kill before the nth write from now, or after the last: the copy of the files is what is left."""
        copy = self.folder / str(self.lives + 1)
        at = self.disk.writes + nth

        def copy_files() -> None:
            if self.disk.writes == at:
                shutil.copytree(self.path.parent, copy)

        self.disk.before_write = copy_files
        if what == "append":
            before = list(self.waiting)
            self.try_append("m@1", size)
            cut = copy.exists()
            self.maybe |= set(self.waiting) - set(before) if cut else set()
            self.waiting = before if cut else self.waiting
        elif what == "send":
            items = self.outbox.pending(3)
            sent = {name_of(item) for item in items}
            self.outbox.acknowledge([item.rowid for item in items])
            self.waiting = [name for name in self.waiting if name not in sent]
            self.maybe |= sent
        else:
            greatest = self.greatest
            self.outbox.close()
            self.outbox = self.start()
            if copy.exists():  # made when the new life may not have begun
                self.greatest = greatest
        self.disk.before_write = None
        if not copy.exists():
            shutil.copytree(self.path.parent, copy)
            self.maybe.clear()
        self.move_to_copy()
        self.resolve()

    def move_to_copy(self) -> None:
        old = self.path.parent
        self.outbox.close()
        shutil.rmtree(old)
        self.lives += 1
        self.outbox = self.start()

    @rule(
        room=st.integers(0, 40_000), sizes=st.lists(st.sampled_from([10, 5000, 20_000]), max_size=6), send=st.booleans()
    )
    def full_disk(self, room: int, sizes: list[int], send: bool) -> None:
        self.disk.quota = self.disk.used() + room
        for size in sizes:
            self.try_append("m@1", size)
        if send:
            self.drain()
            assert self.try_append("m@1", 10) or self.disk.quota < LEAST, "no room though all is acknowledged"
        try:
            self.check_content(self.outbox.pending(100))
        except OutboxError:  # there is no room even for an empty file
            assert self.waiting == []
            assert self.disk.quota < LEAST
        self.disk.heal()
        self.passed += 60
        self.resolve()

    def drain(self) -> None:
        while self.outbox.depth()[0]:  # as the publisher does
            items = self.outbox.pending(2)
            assert [name_of(item) for item in items if name_of(item) not in self.maybe] == self.waiting[: len(items)]
            self.check_content(items)
            self.outbox.acknowledge([item.rowid for item in items])
            self.waiting = [name for name in self.waiting if name not in {name_of(item) for item in items}]
        assert self.waiting == []

    @rule(sizes=st.lists(st.sampled_from([10, 9000]), min_size=1, max_size=3), code=st.sampled_from(["read", "write"]))
    def failing_disk(self, sizes: list[int], code: str) -> None:
        setattr(self.disk, f"{code}_error", errno.EIO)
        for size in sizes:
            self.try_append("m@1", size)
        with contextlib.suppress(OutboxError):  # a failing disk may say so; what it has kept is looked at below
            items = self.outbox.pending(2)
            self.outbox.acknowledge([item.rowid for item in items])
            self.maybe |= {name_of(item) for item in items}
            self.waiting = [name for name in self.waiting if name not in self.maybe]
        self.disk.heal()
        self.passed += 60
        self.resolve()

    @rule()
    def slow_disk(self) -> None:
        self.disk.delay = 0.002
        self.try_append("m@1", 100)
        self.disk.heal()
        self.resolve()

    @rule(damage=damages, wal=st.booleans(), crashed=st.booleans())
    def torn_file(self, damage: Damage, wal: bool, crashed: bool) -> None:
        """A file overwritten or cut off at a random place; without the file, the boot epoch has to do."""
        copy = self.folder / str(self.lives + 1)
        if not crashed:
            self.outbox.close()
        shutil.copytree(self.path.parent, copy)
        file = copy / ("outbox.db-wal" if wal else "outbox.db")
        damage.do(file)
        self.move_to_copy()
        self.after_damage()

    @rule(damage=damages)
    def torn_while_in_use(self, damage: Damage) -> None:
        damage.do(self.path)
        for _ in range(3):
            self.try_append("m@1", 5000)
            try:
                self.outbox.pending(100)
            except OutboxError:
                self.passed += 60
        self.outbox.close()
        self.outbox = self.start()
        self.after_damage()

    @rule(back=st.sampled_from([-100.0, 100.0]), lost=st.sampled_from(["outbox.db", "outbox.db.boot", "both"]))
    def lost_file(self, back: float, lost: str) -> None:
        self.outbox.close()
        for file in self.path.parent.glob("outbox.db*"):
            if lost == "both" or (file.suffix == ".boot") == (lost == "outbox.db.boot"):
                file.unlink()
        self.now += back
        if lost == "both":  # nothing remembers them; where the clock goes back, epochs still differ
            self.greatest = 0
        self.outbox = self.start()
        if lost != "outbox.db.boot":
            self.waiting = []
        self.maybe.clear()
        self.resolve()

    # What holds.

    def check_content(self, items: list[Item]) -> None:
        for item in items:
            assert self.made[name_of(item)] == (item.key, item.payload)

    def resolve(self) -> None:
        """All that must be pending is, in order, and nothing but what may be."""
        items = self.outbox.pending(1000)
        self.check_content(items)
        names = [name_of(item) for item in items]
        assert [name for name in names if name in set(self.waiting)] == self.waiting
        assert set(names) - set(self.waiting) <= self.maybe
        assert names == sorted(set(names))
        self.waiting = names
        self.maybe.clear()

    def after_damage(self) -> None:
        """Nothing that was never appended; nothing changed; and it works."""
        items = self.outbox.pending(1000)
        self.check_content(items)
        names = [name_of(item) for item in items]
        assert len(set(names)) == len(names)
        self.waiting = names
        self.maybe.clear()
        self.outbox.acknowledge([item.rowid for item in items])
        self.waiting = []
        assert self.try_append("m@1", 5000)
        self.resolve()

    @precondition(lambda self: not self.maybe)
    @invariant()
    def counts_are_right(self) -> None:
        sizes = [len(key.encode()) + len(payload) + 64 for key, payload in map(self.made.__getitem__, self.waiting)]
        assert self.outbox.depth() == (len(sizes), sum(sizes))

    @invariant()
    def drops_are_told(self) -> None:
        assert self.outbox.dropped == self.told_drops >= self.refused

    @invariant()
    def few_damaged_files_are_kept(self) -> None:
        kept = [path for path in self.path.parent.glob("*.damaged-*") if not path.name.endswith("-wal")]
        assert len(kept) <= KEPT
        assert not kept or self.told_damage

    @invariant()
    def another_process_is_told_off(self) -> None:
        with pytest.raises(OutboxError, match="another process"):
            Outbox(self.path, ROOM)


def name_of(item: Item) -> Name:
    return item.epoch, item.seq


TestModel = pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)(Model.TestCase)
Model.TestCase.settings = settings(
    max_examples=int(os.environ.get("RELUSCOPE_OUTBOX_EXAMPLES", "40")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
