"""What a device is, read from trees as Jetsons, card hosts and cameras have them. Runs on cameras' Pythons, too."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping  # noqa: UP035 collections.abc.Mapping[...] is Python 3.9

import pytest
from cameras import Agent

from edgekd.agent.state.device import PowerMode, read_device

# In the form that L4T 35.4.1 has on a Jetson AGX Xavier.
XAVIER = {
    "proc/device-tree/compatible": "nvidia,p2972-0000\0nvidia,tegra194\0",
    "proc/device-tree/model": "Jetson-AGX\0",
    "proc/device-tree/serial-number": "1420921000000\0",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 0 (v8l)\n",
    "proc/meminfo": "MemTotal:       31801396 kB\nMemFree:        29180024 kB\n",
    "proc/sys/kernel/osrelease": "5.10.120-tegra\n",
    "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue "
    "Aug  1 19:57:35 UTC 2023\n",
    "etc/os-release": 'NAME="Ubuntu"\nVERSION="20.04.6 LTS (Focal Fossa)"\nPRETTY_NAME="Ubuntu 20.04.6 LTS"\n',
    "etc/nvpmodel.conf": "# comment\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=2 NAME=MODE_15W >\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
}
CARDS = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC "
    "2023\nGCC version:  gcc version 12.2.0 (GCC)\n",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ:   \t\t 150\n",
    "proc/driver/nvidia/gpus/0000:02:00.0/information": "Model: \t\t NVIDIA L4\nIRQ:   \t\t 151\n",
}


def planted(root: Path, files: Mapping[str, str]) -> Path:
    """A tree with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))
    return root


def test_a_xavier(tmp_path: Path) -> None:
    found = read_device(planted(tmp_path, XAVIER))
    assert found.compatible == ("nvidia,p2972-0000", "nvidia,tegra194")
    assert (found.model, found.serial) == ("Jetson-AGX", "1420921000000")
    assert (found.l4t, found.os, found.kernel) == ("35.4.1", "Ubuntu 20.04.6 LTS", "5.10.120-tegra")
    assert found.power_mode == PowerMode(2, "MODE_15W")
    assert found.memory_bytes == 31801396 * 1024
    assert (found.gpus, found.driver, found.firmware) == ((), None, None)


def test_a_host_with_cards(tmp_path: Path) -> None:
    found = read_device(planted(tmp_path, CARDS))
    assert (found.gpus, found.driver) == (("NVIDIA L4", "NVIDIA L4"), "535.129.03")
    assert (found.l4t, found.power_mode, found.compatible) == (None, None, ())


def test_the_open_driver_of_a_jetson(tmp_path: Path) -> None:
    said = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (host)  Tue Jan  7 2025\n"
    assert read_device(planted(tmp_path, {"proc/driver/nvidia/version": said})).driver == "540.4.0"


def test_a_device_that_says_nothing(tmp_path: Path) -> None:
    found = vars(read_device(tmp_path))
    assert {name: value for name, value in found.items() if value is not None} == {"compatible": (), "gpus": ()}


def test_nonsense_is_read_as_nothing(tmp_path: Path) -> None:
    files = dict.fromkeys((*XAVIER, *CARDS), "\xff nonsense")
    found = read_device(planted(tmp_path, files))
    assert (found.l4t, found.driver, found.power_mode, found.memory_bytes, found.cpu) == (None,) * 5


def test_a_mode_that_the_configuration_does_not_name(tmp_path: Path) -> None:
    assert read_device(planted(tmp_path, {**XAVIER, "etc/nvpmodel.conf": ""})).power_mode == PowerMode(2, None)


@pytest.mark.parametrize(
    ("firmware", "compatible", "fits"),
    [
        (None, "nvidia,p2972-0000", True),
        (None, "nvidia,jetson-agx-xavier", True),
        (None, "nvidia,jetson-agx-orin", False),
        (None, "acme,gate-7", None),
        ("acme,gate-7", "acme,gate-7", True),
        ("acme,gate-7", "nvidia,jetson-agx-xavier", False),
        ("nvidia,jetson-agx-orin", "nvidia,jetson-agx-orin", True),
        ("acme,gate-7", "nvidia,p2972-0000", False),
    ],
)
def test_which_bundles_fit(tmp_path: Path, firmware: str | None, compatible: str, fits: bool | None) -> None:
    told = {"etc/edgekd/compatible": firmware + "\n"} if firmware else {}
    assert read_device(planted(tmp_path, {**XAVIER, **told})).fits(compatible) is fits


def test_a_bundle_for_another_jetson_is_refused_before_it_is_unpacked(
    agent: Agent, bundle: Path, tmp_path: Path
) -> None:
    """The bundle is for an AGX Xavier."""
    orin = {**XAVIER, "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0"}
    error = agent("unpack", bundle, root=planted(tmp_path / "orin", orin)).error
    assert (error["kind"], error["expected"]) == ("BundleError", "one for Jetson AGX Orin 64GB")
    assert agent("unpack", bundle, root=planted(tmp_path / "xavier", XAVIER)).result["fits"] is True


def test_an_update_of_the_system_makes_an_engine_stale(agent: Agent, bundle: Path, tmp_path: Path) -> None:
    old = planted(tmp_path / "old", XAVIER)
    release = XAVIER["etc/nv_tegra_release"].replace("REVISION: 4.1", "REVISION: 6.1")
    new = planted(
        tmp_path / "new", {**XAVIER, "etc/nv_tegra_release": release, "var/lib/nvpmodel/status": "pmode:0000"}
    )
    assert agent("unpack", bundle, root=old).code == 0
    for command in ("build", "selftest", "activate"):
        assert agent(command, root=old).code == 0
    assert agent("status", root=old).result["active"]["engine"]["stale"] == []
    found = agent("status", root=new).result
    assert found["active"]["engine"]["stale"] == [{"what": "l4t", "built": "35.4.1", "now": "35.6.1"}]
    assert found["device"]["power_mode"] == {"id": 0, "name": "MAXN"}, "which does not make it stale"
    error = agent("activate", root=new).error
    assert (error["kind"], error["expected"]) == ("EngineMismatchError", "one for l4t 35.6.1")
