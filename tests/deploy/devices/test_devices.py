"""The local device says what it is and runs its engine; the null device takes the time it was told."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgekd.core.documents import to_plain
from edgekd.core.errors import DeviceError, SpecError
from edgekd.core.host_facts import Gpu
from edgekd.deploy.devices import local as local_device
from edgekd.deploy.devices.local import LocalDevice, gpus, host_facts, parse_nvidia_smi
from edgekd.deploy.devices.null import NullDevice
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU


def test_this_machine_is_described_in_plain_json() -> None:
    facts = LocalDevice(threads=1).facts()
    assert (facts.device, facts.engine, facts.threads) == ("local", "onnxruntime-cpu", 1)
    assert 1 <= facts.cores <= (os.cpu_count() or 1)
    assert facts.memory_bytes is not None
    assert facts.memory_bytes > 2**28
    assert facts.libraries["onnxruntime"] == ONNXRUNTIME_CPU.version()
    assert json.loads(json.dumps(to_plain(facts)))["python"] == facts.python


def test_what_runs_the_network_is_among_the_libraries_though_nobody_lists_it() -> None:
    """Times of one version of a runtime are not those of another."""
    other = SimpleNamespace(name="other", distributions=("pytest", "nowhere"))
    libraries = LocalDevice(other).facts().libraries
    assert libraries == {**LocalDevice().facts().libraries, "pytest": pytest.__version__}


def test_facts_come_from_the_system_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local_device, "gpus", tuple)
    files = {
        "proc/cpuinfo": "processor : 0\nmodel name : Fast CPU\ncpu MHz : 2500.5\n",
        "proc/meminfo": "MemTotal:        2048 kB\nMemFree: 1 kB\n",
        "proc/device-tree/model": "NVIDIA Jetson AGX Xavier\0",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1900000\n",
        "etc/os-release": 'NAME="X"\nPRETTY_NAME="Ubuntu 20.04.6 LTS"\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = host_facts("local", "onnxruntime-cpu", 4, root=tmp_path)
    assert (facts.cpu, facts.governor, facts.clock_mhz) == ("Fast CPU", "performance", 1900.0)
    assert facts.memory_bytes == 2048 * 1024
    assert (facts.board, facts.os) == ("NVIDIA Jetson AGX Xavier", "Ubuntu 20.04.6 LTS")
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").unlink()
    assert host_facts("local", "onnxruntime-cpu", 4, root=tmp_path).clock_mhz == 2500.5


def test_what_cannot_be_read_is_none_and_not_an_error(tmp_path: Path) -> None:
    facts = host_facts("local", "onnxruntime-cpu", 1, root=tmp_path)
    assert (facts.governor, facts.clock_mhz, facts.memory_bytes, facts.board) == (None, None, None, None)
    assert facts.cpu


def test_gpus_are_read_from_nvidia_smi() -> None:
    text = "NVIDIA L4, 550.54.15, 8.9, 23034\nNVIDIA GB10, 580.1, 12.1, [N/A]\n\n"
    assert parse_nvidia_smi(text) == (
        Gpu(name="NVIDIA L4", driver="550.54.15", compute_capability="8.9", memory_bytes=23034 * 2**20),
        Gpu(name="NVIDIA GB10", driver="580.1", compute_capability="12.1", memory_bytes=None),
    )


def test_a_driver_that_does_not_answer_means_no_gpu(monkeypatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", fail)
    assert gpus() == ()


@pytest.mark.gpu
def test_the_driver_of_this_machine_names_its_gpu() -> None:
    found = gpus()
    if not found:
        pytest.skip("no NVIDIA GPU here")
    assert found[0].name.startswith("NVIDIA")
    assert float(found[0].compute_capability) >= 5
    assert found[0].memory_bytes is None or found[0].memory_bytes > 2**30


def test_the_local_device_refuses_an_unreadable_graph(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="is not there"):
        LocalDevice().load(tmp_path / "gone.onnx")


def test_the_null_device_takes_its_latencies_in_turn_and_returns_its_output() -> None:
    output = np.ones((1, 2, 6), np.float32)
    device = NullDevice([0.5, 0.25], output)
    with device.load(Path("any.onnx")) as session:
        assert session.run(np.zeros((1, 3, 4, 4), np.float32)) is output
        assert device.clock() == 0.5
        session.run(output)
        assert device.clock() == 0.75
        session.run(output)
        assert device.clock() == 1.25
    with pytest.raises(DeviceError, match="closed"):
        session.run(output)


@pytest.mark.parametrize("latencies", [[], [0.0], [0.1, -0.1]])
def test_a_null_device_without_time_is_refused(latencies: list[float]) -> None:
    with pytest.raises(SpecError, match="latencies"):
        NullDevice(latencies)
