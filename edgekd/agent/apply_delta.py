"""Bundles and deltas on the camera, each through one file descriptor from the judgement of its head to the slot.

The bundle of a delta is rebuilt in a temporary file without a name, outside the lock, and then unpacked like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.state.slots import State, model_names, require_room
from edgekd.core.atomic_files import unnamed_file, writing
from edgekd.core.bundle.archive import BundleHead, BundleReader, opened
from edgekd.core.bundle.delta import DeltaReader, OldBundle, begins_delta
from edgekd.core.errors import BundleError

if TYPE_CHECKING:
    from edgekd.core.bundle.archive import Judge

    Update = BundleReader | DeltaReader


@contextmanager
def opened_update(path: Path, judge: Judge | None) -> Iterator[Update]:
    """Open a bundle or a delta, and judge its head. Raises BundleError, HashError, SignatureError."""
    with opened(path) as stream:
        yield DeltaReader(stream, path, judge) if begins_delta(stream) else BundleReader(stream, path, judge)


def any_head(path: Path, judge: Judge | None) -> BundleHead:
    """Read the head of a bundle, or of the target of a delta. Raises BundleError, HashError, SignatureError."""
    with opened_update(path, judge) as update:
        return update.head


@contextmanager
def whole_bundle(state: State, update: Update, judge: Judge | None) -> Iterator[BundleReader]:
    """Yield the complete bundle, which is temporary for a delta.

    No lock is needed: a slot that is replaced in between gives a wrong hash. Raises BundleError, HashError,
    SignatureError, DeviceError, SpecError.
    """
    if isinstance(update, BundleReader):
        yield update
        return
    with old_bundle(state, update) as old:
        networks = update.head.manifest.graph.length + old.manifest.graph.length
        needs = {"the bundle, put together": update.new_bytes, "networks without their compression": 2 * networks}
        require_room(state.base, needs)
        with unnamed_file(state.base) as stream:
            with writing(state.base):
                update.rebuild(old, stream)
                stream.seek(0)
            yield BundleReader(stream, update.path, judge)


def old_bundle(state: State, delta: DeltaReader) -> OldBundle:
    """Return the source bundle of a delta, in a slot of any model. Raises BundleError where there is none.

    A variant is a model of its own, whose first bundle may be a delta from another model's.
    """
    states = [state, *(State.of(state.base, name) for name in model_names(state.base) if name != state.model)]
    source = next(filter(None, (each.find(delta.old) for each in states)), None)
    if source is None:
        raise BundleError(
            f"{delta.path}: from a bundle that is not here",
            expected=delta.old,
            found=" and ".join(slot.identity for each in states for slot in (each.active, each.other) if slot)
            or "none",
            fix="get a delta from one of these, or the whole bundle",
        )
    try:
        return OldBundle(source.path / "bundle", state.base)
    except OSError as error:
        what = f"{source.path}: cannot be read"
        raise BundleError(what, found=error.strerror or str(error), fix="get the whole bundle") from error
