"""Description of the machine of a measurement."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it.

    Args:
        name: Name of the product.
        driver: Version of the driver.
        compute_capability: Such as `8.6`.
        memory_bytes: Its memory; null where the driver does not report it.
    """

    name: str
    driver: str
    compute_capability: str
    memory_bytes: int | None


@dataclass(frozen=True)
class HostFacts:
    """The machine of a measurement; null for what cannot be read.

    Args:
        device: Name of the device, such as `local`.
        engine: Runtime, such as `openvino-cpu`.
        cpu: Model name of the CPU.
        cores: Cores that this process may use.
        threads: Threads that the runtime uses.
        governor: Policy of the CPU's frequency.
        clock_mhz: Clock of the first core.
        memory_bytes: Main memory.
        board: Name of the board or product.
        os: Name of the system.
        kernel: Release of the kernel.
        machine: Architecture.
        python: Version of Python.
        libraries: Version of each library.
        gpus: NVIDIA GPUs that the driver lists.
    """

    device: str
    engine: str
    cpu: str
    cores: int
    threads: int
    governor: str | None
    clock_mhz: float | None
    memory_bytes: int | None
    board: str | None
    os: str
    kernel: str
    machine: str
    python: str
    libraries: dict[str, str] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
