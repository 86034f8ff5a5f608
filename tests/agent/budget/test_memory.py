"""Leases never exceed the arena, whoever takes and releases them."""

from __future__ import annotations

import gc
import random
import threading
import weakref

import pytest

from agent.budget.duty import DutyLimits
from agent.budget.memory import Arena, Lease, NoRoom
from agent.budget.owner import Budget, BudgetLimits
from agent.metrics import AgentMetrics

MIB = 1 << 20


def test_a_lease_is_granted_whole_or_down_to_what_will_do_or_refused_with_a_reason() -> None:
    refused: list[str] = []
    arena = Arena("RAM", 100 * MIB, "--memory-mib", refused.append)
    first = arena.lease("replay", 60 * MIB)
    second = arena.lease("paired", 60 * MIB, least=10 * MIB)
    assert (first.nbytes, second.nbytes) == (60 * MIB, 40 * MIB)
    with pytest.raises(
        NoRoom, match=r"no room for 1 MiB of RAM for holdout: 0 of 100 MiB are free; raise --memory-mib"
    ):
        arena.lease("holdout", MIB)
    assert refused == ["holdout"]
    assert (arena.used(), arena.used("paired")) == (100 * MIB, 40 * MIB)
    for _ in range(2):
        second.release()  # the second time does nothing
    assert (arena.used(), arena.used("paired")) == (60 * MIB, 0)


def test_many_threads_never_hold_more_than_there_is() -> None:
    arena = Arena("RAM", 1000, "--memory-mib")
    most = []

    def work(seed: int) -> None:
        rng, held = random.Random(seed), list[Lease]()
        for _ in range(500):
            try:
                held.append(arena.lease("replay", rng.randint(1, 300), least=1))
            except NoRoom:
                held.pop(rng.randrange(len(held))).release() if held else None
            most.append(arena.used())
        for lease in held:
            lease.release()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 1000
    assert arena.used() == 0


def test_a_lease_ends_with_what_holds_it_even_in_the_midst_of_another() -> None:
    class Session:
        other: Session | None = None

    arena = Arena("RAM", 100, "--memory-mib")
    session = Session()
    session.other = session  # only the garbage collector frees it
    weakref.finalize(session, arena.lease("replay", 100).release)
    del session
    gc.collect()
    assert arena.lease("replay", 100).nbytes == 100


def test_the_owner_shows_what_is_spoken_for_and_what_was_refused() -> None:
    metrics = AgentMetrics()
    budget = Budget(BudgetLimits(DutyLimits(0.25), 600 * MIB, 100 * MIB), metrics)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"reluscope_agent_{name}", labels)

    assert value("memory_limit_bytes", memory="gpu") == 600 * MIB
    assert value("memory_bytes", memory="ram", owner="activations") == 25 * MIB
    lease = budget.ram.lease("holdout", 75 * MIB)
    assert value("memory_bytes", memory="ram", owner="holdout") == 75 * MIB
    with pytest.raises(NoRoom):
        budget.ram.lease("paired", 1)
    assert value("memory_refused_total", memory="ram", owner="paired") == 1
    assert value("memory_refused_total", memory="gpu", owner="replay") == 0
    lease.release()
    assert value("memory_bytes", memory="ram", owner="holdout") == 0


def test_the_gpu_is_shared_among_versions_and_two_kinds_of_other_work() -> None:
    sessions = Budget(BudgetLimits(DutyLimits(0.25), 6000, 100), AgentMetrics()).sessions
    assert sessions.gpu_share == 2000
    sessions.versions = 4
    assert sessions.gpu_share == 1000
