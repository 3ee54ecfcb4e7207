"""What of a cluster is rules: room for trials, machines that are not alike, addresses where nobody is."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.builds.search import cluster
from edgekd.builds.search.cluster import Cluster, SharedEnvironment
from edgekd.core.errors import DataError, DeviceError, SpecError

GPU_NODE, CPU_NODE, RACK = {"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0}, {"CPU": 2.0, "board": 3.0}


@pytest.mark.parametrize(
    ("nodes", "gpus", "boards", "room"),
    [
        ([GPU_NODE, GPU_NODE], None, 0, Cluster(8, 1, 8)),
        ([GPU_NODE, CPU_NODE, RACK], None, 3, Cluster(8, 1, 4, 3)),
        ([GPU_NODE, GPU_NODE], 2, 0, Cluster(16, 2, 4)),
        ([GPU_NODE], 3, 0, Cluster(32, 3, 1)),
        ([CPU_NODE, CPU_NODE], None, 0, Cluster(2, 0, 8)),
        ([CPU_NODE], 0, 0, Cluster(1, 0, 8)),
        ([{"CPU": 24.0}], None, 0, Cluster(4, 0, 6)),
        ([{"CPU": 1.0}, {"CPU": 1.0}], None, 0, Cluster(1, 0, 2)),
    ],
)
def test_a_trial_gets_its_share_of_a_machine(
    nodes: list[dict[str, float]], gpus: int | None, boards: int, room: Cluster
) -> None:
    assert cluster._room(nodes, gpus, 6, boards) == room


@pytest.mark.parametrize(
    ("nodes", "gpus", "boards", "words"),
    [
        ([GPU_NODE], 5, 0, ("--gpus 5", "what one machine has: 4")),
        ([CPU_NODE], None, 2, ("no machine of the cluster offers boards", '{"board": 2}')),
        ([{"memory": 1.0}], None, 0, ("no machine has room for a trial",)),
    ],
)
def test_what_no_machine_has_is_refused(
    nodes: list[dict[str, float]], gpus: int | None, boards: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(SpecError) as refused:
        cluster._room(nodes, gpus, 6, boards)
    assert all(word in str(refused.value) for word in words)


def test_a_machine_that_sees_another_folder_or_has_other_software_is_refused(tmp_path: Path) -> None:
    here = SharedEnvironment.here(tmp_path)
    here.require()
    other: dict[str, Any] = {**here.software, "numpy": "1.0"}
    with pytest.raises(DeviceError, match=r"other software; expected numpy 1\.0, as where the search runs; found"):
        replace(here, software=other).require()
    SharedEnvironment.here(tmp_path)
    with pytest.raises(DeviceError, match=r"does not see the folder of the search.*another one there"):
        here.require()
    here.probe.unlink()
    with pytest.raises(DeviceError, match="shared by all machines; found nothing there"):
        here.require()


def test_an_error_says_on_which_machine_it_was() -> None:
    with pytest.raises(DataError, match=f"^{socket.gethostname()}: x.png: unreadable; fix: restore it$"):  # noqa: SIM117
        with cluster._host_in_errors():
            raise DataError("x.png: unreadable", fix="restore it")


def test_where_no_cluster_can_be_is_said_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(DeviceError, match=f"--cluster {nobody}: nobody answers.*ray start"), joined_cluster(nobody):
            pass
    for address in ("somewhere", "host:port", ":6379"):
        with pytest.raises(SpecError, match="expected HOST:PORT"), joined_cluster(address):
            pass


def joined_cluster(address: str) -> Any:
    return cluster.joined_cluster(address, None, 6)


def test_without_ray_there_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SpecError, match=r"--cluster needs Ray.*edgekd\[cluster\]"), joined_cluster("local"):
        pass


@pytest.mark.slow
def test_a_cluster_of_this_machine_listens_on_this_machine_alone() -> None:
    pytest.importorskip("ray")
    script = (
        "import ray\n"
        "from edgekd.builds.search.cluster import joined_cluster\n"
        "with joined_cluster('local', 0, 1, cores=1):\n"
        "    print('at', ray.nodes()[0]['NodeManagerAddress'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert "at 127.0.0.1" in done.stdout.splitlines()
