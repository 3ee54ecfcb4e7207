"""A fake runtime: it returns the golden outputs for the golden frames, with given errors and latencies."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.runtimes.types import FLOAT, GRAPH, BuildOptions, EngineDescription, Layer, Runtime
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.state.slots import Slot
    from edgekd.core.detection.types import Head
    from edgekd.core.formats.golden_set import GoldenSet


class NullRuntime(Runtime):
    """Engines that return the golden values times `1 + error`, after the next of `latencies_s`, which repeat.

    float_error: the error of an engine in float, where it differs; refuses: sources of which it builds none.
    """

    name = "null"
    batches = False

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
        return self._version

    def problem(self) -> str | None:
        return None

    def build(self, slot: Slot, engine: Path, options: BuildOptions) -> EngineDescription:
        """Write the golden set, and the digests of its inputs. Raises BundleError, DeviceError."""
        from edgekd.agent.state.golden import batches, read_golden

        if options.source in self._refuses:
            raise DeviceError(f"the null runtime is configured to refuse builds from {options.source}")
        golden = read_golden(slot)
        inputs = [_digest(batch) for batch in batches(golden.set, golden.spec)]
        script = canonical_json({"head": golden.spec.head.kind, "inputs": inputs, "source": options.source})
        engine.write_bytes(script + b"\n" + golden.file.read_bytes())
        return EngineDescription("graph" if options.source == GRAPH else "fp16")

    def load(self, engine: Path) -> NullSession:
        from edgekd.core.detection.types import Head
        from edgekd.core.formats.golden_set import from_bytes

        script, _, stored = engine.read_bytes().partition(b"\n")
        try:
            document, golden = json.loads(script.decode("utf-8")), from_bytes(stored)
            head, error = Head(document["head"]), self._errors[document["source"]]
        except (KeyError, TypeError, ValueError) as why:
            raise DeviceError(f"{engine}: no engine of the null runtime", found=str(why), fix="build it") from why
        outputs = {digest: golden_output(golden, index, head) for index, digest in enumerate(document["inputs"])}
        return NullSession(self, outputs, golden_output(golden, None, head), error)

    def layers(self, engine: Path) -> Sequence[Layer] | None:
        """Return one layer without work, in the precision of the build."""
        return (Layer("null", "Identity", "int8" if b'"source":"graph"' in engine.read_bytes() else "fp16", 3, 1),)

    def clock(self) -> float:
        """Return seconds since the runtime was made: only runs advance it."""
        return self._now_s

    def infer(self, output: np.ndarray, error: float) -> np.ndarray:
        """Advance the clock by the next latency, and return the output with a relative error."""
        self._now_s += next(self._latencies_s)
        changed: np.ndarray = output * output.dtype.type(1 + error)
        return changed


class NullSession:
    """Outputs float32 by the digest of the input, and the output for every other input."""

    def __init__(
        self, runtime: NullRuntime, outputs: Mapping[str, np.ndarray], default: np.ndarray, error: float
    ) -> None:
        self._runtime: NullRuntime | None = runtime
        self._outputs, self._default, self._error = outputs, default, error

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return the output for `batch`. Raises DeviceError once closed."""
        if self._runtime is None:
            raise DeviceError("the null session is closed", fix="load the engine again")
        return self._runtime.infer(self._outputs.get(_digest(batch), self._default), self._error)

    def scratch_bytes(self) -> int | None:
        return 0

    def close(self) -> None:
        self._runtime = None


def golden_output(golden: GoldenSet, index: int | None, head: Head) -> np.ndarray:
    """Return an output float32 with the golden values of a frame, or of none, at their places, and zeros elsewhere."""
    import numpy as np

    from edgekd.core.detection.decode import candidate_rows

    output = np.zeros(golden.output, np.float32)
    if index is not None:
        candidate_rows(output, head)[golden.places[index]] = golden.values[index]
    return output


def _digest(batch: np.ndarray) -> str:
    return hashlib.sha256(batch.tobytes()).hexdigest()
