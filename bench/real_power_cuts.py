"""Cut the power of a virtual camera during an operation, boot it again, and check its state.

Each round resumes a snapshot of a running camera, starts an operation, and kills QEMU with SIGKILL after a random
number of writes. Then it reconstructs the disk that a volatile write cache leaves (`disk_log`), and boots from it. The
same operation runs once more, and must end like an undisturbed one. Single scenarios follow. Needs the image of `make
camera`.
"""

import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from common import HERE
from cut_camera import SETTLED_S, CutCamera, Snapshot
from cut_operations import (
    FACTORY,
    INSTALL,
    OPERATIONS,
    SCENARIOS,
    SHELL,
    SNAPSHOTS,
    UPDATES,
    WORKS,
    Operation,
    Scenario,
    next_run,
)
from disk_log import count_writes
from frame import (
    Blocks,
    Document,
    FinishedRows,
    Given,
    Option,
    Result,
    cell,
    claim,
    claims_table,
    head,
    main,
    note,
    read,
    table,
    yes,
)

from edgekd.core.canonical import file_sha256

sys.path.insert(0, str(HERE.parent / "examples" / "camera"))
from machine import Image

LOST_SHARES = (1.0, 0.5, 0.1)  # probabilities that an unflushed sector is lost
SOFTWARE = ("examples/camera", "examples/firmware", "examples/camera_service.py", "edgekd/agent", "edgekd/core")
LAST_WRITES = 40  # half of the cuts fall among these: long operations take effect with their last writes
SPARE_BYTES = 256 << 10  # tolerated loss of free space: ext4 does not shrink folders
REPEAT_TIMEOUT_S = 900.0
TROUBLE = (RuntimeError, subprocess.TimeoutExpired, ValueError, LookupError, OSError)
"""Errors that count as faults of the camera."""


@dataclass(frozen=True)
class Sight:
    """State of a camera as seen from outside.

    Args:
        detects: Counter of the model that the camera detects with; None if the script did not wait for detections.
        status: Result of the agent's `status`.
        slot: Active root slot.
        failed: Names of failed units.
        files: Paths on the data partition, with the targets of links.
    """

    detects: int | None
    status: dict[str, Any]
    slot: str
    failed: str
    files: tuple[str, ...]

    @property
    def counter(self) -> int:
        """Counter of the model in service, 0 without one."""
        return int(self.status["active"]["counter"]) if self.status["active"] else 0

    def faults(self, serves: Sequence[int], least_counter: int, least_trust: int) -> list[str]:
        """Return descriptions of violations: wrong model, no passed self-test, counter or trust version too low."""
        engine = (self.status["active"] or {}).get("engine") or {}
        self_test, trust = engine.get("self_test"), self.status["trust"]
        found = {
            f"detects by {self.detects}, in service is {self.counter}": self.detects not in (None, self.counter),
            f"in service is {self.counter}": self.counter not in serves,
            "in service is an engine without a self-test": not (self_test and self_test["passed"]),
            f"the counter went back to {self.status['counter']}": (self.status["counter"] or 0) < least_counter,
            f"the trust file went back: {trust}": not trust or trust["version"] < least_trust,
        }
        return [text for text, is_fault in found.items() if is_fault]


def look_after(camera: CutCamera, operation: Operation) -> Sight:
    """Repeat an operation, with the reboot that belongs to it. Return the camera's state afterwards."""
    sight = look(camera, next_run(operation))
    if not operation.reboots:
        return sight
    camera.restart()
    return look(camera, WORKS)


def look(camera: CutCamera, script: str) -> Sight:
    """Run a script on the camera and return the state afterwards. A script with `detects` waits for detections."""
    camera.wait_for_ssh(REPEAT_TIMEOUT_S)
    command = f"{SHELL}{{\n{script}\n}} 3>&1 >&2\nstate"
    lines = camera.run("sh", "-c", command, timeout_s=REPEAT_TIMEOUT_S).stdout.splitlines()
    frame = json.loads(lines.pop(0)) if '"objects"' in lines[0] else {}
    status, slot, failed, *files = lines
    files = sorted(line.strip() for line in files)
    return Sight(frame.get("counter"), json.loads(status)["result"], slot, failed.strip(), tuple(files))


class Bench:
    """Runs operations from snapshots. Updates and snapshots are made on first use and kept in a folder."""

    def __init__(self, image: Image, work: Path) -> None:
        self._image, self._work = image, work
        self._undisturbed: dict[str, dict[str, Any]] = {}
        self._lock = Lock()  # for the data that all rounds share
        first = work / "snapshots" / "running" / "disk.qcow2"
        if first.is_file() and first.stat().st_mtime < image.disk.stat().st_mtime:
            raise SystemExit(f"{work} is of an older image: remove it")

    def undisturbed(self, operation: Operation) -> dict[str, Any]:
        """Run an operation without a cut, then repeat it. Return number of writes, final status and files."""
        with self._lock:
            if operation.name not in self._undisturbed:
                self._undisturbed[operation.name] = self._without_cut(operation)
            return self._undisturbed[operation.name]

    def _snapshot(self, name: str) -> Snapshot:
        if name == FACTORY:
            return Snapshot(self._image.disk)
        folder, made = self._work / "snapshots" / name, SNAPSHOTS[name]
        if not (folder / "disk.qcow2").is_file():  # written last
            shutil.rmtree(folder, ignore_errors=True)  # remains of a killed run
            with self._camera(made.start, f"make-{name}", logged=False) as camera:
                if made.start == FACTORY:
                    look(camera, "detects")
                    self._send_updates(camera)
                look(camera, made.script)
                camera.save(folder, is_on=made.is_on)
            note(f"snapshot {name}")
        return Snapshot(folder / "disk.qcow2", folder / "memory" if made.is_on else None)

    def _send_updates(self, camera: CutCamera) -> None:
        updates = self._work / "updates"
        if not updates.is_dir():
            make_updates(self._image, updates)
        packed = subprocess.run(("tar", "-C", updates, "-cf", "-", "."), capture_output=True, check=True).stdout
        camera.run("sh", "-c", f"mkdir -p {UPDATES} && tar -C {UPDATES} -xf - && sync", stdin=packed)

    def _without_cut(self, operation: Operation) -> dict[str, Any]:
        file = self._work / "undisturbed" / f"{operation.name}.json"
        if not file.is_file():
            with self._camera(operation.start, "undisturbed", logged=True) as camera:
                began = time.monotonic()
                look(camera, operation.script or WORKS)
                seconds = time.monotonic() - began
                time.sleep(SETTLED_S)
                assert camera.log is not None
                writes = count_writes(camera.log)
                sight = look_after(camera, operation)
            found = {"writes": writes, "seconds": round(seconds, 1), "files": sight.files, "status": sight.status}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found), "utf-8")
            note(f"{operation.name}: {writes} writes, {seconds:.0f} s")
        return dict(json.loads(file.read_text("utf-8")))

    def _camera(self, start: str, name: str, *, logged: bool) -> CutCamera:
        folder = self._work / "cameras" / name
        shutil.rmtree(folder, ignore_errors=True)
        snapshot = self._snapshot(start)
        return CutCamera(self._image, folder, snapshot, logged=logged, resumed=snapshot.memory is not None)

    def round(self, seed: int, operations: Sequence[Operation]) -> Document:
        """Cut an operation, boot, and return the row. The disk of a round with faults is kept."""
        operation = operations[seed % len(operations)]
        undisturbed = self.undisturbed(operation)
        began, chance = time.monotonic(), random.Random(seed)
        writes, lost_share = undisturbed["writes"], chance.choice(LOST_SHARES)
        count = chance.randint(chance.choice((0, max(0, writes - LAST_WRITES))), writes)
        row = Document(seed=seed, operation=operation.name, writes=count, of=writes, share=lost_share)
        with self._camera(operation.start, f"{seed}-cut", logged=True) as camera:
            row["in_operation"] = camera.cut_at(count, f"exec 3>&1\n{SHELL}{operation.script or WORKS}")
            left = camera.remains(camera.folder / "left.qcow2", lost_share, chance)
        row |= {"unflushed": left.unflushed, "lost": left.lost, "cut_s": round(time.monotonic() - began, 1)}
        after = CutCamera(
            self._image,
            camera.folder / "after",
            Snapshot(camera.folder / "left.qcow2"),
            logged=False,
            resumed=False,
        )
        row |= self._after(after, operation, was_done=not row["in_operation"])
        row["cpu_s"] = round(camera.cpu_s + after.cpu_s, 1)
        if not row["faults"]:
            shutil.rmtree(camera.folder)
        row["seconds"] = round(time.monotonic() - began, 1)
        return row

    def _after(self, camera: CutCamera, operation: Operation, *, was_done: bool) -> dict[str, Any]:
        """Boot the disk that a cut left, and repeat the operation. Return measurements and faults.

        was_done: The operation had ended before the cut, so its effect must have survived.
        """
        undisturbed, found = self.undisturbed(operation), dict[str, Any](faults=[])
        least_counter = {FACTORY: 0, "second": 2}.get(operation.start, 1)
        began = time.monotonic()
        try:
            with camera:
                camera.wait_for_ssh(REPEAT_TIMEOUT_S)
                found |= {"ssh_s": round(time.monotonic() - began, 1), "ssh_cpu_s": round(camera.cpu_s, 1)}
                first = look(camera, "detects; systemctl stop camera")  # it uses much of an emulated core
                found["detects_s"] = round(time.monotonic() - began, 1)
                found |= {"counter": first.counter, "trial": bool(first.status["trial"]), "slot": first.slot}
                serves, least_trust = ((operation.goal,), operation.trust) if was_done else (operation.serves, 1)
                found["faults"] += first.faults(serves, least_counter, least_trust)
                found["faults"] += [f"units failed: {first.failed}"] if first.failed else []
                last = look_after(camera, operation)
        except TROUBLE as error:
            found["faults"].append(f"{type(error).__name__}: {error}"[:1000])
            return found
        ended = last.faults((operation.goal,), undisturbed["status"]["counter"], operation.trust)
        extra = sorted({*last.files} - {*undisturbed["files"]})
        missing = sorted({*undisturbed["files"]} - {*last.files})
        ended += [f"files left: {extra}"] if extra else []
        ended += [f"files missing: {missing}"] if missing else []
        found["less_bytes"] = undisturbed["status"]["disk"]["free_bytes"] - last.status["disk"]["free_bytes"]
        ended += [f"{found['less_bytes']} bytes less are free"] if found["less_bytes"] > SPARE_BYTES else []
        found["faults"] += [f"next run: {fault}" for fault in ended]
        return found

    def scenario(self, scenario: Scenario) -> Document:
        """Cause a fault, check the camera, repair it, and install a model. Return the row."""
        began, found = time.monotonic(), Document(scenario=scenario.name, counter=None, faults=[])
        with self._camera(scenario.start, "scenario", logged=False) as camera:
            try:
                script = f"{SHELL}{scenario.trouble}"
                try:
                    done = camera.run("sh", "-c", script, check=False, timeout_s=scenario.timeout_s or REPEAT_TIMEOUT_S)
                    found["answer"] = answer_in(done.stdout)
                except subprocess.TimeoutExpired:
                    if scenario.timeout_s is None:
                        raise
                sight = look(camera, "systemctl restart camera; detects")
                found["counter"] = sight.counter
                found["faults"] += sight.faults(scenario.serves, 1, 1)
                last = look(camera, f"{scenario.repair}; {INSTALL}; systemctl restart camera; settle; detects")
                found["faults"] += last.faults((2,), 2, 1)
            except TROUBLE as error:
                found["faults"].append(f"{type(error).__name__}: {error}"[:1000])
        found["seconds"] = round(time.monotonic() - began, 1)
        return found


def answer_in(output: str) -> str:
    """Return the kind of the agent's last error in an output, `done` without error, or "" without an answer."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    error = json.loads(lines[-1]).get("error") if lines else None
    return error["kind"] if error else "done" if lines else ""


def make_updates(image: Image, folder: Path) -> None:
    """Make a second model, its delta, RAUC bundles of it and of a system with a third one, and a second trust file."""
    new = folder.with_name("updates.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    first, second = image.folder / "model-1.edgekd", new / "model-2.edgekd"
    signed = ("--version-counter", "2", "--sign", image.key("release.key"))
    edgekd("pack", first, "--out", second, *signed)
    edgekd("delta", first, second, "--out", new / "model-2.delta")
    firmware = ("--firmware-key", image.key("rauc.key"), "--firmware-cert", image.key("rauc.pem"))
    edgekd("pack", first, "--out", new / "model-2.raucb", *signed, *firmware)
    third = new / "model-3.edgekd"
    edgekd("pack", first, "--out", third, "--version-counter", "3", "--sign", image.key("release.key"))
    make_update = HERE.parent / "examples" / "camera" / "make_update.sh"
    subprocess.run((make_update, image.folder, "cut", third), check=True, stdout=subprocess.DEVNULL)
    shutil.move(image.folder / "firmware-cut.raucb", new / "system-2.raucb")
    table_of_keys = image.key("trust.toml").read_text("utf-8").replace("version = 1", "version = 2")
    for key in ("release", "trust"):
        table_of_keys = table_of_keys.replace(f'"{key}.pub"', f'"{image.key(key).resolve()}.pub"')
    (new / "trust.toml").write_text(table_of_keys, "utf-8")
    previous = ("--previous", image.key("trust.json"), "--key", image.key("trust.key"))
    edgekd("trust", new / "trust.toml", "--out", new / "trust-2.json", *previous)
    new.rename(folder)


def edgekd(*arguments: object) -> None:
    command = [sys.executable, "-m", "edgekd", *map(str, arguments)]
    subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.DEVNULL)


def page(found: Document) -> Blocks:
    yield from head("Real power cuts", found)
    yield f"""\
A [virtual camera](../../docs/guides/virtual-camera.md), an ARM64 Linux in QEMU with ext4, GRUB, RAUC and systemd, loses
its power {len(found.rows)} times: SIGKILL once the system has made a random number of writes of an operation. Its disk
has a volatile write cache. What was flushed is there; of the rest, at most the last 32 MiB, each sector of 512 bytes is
lost with a probability of {" or ".join(f"{share:.0%}" for share in LOST_SHARES)}, by chance. Then it boots, and the
operation runs once more. A *fault*: it does not detect objects by a tested model that may be in service, which after
the end of the operation is the new one alone; a unit fails; a counter or the trust file goes back; the next run does
not end with exactly the files and the free space of an undisturbed one."""
    yield claims_table(found.claims, ".0f")
    yield table(
        "operation | cuts | before its end | sectors unflushed | lost | model in service afterwards | faults | "
        "most bytes less free | boot to detections, s | processor until SSH, s | processor of a round, s",
        (operation_line(name, found.rows) for name in dict.fromkeys(row.operation for row in found.rows)),
    )
    yield """\
*Model in service afterwards*: by counter, at the first look after the boot. *Boot to detections*, and the processor
time of the emulator, from the start until SSH answers and for all of a round: medians."""
    if found.scenarios:
        yield table(
            "scenario | agent's answer | model in service | installs afterwards | seconds",
            (
                f"{row.scenario} | {row.get('answer') or '–'} | {row.counter or '–'} | {yes(not row.faults, 'NO')} | "
                f"{row.seconds:.0f}"
                for row in found.scenarios
            ),
        )
    yield table(
        "seed | operation | cut after write | lost, of unflushed sectors | in service | slot | verdict | seconds",
        (
            f"{row.seed} | {row.operation} | {row.writes} of {row.of} | {row.lost} of {row.unflushed} | "
            f"{row.get('counter', '–')}{' on trial' if row.get('trial') else ''} | {row.get('slot', '–')} | "
            f"{'; '.join(row.faults) or 'as undisturbed'} | {row.seconds:.0f}"
            for row in found.rows
        ),
    )


def operation_line(name: str, rows: Sequence[Document]) -> str:
    """Return a table line that summarizes all cuts of an operation."""
    own = [row for row in rows if row.operation == name]
    counters = Counter(row.get("counter") or 0 for row in own)
    serves = ", ".join(f"{counter}: {count}" for counter, count in sorted(counters.items()))
    less = max((row.get("less_bytes") or 0 for row in own), default=0)
    times = " | ".join(median_of(own, name) for name in ("detects_s", "ssh_cpu_s", "cpu_s"))
    return (
        f"{name} | {len(own)} | {sum(row.in_operation for row in own)} | {sum(row.unflushed for row in own):,} | "
        f"{sum(row.lost for row in own):,} | {serves} | {sum(bool(row.faults) for row in own)} | {less:,} | {times}"
    )


def median_of(rows: Sequence[Document], name: str) -> str:
    """Return the median of a time as text, a dash if no row has it."""
    values = [row[name] for row in rows if row.get(name)]
    return cell(statistics.median(values) if values else None, ".0f")


def result(kept: FinishedRows, scenarios: Sequence[Document], rounds: int) -> Result:
    rows = sorted(kept.rows, key=lambda row: row.seed)
    faults = [fault for row in rows for fault in row.faults]

    def counted(text: str, *words: str) -> dict[str, Any]:
        count = sum(any(word in fault for word in words) for fault in faults)
        return claim(text, count, count == 0)

    return {
        "claims": [
            claim("cuts", len(rows), len(rows) >= rounds),
            counted("without a tested model that may be in service", "Error", "Timeout", "in service"),
            counted("counter or trust file gone back", "went back"),
            counted("units failed after the boot", "units failed"),
            counted("files left or missing, or space lost, after the next run", "files", "bytes less"),
        ],
        "rows": rows,
        "scenarios": scenarios,
        "software": software(),
        "conditions": kept.conditions,
    }


def software() -> str:
    """Return a hash of SOFTWARE in this checkout. Only rows with the same hash go into one table."""
    root, lines = HERE.parent, []
    for file in sorted(file for name in SOFTWARE for file in (root / name, *(root / name).rglob("*"))):
        if file.is_file() and "__pycache__" not in file.parts:
            lines.append(f"{file.relative_to(root)} {file_sha256(file)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def finished_rows(given: Given) -> FinishedRows:
    """Return the rows of the work folder; if it has none, those of the last result of the same software."""
    settings = {"only": given.only, "software": software()}
    kept = FinishedRows(given.work / "rows.json", settings, given.threads)
    if not kept.rows and given.out.is_file():
        last = read(given.out.read_text("utf-8"))
        if {name: last.get(name) for name in settings} == settings:
            kept.take_over(last)
    return kept


def run(given: Given) -> Iterator[Result]:
    operations = [each for each in OPERATIONS if not given.only or each.name in given.only]
    bench = Bench(Image(given.camera.absolute()), given.work.absolute())
    kept = finished_rows(given)
    done = {row.seed for row in kept.rows}
    with ThreadPoolExecutor(given.threads) as pool:
        rounds = [pool.submit(bench.round, seed, operations) for seed in range(given.rounds) if seed not in done]
        for finished in as_completed(rounds):
            if error := finished.exception():
                note(f"a round failed, for the next run: {type(error).__name__}: {error}")
                continue
            note(json.dumps(finished.result()))
            kept.add(finished.result())
            yield result(kept, [], given.rounds)
    scenarios = []
    for scenario in SCENARIOS if given.scenarios else ():
        scenarios.append(bench.scenario(scenario))
        note(json.dumps(scenarios[-1]))
        yield result(kept, scenarios, given.rounds)
    yield result(kept, scenarios, given.rounds)


if __name__ == "__main__":
    options = (
        Option("--camera", HERE.parent / "build" / "camera", "the folder that `make camera` makes"),
        Option("--work", HERE.parent / "runs" / "real_power_cuts"),
        Option("--rounds", 200, "cuts, one for each seed (%(default)s)"),
        Option("--only", [], "names of operations; default: all", type=str, nargs="+"),
        Option("--scenarios", False, "try the single scenarios, too"),
    )
    main(run, page, *options)
