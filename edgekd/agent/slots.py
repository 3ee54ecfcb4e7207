"""Two slots for bundles, one of them in service, and switches that are one rename each.

    STATE/
      lock                  held by whoever changes something
      trust.json            whose bundles are taken, where a newer trust file than the firmware's was taken
      counter.json          the highest counter of a bundle that was put into service
      active                symbolic link to the slot in service: slots/a or slots/b
      timings/              what builders have timed, for the next build
      staged/               a bundle that is put together of a delta, while that lasts
      slots/a/              appears whole or not at all
        bundle/             the bundle's files, each checked
        graph.onnx          the network, expanded
        activation.json     what was in service before this slot, and its trial; counts only while it is in service
        tuning.json         the form of the network that `tune` chose
        engine              symbolic link to the engine in service: engines/KEY
        engines/KEY/        appears whole: model.engine, engine.json; then selftest.json
      slots/b/
      models/NAME/          the same, of another model of the camera

The link `active` alone says what is in service. All else is written before it is switched, and has no meaning until
then: whenever the power goes, one of the two slots is in service, and it is one that passed its self-test.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgekd.agent.trial import Trial, trial_from_json
from edgekd.core.atomic_files import (
    contents,
    new_folder,
    remove_folder,
    remove_leftovers,
    switch_link,
    write_file,
    writing,
)
from edgekd.core.bundle import signatures as sealing
from edgekd.core.bundle.archive import MANIFEST, SIGNATURES, Head, extract, read_file, read_head, verify
from edgekd.core.bundle.manifest import Manifest, from_json
from edgekd.core.bundle.signatures import Signature
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import BundleError, DeviceError, SpecError

if TYPE_CHECKING:
    from edgekd.core.bundle.archive import Judge

NAMES = ("a", "b")
SELF_TEST = "selftest.json"
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_ACTIVE, _ENGINE, _RECORD, _MODELS = "active", "engine", "activation.json", "models"


@dataclass(frozen=True)
class Slot:
    """A slot with a bundle in it. identity: what names the bundle, SHA-256 of its manifest."""

    path: Path
    manifest: Manifest
    identity: str

    @property
    def name(self) -> str:
        """Which slot it is: `a` or `b`."""
        return self.path.name

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """Who signed the bundle. Raises SignatureError where that is damaged."""
        return sealing.from_json((self.path / "bundle" / SIGNATURES).read_bytes()).signatures

    @property
    def graph(self) -> Path:
        """The network as an ONNX file."""
        return self.path / "graph.onnx"

    @property
    def engines(self) -> Path:
        """The folder with an engine for each device state it was built on."""
        return self.path / "engines"

    @property
    def engine(self) -> Path | None:
        """The folder of the engine in service; None where none ever was."""
        folder = self.path / _ENGINE
        return folder.resolve() if folder.is_dir() else None

    def file(self, role: str) -> Path | None:
        """The bundle's first file with this role."""
        found = next((entry.path for entry in self.manifest.files if entry.role == role), None)
        return None if found is None else self.path / "bundle" / found


@dataclass(frozen=True)
class Activation:
    """How a slot came into service.

    previous: identity of the bundle that was in service before, and that a rollback leads to; rejected: identity of the
    bundle that a rollback has led away from; trial: what is left of its trial, None once it is committed.
    """

    previous: str | None = None
    rejected: str | None = None
    trial: Trial | None = None


def read_slot(path: Path) -> Slot:
    """The slot at a path. Raises OSError or BundleError where no whole bundle lies in it."""
    content = (path / "bundle" / MANIFEST).read_bytes()
    return Slot(path, from_json(content), hashlib.sha256(content).hexdigest())


def model_names(base: Path) -> list[str | None]:
    """The models that a camera has slots of; None is the one without a name, which comes first."""
    named = sorted(path.parent.name for path in (base / _MODELS).glob("*/slots") if path.is_dir())
    return [*([None] if (base / "slots").is_dir() else []), *named]


class State:
    """The slots of one model on a camera, in one folder. base: of all models of the camera, where it has several."""

    def __init__(self, root: Path, base: Path | None = None) -> None:
        self.root, self.base = root, base or root
        self._held = False

    @classmethod
    def of(cls, base: Path, model: str | None) -> State:
        """The slots of the model of that name; of the one without a name for None. Raises SpecError."""
        if model is None:
            return cls(base)
        if not MODEL_NAME.fullmatch(model):
            raise SpecError(f"--model {model}", expected="1 to 32 of a-z 0-9 _ -, the first a letter or a digit")
        return cls(base / _MODELS / model, base)

    @property
    def model(self) -> str | None:
        """The name of the model; None for the one without."""
        return None if self.root == self.base else self.root.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Change something, alone; first goes what killed processes left behind. Raises DeviceError, SpecError.

        An operation may be part of another one, which holds the lock already.
        """
        if self._held:
            yield
            return
        with writing(self.root):
            (self.root / "slots").mkdir(parents=True, exist_ok=True)
            stream = (self.root / "lock").open("ab")
        with stream:
            require_alone(stream, self.root, "one operation at a time")
            self._remove_leftovers()
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def _remove_leftovers(self) -> None:
        slots = [self.root / "slots" / name for name in NAMES]
        inside = [folder for slot in slots for folder in (slot, slot / "bundle", slot / "engines")]
        more = [*(self.root / "slots").glob("?/engines/*"), *(self.root / "timings").glob("*")]
        with writing(self.root):
            for folder in filter(Path.is_dir, (self.root, self.root / "slots", *inside, *more)):
                remove_leftovers(folder)
        self.remove_staged()

    @property
    def staged(self) -> Path:
        """Where a bundle is put together; nothing stays there."""
        return self.root / "staged"

    def remove_staged(self) -> None:
        """Remove what was put together. The state must be locked. Raises SpecError."""
        if self.staged.exists():
            remove_folder(self.staged)

    def slot(self, name: str) -> Slot | None:
        """The slot of that name; None where no whole bundle lies in it."""
        try:
            return read_slot(self.root / "slots" / name)
        except (OSError, BundleError):
            return None

    @property
    def active_name(self) -> str | None:
        """The name of the slot in service, whatever lies in it."""
        link = self.root / _ACTIVE
        return Path(os.readlink(link)).name if link.is_symlink() else None  # noqa: PTH115 Path.readlink is Python 3.9

    @property
    def active(self) -> Slot | None:
        """The slot in service."""
        return self.slot(self.active_name) if self.active_name else None

    @property
    def activation(self) -> Activation:
        """How the slot in service came there. Raises DeviceError where its record is damaged."""
        path = self.root / _ACTIVE / _RECORD
        try:
            told = json.loads(path.read_bytes())
            return Activation(**{**told, "trial": trial_from_json(told.get("trial"))})
        except FileNotFoundError:
            return Activation()
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise DeviceError(f"{path}: damaged", found=str(error), fix="unpack and activate a bundle again") from error

    @property
    def other(self) -> Slot | None:
        """The slot that is not in service, or, where none is, the first that has a bundle in it."""
        return next(filter(None, (self.slot(name) for name in NAMES if name != self.active_name)), None)

    def find(self, identity: str) -> Slot | None:
        """The slot with the bundle of that identity."""
        return next((slot for slot in (self.active, self.other) if slot and slot.identity == identity), None)

    @property
    def previous(self) -> Slot | None:
        """The slot that a rollback leads to."""
        other, wanted = self.other, self.activation.previous
        return other if other and other.identity == wanted else None

    @property
    def candidate(self) -> Slot | None:
        """The slot that waits to be put into service: neither what was there before nor what was rejected."""
        other, record = self.other, self.activation
        return other if other and other.identity not in (record.previous, record.rejected) else None

    def fill(self, bundle: Path, judge: Judge | None = None) -> Slot:
        """Unpack a bundle into the slot that is not in service, in place of what is there.

        Raises BundleError or HashError for a bad bundle, what `judge` raises, DeviceError where there is no room,
        SpecError where the place cannot be written. The slot is then as it was, or empty.
        """
        from edgekd.core.formats.packed_graph import unpack

        verify(bundle, judge)  # else a bad bundle would cost what a rollback leads to
        name = next(name for name in NAMES if name != self.active_name)
        path = self.root / "slots" / name
        require_room(self.root, _needs(bundle), freed=_taken(path))
        if path.exists():
            remove_folder(path)
        with new_folder(path) as temporary:
            manifest = extract(bundle, temporary / "bundle", judge)
            slot = read_slot(temporary)
            try:
                graph = unpack((temporary / "bundle" / manifest.graph.path).read_bytes())
            except ValueError as error:
                what = f"{bundle}: {manifest.graph.path} cannot be expanded"
                raise BundleError(what, found=str(error), fix="get the bundle again") from error
            with writing(slot.graph):
                slot.graph.write_bytes(graph)
                slot.engines.mkdir()
        return read_slot(path)

    def seal(self, slot: Slot, head: Head) -> None:
        """Give the bundle in a slot the signatures that it has elsewhere."""
        told = sealing.to_json(head.seal)
        path = slot.path / "bundle" / SIGNATURES
        if path.read_bytes() != told:
            write_file(path, told)

    def allow(self, identity: str) -> None:
        """Let a bundle be a candidate although it was in service before, or was rejected."""
        record = self.activation
        if identity in (record.previous, record.rejected):
            self.note(Activation())

    def note(self, record: Activation) -> None:
        """Write down something else of the slot in service."""
        write_file(self.root / _ACTIVE / _RECORD, canonical_json(asdict(record)))

    def put_into_service(self, slot: Slot, engine: Path, record: Activation) -> bool:
        """Make `engine` the slot's, and the slot the one in service. Whether anything was to be done."""
        switched = slot.engine != engine.resolve()
        if switched:
            switch_link(slot.path / _ENGINE, f"{slot.engines.name}/{engine.name}")
        if slot.name != self.active_name:
            write_file(slot.path / _RECORD, canonical_json(asdict(record)))
            switch_link(self.root / _ACTIVE, f"slots/{slot.name}")
            switched = True
        for folder in slot.engines.iterdir():
            if folder.resolve() != engine.resolve():
                remove_folder(folder)
        return switched


def require_alone(stream: BinaryIO, what: Path, expected: str) -> None:
    """Lock a file until it is closed. Raises DeviceError where another process has locked it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DeviceError(f"{what}: in use", expected=expected, fix="wait for the other to end") from error


def _needs(bundle: Path) -> dict[str, int]:
    """What a bundle takes on the disk, in bytes. Raises BundleError where its graph is none.

    How large the engine will be only its builder knows: it is taken to be as large as the graph.
    """
    from edgekd.core.formats.packed_graph import expanded_bytes

    head = read_head(bundle)
    try:
        graph = expanded_bytes(read_file(bundle, head.manifest.graph))
    except ValueError as error:
        what = f"{bundle}: {head.manifest.graph.path} cannot be expanded"
        raise BundleError(what, found=str(error), fix="get the bundle again") from error
    return {"the bundle": bundle.stat().st_size, "its graph": graph, "about as much for an engine": graph}


def _taken(folder: Path) -> int:
    """Bytes of the disk that become free with a folder."""
    return sum(path.lstat().st_blocks * 512 for path in contents(folder)) if folder.is_dir() else 0


def require_room(folder: Path, needs: Mapping[str, int], freed: int = 0) -> None:
    """Raises DeviceError where fewer bytes than `needs` are free where `folder` lies, once `freed` more are."""
    free = shutil.disk_usage(folder).free + freed
    if free < sum(needs.values()):
        told = ", ".join(f"{count} {what}" for what, count in needs.items())
        raise DeviceError(
            f"{folder}: no room",
            expected=f"{sum(needs.values())} bytes: {told}",
            found=f"{free} bytes free" + (f", {freed} of them in the slot that is to be replaced" if freed else ""),
            fix="free some space there",
        )
