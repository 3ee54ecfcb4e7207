"""ONNX Runtime sessions of calibration and analysis."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from edgekd.graph.session import cpu_session


def cores_of_threads() -> dict[int, set[int]]:
    """Return the cores that each thread of this process may use."""
    found = {}
    for thread in (int(task.name) for task in Path("/proc/self/task").iterdir()):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            found[thread] = os.sched_getaffinity(thread)
    return found


def test_no_thread_of_a_session_runs_on_a_core_that_its_process_may_not_use(tiny_model: Path) -> None:
    """ONNX Runtime by default binds a thread to each core of the machine."""
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        before = cores_of_threads()
        session = cpu_session(str(tiny_model))
        begun = {thread: cores for thread, cores in cores_of_threads().items() if thread not in before}
    finally:
        os.sched_setaffinity(0, mine)
    assert session.get_inputs()
    assert [cores for cores in begun.values() if cores != {min(mine)}] == []
