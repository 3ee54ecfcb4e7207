"""This machine as a device."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.core.cores import usable_cores
from edgekd.core.errors import SpecError
from edgekd.core.host_facts import Gpu, HostFacts
from edgekd.core.procfs import number_in, text_of, value_of
from edgekd.deploy.signing.secrets import without_secrets
from edgekd.graph.runtimes import runtime_named
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.types import HostRuntime, Session, library_version, require

if TYPE_CHECKING:
    from edgekd.deploy.devices.connection import Connection, Stop

_LIBRARIES = ("edgekd", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
_NVIDIA_SMI = ("--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader,nounits")
_NVIDIA_SMI_SECONDS = 10.0


@dataclass(frozen=True)
class LocalDevice:
    """This machine. threads: None for every usable core."""

    engine: HostRuntime = ONNXRUNTIME_CPU
    threads: int | None = None
    name: str = "local"
    runtime: str | None = None
    remote: bool = False

    def connect(self, python: str | None, stop: Stop | None = None) -> AbstractContextManager[Connection]:
        """Connect to this machine. Raises DeviceError."""
        from edgekd.deploy.devices.process import connect_local

        return connect_local(self.name, python, stop)

    def facts(self) -> HostFacts:
        """Return a description of this machine."""
        facts = host_facts(self.name, self.engine.name, self.threads or usable_cores())
        # Results depend on the version of the runtime.
        versions = {name: version for name in self.engine.distributions if (version := library_version(name))}
        return replace(facts, libraries={**facts.libraries, **versions})

    def load(self, graph: Path) -> Session:
        """Open an ONNX file with the runtime `engine`. Raises DeviceError."""
        return self.engine.load(graph, threads=self.threads)

    def load_streams(self, graph: Path, streams: int) -> tuple[Session, ...]:
        """Open an ONNX file for several frames at once, on the same threads. Raises DeviceError."""
        return self.engine.load_streams(graph, streams, threads=self.threads)

    def clock(self) -> float:
        """Return the seconds of the monotonic high-resolution clock."""
        return time.perf_counter()


def host_facts(device: str, engine: str, threads: int, root: Path = Path("/")) -> HostFacts:
    """Describe this machine from /proc, /sys and /etc below `root`."""
    frequency = root / "sys/devices/system/cpu/cpu0/cpufreq"
    cpuinfo = root / "proc/cpuinfo"
    khz = number_in(frequency / "scaling_cur_freq")
    clock_mhz = khz / 1000 if khz is not None else _number(value_of(cpuinfo, "cpu MHz", ":"))
    kib = _number((value_of(root / "proc/meminfo", "MemTotal", ":") or "").removesuffix("kB"))
    versions = {name: version for name in _LIBRARIES if (version := library_version(name))}
    return HostFacts(
        device=device,
        engine=engine,
        cpu=value_of(cpuinfo, "model name", ":") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        threads=threads,
        governor=text_of(frequency / "scaling_governor"),
        clock_mhz=clock_mhz,
        memory_bytes=int(kib * 1024) if kib else None,
        board=text_of(root / "proc/device-tree/model") or text_of(root / "sys/class/dmi/id/product_name"),
        os=value_of(root / "etc/os-release", "PRETTY_NAME", "=") or platform.system(),
        kernel=platform.release(),
        machine=platform.machine(),
        python=platform.python_version(),
        libraries=versions,
        gpus=gpus(),
    )


def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs of the driver; none without a driver, or if it does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        answer = subprocess.run(
            (command, *_NVIDIA_SMI), capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_nvidia_smi(answer.stdout)


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Parse lines of `name, driver, compute capability, memory in MiB`."""
    gpus = []
    for line in text.splitlines():
        fields = [part.strip() for part in line.rsplit(",", 3)]
        if len(fields) == 4:
            mib = _number(fields[3])  # "[N/A]" if the GPU shares the host's memory
            name, driver, compute_capability = fields[:3]
            memory = int(mib) * 2**20 if mib else None
            gpus.append(Gpu(name=name, driver=driver, compute_capability=compute_capability, memory_bytes=memory))
    return tuple(gpus)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def local_device(name: str) -> LocalDevice:
    """Return the device `local`, with the fastest usable CPU runtime, or `local:ENGINE`.

    Raises SpecError, DeviceError.
    """
    kind, _, engine = name.partition(":")
    if kind != "local":
        fix = "edgekd engine BUNDLE --device measures a bundle on a camera" if kind == "ssh" else None
        raise SpecError(
            f"--device {without_secrets(name)}",
            expected="local, or local:ENGINE such as local:onnxruntime-cpu",
            fix=fix,
        )
    if not engine:
        return LocalDevice(OPENVINO_CPU if OPENVINO_CPU.available().usable else ONNXRUNTIME_CPU)
    require(runtime_named(engine))
    return LocalDevice(runtime_named(engine))
