"""Sessions lease what they take: real ones, on the CPU, and a GPU that is one in name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from agent.budget.duty import DutyLimits
from agent.budget.owner import Budget, BudgetLimits
from agent.instrument import Instrumented, instrument, open_model
from agent.instrument.whole import WholeGraph
from agent.metrics import AgentMetrics
from agent.replay import Device, FullSession, NoMemory, Replayer, ReplayError
from agent.replay.leases import SessionLeases
from tests.agent.capture.fakes import GpuDevice
from tests.agent.models import Builder

MIB = 1 << 20


def budget(ram: int, gpu: int = 1 << 40) -> Budget:
    return Budget(BudgetLimits(DutyLimits(1.0), gpu, ram * 4 // 3), AgentMetrics())


@pytest.fixture
def two_mib(tmp_path: Path) -> Instrumented:
    b = Builder()
    model = b.model({"x": ["N", 724]}, {b.node("Relu", [b.gemm("x", "fc", 724, 724)], "relu"): 2})
    onnx.save(model, tmp_path / "model.onnx")
    return instrument(open_model(tmp_path / "model.onnx"))


def test_sessions_of_all_kinds_share_one_limit_and_free_it_when_they_go(two_mib: Instrumented) -> None:
    here = budget(5 * MIB)
    device = Device(1, memory=here.sessions)
    first, second = (Replayer.on(device.owned(owner), two_mib) for owner in ("replay", "calibration"))
    with pytest.raises(NoMemory, match="for paired: 1 of 7 MiB are free; raise --memory-mib"):
        Replayer.on(device.owned("paired"), two_mib)
    assert here.ram.used("replay") == here.ram.used("calibration") == two_mib.weight_bytes
    assert first.run({"x": np.ones((2, 724), np.float32)}).keys() >= {"relu"}
    del second
    third = Replayer.on(device.owned("paired"), two_mib)
    assert here.ram.used("calibration") == 0 and here.ram.used("paired") > 0
    del first, third
    assert here.ram.used() == here.ram.used("activations")


def test_a_session_that_cannot_be_opened_gives_its_lease_back(tmp_path: Path, two_mib: Instrumented) -> None:
    here = budget(5 * MIB)
    (tmp_path / "model.onnx").write_bytes(b"another")
    with pytest.raises(ReplayError, match="changed"):
        Replayer.on(Device(1, memory=here.sessions), two_mib)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ReplayError, match="No such file"):
        Replayer.on(Device(1, memory=here.sessions), two_mib)
    assert here.ram.used("replay") == 0


def test_full_sessions_lease_too(tmp_path: Path, two_mib: Instrumented) -> None:
    here = budget(5 * MIB)
    exposed = WholeGraph(open_model(tmp_path / "model.onnx")).expose(["relu_out"])
    session = FullSession(exposed, Device(1, memory=here.sessions, owner="holdout"))
    assert here.ram.used("holdout") > 2 * MIB
    del session
    assert here.ram.used("holdout") == 0


def test_on_a_gpu_the_arena_of_a_session_is_what_was_granted_and_no_more_than_the_process_may_have() -> None:
    here = budget(1 << 40, gpu=3000 * MIB)
    device = GpuDevice(1, 2048 * MIB, "cuda", memory=here.sessions)
    first = SessionLeases(device, 100 * MIB)
    second = SessionLeases(device, 100 * MIB)
    assert (first.device.gpu_mem_limit, second.device.gpu_mem_limit) == (2048 * MIB, 952 * MIB)
    with pytest.raises(NoMemory, match="GPU memory for replay: 0 of 3000 MiB are free; raise --gpu-memory-mib"):
        SessionLeases(device, 100 * MIB)
    assert here.ram.used("replay") == 200 * MIB, "what was refused holds nothing"
    first.keep(here, on_gpu=False)
    assert (here.gpu.used("replay"), here.ram.used("replay")) == (952 * MIB, 200 * MIB), "it came up on the CPU"
    second.release()
    assert (here.gpu.used(), here.ram.used("replay")) == (0, 100 * MIB)


def test_a_device_of_one_version_is_bounded_by_its_fair_share() -> None:
    here = budget(100, gpu=6000)
    device = Device(1, 5000, memory=here.sessions)
    assert device.owned("paired").gpu_mem_limit == 2000
    here.sessions.versions = 8
    assert device.owned("paired").gpu_mem_limit == 600
    assert Device(1, 5000).owned("paired").gpu_mem_limit == 5000


_ARENA = """
import numpy as np
from agent.budget.duty import DutyLimits
from agent.budget.owner import Budget, BudgetLimits
from agent.instrument import instrument
from agent.metrics import AgentMetrics
from agent.replay import Device, OutOfMemory, Replayer
from tests.agent.models import small_cnn

budget = Budget(BudgetLimits(DutyLimits(1.0), 1 << 30, 16 << 20), AgentMetrics())
device = Device(1, provider="cpu", memory=budget.sessions)
sessions = [Replayer.on(device, instrument(small_cnn())) for _ in range(3)]
sessions[0].run({"image": np.ones((64, 1, 8, 8), np.float32)})
try:
    sessions[1].run({"image": np.ones((20_000, 1, 8, 8), np.float32)})
except OutOfMemory as error:
    print("refused")
print(len(sessions[2].run({"image": np.ones((64, 1, 8, 8), np.float32)})))
"""


def test_what_all_sessions_compute_in_is_bounded_for_the_process() -> None:
    """In a process of its own: the arena is the process's, and its limit is set once."""
    done = subprocess.run([sys.executable, "-c", _ARENA], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["refused", "5"], done.stderr
