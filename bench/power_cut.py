"""Interrupt the agent at each of its file operations, and check which bundle is in service after each cut.

A process works up to the operation and exits. Then the same command runs again, and must end with the same files as an
undisturbed run. At the end many cuts hit the same state one after the other. Make the bundle with `edgekd demo`.
"""

import contextlib
import hashlib
import io
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common import HERE
from frame import Blocks, Document, Given, Option, Result, head, main, table

sys.path.insert(0, str(HERE.parent / "tests" / "agent"))
from cameras import identity_of, repacked
from power import cut_at, fresh, listing

from edgekd.agent.cli import main as agent
from edgekd.agent.engines.engine import read_engine
from edgekd.agent.engines.selftest import run_self_test
from edgekd.agent.runtimes import require_runtime
from edgekd.agent.state.slots import Slot, State
from edgekd.core.errors import EdgeKDError
from edgekd.deploy.delta import run as make_delta

DISKS = {"keeps": False, "forgets": True}  # kinds of disk: whether unflushed writes are lost
SEED = 0
ALIKE = ("red", "green", "blue")  # bundles with the same counter, which can replace each other
IN_A_ROW = 200


@dataclass(frozen=True)
class Scenario:
    """A call to interrupt: the calls that prepare its state, the call, and the bundle in service after it."""

    name: str
    start: tuple[tuple[str, ...], ...]
    work: tuple[str, ...]
    goal: str


OLD, NEW = ("install", "old"), ("install", "new")
NEWER, THIRD = (*NEW, "--tries", "0"), ("install", "third")
SCENARIOS = (
    Scenario("install new in place of old", (OLD,), NEW, "new"),
    Scenario("install third in place of new, old behind it", (OLD, NEWER), ("install", "third"), "third"),
    Scenario("install new by a delta from old", (OLD,), ("install", "delta"), "new"),
    Scenario("a start on trial", (OLD, NEW), ("boot",), "new"),
    Scenario("a commit", (OLD, NEW), ("commit",), "new"),
    Scenario("a start that leads back", (OLD, (*NEW, "--tries", "1"), ("boot",)), ("boot",), "old"),
    Scenario("a rollback", (OLD, NEW), ("rollback",), "old"),
)


@dataclass
class Row:
    """Result of all cuts of a scenario on one kind of disk.

    serves: how often each bundle was in service after a cut; faults: descriptions of violations; bytes: size of the
    state folder after an undisturbed run; most_bytes: its largest size after a cut.
    """

    scenario: str
    disk: str
    cuts: int = 0
    serves: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    bytes: int = 0
    most_bytes: int = 0


class Bench:
    """Bundles by name, and calls of the agent on state folders below `scratch`."""

    def __init__(self, bundle: Path, scratch: Path, runtime: str) -> None:
        self._scratch, self._runtime = scratch, require_runtime(runtime)
        counters = {"old": 1, "new": 2, "third": 3, **dict.fromkeys(ALIKE, 1)}
        self.bundles = {
            name: repacked(bundle, scratch / name, name=name, counter=counter) for name, counter in counters.items()
        }
        self._names = {identity_of(path): name for name, path in self.bundles.items()}
        self.bundles["delta"] = scratch / "delta"
        make_delta(self.bundles["old"], self.bundles["new"], self.bundles["delta"])

    def call(self, call: Sequence[str], folder: Path) -> int:
        command, *more = call
        words = [str(self.bundles.get(word, word)) for word in more]
        places = ["--state", str(folder), "--root", str(self._scratch / "root")]
        runtime = ["--runtime", self._runtime.name] if command == "install" else []
        with contextlib.redirect_stdout(io.StringIO()):
            return agent([command, *words, *places, *runtime])

    def begin(self, scenario: Scenario) -> Path:
        folder = self._scratch / "begins" / "state"
        fresh(self._scratch / "empty", folder)
        for call in scenario.start:
            if self.call(call, folder):
                raise SystemExit(f"{call}: failed without any power cut")
        return folder

    def serves(self, folder: Path) -> tuple[str, str | None]:
        """Return the name of the bundle in service (`none` without one), and its first fault, None if there is none."""
        state = State(folder)
        active = state.active
        if active is None:
            return "none", "nothing is in service"
        slots = [active, *filter(None, [state.previous])]
        return self._names[active.identity], next(filter(None, map(self._fault, slots)), None)

    def _fault(self, slot: Slot) -> str | None:
        for entry in slot.manifest.files:
            if hashlib.sha256((slot.path / "bundle" / entry.path).read_bytes()).hexdigest() != entry.sha256:
                return f"{slot.name}: {entry.path} is damaged"
        engine = read_engine(slot.engine) if slot.engine else None
        if engine is None or not engine.whole:
            return f"{slot.name}: no whole engine"
        try:
            passed = run_self_test(slot, self._runtime, engine.file).test.passed
        except EdgeKDError as error:
            return f"{slot.name}: {error}"
        return None if passed else f"{slot.name}: the self-test fails"

    def sweep(self, scenario: Scenario, disk: str, every: int) -> Row:
        """Interrupt the work of a scenario at every `every`-th file operation."""
        row = Row(scenario.name, disk)
        start, folder = self.begin(scenario), self._scratch / "state"
        work = partial(self.call, scenario.work)
        work(fresh(start, folder))
        expected, row.bytes = listing(folder), used(folder)
        count = 0
        while cut_at(count, partial(work, fresh(start, folder)), forgetful=DISKS[disk]):
            fault = self._after_cut(row, folder)
            faults = [fault] if fault else []
            # The exit code is ignored: a rollback that was complete before the cut fails when it is repeated.
            work(folder)
            name, fault = self.serves(folder)
            if fault or name != scenario.goal:
                faults.append(f"the next run ends with {name} in service: {fault}")
            if listing(folder) != expected or used(folder) != row.bytes:
                faults.append("the next run leaves something else than an undisturbed one")
            row.cuts += 1
            row.faults += [f"operation {count}: {each}" for each in faults]
            count += every
        return row

    def _after_cut(self, row: Row, folder: Path) -> str | None:
        """Record the state after a cut in `row`. Return its fault, None if there is none."""
        row.most_bytes = max(row.most_bytes, used(folder))
        name, fault = self.serves(folder)
        row.serves[name] += 1
        return fault

    def in_a_row(self, disk: str, cuts: int) -> Row:
        """Interrupt random calls at random operations, each on the state that the previous cut left."""
        chance, row = random.Random(f"{SEED} {disk}"), Row("installations in a row", disk)
        folder, undisturbed = self._scratch / "state", self._scratch / "undisturbed" / "state"
        installs = [("install", name, "--tries", "0") for name in ALIKE]
        self.call(installs[0], fresh(self._scratch / "empty", folder))
        fresh(self._scratch / "empty", undisturbed)
        for call in installs:
            self.call(call, undisturbed)
        row.bytes = used(undisturbed)
        calls = [*(("install", name) for name in ALIKE), *(("unpack", name) for name in ALIKE), ("boot",)]
        calls += [("boot",), ("commit",), ("commit",), ("rollback",)]
        while row.cuts < cuts:
            call = chance.choice(calls)
            at = chance.randrange(140 if call[0] in ("install", "unpack") else 14)
            row.cuts += cut_at(at, partial(self.call, call, folder), forgetful=DISKS[disk])
            fault = self._after_cut(row, folder)
            row.faults += [f"{' '.join(call)} cut at {at}: {fault}"] if fault else []
        self.call(("commit",), folder)  # end a trial, if there is one
        for call in (("unpack", ALIKE[-1]), *installs):
            self.call(call, folder)
        if self.serves(folder) != (ALIKE[-1], None):
            row.faults.append("no installation is possible any more")
        if (left := used(folder) - row.bytes) > 0:
            row.faults.append(f"{left} bytes are left over")
        return row


def used(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def page(found: Document) -> Blocks:
    yield from head("Power cuts", found)
    yield f"""\
The agent, cut off at its file operations: {found.cuts:,} cuts. *Keeps* and *forgets*: a disk with all
that was done, half of the last write included, and one with what was flushed alone. A *fault*: nothing in
service; a byte of a bundle wrong; an engine damaged, or not passing its self-test, in service or on the way
back; a next run of the command that does not end with exactly the files of an undisturbed one."""
    yield table(
        "cut off | disk | cuts | in service afterwards | none | faults | bytes undisturbed | most, cut",
        (
            f"{row.scenario} | {row.disk} | {row.cuts:,} | "
            f"{', '.join(f'{name} {count:,}' for name, count in sorted(row.serves.items()))} | "
            f"{row.serves.get('none', 0)} | {len(row.faults)} | {row.bytes:,} | {row.most_bytes:,}"
            for row in found.rows
        ),
    )
    yield f"""\
The bundle has {found.bundle_bytes:,} bytes. Networks are run by the runtime `{found.runtime}`.
*Installations in a row*: random commands cut at random operations, each on what the one before left; there
the bytes undisturbed are those of three installations."""


def run(given: Given) -> Result:
    os.fsync = lambda handle: None  # `cut_at` counts calls of fsync; real flushes would only cost time
    (given.scratch / "empty").mkdir()
    bench = Bench(given.bundle, given.scratch, given.runtime)
    rows = [bench.sweep(scenario, disk, given.every) for scenario in SCENARIOS for disk in DISKS]
    rows += [bench.in_a_row(disk, given.in_a_row) for disk in DISKS]
    return {
        "bundle_bytes": given.bundle.stat().st_size,
        "cuts": sum(row.cuts for row in rows),
        "rows": [vars(row) for row in rows],
    }


if __name__ == "__main__":
    options = (
        Option("bundle", type=Path),
        Option("--runtime", "null"),
        Option("--every", 1, "cut at each of so many operations (%(default)s)"),
        Option("--in-a-row", IN_A_ROW, "cuts of one state (%(default)s)"),
    )
    main(run, page, *options, holds=lambda found: not any(row.faults for row in found.rows), cores=1)
