"""The seam's fake keeps to its script, and every runtime keeps to the seam. Runs on cameras' Pythons, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cameras import Agent
from test_device import CARDS, planted

from edgekd.agent.engines import latency
from edgekd.agent.engines.camera import Camera
from edgekd.agent.runtimes import AUTOMATIC, NAMED, select_runtime
from edgekd.agent.runtimes.null import NullRuntime
from edgekd.agent.runtimes.types import BuildOptions, Runtime
from edgekd.agent.state.golden import batches, read_golden
from edgekd.agent.state.slots import Slot, State
from edgekd.core.errors import DeviceError


@pytest.fixture
def slot(agent: Agent, bundle: Path, state: State) -> Slot:
    """A slot with the tiny bundle."""
    agent("unpack", bundle)
    return Camera(state).chosen_slot()


def test_the_null_runtime_takes_its_latencies_in_turn(slot: Slot, tmp_path: Path) -> None:
    runtime = NullRuntime(latencies_s=(0.25, 0.5))
    runtime.build(slot, tmp_path / "engine", BuildOptions())
    session = runtime.load(tmp_path / "engine")
    golden = read_golden(slot)
    (batch, *_) = batches(golden.set, golden.spec)
    moments = []
    for _ in range(3):
        session.run(batch)
        moments.append(runtime.clock())
    assert moments == [0.25, 0.75, 1.0]


def test_the_null_runtime_answers_the_golden_frames_and_nothing_else(slot: Slot, tmp_path: Path) -> None:
    runtime = NullRuntime()
    runtime.build(slot, tmp_path / "engine", BuildOptions())
    session = runtime.load(tmp_path / "engine")
    golden = read_golden(slot)
    for batch in batches(golden.set, golden.spec):
        output = session.run(batch)
        assert output.shape == golden.set.output
        assert output.dtype == np.float32
        assert output.any()
        assert np.array_equal(session.run(batch), output), "the same each time"
        assert not session.run(batch + 1).any()
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(np.zeros(1, np.float32))


def test_the_null_runtime_refuses_what_it_did_not_build(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"{}\nnothing")
    with pytest.raises(DeviceError, match="no engine of the null runtime"):
        NullRuntime().load(tmp_path / "engine")


def test_the_null_runtime_is_never_chosen_by_itself() -> None:
    assert "null" not in [runtime.name for runtime in AUTOMATIC]
    named = select_runtime("null")
    assert isinstance(named, NullRuntime)


@pytest.mark.parametrize("runtime", [*AUTOMATIC, *NAMED], ids=lambda runtime: runtime.name)
def test_every_runtime_says_why_it_cannot_be_used(runtime: Runtime) -> None:
    problem = runtime.problem()
    assert problem is None or problem
    if problem:
        with pytest.raises(DeviceError, match=f"{runtime.name} cannot be used here"):
            select_runtime(runtime.name)
    else:
        assert select_runtime(runtime.name) is not None


def test_the_energy_of_a_runtime_on_the_processor_is_not_that_of_a_card(
    slot: Slot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, of_cards = planted(tmp_path / "camera", CARDS), {}
    for runtime in (*AUTOMATIC, *NAMED):
        camera = Camera(State(tmp_path / "state"), root, runtime)
        monkeypatch.setattr(latency, "find_meter", lambda root, gpu, name=runtime.name: of_cards.update({name: gpu}))
        monkeypatch.setattr(latency, "measure_latency", lambda *arguments: None)
        latency.measure_on(camera, slot, tmp_path / "engine", 1, 0.0)
    assert [name for name, gpu in of_cards.items() if not gpu] == ["onnxruntime", "openvino"]
