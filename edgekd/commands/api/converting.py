"""What writes a detector in another format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekd.commands.api.arguments import names_of, path_or_none
from edgekd.commands.api.results import Converted
from edgekd.core.progress import SILENT, Progress


def convert(
    artifact: str | Path,
    to: str,
    *,
    out: str | Path | None = None,
    precision: str = "as-is",
    opset: int | None = None,
    target: str | Sequence[str] = (),
    data: str | Path | None = None,
    split: str = "val",
    head: str | None = None,
    trust_checkpoint: bool = False,
    progress: Progress = SILENT,
) -> Converted:
    """Write an artifact in another format, and make sure that it computes the same. INT8 is carried over as it is.

    artifact: a `.pt`, `.onnx`, `.packed` or bundle. to: `onnx`, `openvino`, `ncnn`, `tensorrt-rtx` or `deepstream`.
    precision: `as-is`; `fp16` for what is not INT8; `fp32` for everything, INT8 taken out. opset: of an ONNX file.
    target: GPUs of an engine, such as `rtx-40`, or the Jetson whose TensorRT reads the ONNX file or the DeepStream
    folder. data: labelled images, on whose `split` both are scored, too. out: by default in `runs`, named after both.

    Raises SpecError for what cannot be asked for, DeviceError where a converter or runtime fails, ParityError where the
    result computes something else; then nothing is written. The command: `edgekd convert`. What is checked, and by
    which limits: docs/converting.md.
    """
    from edgekd.commands import convert as convert_module

    job = convert_module.ConvertJob(
        artifact=Path(artifact),
        to=to,
        out=path_or_none(out),
        precision=precision,
        opset=opset,
        targets=names_of(target),
        data=path_or_none(data),
        split=split,
        head=head,
        trust_checkpoint=trust_checkpoint,
    )
    return Converted(convert_module.run(job, progress))
