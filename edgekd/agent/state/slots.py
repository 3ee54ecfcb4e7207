"""Two slots for bundles, one of them in service, and atomic switches between them.

The link `active` alone determines what is in service. Everything else is written before the switch, and has no effect
until then: after a power cut one of the two slots is in service, and it has passed its self-test. The folder is drawn
in docs/reference/agent.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekd.agent.state.reserve import keep_reserve, replace_by_reserve, switch_link_in_place
from edgekd.agent.state.trial import Trial, trial_from_json
from edgekd.core.atomic_files import (
    contents,
    new_folder,
    remove_folder,
    remove_leftovers,
    switch_link,
    write_file,
    writing,
)
from edgekd.core.bundle import signatures
from edgekd.core.bundle.archive import MANIFEST, SIGNATURES, BundleHead, BundleReader
from edgekd.core.bundle.manifest import MODEL_NAME, MODEL_NAME_TEXT, Manifest, from_json
from edgekd.core.bundle.network import max_network_bytes, network_errors, require_network, verify_bundle
from edgekd.core.bundle.signatures import Signature
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import BundleError, DeviceError, DiskFullError, SpecError
from edgekd.core.file_view import file_view
from edgekd.core.private_files import lock_file, lock_holder, private_folder

NAMES = ("a", "b")
SELF_TEST = "selftest.json"
LOCK_WAIT_S = 2.0
"""Seconds to wait for another operation: a start or a commit takes less; an installation takes minutes."""
_KNOWN = ("active", "clock.json", "incoming", "lock", "models", "slots", "timings", "trust.json", "upload")
"""Names of which a state folder has one; SWUpdate makes `incoming` before the agent first runs."""
_RESERVE = "reserve"
"""Name of the file with whose block `boot` and `rollback` write on a full disk."""
_ACTIVE, _ENGINE, _RECORD, _MODELS = "active", "engine", "activation.json", "models"


@dataclass(frozen=True)
class Slot:
    """A slot with a bundle. identity: of the bundle, SHA-256 of its manifest."""

    path: Path
    manifest: Manifest
    identity: str

    @property
    def name(self) -> str:
        """Name of the slot: `a` or `b`."""
        return self.path.name

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """Signatures of the bundle. Raises SignatureError where they are damaged."""
        return signatures.from_json((self.path / "bundle" / SIGNATURES).read_bytes()).signatures

    @property
    def graph(self) -> Path:
        """ONNX file of the network."""
        return self.path / "graph.onnx"

    @property
    def engines(self) -> Path:
        """Folder with the engines."""
        return self.path / "engines"

    @property
    def engine(self) -> Path | None:
        """Folder of the engine in service; None where none ever was."""
        folder = self.path / _ENGINE
        return folder.resolve() if folder.is_dir() else None

    def file(self, role: str) -> Path | None:
        """Return the bundle's first file with this role; None where there is none."""
        path = next((entry.path for entry in self.manifest.files if entry.role == role), None)
        return None if path is None else self.path / "bundle" / path


@dataclass(frozen=True)
class Activation:
    """Record of an activation.

    previous: identity of the bundle that was in service before, the target of a rollback; rejected: identity of the
    bundle that a rollback has replaced; trial: None once it is committed.
    """

    previous: str | None = None
    rejected: str | None = None
    trial: Trial | None = None


def read_slot(path: Path) -> Slot:
    """Read the slot at a path. Raises OSError or BundleError where it has no complete bundle."""
    content = (path / "bundle" / MANIFEST).read_bytes()
    return Slot(path, from_json(content), hashlib.sha256(content).hexdigest())


def model_names(base: Path) -> list[str | None]:
    """Return the names of a camera's models; None for the one without a name, which is the first."""
    named = sorted(path.parent.name for path in (base / _MODELS).glob("*/slots") if path.is_dir())
    return [*([None] if (base / "slots").is_dir() else []), *named]


class State:
    """The slots of one model, in one folder. base: folder of all models of the camera."""

    def __init__(self, root: Path, base: Path | None = None) -> None:
        self.root, self.base = root, base or root
        self._held = False

    @classmethod
    def of(cls, base: Path, model: str | None) -> State:
        """Return the state of the model with a name; None for the one without. Raises SpecError."""
        if model is None:
            return cls(base)
        if not MODEL_NAME.fullmatch(model):
            raise SpecError(f"--model {model}", expected=MODEL_NAME_TEXT)
        return cls(base / _MODELS / model, base)

    @property
    def model(self) -> str | None:
        """Name of the model; None for the one without."""
        return None if self.root == self.base else self.root.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, after the leftovers of killed processes are removed. Raises DeviceError, SpecError.

        Reentrant: an operation may be part of another one.
        """
        if self._held:
            yield
            return
        self.create_folder()
        with writing(self.root):
            (self.root / "slots").mkdir(parents=True, exist_ok=True)
        with alone(self.root / "lock", self.root, "one operation at a time", wait_s=LOCK_WAIT_S):
            self._remove_leftovers()
            if self.active_name:
                keep_reserve(self.root / _RESERVE)
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def create_folder(self) -> None:
        """Create the folder of all models, closed to other users. Raises SpecError where it is another user's."""
        with writing(self.base):
            private_folder(self.base, _KNOWN)

    def _remove_leftovers(self) -> None:
        slots = [self.root / "slots" / name for name in NAMES]
        inside = [folder for slot in slots for folder in (slot, slot / "bundle", slot / "engines")]
        more = [*(self.root / "slots").glob("?/engines/*"), *(self.root / "timings").glob("*")]
        with writing(self.root):
            for folder in filter(Path.is_dir, (self.root, self.root / "slots", *inside, *more)):
                remove_leftovers(folder)

    def slot(self, name: str) -> Slot | None:
        """Return the slot of that name; None where it has no complete bundle."""
        try:
            return read_slot(self.root / "slots" / name)
        except (OSError, BundleError):
            return None

    @property
    def active_name(self) -> str | None:
        """Name of the slot in service, whatever its content."""
        link = self.root / _ACTIVE
        return Path(os.readlink(link)).name if link.is_symlink() else None  # noqa: PTH115 Path.readlink is Python 3.9

    @property
    def active(self) -> Slot | None:
        """The slot in service."""
        return self.slot(self.active_name) if self.active_name else None

    @property
    def activation(self) -> Activation:
        """Activation of the slot in service. Raises DeviceError where its record is damaged."""
        path = self.root / _ACTIVE / _RECORD
        try:
            document = json.loads(path.read_bytes())
            return Activation(**{**document, "trial": trial_from_json(document.get("trial"))})
        except FileNotFoundError:
            return Activation()
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise DeviceError(f"{path}: damaged", found=str(error), fix="unpack and activate a bundle again") from error

    @property
    def other(self) -> Slot | None:
        """The slot that is not in service; where none is in service, the first that has a bundle."""
        return next(filter(None, (self.slot(name) for name in NAMES if name != self.active_name)), None)

    def find(self, identity: str) -> Slot | None:
        """Return the slot with the bundle of that identity."""
        return next((slot for slot in (self.active, self.other) if slot and slot.identity == identity), None)

    @property
    def previous(self) -> Slot | None:
        """The target of a rollback."""
        other, identity = self.other, self.activation.previous
        return other if other and other.identity == identity else None

    @property
    def candidate(self) -> Slot | None:
        """The slot for the next activation: its bundle was neither in service before nor rejected."""
        other, record = self.other, self.activation
        return other if other and other.identity not in (record.previous, record.rejected) else None

    def fill(self, bundle: BundleReader) -> Slot:
        """Unpack a bundle into the slot that is not in service, in place of its content.

        Raises BundleError or HashError for a bad bundle, DiskFullError where there is no room, SpecError where the
        folder cannot be written. The slot is then unchanged, or empty.
        """
        graph_bytes = verify_bundle(bundle)  # else a bad bundle would replace the target of a rollback
        name = next(name for name in NAMES if name != self.active_name)
        path = self.root / "slots" / name
        require_room(self.root, _needs(bundle, graph_bytes), freed=_disk_usage(path))
        if path.exists():
            remove_folder(path)
        with new_folder(path) as temporary:
            bundle.extract(temporary / "bundle")
            slot = read_slot(temporary)
            with writing(slot.graph):
                _expand_graph(bundle, temporary / "bundle" / bundle.manifest.graph.path, slot.graph)
                slot.engines.mkdir()
        return read_slot(path)

    def update_signatures(self, slot: Slot, head: BundleHead) -> None:
        """Replace the signatures of the bundle in a slot by those of a head."""
        content = signatures.to_json(head.envelope)
        path = slot.path / "bundle" / SIGNATURES
        if path.read_bytes() != content:
            write_file(path, content)

    def allow(self, identity: str) -> None:
        """Make a bundle a candidate although it was in service before, or was rejected."""
        record = self.activation
        if identity in (record.previous, record.rejected):
            self.note(Activation())

    def note(self, record: Activation) -> None:
        """Replace the activation of the slot in service."""
        self._write_record(self.root / _ACTIVE / _RECORD, record)

    def _write_record(self, path: Path, record: Activation) -> None:
        """Write the record of an activation, also on a full disk."""
        content = canonical_json(asdict(record))
        try:
            write_file(path, content)
        except DiskFullError:
            replace_by_reserve(self.root / _RESERVE, path, content)

    def put_into_service(self, slot: Slot, engine: Path, record: Activation) -> bool:
        """Link the engine, then the slot, as the one in service; return whether anything has changed."""
        switched = slot.engine != engine.resolve()
        if switched:
            _switch_link(slot.path / _ENGINE, f"{slot.engines.name}/{engine.name}")
        if slot.name != self.active_name:
            keep_reserve(self.root / _RESERVE)
            self._write_record(slot.path / _RECORD, record)
            _switch_link(self.root / _ACTIVE, f"slots/{slot.name}")
            switched = True
        for folder in slot.engines.iterdir():
            if folder.resolve() != engine.resolve():
                with suppress(DiskFullError):  # the next activation removes it
                    remove_folder(folder)
        return switched


def _switch_link(path: Path, goal: str) -> None:
    """Make `path` a symbolic link to `goal`, also on a full disk. Raises SpecError."""
    try:
        switch_link(path, goal)
    except DiskFullError:
        switch_link_in_place(path, goal)


@contextmanager
def alone(path: Path, what: Path, expected: str, wait_s: float = 0.0) -> Iterator[int]:
    """Hold the lock on a file, created where it is missing, and yield its descriptor.

    Raises DeviceError where another process still has it after `wait_s`, SpecError where it is not this user's.
    """
    with writing(path):
        handle = lock_file(path, wait_s)
    if handle is None:
        raise DeviceError(
            f"{what}: in use", expected=expected, found=lock_holder(path), fix="wait for the other to end"
        )
    try:
        yield handle
    finally:
        os.close(handle)


def _expand_graph(bundle: BundleReader, packed: Path, out: Path) -> None:
    """Write the expanded network of a bundle, in bounded memory. Raises BundleError, OSError.

    packed: its file as it was unpacked: the bundle itself may have changed since it was verified.
    """
    from edgekd.core.formats.packed_graph import expand

    with packed.open("rb") as source, out.open("xb") as stream, network_errors(bundle):
        content = file_view(source)
        require_network(content)
        for piece in expand(content, max_network_bytes(len(content))):
            stream.write(piece)


def _needs(bundle: BundleReader, graph_bytes: int) -> dict[str, int]:
    """Return the disk space that a bundle needs, in bytes.

    The size of the engine is unknown before the build: the size of the graph stands for it.
    """
    return {"the bundle": bundle.size, "its graph": graph_bytes, "about as much for an engine": graph_bytes}


def _disk_usage(folder: Path) -> int:
    """Return the bytes of the disk that a folder occupies."""
    return sum(path.lstat().st_blocks * 512 for path in contents(folder)) if folder.is_dir() else 0


def require_room(folder: Path, needs: Mapping[str, int], freed: int = 0) -> None:
    """Raise DiskFullError where the disk of `folder` has fewer free bytes than `needs`, `freed` included."""
    free = shutil.disk_usage(folder).free + freed
    if free < sum(needs.values()):
        listed = ", ".join(f"{count} {what}" for what, count in needs.items())
        raise DiskFullError(
            f"{folder}: no room",
            expected=f"{sum(needs.values())} bytes: {listed}",
            found=f"{free} bytes free" + (f", {freed} of them in the slot that is to be replaced" if freed else ""),
            fix="free some space there",
        )
