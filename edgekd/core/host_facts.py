"""Description of the machine of a measurement. Keys are in alphabetical order, as in the records of stages."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it.

    Args:
        compute_capability: Such as `8.6`.
        driver: Version of the driver.
        memory_bytes: Its memory; null where the driver does not report it.
        name: Name of the product.
    """

    compute_capability: str
    driver: str
    memory_bytes: int | None
    name: str


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The machine of a measurement; null for what cannot be read.

    Args:
        board: Name of the board or product.
        clock_mhz: Clock of the first core.
        cores: Cores that this process may use.
        cpu: Model name of the CPU.
        device: Name of the device, such as `local`.
        engine: Runtime, such as `openvino-cpu`.
        governor: Policy of the CPU's frequency.
        gpus: NVIDIA GPUs that the driver lists.
        kernel: Release of the kernel.
        libraries: Version of each library.
        machine: Architecture.
        memory_bytes: Main memory.
        os: Name of the system.
        python: Version of Python.
        threads: Threads that the runtime uses.
    """

    board: str | None
    clock_mhz: float | None
    cores: int
    cpu: str
    device: str
    engine: str
    governor: str | None
    gpus: tuple[Gpu, ...] = ()
    kernel: str
    libraries: dict[str, str] = field(default_factory=dict)
    machine: str
    memory_bytes: int | None
    os: str
    python: str
    threads: int
