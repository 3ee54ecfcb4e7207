"""Power, clock and temperature of an NVIDIA GPU by NVML, the library of the driver, as in `nvml.h`.

Energy is counted on Volta and later, and updated every 20 to 100 ms; power is a mean over up to a second.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import ctypes
from typing import Any

from edgekd.core.power import MeterKind

LIBRARY = "libnvidia-ml.so.1"
_SUCCESS = 0
_CLOCK_GRAPHICS, _TEMPERATURE_GPU = 0, 0


class NvidiaGpu:
    """One GPU with its board. It counts energy on some GPUs, and reads power on others."""

    name: MeterKind = "nvml"
    covers = "GPU with its memory and board"

    def __init__(self, library: Any, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle
        self.counts = self._joules() is not None

    def read(self) -> float:
        """Return joules or watts. Raises OSError."""
        value = self._joules() if self.counts else self._watts()
        if value is None:
            raise OSError("NVML stopped answering")
        return value

    @property
    def readable(self) -> bool:
        """True if it has energy or power."""
        return self.counts or self._watts() is not None

    @property
    def clock_mhz(self) -> float | None:
        """Current clock of its processors; None where it is not available."""
        value = ctypes.c_uint()
        return float(value.value) if self._ask("nvmlDeviceGetClockInfo", _CLOCK_GRAPHICS, ctypes.byref(value)) else None

    @property
    def temperature_c(self) -> float | None:
        """Temperature of the chip; None where it is not available."""
        value = ctypes.c_uint()
        known = self._ask("nvmlDeviceGetTemperature", _TEMPERATURE_GPU, ctypes.byref(value))
        return float(value.value) if known else None

    def _joules(self) -> float | None:
        value = ctypes.c_ulonglong()
        known = self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.byref(value))
        return value.value / 1e3 if known else None

    def _watts(self) -> float | None:
        value = ctypes.c_uint()
        return value.value / 1e3 if self._ask("nvmlDeviceGetPowerUsage", ctypes.byref(value)) else None

    def _ask(self, function: str, *arguments: Any) -> bool:
        return bool(getattr(self._library, function)(self._handle, *arguments) == _SUCCESS)


def find_gpu(index: int = 0, library: Any = None) -> NvidiaGpu | None:
    """Return a GPU by its number; None without a driver, or where the GPU has neither energy nor power.

    library: NVML as ctypes loads it.
    """
    try:
        library = library or ctypes.CDLL(LIBRARY)
        handle = ctypes.c_void_p()
        if library.nvmlInit_v2() != _SUCCESS:
            return None
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != _SUCCESS:
            return None
        gpu = NvidiaGpu(library, handle)
    except (OSError, AttributeError):  # no driver, or one older than a function
        return None
    return gpu if gpu.readable else None
