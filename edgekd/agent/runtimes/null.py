"""A runtime that computes nothing: it knows the answers to the golden frames, and takes as long as it was told.

It is the fake of the seam, for tests and rehearsals of everything around an engine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.runtimes.types import FLOAT, GRAPH, Layer, Made, Wish
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.slots import Slot


class NullRuntime:
    """Engines that give the golden values times `1 + error`, after the next of `latencies_s`, which repeat.

    float_error: the error of an engine in float, where it is another; refuses: sources of which it builds none.
    """

    name = "null"

    def __init__(
        self,
        latencies_s: Sequence[float] = (0.010,),
        error: float = 0.0,
        version: str = "1",
        float_error: float | None = None,
        refuses: Sequence[str] = (),
    ) -> None:
        self._latencies_s = itertools.cycle(latencies_s)
        self._errors = {GRAPH: error, FLOAT: error if float_error is None else float_error}
        self._refuses = refuses
        self._version = version
        self._now_s = 0.0

    def version(self) -> str:
        """The version it was told."""
        return self._version

    def problem(self) -> str | None:
        """Never any."""
        return None

    def build(self, slot: Slot, engine: Path, wish: Wish) -> Made:
        """Write the golden set, and which inputs it has. Raises BundleError where the bundle has no golden set."""
        from edgekd.agent.selftest import batches, read_golden

        if wish.source in self._refuses:
            raise DeviceError(f"the null runtime was told to build nothing from {wish.source}")
        golden = read_golden(slot)
        inputs = [_digest(batch) for batch in batches(golden.set, golden.spec)]
        script = canonical_json({"head": golden.spec.head.kind, "inputs": inputs, "source": wish.source})
        engine.write_bytes(script + b"\n" + golden.file.read_bytes())
        return Made("graph" if wish.source == GRAPH else "fp16")

    def load(self, engine: Path) -> NullSession:
        """A session on what `build` wrote. Raises DeviceError where it is something else."""
        from edgekd.agent.parity import filled
        from edgekd.core.detection.types import Head
        from edgekd.core.formats.golden_set import from_bytes

        script, _, stored = engine.read_bytes().partition(b"\n")
        try:
            told, golden = json.loads(script.decode("utf-8")), from_bytes(stored)
            head, error = Head(told["head"]), self._errors[told["source"]]
        except (KeyError, TypeError, ValueError) as why:
            raise DeviceError(f"{engine}: no engine of the null runtime", found=str(why), fix="build it") from why
        answers = {digest: filled(golden, index, head) for index, digest in enumerate(told["inputs"])}
        return NullSession(self, answers, filled(golden, None, head), error)

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """One layer, which does nothing in the precision that it was built for."""
        return (Layer("null", "Identity", "int8" if b'"source":"graph"' in engine.read_bytes() else "fp16", 3, 1),)

    def inspect(self, engine: Path) -> None:
        """It computes nothing."""

    def times(self, engine: Path, iterations: int, seconds: float) -> None:
        """Its sessions are timed."""

    def outputs(self, onnx: bytes, quantized: bool, batches: Sequence[np.ndarray]) -> None:
        """It computes nothing."""

    def clock(self) -> float:
        """Seconds since the runtime was made: only runs move it."""
        return self._now_s

    def infer(self, answer: np.ndarray, error: float) -> np.ndarray:
        """Let the next latency pass; the answer, wrong by as much as was told."""
        self._now_s += next(self._latencies_s)
        told: np.ndarray = answer * answer.dtype.type(1 + error)
        return told


class NullSession:
    """The answers float32 to inputs by their hashes, and what is said to any other input."""

    def __init__(
        self, runtime: NullRuntime, answers: Mapping[str, np.ndarray], otherwise: np.ndarray, error: float
    ) -> None:
        self._runtime: NullRuntime | None = runtime
        self._answers, self._otherwise, self._error = answers, otherwise, error

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The answer to `batch`. Raises DeviceError once closed."""
        if self._runtime is None:
            raise DeviceError("the null session is closed", fix="load the engine again")
        return self._runtime.infer(self._answers.get(_digest(batch), self._otherwise), self._error)

    def scratch_bytes(self) -> int | None:
        """It computes nothing."""
        return 0

    def close(self) -> None:
        """Forget the runtime."""
        self._runtime = None


def _digest(batch: np.ndarray) -> str:
    return hashlib.sha256(batch.tobytes()).hexdigest()
