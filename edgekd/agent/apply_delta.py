"""Deltas on the camera: the complete bundle is rebuilt from one in a slot, and then installed like any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.state.slots import State, model_names, require_room
from edgekd.core.atomic_files import writing
from edgekd.core.bundle.archive import Head, head_members, read_head, stored_bytes
from edgekd.core.bundle.delta import OldBundle, is_delta, read_delta_head, read_old, rebuild
from edgekd.core.errors import BundleError

if TYPE_CHECKING:
    from edgekd.core.bundle.archive import Judge


def any_head(path: Path, judge: Judge | None) -> Head:
    """Read the head of a bundle, or of the target of a delta. Raises BundleError, HashError, SignatureError."""
    return read_delta_head(path, judge) if is_delta(path) else read_head(path, judge)


@contextmanager
def whole_bundle(state: State, path: Path, head: Head, judge: Judge | None) -> Iterator[Path]:
    """Yield the path of the complete bundle, which is temporary for a delta. The state must be locked.

    head: by `any_head`, for the room that is needed; the rebuilt bundle is judged again.
    """
    if not is_delta(path):
        yield path
        return
    old = old_bundle(state, path)
    files = sum(map(stored_bytes, head.manifest.files))
    require_room(state.root, {"the bundle, put together": files + len(head_members(head))})
    with writing(state.staged):
        state.staged.mkdir(exist_ok=True)
    rebuilt = state.staged / "bundle.edgekd"
    try:
        rebuild(path, old, rebuilt, judge)
        yield rebuilt
    finally:
        state.remove_staged()


def old_bundle(state: State, delta: Path) -> OldBundle:
    """Return the source bundle of a delta, in a slot of any model. Raises BundleError where there is none.

    A variant is a model of its own, whose first bundle may be a delta from another model's.
    """
    identity = read_old(delta)
    states = [state, *(State.of(state.base, name) for name in model_names(state.base) if name != state.model)]
    source = next(filter(None, (each.find(identity) for each in states)), None)
    if source is None:
        raise BundleError(
            f"{delta}: from a bundle that is not here",
            expected=identity,
            found=" and ".join(slot.identity for each in states for slot in (each.active, each.other) if slot)
            or "none",
            fix="get a delta from one of these, or the whole bundle",
        )
    return OldBundle(source.path / "bundle")
