"""OpenVINO and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys

from edgekd.graph.runtimes.openvino import interrupts_deferred

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


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for `nohup edgekd build ... &`
    try:
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
