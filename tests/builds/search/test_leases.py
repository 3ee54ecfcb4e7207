"""Who has a board or a core, and that a lease ends with its process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from edgekd.builds.search.leases import leased, on_cores

# Takes a board, says so, and waits to be killed.
HOLDER = """
import sys, time
from pathlib import Path
from edgekd.builds.search.leases import leased
with leased("board", ["only"], Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_each_gets_another_and_the_next_waits_for_one_to_be_free(tmp_path: Path) -> None:
    names, taken = ["a", "b"], []
    with ExitStack() as first, leased("board", names, tmp_path) as other:
        taken.append(first.enter_context(leased("board", names, tmp_path)))
        waits = threading.Thread(target=lambda: taken.append(take(names, tmp_path)))
        waits.start()
        waits.join(0.2)
        assert waits.is_alive()
        assert {*taken, other} == {"a", "b"}
        first.close()
        waits.join(10)
    assert taken == ["b", "b"]


def take(names: list[str], folder: Path) -> str:
    with leased("board", names, folder) as name:
        return name


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "mine\n"
        holder.kill()
    assert take(["only"], tmp_path) == "only"


def test_cores_are_shared_out_and_given_back(tmp_path: Path) -> None:
    every = os.sched_getaffinity(0)
    with on_cores(1, tmp_path):
        (mine,) = os.sched_getaffinity(0)
        os.sched_setaffinity(0, every)
        with on_cores(len(every), tmp_path):
            assert os.sched_getaffinity(0) == (every - {mine} or every)
        os.sched_setaffinity(0, {mine})
    assert os.sched_getaffinity(0) == every
