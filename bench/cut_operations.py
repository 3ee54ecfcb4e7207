"""Operations of a virtual camera that a power cut interrupts, and other faults, as shell scripts."""

from dataclasses import dataclass

UPDATES = "/data/updates"  # on the camera
SHELL = """\
cd /
agent() { setpriv --reuid=edgekd --regid=edgekd --init-groups python3 /usr/lib/edgekd/agent.pyz "$@"; }
settle() { systemctl start edgekd-commit rauc-mark-good; }
detects() {
    until grep -q '"class"' /run/edgekd/detections.jsonl 2>/dev/null; do sleep 1; done
    grep '"class"' /run/edgekd/detections.jsonl | tail -n 1 >&3
}
is_new() { grep -q rauc.slot=B /proc/cmdline; }
state() {
    agent status
    sed 's/.*rauc.slot=\\([AB]\\).*/\\1/' /proc/cmdline
    echo $(systemctl --failed --plain --no-legend | cut -d ' ' -f 1)
    find /data ! -type d -printf '%P %l\\n' | sort
}
"""
"""Shell functions for the camera, run as root. `/run/edgekd` is recreated at each start of the camera's program."""
FACTORY = "factory"
"""Name of the factory disk, from which all snapshots derive."""
WORKS = "detects; settle"
INSTALL = f"agent install {UPDATES}/model-2.edgekd --tries 5"
SYSTEM = f"is_new || rauc install {UPDATES}/system-2.raucb"
"""Skips the update if the new system runs already: another update would overwrite the old system's slot."""


@dataclass(frozen=True)
class Operation:
    """An operation that a power cut interrupts.

    Args:
        name: Name in the result.
        start: Name of the snapshot that it starts from.
        script: Script for the camera; None for its own start-up, until it detects and has settled.
        serves: Counters of the models that may be in service after a cut.
        goal: Counter of the model in service after the operation was repeated.
        trust: Version of the trust file after the operation was repeated.
        reboots: True if the operation takes effect after a reboot; the repetition then ends with one.
    """

    name: str
    start: str
    script: str | None
    serves: tuple[int, ...]
    goal: int
    trust: int = 1
    reboots: bool = False


OPERATIONS = (
    Operation("install", "running", INSTALL, (1, 2), 2),
    Operation("install by a delta", "running", f"agent install {UPDATES}/model-2.delta --tries 5", (1, 2), 2),
    Operation("start of a trial", "trial", "systemctl restart camera && settle", (2,), 2),
    Operation("commit", "trial", "agent commit", (2,), 2),
    Operation("rollback", "second", "agent rollback", (1, 2), 1),
    Operation("trust rotation", "running", f"agent trust {UPDATES}/trust-2.json", (1,), 1, 2),
    Operation("model by RAUC", "running", f"rauc install {UPDATES}/model-2.raucb", (1, 2), 2),
    Operation("system by RAUC", "running", SYSTEM, (1, 3), 3, reboots=True),
    Operation("first boot of a new system", "new system", None, (1, 3), 3),
    Operation("first boot", "factory", None, (1,), 1),
)


@dataclass(frozen=True)
class Making:
    """How to make a snapshot: by a script, from another snapshot. is_on: with memory; else the disk alone."""

    start: str
    script: str
    is_on: bool = True


SNAPSHOTS = {
    "running": Making(FACTORY, "settle"),
    "trial": Making("running", INSTALL),
    "second": Making("trial", "systemctl restart camera; settle"),
    "new system": Making("running", SYSTEM, is_on=False),
}


@dataclass(frozen=True)
class Scenario:
    """A fault other than a power cut.

    Args:
        name: Name in the result.
        start: Name of the snapshot.
        trouble: Script that causes the fault and works under it.
        repair: Script that removes the fault, before an installation that must succeed.
        serves: Counters of the models that may be in service during the fault.
        timeout_s: Seconds after which the connection is cut; None waits for the end.
    """

    name: str
    start: str
    trouble: str
    repair: str = ":"
    serves: tuple[int, ...] = (1,)
    timeout_s: float | None = None


ENGINE = """python3 -c 'import json, sys; print(json.load(sys.stdin)["result"]["active"]["engine"]["file"])'"""
SCENARIOS = (
    Scenario("disk full", "running", f"dd if=/dev/zero of=/data/filler bs=1M; {INSTALL}", "rm /data/filler"),
    Scenario(
        "remounted read only", "running", f"mount -o remount,ro /data && ! {INSTALL}", "mount -o remount,rw /data"
    ),
    Scenario("clock at 1970", "running", f"date -s @0; {INSTALL}", serves=(2,)),
    Scenario("connection cut", "running", INSTALL, serves=(1, 2), timeout_s=5.0),
    Scenario(
        "agent killed for memory",
        "running",
        "systemd-run --quiet --wait -p MemoryMax=24M -p MemorySwapMax=0 -p User=edgekd "
        f"python3 /usr/lib/edgekd/{INSTALL.replace('agent ', 'agent.pyz ')}",
    ),
    Scenario(
        "corrupted block in the engine",
        "second",
        f"dd if=/dev/urandom of=$(agent status | {ENGINE}) bs=512 seek=2 count=1 conv=notrunc; "
        "echo 3 >/proc/sys/vm/drop_caches",
        serves=(1, 2),
    ),
)


def next_run(operation: Operation) -> str:
    """Return the script that repeats an operation, and commits a model that is on trial.

    An operation without a script starts the camera again: its detections mark the system slot as good.
    """
    return f"{operation.script or f'systemctl start camera; {WORKS}'}; agent commit"
