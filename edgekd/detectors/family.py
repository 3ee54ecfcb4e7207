"""Families of detectors: the capabilities of each, in one description, and the table of all families.

A family is one module-level `FAMILY` and the functions that it names; a function is imported on its first call, so
that unused families cost nothing. A package outside edgekd adds a family by an entry point of the group
`edgekd.families`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.core.entry_points import registered
from edgekd.core.errors import SpecError
from edgekd.core.input_files import is_file, is_folder
from edgekd.detectors.torch_support import requiring

if TYPE_CHECKING:
    from edgekd.detectors.results import (
        DistillationRecord,
        FactorizationRecord,
        PruningRecord,
        Sensitivity,
        TrainingRun,
    )
    from edgekd.detectors.teacher import Teacher

GROUP = "edgekd.families"
"""The group of entry points that name families of other packages."""
BUILT_IN = (
    "edgekd.detectors.ultralytics.family:FAMILY",
    "edgekd.detectors.onnx:FAMILY",
    "edgekd.detectors.torchvision.family:FAMILY",
    "edgekd.detectors.transformers.family:FAMILY",
    "edgekd.detectors.libreyolo.family:FAMILY",
    "edgekd.detectors.rfdetr.family:FAMILY",
)


@dataclass(frozen=True)
class Family:
    """A family of detectors. A capability that it lacks is None.

    name: name in records of builds; title: name in messages; suffix: suffix of its files; files: names of the files of
    a detector that is a folder, the one with its weights first; models: glob patterns of names, beside files, that a
    student can be created from; is_graph: whether its files are ONNX graphs, which need no export; libraries: packages
    on whose versions results depend, beside those of edgekd's own families.

    Each capability is a function. Functions that create a detector write it to the file `out`. `data` is a data set, of
    which only the split `train` is read; `trust` allows code in a checkpoint's pickle to run; `progress` receives each
    item. They raise SpecError for a checkpoint that is not a detector of the family, DataError for unusable data, and
    CompressError if a step is impossible. Without a GPU, equal arguments give equal results.

    load(path, head, classes, trust)
        Return a file as a `Detector`, without reading it yet.
    teacher(checkpoint, trust)
        Load a network as a teacher.
    distill(teacher, out, data, step, state, trust, device, progress, frames, cache)
        Train a student with a teacher of any family. `state`: the file from which an interrupted training resumes;
        `frames`: samples that the teacher has labelled; `cache`: the file of the teacher's objects, named after teacher
        and images.
    initialize_student(step, classes, out, trust)
        Write the untrained student of a step `distill`.
    prune(checkpoint, out, data, step, trust, progress, cost, teacher, rounds)
        Remove channels. `cost`: cost of a convolution, None for multiply-adds; `teacher`: a detector whose outputs are
        added to the loss for gradients; `rounds`: number of remaining rounds, including this one.
    prune_quantized(..., quantized)
        Like `prune`, with gradients computed on the Q/DQ graph `quantized`.
    scan(checkpoint, data, step, trust, progress)
        Measure the loss without part of each unit of channels.
    factorize(checkpoint, out, data, step, trust, progress, cost)
        Replace convolutions by products of thinner ones.
    recover(checkpoint, teacher, out, data, step, cache, state, trust, device, progress)
        Train a pruned or factorized detector to reproduce the predictions of `teacher`, the original. `cache`: the file
        of its predictions, named after teacher, images and size; `state`: as for `distill`.
    resize(checkpoint, image_size, out, trust)
        Change the side of the input; return height and width before and after.
    quant_aware_distill(..., graph)
        Like `recover` for the Q/DQ graph `graph`, which was exported from `checkpoint`; `teacher` may be `checkpoint`.
    """

    name: str
    title: str
    suffix: str
    load: Callable[..., Any]
    files: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    is_graph: bool = False
    libraries: tuple[str, ...] = ()
    teacher: Callable[..., Teacher] | None = None
    distill: Callable[..., DistillationRecord] | None = None
    initialize_student: Callable[..., None] | None = None
    prune: Callable[..., PruningRecord] | None = None
    prune_quantized: Callable[..., PruningRecord] | None = None
    scan: Callable[..., Sensitivity] | None = None
    factorize: Callable[..., FactorizationRecord] | None = None
    recover: Callable[..., TrainingRun] | None = None
    resize: Callable[..., tuple[tuple[int, int], ...]] | None = None
    quant_aware_distill: Callable[..., TrainingRun] | None = None

    @property
    def trains(self) -> bool:
        """True if its networks can be trained, False for graphs and for networks that can only be teachers."""
        return any((self.distill, self.prune, self.factorize, self.quant_aware_distill))

    def capability(self, name: str) -> Callable[..., Any]:
        """Return the function of a capability. Raises SpecError if the family lacks it."""
        function: Callable[..., Any] | None = getattr(self, name)
        if function is None:
            expected = f"a detector by {offering(name)}"
            raise SpecError(f"{name}: not for detectors by {self.title}", expected=expected, found=self.name)
        return function


@dataclass(frozen=True)
class Imported:
    """A function that is imported when it is called. reference: `package.module:function`.

    needs: message of the SpecError if a library that the module imports is missing; extra: edgekd's extra with it.
    """

    reference: str
    needs: str | None = None
    extra: str = "train"

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with requiring(self.needs or self.reference, self.extra):
            function = EntryPoint(self.reference, self.reference, GROUP).load()
        return function(*arguments, **named)


def families() -> tuple[Family, ...]:
    """Return the families of edgekd, then those of other packages."""
    return registered(GROUP, BUILT_IN)


def family_of(path: Path | str) -> Family | None:
    """Return the family of a detector's file, by the longest matching suffix; None for any other file."""
    fitting = [each for each in families() if str(path).endswith(each.suffix)]
    return max(fitting, key=lambda each: len(each.suffix), default=None)


def detector_file(path: Path) -> Path:
    """Return the file with the weights for the folder of a detector; any other path unchanged."""
    inside = (path / each.files[0] for each in families() if each.files)
    return next(filter(is_file, inside), path) if is_folder(path) else path


def detector_name(path: Path) -> str:
    """Return the name of a detector: of its folder if it has several files, else of its file without the suffix."""
    family = family_of(path)
    return path.absolute().parent.name if family and path.name in family.files else path.stem


def files_beside(path: Path) -> tuple[Path, ...]:
    """Return the further files of a detector, in the folder of its weights."""
    family = require_family(path)
    return tuple(path.with_name(name) for name in family.files[1:] if is_file(path.with_name(name)))


def require_family(path: Path | str) -> Family:
    """Return the family of a detector's file, like `family_of`. Raises SpecError for a file of no family."""
    family = family_of(path)
    if family is None:
        suffix = Path(path).suffix or "no suffix"
        raise SpecError(f"{path}: unknown kind of model", expected=known_suffixes(), found=suffix)
    return family


def student_family(student: str | None) -> Family:
    """Return the family of a student: of its file, or of the model that it names; Ultralytics for an unknown model."""
    name = student or ""
    by_model = (each for each in families() if any(fnmatchcase(name, pattern) for pattern in each.models))
    return family_of(name) or next(by_model, families()[0])


def offering(capability: str) -> str:
    """Return the titles of the families with a capability, for messages."""
    return " or ".join(each.title for each in families() if getattr(each, capability) is not None)


def known_suffixes() -> str:
    """Return the suffixes of detectors' files for messages, without those that end with another suffix."""
    suffixes = [each.suffix for each in families()]
    last = [one for one in suffixes if not any(one != other and one.endswith(other) for other in suffixes)]
    return " or ".join(last)


def load_teacher(path: Path, trust: bool = False) -> Teacher:
    """Load a detector as a teacher. Raises SpecError if its family has no teachers, or it cannot be read."""
    teacher: Teacher = require_family(path).capability("teacher")(path, trust)
    return teacher
