"""The sensor of this machine that tells most of what a network costs.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekd.core.power import Meter
from edgekd.core.power.nvml import find_gpu
from edgekd.core.power.rails import find_rails
from edgekd.core.power.rapl import find_packages


def find_meter(
    root: Path = Path("/"), *, gpu: bool = False, rails: Sequence[str] = (), total: str | None = None
) -> Meter | None:
    """The sensor of this machine that tells most of what runs a network; None where there is none that we may read.

    A Jetson's rails, of which a target may say which there are and which of them is the total; else, where a GPU runs
    the network, NVIDIA's counter of it, and where the CPU does, the CPU's own.
    """
    on_module = find_rails(root, rails, total)
    if on_module is not None:
        return on_module
    return find_gpu() if gpu else find_packages(root)
