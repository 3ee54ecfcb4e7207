"""The network in a bundle, checked in its bytes before it is expanded, and before a library reads it.

A bundle is complete: its network has all its values in its own file, and is no larger than a detector may be.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekd.core.errors import BundleError
from edgekd.core.formats.model_limits import require_self_contained
from edgekd.core.formats.packed_layout import MAX_BYTES, Skeleton

if TYPE_CHECKING:
    from edgekd.core.bundle.archive import BundleReader
    from edgekd.core.file_view import FileView

MAX_GROWTH = 32
"""Maximum bytes of an expanded network, relative to the packed one; 2 to 4 are usual."""
EXTRA_BYTES = 1 << 24
"""Maximum bytes in addition: tiny networks of equal weights shrink more."""


def max_network_bytes(packed: int) -> int:
    """Return the maximum bytes of the ONNX file in a packed graph of so many bytes."""
    return min(MAX_BYTES, packed * MAX_GROWTH + EXTRA_BYTES)


def require_network(packed: bytes | FileView) -> int:
    """Check a packed graph without expanding its tensors; return the bytes of its ONNX file.

    Raises ValueError where it is damaged or too large, names other files, or breaks a limit of `model_limits`.
    """
    skeleton = Skeleton(packed, max_network_bytes(len(packed)))
    require_self_contained(skeleton)
    return len(skeleton)


def verify_bundle(bundle: BundleReader) -> int:
    """Check a bundle from its first byte to its last, and its network; return the bytes of the network's ONNX file.

    Raises BundleError, HashError.
    """
    bundle.verify()
    with network_errors(bundle):
        return require_network(bundle.view(bundle.manifest.graph))


@contextmanager
def network_errors(bundle: BundleReader) -> Iterator[None]:
    """Turn a ValueError in the block into a BundleError."""
    try:
        yield
    except ValueError as error:
        raise BundleError(
            f"{bundle.path}: {bundle.manifest.graph.path} cannot be used",
            expected="a packed graph that holds all of its network",
            found=str(error),
            fix="get the bundle again, from whoever built it",
        ) from error
