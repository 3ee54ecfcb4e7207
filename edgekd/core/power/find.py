"""Selection of the sensor of this machine that covers most of a network's energy.

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
    """Return the sensor of this machine for a network; None where there is none with read access.

    A Jetson's rails, which a target may name with their total; else for a network on the GPU NVIDIA's counter, and for
    one on the CPU the CPU's own.
    """
    on_module = find_rails(root, rails, total)
    if on_module is not None:
        return on_module
    return find_gpu() if gpu else find_packages(root)
