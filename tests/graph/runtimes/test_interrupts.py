"""OpenVINO and Ctrl-C."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal
from edgekd.graph.runtimes.openvino import interrupts_deferred

try:
    with interrupts_deferred():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            print("imported")
        except KeyboardInterrupt:
            print("ignored, as the native module does")
    print("went on")
except KeyboardInterrupt:
    print("stopped")
"""


def test_an_interrupt_during_the_import_stops_the_program_after_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["imported", "stopped"]
