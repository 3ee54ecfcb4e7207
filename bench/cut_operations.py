"""Operations of a virtual camera that lose their power, and other trouble, as scripts of its shell."""

from dataclasses import dataclass

UPDATES = "/data/updates"  # on the camera
STATE = "/data/edgekd"  # the state folder, as root sees it
SHELL = f"""\
cd /
agent() {{ setpriv --reuid=edgekd --regid=edgekd --init-groups python3 /usr/lib/edgekd/agent.pyz "$@"; }}
settle() {{ systemctl start edgekd-commit rauc-mark-good; }}
detects() {{
    until grep -q '"class"' /run/edgekd/detections.jsonl 2>/dev/null; do sleep 1; done
    grep '"class"' /run/edgekd/detections.jsonl | tail -n 1 >&3
}}
state() {{
    agent status
    sed 's/.*rauc.slot=\\([AB]\\).*/\\1/' /proc/cmdline
    find {STATE} ! -type d -printf '%P %l\\n' | sort
}}
"""
"""Functions for the camera's shell, as root. `/run/edgekd` is new with each start of the camera's program."""
INSTALL = f"agent install {UPDATES}/model-2.edgekd --tries 5"


@dataclass(frozen=True)
class Operation:
    """Work that is cut.

    Args:
        name: For people.
        start: Name of the snapshot that it starts from.
        script: Work on the camera; None for what it does by itself when it starts.
        serves: Counters of the models that may be in service after a cut.
        goal: Counter of the model in service after the next run.
        trust: Version of the trust file after the next run.
    """

    name: str
    start: str
    script: str | None
    serves: tuple[int, ...]
    goal: int
    trust: int = 1


OPERATIONS = (
    Operation("install", "running", INSTALL, (1, 2), 2),
    Operation("install by a delta", "running", f"agent install {UPDATES}/model-2.delta --tries 5", (1, 2), 2),
    Operation("start of a trial", "trial", "systemctl restart camera && settle", (2,), 2),
    Operation("commit", "trial", "agent commit", (2,), 2),
    Operation("rollback", "second", "agent rollback", (1, 2), 1),
    Operation("trust rotation", "running", f"agent trust {UPDATES}/trust-2.json", (1,), 1, 2),
    Operation("model by RAUC", "running", f"rauc install {UPDATES}/model-2.raucb", (1, 2), 2),
    Operation("first boot", "factory", None, (1,), 1),
)
SNAPSHOTS = {
    "running": ("factory", "settle"),
    "trial": ("running", INSTALL),
    "second": ("trial", "systemctl restart camera; settle"),
}
"""Start and script of each snapshot but that of the factory, which is a disk alone."""


@dataclass(frozen=True)
class Scenario:
    """Trouble of another kind.

    Args:
        name: For people.
        start: Name of the snapshot.
        trouble: Script that makes it and works in it.
        repair: Script that ends it, before an installation that must come to its end.
        serves: Counters of the models that may be in service meanwhile.
        timeout_s: After so long the connection is cut; None waits for the end.
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
    """Return the script that repeats an operation, and ends the trial that it may leave."""
    return f"{operation.script or ':'}; agent commit"
