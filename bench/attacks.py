"""Attack cameras and the build host with hostile files, servers, devices and users.

The threat model is docs/concepts/security.md.

Each attack makes its input and runs the real command in its own process. A row fails if the attack succeeds, if a
command ends in a traceback, or if it exceeds its memory limit. Some attacks need root, to act as another user.
"""

import functools
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from bundles import manifest_of
from common import HERE
from frame import Blocks, Document, Given, Option, Result, head, main, note, read, table
from onnx import TensorProto, helper

sys.path.extend(
    str(HERE.parent / "tests" / each) for each in ("", "agent", "core", "core/bundle", "data", "detectors", "graph")
)
import test_checkpoint_bombs as checkpoints
import test_hostile as hostile
import test_hostile_server as servers
import test_private_files as users
import test_untrusted_data as datasets
import test_untrusted_onnx as graphs
import tiny
from signer import public, signatures, signed, trust_file
from small_graph import small_model

from edgekd.core.bundle import archive
from edgekd.core.bundle.signatures import SignatureEnvelope, key_id
from edgekd.core.bundle.signatures import to_json as envelope_json
from edgekd.core.bundle.trust import CounterReset, Key
from edgekd.core.formats import golden_set, packed_graph
from edgekd.deploy.agent_zipapp import agent_archive

CAMERA_MB = 67.1
"""Memory limit of the agent, in 10^6 bytes: 64 MiB, Python and NumPy included."""
HOST_MB = 256
"""Memory limit of a command on the build host, in 10^6 bytes. Most of it is libraries: ONNX Runtime, OpenCV."""
TORCH_MB = 640
"""Memory limit of a command on the build host that imports PyTorch, in 10^6 bytes."""
DEVICE = "nvidia,jetson-agx-xavier"
HIGHEST = 2**53
"""Highest counter that a manifest may have."""
SECTIONS = {
    **{1: "Going back", 2: "Revoked bundles and keys", 3: "Files that were not verified yet"},
    **{4: "Files and locks of the camera", 5: "Check and use", 6: "Roles", 7: "Downloads", 8: "Keys and thresholds"},
    **{9: "Bundles on the build host", 10: "Generated files", 11: "Models and data sets on the build host"},
    **{12: "A hostile camera", 13: "Secrets and other users of the build host", 14: "Files for firmware systems"},
    **{15: "Strict cameras", 16: "A full disk", 17: "One error, and its cause", 18: "The clock"},
}
"""Section titles of docs/concepts/security.md and docs/reference/security.md, except the last but one."""
NOT_ROOT = "needs root, to act as another user"
_CHILD = """
import atexit, runpy, sys
def report():
    import resource
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(line.split()[1], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=open({report!r}, "w"))
atexit.register(report)
sys.argv, program = sys.argv[1:], sys.argv[1]
sys.path.insert(0, program if program.endswith(".pyz") else {root!r})
{before}
run = runpy.run_path if program.endswith(".pyz") else runpy.run_module
run(program, run_name="__main__")
"""


class SucceededError(Exception):
    """The attack succeeded."""


class SkippedError(Exception):
    """The attack cannot be run on this machine."""


class Ran(NamedTuple):
    """Result of a command. peak_mb: peak memory of the largest of its processes, children included, in 10^6 bytes."""

    code: int
    out: str
    err: str
    peak_mb: float
    seconds: float

    @property
    def error(self) -> str:
        """The error message of the command, on one line."""
        if self.out.startswith("{"):
            error = json.loads(self.out.splitlines()[-1])["error"] or {}
            return f"{error.get('kind')}: " + "; ".join(filter(None, [error.get("what"), error.get("found")]))
        return self.err.strip().rsplit("\n", 1)[-1].removeprefix("edgekd: ")


class Box:
    """Environment of one attack: a folder with a camera, and bundles that an attacker could have."""

    def __init__(self, folder: Path, base: Path) -> None:
        folder.mkdir()
        self.folder, self.base, self.count = folder, base, 0
        self.state, self.root = folder / "state", folder / "root"
        self.etc = self.root / "etc" / "edgekd"

    def command(self, program: str, arguments: tuple[object, ...], before: str = "") -> tuple[list[str], Path]:
        self.count += 1
        report = self.folder / f"report{self.count}"
        code = _CHILD.format(report=str(report), root=str(HERE.parent), before=before)
        return [sys.executable, "-c", code, program, *map(str, arguments)], report

    def run(self, program: str, *arguments: object, before: str = "") -> Ran:
        command, report = self.command(program, arguments, before)
        began = time.perf_counter()
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=110,
            cwd=self.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - began
        peak = max(map(int, report.read_text().split())) if report.exists() else 0
        return Ran(done.returncode, done.stdout, done.stderr, peak * 1024 / 1e6, seconds)

    def host(self, *arguments: object, before: str = "") -> Ran:
        return self.run("edgekd", *arguments, before=before)

    def agent(self, command: str, *arguments: object, before: str = "") -> Ran:
        return self.run(str(self.base / "agent.pyz"), command, *arguments, *self.places(command), before=before)

    def places(self, command: str) -> list[str]:
        runtime = ["--runtime", "null"] if command in ("install", "build", "selftest", "activate", "status") else []
        return ["--state", str(self.state), "--root", str(self.root), *runtime]

    def done(self, command: str, *arguments: object) -> Any:
        """Run a legitimate agent command and return its result. Raises RuntimeError if it fails."""
        ran = self.agent(command, *arguments)
        if ran.code:
            raise RuntimeError(f"{command}: {ran.out}{ran.err}")
        return json.loads(ran.out)["result"]

    def bundle(self, counter: int = 0, *keys: int, **changed: Any) -> Path:
        """Write a bundle with this counter, signed by these keys, and return its path. changed: fields to replace."""
        sources = {path.name: path for path in (self.base / "files").iterdir()}
        roles = {"agent.pyz": "agent", "graph.packed": "graph", "golden.set": "golden"}
        path = self.folder / f"bundle{counter}{''.join(map(str, keys))}{''.join(changed)}.edgekd"
        archive.pack(replace(manifest_of("people", sources, roles, counter), **changed), sources, path)
        return signed(path, path, *keys) if keys else path

    def trust(self, version: int = 1, **changed: Any) -> Path:
        return trust_file(self.folder / f"{version}.json", version, **changed)

    def trusting(self, **changed: Any) -> None:
        """Install a trust file in the camera's firmware: key 1 may sign bundles. changed: fields to replace."""
        trust_file(self.etc / "trust.json", 1, **changed)

    def committed(self, *counters: int) -> None:
        for counter in counters:
            self.done("install", self.bundle(counter, 1))
            self.done("commit")

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def write_base(folder: Path) -> Path:
    """Write the agent and the files of a valid bundle for the null runtime."""
    rng = np.random.default_rng(0)
    golden = golden_set.GoldenSet(
        **{"precision": "int8", "tolerance": (0.01, 0.25), "output": (1, 5, 84), "zoom": 8},
        frames=golden_set.coarse(rng.integers(0, 256, (2, 8, 8, 3), np.uint8)),
        places=rng.integers(0, 84, (2, 4)).astype(np.uint32),
        values=rng.normal(size=(2, 4, 5)).astype(np.float16),
    )
    (folder / "files").mkdir(parents=True)
    for path in (folder / "agent.pyz", folder / "files" / "agent.pyz"):
        path.write_bytes(agent_archive())
    (folder / "files" / "golden.set").write_bytes(golden_set.to_bytes(golden))
    (folder / "files" / "graph.packed").write_bytes(packed_graph.pack(small_model().SerializeToString()))
    tiny.write_model(folder / "tiny.onnx")
    return folder


@dataclass(frozen=True)
class Attack:
    """An attack. refused: regular expression that the error must match (with `holds`, the output of a success)."""

    section: int
    make: Callable[[Box], Ran | list[Ran]]
    refused: str
    limit_mb: float
    holds: bool


ATTACKS: list[Attack] = []


def attack(section: int, refused: str, limit_mb: float = CAMERA_MB, *, holds: bool = False) -> Callable[[Any], Any]:
    """Return a decorator that registers an attack under the number of its section."""

    def register(make: Any) -> Any:
        ATTACKS.append(Attack(section, make, refused, limit_mb, holds))
        return make

    return register


held = functools.partial(attack, holds=True)


def as_root() -> None:
    if os.geteuid():
        raise SkippedError(NOT_ROOT)


def require(what: bool, how: str) -> None:
    if not what:
        raise SucceededError(how)


# --------------------------------------------------------------------------------------------- rollback, revoked keys


@attack(1, "RollbackError")
def rolled_back(box: Box) -> Ran:
    """Install a bundle between two that were committed, after a rollback"""
    box.trusting()
    box.committed(1, 5)
    box.done("rollback")
    return box.agent("install", box.bundle(2, 1))


@held(1, '"counter": 7')
def fast_forward(box: Box) -> Ran:
    """Ship the highest counter with a stolen key: a signed reset lowers it again"""
    box.trusting()
    box.committed(HIGHEST)
    box.done("trust", box.trust(2, counter_reset=CounterReset(7, 2)))
    box.done("install", box.bundle(7, 1))
    return box.agent("status")


def with_revoked_key(box: Box) -> None:
    box.trusting()
    for keys in ((1,), (1, 2)):
        box.done("install", box.bundle(len(keys), *keys))
        box.done("commit")
    box.done("trust", box.trust(2, bundle=(2,), revoked_keys=(key_id(public(1)),)))


@attack(2, "SignatureError.*revoked")
def revoked_by_rollback(box: Box) -> Ran:
    """Return to the bundle of a revoked key by `rollback`"""
    with_revoked_key(box)
    return box.agent("rollback")


@held(2, '"stays": "slot a: revoked')
def revoked_by_boot(box: Box) -> Ran:
    """Return to it by starts that nobody commits"""
    box.trusting()
    box.committed(1)
    box.done("install", box.bundle(2, 1, 2), "--tries", 1)
    box.done("trust", box.trust(2, bundle=(2,), revoked_keys=(key_id(public(1)),)))
    box.done("boot")
    return box.agent("boot")


# ------------------------------------------------------------------------------------------ files before verification


def bombs_of_manifests(box: Box, command: str) -> list[Ran]:
    ran = []
    for number, content in enumerate(hostile.MANIFESTS.values()):
        envelope = SignatureEnvelope(hashlib.sha256(content).hexdigest())
        members = archive.member("manifest.json", content), archive.member("signatures.json", envelope_json(envelope))
        ran.append(box.agent(command, box.file(f"{number}.edgekd", b"".join(members) + archive.END)))
    return ran


@attack(3, "BundleError")
def manifest_bombs(box: Box) -> list[Ran]:
    """Manifests of 1 MB that expand in memory, at a camera without a trust file"""
    return bombs_of_manifests(box, "verify")


@attack(3, "SignatureError")
def unsigned_manifest_bombs(box: Box) -> list[Ran]:
    """The same where bundles have to be signed"""
    box.trusting()
    return bombs_of_manifests(box, "install")


@attack(3, "(Bundle|Hash)Error")
def delta_bombs(box: Box) -> list[Ran]:
    """Deltas of kilobytes that expand in memory, or take minutes"""
    bundles = hostile.Bundles(box.folder)
    box.done("unpack", box.folder / "old.edgekd")
    for step in ("build", "selftest", "activate"):
        if box.agent(step).code:  # without a golden set a record of the bundle in service is enough
            break
    makers = ["tiny_pieces", "json_in_header", "longer_header", "slow_skeleton", "longer_skeleton"]
    makers += ["all_that_a_part_may_have", "more_than_a_part_may_have"]
    bad = [bundles.write(box.folder / name, getattr(hostile, name)(bundles)) for name in makers]
    return [box.agent("patch", path, "--out", box.folder / "out") for path in bad]


@attack(3, "BundleError")
def network_bombs(box: Box) -> list[Ran]:
    """Packed graphs of 16 kB that expand to 16 or 256 MiB"""
    made = [hostile.bomb(1 << 28), *(hostile.bomb(1 << 24, kind=kind) for kind in ("raw", "float16", "fp4x"))]
    ran = []
    for number, graph in enumerate(made):
        (box.folder / str(number)).mkdir()
        ran.append(box.agent("unpack", hostile.holding(box.folder / str(number), graph)))
    return ran


@attack(3, "SignatureError")
def trust_bombs(box: Box) -> list[Ran]:
    """Trust files with deep or endless JSON"""
    contents = b'{"signed":' + b"[" * 250_000, b"[" + b"[]," * 80_000 + b"0]", b"\xff" * 1000
    return [box.agent("trust", box.file(f"t{len(content)}", content)) for content in contents]


# ------------------------------------------------------------------------------------------------- other local users


@held(4, '"ok": true')
def lock_of_another_user(box: Box) -> Ran:
    """Hold the lock of the state folder as another user, who opened it when it was open to all"""
    as_root()
    box.state.mkdir()
    box.file("state/lock", b"").chmod(0o644)
    scratch = Path(tempfile.gettempdir())
    for folder in (box.state, *box.folder.parents):
        if scratch in folder.parents:
            folder.chmod(folder.stat().st_mode | 0o055)
    with users.holding(box.state / "lock", users.OTHER):
        return box.agent("install", box.bundle())


@attack(4, "SpecError.*(belongs to another|another user)")
def state_of_another_user(box: Box) -> Ran:
    """Make the state folder first, as another user"""
    as_root()
    box.state.mkdir()
    os.chown(box.state, users.OTHER, users.OTHER)
    return box.agent("install", box.bundle())


@attack(4, "symbolic link|several names|pipe|cannot be used")
def links(box: Box) -> list[Ran]:
    """Put links and pipes where a lock and a partial download are to be"""
    box.state.mkdir(mode=0o700)
    goal, part, lock = box.file("goal", b"mine"), box.folder / "got.part", box.state / "lock"
    fetch = partial(box.agent, "fetch", box.bundle().as_uri(), "--out", box.folder / "got")
    ran = []
    for make in (part.symlink_to, part.hardlink_to):
        make(goal)
        ran.append(fetch())
        part.unlink()
    os.mkfifo(part)
    ran.append(fetch())
    lock.symlink_to(box.folder / "made")
    ran.append(box.agent("install", box.bundle()))
    require(goal.read_bytes() == b"mine" and not (box.folder / "made").exists(), "it wrote through a link")
    return ran


# ------------------------------------------------------------------------------------------------------ check and use


@held(5, '"ok": true')
def swapped(box: Box) -> Ran:
    """Replace a bundle by an older one with a link, between its check and its use"""
    box.trusting()
    judged, other = box.bundle(2, 1), box.bundle(1, 1)
    before = (
        "from edgekd.agent import commands; from pathlib import Path; read = commands.read_device\n"
        f"judged = Path({str(judged)!r})\n"
        f"def swap(root):\n    judged.unlink(missing_ok=True); judged.symlink_to({str(other)!r}); return read(root)\n"
        "commands.read_device = swap"
    )
    identity = archive.read_head(judged).identity
    ran = box.agent("install", judged, before=before)
    require(
        judged.is_symlink() and json.loads(ran.out)["result"]["identity"] == identity, "the other one was installed"
    )
    return ran


@attack(6, "role night")
def another_role(box: Box) -> list[Ran]:
    """Install the signed bundle of one model as another, or as the only one"""
    box.trusting()
    bundle = box.bundle(9, 1, role="night")
    return [box.agent("install", bundle, *model) for model in ((), ("--model", "day"))]


# ---------------------------------------------------------------------------------------------------------- downloads

QUICK = (
    "import time; time.sleep = lambda seconds: None\nfrom edgekd.agent import fetching, http_transport\n"
    "from functools import partial\nfetching.FetchRequest = partial(fetching.FetchRequest, tries=3, "
    "limits=http_transport.TransferLimits(window_s=0.3, min_bytes_per_s=1000))"
)
"""Code for the agent's process: 3 tries without pauses, and the minimum transfer rate checked every 0.3 s."""


@contextmanager
def server(script: Any) -> Iterator[str]:
    """Run a scripted HTTP server; yield its address."""
    made = servers.Server()
    made.script = script
    yield made.url
    made.close()


@attack(7, "DeviceError|SpecError|BundleError|SignatureError")
def malformed_http(box: Box) -> list[Ran]:
    """Answer a download with 25 kinds of malformed HTTP"""
    ran = []
    for number, answer in enumerate(servers.MALFORMED.values()):
        with server(servers.always(answer)) as url:
            ran.append(box.agent("fetch", url, "--out", box.folder / f"{number}", before=QUICK))
    return ran


@attack(7, "DeviceError.*(slow|bytes|more)")
def slow_http(box: Box) -> list[Ran]:
    """Send a byte at a time, in a header, a chunk, or a connection each; endless bodies of redirects and trailers"""

    def trickle(start: bytes, step: bytes, connection: socket.socket, _: bytes) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(step)
            time.sleep(0.02)

    def byte(connection: socket.socket, request: bytes) -> None:
        connection.sendall(servers.OK + b"Content-Length: 100000\r\n\r\nx")

    chunked = servers.OK + b"Transfer-Encoding: chunked\r\n\r\n"
    scripts = [
        *(partial(trickle, start, b"H") for start in (b"", servers.OK + b"X: ", servers.OK + b"\r\n", chunked + b"1;")),
        *(byte, partial(trickle, chunked + b"0\r\n", b"X: y\r\n" * 100)),
        partial(trickle, servers.REDIRECT + b"/model.edgekd\r\n\r\n", bytes(1 << 16)),
    ]
    ran = []
    for number, script in enumerate(scripts):
        with server(script) as url:
            ran.append(box.agent("fetch", url, "--out", box.folder / f"{number}", before=QUICK))
    return ran


# ---------------------------------------------------------------------------------------- keys, thresholds, the clock


@attack(8, "SignatureError")
def one_key_twice(box: Box) -> list[Ran]:
    """Sign twice with one of two keys that have to sign; list one key under two ids by a torsion part"""
    from edgekd.core.bundle import ed25519

    box.trusting(bundle=(1, 2))
    bundle = box.bundle(1, 1)
    (good,) = signatures("bundle", archive.read_head(bundle).identity, 1)
    torsion = ed25519._encoded(ed25519._added(ed25519._decoded(public(1)), (0, ed25519._P - 1, 1, 0)))
    sha256, two = archive.read_head(bundle).identity, box.folder / "two.edgekd"
    content = json.loads(envelope_json(SignatureEnvelope(sha256, (good,))))
    content["signatures"] *= 2
    members = archive.read_head(bundle)
    rest = bundle.read_bytes()[len(archive.head_members(members)) :]
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    two.write_bytes(archive.member("manifest.json", members.content) + archive.member("signatures.json", text) + rest)
    bad = box.folder / "torsion.json"
    document = json.loads(box.trust(2).read_bytes())
    document["signed"]["keys"][0]["public"] = torsion.hex()
    bad.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n")
    return [box.agent("install", bundle), box.agent("install", two), box.agent("trust", bad)]


@attack(18, "SignatureError")
def clock_set_back(box: Box) -> Ran:
    """Set the clock back to when an expired key was good"""
    keys = tuple(
        Key(public(number).hex(), f"key {number}", "2026-09-01T00:00:00Z" if number == 1 else None) for number in (1, 9)
    )
    box.trusting(keys=tuple(sorted(keys, key=lambda key: key.id)))
    bundle, clock = (
        box.bundle(1, 1),
        (
            "import datetime\nfrom edgekd.agent.engines import camera\n"
            "camera.Camera.__init__.__defaults__ = (*camera.Camera.__init__.__defaults__[:-1], "
            "lambda: datetime.datetime(2026, {}, 1, tzinfo=datetime.timezone.utc))"
        ),
    )
    box.agent("install", bundle, before=clock.format(10))
    return box.agent("install", bundle, before=clock.format(8))


# -------------------------------------------------------------------------------------------------------- strictness


def strict(box: Box, *, device: str = DEVICE, trusting: bool = True) -> None:
    box.etc.mkdir(parents=True)
    (box.etc / "strict").touch()
    if device:
        (box.etc / "compatible").write_text(device)
    if trusting:
        box.trusting()


@attack(15, "SignatureError")
def strict_unsigned(box: Box) -> list[Ran]:
    """Install an unsigned bundle on a strict camera, also where its trust file is lost"""
    strict(box)
    ran = [box.agent("install", box.bundle())]
    (box.etc / "trust.json").unlink()
    return [*ran, box.agent("install", box.bundle(1, 1))]


@attack(15, "BundleError.*(not known to fit|people)")
def strict_elsewhere(box: Box) -> list[Ran]:
    """Install a signed bundle on an unknown board, on another device, and as another model"""
    strict(box, device="")
    ran = [box.agent("install", box.bundle(1, 1))]
    (box.etc / "compatible").write_text(DEVICE)
    return [*ran, box.agent("install", box.bundle(1, 1), "--model", "vehicles")]


# --------------------------------------------------------------------------------------- full disks, missing packages


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    as_root()
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        raise SkippedError("needs the right to mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue


@held(16, '"ok": true')
def full_disk(box: Box) -> list[Ran]:
    """Fill the disk: starts are counted, and end in a rollback"""
    with small_disk(box.folder / "disk"):
        box.state = box.folder / "disk" / "state"
        box.committed(1)
        box.done("install", box.bundle(2, 1), "--tries", 1)
        fill(box.folder / "disk")
        ran = [box.agent("boot"), box.agent("boot")]
        require(box.done("status")["active"]["counter"] == 1, "the bundle on trial stays")
        return ran


@attack(16, "DiskFullError")
def full_disk_install(box: Box) -> Ran:
    """Install on a full disk"""
    with small_disk(box.folder / "disk"):
        box.state = box.folder / "disk" / "state"
        box.committed(1)
        fill(box.folder / "disk")
        return box.agent("install", box.bundle(2, 1))


@attack(17, "NumPy|numpy")
def without_numpy(box: Box) -> list[Ran]:
    """Take NumPy away: every command that needs it answers with one JSON object"""
    missing = "sys.modules['numpy'] = None"
    return [box.agent("install", box.bundle(), before=missing)]


# ------------------------------------------------------------------------------------------------------- causes


@attack(17, "SignatureError")
def causes(box: Box) -> list[Ran]:
    """Refuse for an unknown, an expired and a revoked key, and for one signature of two: four causes"""
    old = Key(public(1).hex(), "key 1", "2026-02-01T00:00:00Z")
    keys = tuple(sorted((old, Key(public(9).hex(), "key 9")), key=lambda key: key.id))
    made = {
        "unknown": box.trust(2, bundle=(2,)),
        "expired": box.trust(3, keys=keys),
        "revoked": box.trust(4, bundle=(2,), revoked_keys=(key_id(public(1)),)),
        "one of two": box.trust(5, bundle=(1, 2)),
    }
    bundle = box.bundle(1, 1)
    ran = [box.agent("verify", bundle, "--trust", path) for path in made.values()]
    require(len({re.sub(r"\d", "", each.error) for each in ran}) == 4, "two causes have the same error")
    return ran


@held(7, '"resumed_bytes": [1-9]')
def killed_download(box: Box) -> Ran:
    """Kill a download of a few kilobytes: the next one goes on"""
    content = box.bundle().read_bytes()

    def script(connection: socket.socket, request: bytes) -> None:
        begin = int(request.partition(b"Range: bytes=")[2].partition(b"-")[0] or 0)
        status = b"HTTP/1.1 206 P\r\nContent-Range: bytes %d-%d/%d\r\n" % (begin, len(content) - 1, len(content))
        length = b'ETag: "1"\r\nContent-Length: %d\r\n\r\n' % (len(content) - begin)
        connection.sendall((status if begin else servers.OK) + length + content[begin : None if begin else 3000])
        time.sleep(0 if begin else 20)

    with server(script) as url:
        out, noted = box.folder / "got", box.folder / "got.part.json"
        command, _ = box.command(str(box.base / "agent.pyz"), ("fetch", url, "--out", out, *box.places("fetch")))
        with subprocess.Popen(command) as child:
            until = time.monotonic() + 15
            while time.monotonic() < until and not (noted.exists() and json.loads(noted.read_bytes())["kept"]):
                time.sleep(0.05)
            child.kill()
        return box.agent("fetch", url, "--out", out)


@attack(7, "DeviceError.*refused")
def refused_connection(box: Box) -> Ran:
    """Refuse connections: a download ends soon after its timeout"""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ran = box.agent("fetch", f"http://127.0.0.1:{port}/x", "--out", box.folder / "got", "--timeout", 3)
    require(ran.seconds < 20, "it is tried on and on")
    return ran


@attack(14, "deb|unsigned|key", HOST_MB)
def unasked_formats(box: Box) -> list[Ran]:
    """Pack a bundle as a .deb, which is none, and as a .swu that nobody signs"""
    if "unsigned" not in (HERE.parent / "edgekd" / "commands" / "pack.py").read_text():
        raise SkippedError("`pack` does not refuse them yet")
    return [box.host("pack", box.bundle(), "--out", box.folder / f"a.{suffix}") for suffix in ("deb", "swu")]


# --------------------------------------------------------------------------------------------- programs and metadata


def agent_of_another(box: Box) -> tuple[Path, Path]:
    """Return an unsigned bundle whose agent writes a file, and that file."""
    mark, sources = box.folder / "it-ran", {path.name: path for path in (box.base / "files").iterdir()}
    sources["agent.pyz"] = box.file("agent.pyz", f"open({str(mark)!r}, 'w').close()\n")
    path = box.folder / "hostile.edgekd"
    roles = {"agent.pyz": "agent", "graph.packed": "graph", "golden.set": "golden"}
    archive.pack(manifest_of("people", sources, roles), sources, path)
    return path, mark


@held(9, "people", HOST_MB)
def agent_of_a_bundle(box: Box) -> list[Ran]:
    """Have the agent in an unsigned bundle run on the build host"""
    bundle, mark = agent_of_another(box)
    quick = ("--state", box.folder / "board", "--iterations", 3, "--seconds", 0)
    ran = [box.host("engine", bundle, "--device", "null", *quick, *more) for more in ((), ("--allow-unsigned",))]
    require(not mark.exists(), "the bundle's agent ran")
    return ran


@attack(9, "not signed by", HOST_MB)
def unsigned_for_a_fleet(box: Box) -> list[Ran]:
    """Have an unsigned bundle built, timed or sent to a fleet where a key is required"""
    bundle, _ = agent_of_another(box)
    box.host("keygen", "release")
    key = ("--key", box.folder / "release.pub")
    fleet = box.file("fleet.toml", '[[boards]]\nname = "a"\ndevice = "null"\n')
    return [
        box.host("engine", bundle, "--device", "null", *key),
        box.host("engine", bundle, "--fleet", fleet, "--out", box.folder / "out", *key),
        box.host("profile", bundle, "--device", "local", "--out", box.folder / "table.toml", *key),
    ]


CODE = "8}; int main() { system(0); } //"


@attack(10, "detector|names|metadata|printable|strides|head", HOST_MB)
def code_in_metadata(box: Box) -> list[Ran]:
    """Put C++, lines of a configuration and control characters into the metadata of an ONNX graph"""
    spec: dict[str, Any] = {"kind": "yolo", "strides": [8, 16, 32], "nms": True}
    described = {"classes": ["a", "b"], "head": spec, "preprocess": json.loads(PREPROCESS)}
    hostile_specs = [
        {**described, "head": {**spec, "strides": [CODE]}},
        {**described, "head": {**spec, "strides": CODE}},
        {**described, "preprocess": {**described["preprocess"], "pad_value": CODE}},
        {**described, "classes": ["a\n[property]\ncustom-lib-path=/x.so", "b"]},
    ]
    metadata = [{"edgekd.detector": json.dumps(each)} for each in hostile_specs]
    metadata.append({"names": str({0: "a\nb", 1: "b"})})
    ran = []
    for number, each in enumerate(metadata):
        model = onnx.load(box.base / "tiny.onnx")
        helper.set_model_props(model, each)
        onnx.save(model, box.folder / f"{number}.onnx")
        ran.append(
            box.host("convert", box.folder / f"{number}.onnx", "--to", "deepstream", "--out", box.folder / "out")
        )
    require(not (box.folder / "out").exists(), "files were written")
    return ran


PREPROCESS = (
    '{"height":64,"width":64,"color":"rgb","scale":0.004,"mean":[0,0,0],"std":[1,1,1],"pad_value":114,'
    '"center":true,"upscale":true}'
)

# ---------------------------------------------------------------------------------------------------- untrusted models


def converted(box: Box, name: str, model: Any) -> Ran:
    (box.folder / name).mkdir(exist_ok=True)
    path = graphs.saved(model, box.folder / name)
    return box.host("convert", path, "--to", "onnx", "--out", box.folder / f"{name}.onnx")


@attack(11, "external data", HOST_MB)
def external_data(box: Box) -> list[Ran]:
    """Read files of the host as external data: `..`, an absolute path, a link, a hard link, a pipe"""
    secret = box.file("secret", graphs.VALUES.tobytes())
    makers = [graphs.symlink, graphs.hardlink, graphs.pipe]
    ran = [converted(box, f"p{at}", graphs.outside(each)) for at, each in enumerate(("../secret", str(secret)))]
    for make in makers:
        (box.folder / make.__name__).mkdir()
        make(secret, box.folder / make.__name__)
        ran.append(converted(box, make.__name__, graphs.outside("w.bin")))
    return ran


@attack(11, "expanded|call themselves|more than|its data has|sparse|nested|memory or time", HOST_MB)
def graph_bombs(box: Box) -> list[Ran]:
    """Graphs of kilobytes with 10^13 nodes in functions, tensors of 2^40 elements, deep nesting, 32 GB of zeros"""
    made = {
        "functions": graphs.model_of(graphs.call("f12"), functions=graphs.functions(13, 10)),
        "circle": graphs.model_of(graphs.call("f3"), functions=graphs.functions(4, 2, first="f3")),
        "giant": graphs.giant([1 << 40]),
        "sparse": graphs.sparse(),
        "nested": graphs.nested(20),
    }
    return [converted(box, name, model) for name, model in made.items()]


@attack(11, "memory or time", HOST_MB)
def endless_graphs(box: Box) -> list[Ran]:
    """ConstantOfShape of 32 GB, a loop of 2^60 steps: in a child with 2 GiB and, here, 5 s"""
    before = "from edgekd.graph import rehearsal; rehearsal.CPU_SECONDS = 5"
    ran = []
    for make in (graphs.constant_of_shape, graphs.endless_loop):
        model = make()
        path = box.folder / f"{make.__name__}.onnx"
        onnx.save(in_detector(box, model), path)
        ran.append(box.host("convert", path, "--to", "onnx", "--out", box.folder / "out.onnx", before=before))
    return ran


def in_detector(box: Box, model: Any) -> Any:
    """Return the tiny detector with the nodes of another graph added to its output."""
    tiny_model = onnx.load(box.base / "tiny.onnx")
    slices = {"from": [0], "to": [12], "flat": [-1]}
    nodes = [
        helper.make_node("Reshape", ["images", "h.flat"], ["h.all"]),
        helper.make_node("Slice", ["h.all", "h.from", "h.to"], ["x"]),
        *model.graph.node,
        helper.make_node("ReduceSum", ["y"], ["h.sum"], keepdims=0),
        helper.make_node("Add", ["output0", "h.sum"], ["h.out"]),
    ]
    constants = [helper.make_tensor(f"h.{name}", TensorProto.INT64, [1], value) for name, value in slices.items()]
    tiny_model.graph.node.extend(nodes)
    tiny_model.graph.initializer.extend([*constants, *model.graph.initializer])
    tiny_model.graph.output[0].name = "h.out"
    return tiny_model


@attack(11, r"\.pt", TORCH_MB)
def checkpoint_bombs(box: Box) -> list[Ran]:
    """Checkpoints of kilobytes that take gigabytes: compressed, repeated, sparse, copied"""
    names = ("compressed", "shorter", "repeating_one_number", "sparse", "bytes_of_nothing", "encoded_again")
    ran = []
    for name in names:
        (box.folder / name).mkdir()
        path = getattr(checkpoints, name)(box.folder / name)
        ran.append(box.host("check", path, "--target", "xavier"))
    return ran


def scored(box: Box, data: Path) -> Ran:
    return box.host("eval", box.base / "tiny.onnx", "--data", data)


@attack(11, "alias|regular file|pixels|inside the data set", HOST_MB)
def data_sets(box: Box) -> list[Ran]:
    """YAML aliases, a pipe as labels, an image of 60,000 x 60,000 pixels, paths out of the data set"""
    aliases = datasets.yolo(box.folder / "aliases", datasets.BILLION + "train: images\nval: images\nnames: *a11\n")
    plain = "train: images\nval: images\nnames: [a, b]\n"
    pipe, bomb = (datasets.yolo(box.folder / name, plain) for name in ("pipe", "bomb"))
    (box.folder / "pipe" / "labels" / "0.txt").unlink()
    os.mkfifo(box.folder / "pipe" / "labels" / "0.txt")
    (box.folder / "bomb" / "images" / "0.png").write_bytes(datasets.BOMBS["png"])
    box.file("secret.png", datasets.BOMBS["zero"])

    def change(document: dict[str, Any]) -> None:
        document["images"][0]["file_name"] = "../secret.png"
        document["categories"] = [{"id": at, "name": name} for at, name in enumerate(tiny.CLASSES)]

    outside = datasets.coco(box.folder / "coco", change)
    return [scored(box, data) for data in (aliases, pipe, bomb, outside)]


@attack(11, "at most|packed", HOST_MB)
def packed_graph_on_the_host(box: Box) -> Ran:
    """A packed graph of 260 kB that expands to 256 MiB"""
    path = box.file("bomb.packed", hostile.bomb(1 << 28))
    return box.host("convert", path, "--to", "onnx", "--out", box.folder / "out.onnx")


# -------------------------------------------------------------------------------------------- cameras, secrets, texts


@attack(12, "DeviceError|^local|agent|answer|finite", HOST_MB)
def hostile_camera(box: Box) -> list[Ran]:
    """Answer as a camera with deep JSON, endless text, control characters, and endless stderr"""
    greeting, ran = '{"python": [3, 8, 10]}', []
    answers = [
        *('{"python": "3.8"}', '{"python": ' + "[" * 100_000, '{"python": [3, 8, 1e400]}', '{"problem": {"what": 5}}'),
        *('{"problem": {"what": "\\u001b[2J\\u202e' + "a" * 5000 + '"}}', greeting + "\n" + '{"kept": "0"}'),
        *(greeting + "\n" + '{"kept": 0, "path": "/etc/passwd"}', "x" * (3 << 20)),
    ]
    for number, answer in enumerate(answers):
        out = box.file(f"answer{number}", answer + "\n")
        python = box.file(
            f"python{number}", f"#!/bin/sh\ncat {out}\nhead -c 9000000 /dev/zero >&2\nexec cat >/dev/null\n"
        )
        python.chmod(0o755)
        state = ("--state", box.folder / f"board{number}")
        ran.append(box.host("engine", box.bundle(), "--device", "local", "--python", python, *state))
    require(all(each.error.isprintable() and len(each.error) < 3000 for each in ran), "its text reached the terminal")
    return ran


@attack(13, "pin-value|PIN|chmod", HOST_MB)
def secrets(box: Box) -> list[Ran]:
    """Have a PIN shown that stands in an address; sign with a key, and a passphrase, that others can read"""
    bundle = box.bundle()
    address = "pkcs11:token=edgekd;object=key?module-path=/none.so&pin-value=493817"
    ran = [box.host("sign", bundle, "--key", address)]
    require("493817" not in ran[0].out + ran[0].err, "the PIN was shown")
    box.host("keygen", "loose")
    (box.folder / "loose.key").chmod(0o644)
    return [*ran, box.host("sign", bundle, "--key", box.folder / "loose.key")]


@attack(17, "", HOST_MB)
def hostile_text(box: Box) -> list[Ran]:
    """Deep JSON and YAML, dates, a COCO id of 1e400, paths of 5,000 characters, bombs in names of classes"""
    deep = datasets.yolo(box.folder / "deep", "train: images\nval: images\nnames: " + "[" * 20_000)
    dates = datasets.yolo(box.folder / "dates", "train: images\nval: 2024-01-01\nnames: [2024-13-45]\n")
    huge = datasets.coco(box.folder / "coco")
    huge.write_text(huge.read_text().replace('"categories": [{"id": 1', '"categories": [{"id": 1e400'))
    nested = box.file("nested.json", "[" * 100_000)
    long = "a" * 5000
    ran = [scored(box, data) for data in (deep, dates, huge, nested, Path(long))]
    commands = (
        *(("check", f"{long}.onnx", "--target", "xavier"), ("targets", f"{long}.toml"), ("verify", f"{long}.edgekd")),
        *(("compare", long, long), ("pack", f"{long}.edgekd", "--out", "x.edgekd")),
        ("targets", box.file("hex.toml", "name = 0x" + "f" * 5000)),
    )
    return [*ran, *(box.host(*command) for command in commands)]


# ------------------------------------------------------------------------------------------------------------ the table


def met(number: int, scratch: Path, base: Path) -> Result:
    """Run one attack and return its row."""
    each = ATTACKS[number]
    row: dict[str, Any] = {
        "section": SECTIONS[each.section],
        "attack": (each.make.__doc__ or each.make.__name__).strip(),
    }
    row |= {"name": each.make.__name__, "limit_mb": each.limit_mb, "holds": False}
    note(each.make.__name__)
    try:
        made = each.make(Box(scratch / each.make.__name__, base))
    except SkippedError as why:
        return {**row, "refused": f"skipped: {why}", "holds": True, "commands": 0, "peak_mb": None, "seconds": None}
    except Exception as how:  # an attack that raises an error does not count as refused
        return {**row, "refused": f"{type(how).__name__}: {how}"[:400], "commands": 1, "peak_mb": None, "seconds": None}
    ran = made if isinstance(made, list) else [made]
    problems = [problem for one in ran for problem in problems_of(each, one)]
    shown = "holds: the command does what it should" if each.holds else shortest(ran)
    row |= {"refused": f"SUCCEEDED: {problems[0]}" if problems else shown, "holds": not problems, "commands": len(ran)}
    return {**row, "peak_mb": max(one.peak_mb for one in ran), "seconds": max(one.seconds for one in ran)}


def problems_of(each: Attack, ran: Ran) -> Iterator[str]:
    found = ran.out if each.holds else ran.error
    if "Traceback" in ran.err + ran.out:
        yield f"a traceback: {ran.err[-300:]}"
    if ran.code not in ((0,) if each.holds else (1, 2)) or not re.search(each.refused, found):
        yield f"exit code {ran.code}: {(found or ran.err)[-300:]}"
    if not 0 < ran.peak_mb <= each.limit_mb:
        yield f"{ran.peak_mb:.0f} MB"


def shortest(ran: list[Ran]) -> str:
    """Return the shortest error as an example, without folders, cut to at most 110 characters."""
    error = min((one.error for one in ran), key=len)
    error = re.sub(r"/\S*/", "", error)
    return error if len(error) <= 110 else f"{error[:107]}..."


def run(given: Given) -> Result:
    base = write_base(given.scratch / "base")
    old = read(given.out.read_text("utf-8")) if given.again else Document(rows=[], seconds=0)
    chosen = [at for at, each in enumerate(ATTACKS) if not given.again or each.make.__name__ in given.again]
    began = time.perf_counter()
    with ThreadPoolExecutor(given.processes) as pool:
        new = list(pool.map(lambda number: met(number, given.scratch, base), chosen))
    rows = list({row["name"]: row for row in [*old.rows, *new]}.values())
    order = list(SECTIONS.values())
    rows.sort(key=lambda row: order.index(row["section"]))
    return {"rows": rows, "seconds": old.seconds + time.perf_counter() - began}


def page(found: Document) -> Blocks:
    yield from head("Attacks", found)
    commands, failed = sum(row.commands for row in found.rows), sum(not row.holds for row in found.rows)
    yield (
        f"{len(found.rows)} attacks by {commands} commands, {failed} succeeded, in {found.seconds:.0f} s. Refused"
        " how: the shortest of the errors. Peak and seconds: of the largest and of the longest command, its start "
        "included; a command counts with the largest process that it starts."
    )
    yield table(
        "section | attack | commands | refused how | peak MB (limit) | seconds",
        (
            f"{row.section} | {row.attack} | {row.commands} | {row.refused.replace('|', '/')} | "
            f"{'–' if row.peak_mb is None else f'{row.peak_mb:.0f}'} ({row.limit_mb:.0f}) | "
            f"{'–' if row.seconds is None else f'{row.seconds:.1f}'}"
            for row in found.rows
        ),
    )


if __name__ == "__main__":
    main(
        run,
        page,
        Option("--again", help="functions of this file: make these again, keep the other rows", nargs="+"),
        Option("--processes", 2, "at a time (%(default)s)"),
        holds=lambda found: all(row.holds for row in found.rows),
        cores=2,
    )
