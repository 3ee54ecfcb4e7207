"""Work on untrusted files in a child process with limits of memory and time, where a library has none of its own.

The child gets a function of edgekd by name, and arguments and result as JSON. What a limit, or a crash of the library,
ends is the child alone.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from edgekd.core.errors import EdgeKDError, SpecError

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import edgekd.core.limited_process as p; p.child()"
_WAIT_FACTOR = 4
"""Seconds of waiting for each second of processor time: the child may share the machine with others."""
_SPARE_WAIT_S = 120
"""Seconds of waiting beyond that, to start and to read large files from slow disks."""
_STATM = Path("/proc/self/statm")
"""Sizes of this process in pages; the first is its address space."""


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of a child.

    memory_bytes: address space beyond what its libraries take, at most the memory of this machine; cpu_seconds:
    processor time of all its threads.
    """

    memory_bytes: int
    cpu_seconds: int


def run_limited(function: str, arguments: Sequence[Any], limits: ProcessLimits, what: str, imports: str = "") -> Any:
    """Call `function`, MODULE:NAME, with JSON arguments in a child; return its JSON result.

    Args:
        what: The file, for errors.
        imports: Modules that the child imports before its memory is limited, separated by commas.

    Raises SpecError where the function does, and where a limit or a crash ends the child.
    """
    command = [sys.executable, "-I", "-c", _START, json.dumps(sys.path)]
    order = {
        "function": function,
        "arguments": list(arguments),
        "imports": imports,
        "memory": min(limits.memory_bytes, _physical_memory()),
        "cpu": limits.cpu_seconds,
    }
    # Each thread of an allocator reserves address space, on large machines more than the limit.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    environment["ORT_DISABLE_TELEMETRY"] = "1"
    wait = _WAIT_FACTOR * limits.cpu_seconds + _SPARE_WAIT_S
    try:
        done = subprocess.run(
            command, input=json.dumps(order).encode(), capture_output=True, timeout=wait, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _ended(what, limits, str(error)) from error
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise _ended(what, limits, f"an end by signal or exit code {done.returncode}") from error
    if "error" in answer:
        raise SpecError(**answer["error"])
    if "memory" in answer:
        raise _ended(what, limits, answer["memory"])
    return answer["result"]


def _ended(what: str, limits: ProcessLimits, found: str) -> SpecError:
    gigabytes = limits.memory_bytes / 1e9
    return SpecError(
        f"{what}: handling it needs too much memory or time, or crashes a library",
        expected=f"at most {gigabytes:.1f} GB and {limits.cpu_seconds} s of processor time",
        found=found[:200],
        fix="export the model again with fixed sizes, from a source that you trust",
    )


def child() -> None:
    """Run what stdin orders; write the result as the last line of stdout."""
    order = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no result
    module, name = order["function"].split(":")
    for each in (*filter(None, order["imports"].split(",")), module):
        import_module(each)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_CPU, order["cpu"])
    if _STATM.exists():  # Linux; elsewhere time alone is limited
        _limit(resource.RLIMIT_AS, _address_space() + order["memory"])
    try:
        answer = {"result": getattr(import_module(module), name)(*order["arguments"])}
    except EdgeKDError as error:
        answer = {"error": {"what": error.what, "expected": error.expected, "found": error.found, "fix": error.fix}}
    except Exception as error:  # libraries report a failed allocation in many ways
        answer = {"memory": repr(error)[:200]}
    os.write(out, b"\n" + json.dumps(answer).encode() + b"\n")
    os._exit(0)  # native libraries may hang or crash while they are torn down under a limit


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _physical_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _address_space() -> int:
    """Return the bytes of address space that this process has reserved."""
    return int(_STATM.read_text("ascii").split()[0]) * resource.getpagesize()
