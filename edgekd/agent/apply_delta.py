"""Deltas on the camera: the whole bundle is put together of one in a slot, and then goes the way of any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.slots import State, model_names, require_room
from edgekd.core.atomic_files import writing
from edgekd.core.bundle.archive import Head, head_members, read_head, stored_bytes
from edgekd.core.bundle.delta import OldBundle, is_delta, read_delta_head, read_old, rebuild
from edgekd.core.errors import BundleError

if TYPE_CHECKING:
    from edgekd.core.bundle.archive import Judge


def any_head(path: Path, allowed: Judge | None) -> Head:
    """The head of a bundle, or of the one that a delta leads to. Raises BundleError, HashError, SignatureError."""
    return read_delta_head(path, allowed) if is_delta(path) else read_head(path, allowed)


@contextmanager
def whole(state: State, path: Path, head: Head, allowed: Judge | None) -> Iterator[Path]:
    """Where the whole bundle lies; put together of a delta, it goes when the block ends. The state must be locked.

    head: as `any_head` gives it, for the room that is needed; what is put together is judged again.
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
        rebuild(path, old, rebuilt, allowed)
        yield rebuilt
    finally:
        state.remove_staged()


def old_bundle(state: State, delta: Path) -> OldBundle:
    """The bundle that a delta leads from, in a slot of any model here. Raises BundleError where there is none.

    A variant is a model of its own, and first comes as what it has that the bundle beside it has not.
    """
    wanted = read_old(delta)
    here = [state, *(State.of(state.base, name) for name in model_names(state.base) if name != state.model)]
    found = next(filter(None, (each.find(wanted) for each in here)), None)
    if found is None:
        raise BundleError(
            f"{delta}: from a bundle that is not here",
            expected=wanted,
            found=" and ".join(slot.identity for each in here for slot in (each.active, each.other) if slot) or "none",
            fix="get a delta from one of these, or the whole bundle",
        )
    return OldBundle(found.path / "bundle")
