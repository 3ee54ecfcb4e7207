"""Families of detectors: what each can do, behind one description, and the table of all of them.

A family is one module-level `FAMILY` and the functions that it names; a function is imported where it is first called,
so that a family costs nothing where another one is used. A package outside edgekd adds a family by an entry point of
the group `edgekd.families`.
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

    name: in records of builds; title: in messages; suffix: of its files' names; files: in the folder of a detector that
    consists of several, the one with its weights first; models: glob patterns of the names of models that a student can
    be made of, beside its files; is_graph: its files are ONNX graphs, which need no export; libraries: packages on
    whose versions results depend, beside those of edgekd's own families.

    Each capability is a function. Those that write a detector write the file `out`. `data` is a data set, of which they
    read the split `train` only; `trust` allows what is pickled in a checkpoint to run; `progress` receives each item.
    They raise SpecError for a checkpoint that is no detector of the family, DataError for unusable data, and
    CompressError where a step cannot be done. Without a GPU the same arguments give the same result.

    load(path, head, classes, trust)
        Open a file as a `Detector`; read nothing yet.
    teacher(checkpoint, trust)
        Load a network that a student can learn from.
    distill(teacher, out, data, step, state, trust, device, progress, frames, cache)
        Train a student beside a teacher of any family. `state`: the file from which an interrupted training resumes;
        `frames`: samples that the teacher has labelled; `cache`: the file of the teacher's objects, named after teacher
        and images.
    initialize_student(step, classes, out, trust)
        Write the student of a step `distill` as it is before training.
    prune(checkpoint, out, data, step, trust, progress, cost, teacher, rounds)
        Remove channels. `cost`: of a convolution, None for multiply-adds; `teacher`: whose outputs count in the
        gradients, too; `rounds`: how many are left, this one included.
    prune_quantized(..., quantized)
        The same, with gradients taken on the Q/DQ graph `quantized`.
    scan(checkpoint, data, step, trust, progress)
        Measure the loss without part of each unit of channels.
    factorize(checkpoint, out, data, step, trust, progress, cost)
        Replace convolutions by products of thinner ones.
    recover(checkpoint, teacher, out, data, step, cache, state, trust, device, progress)
        Train a pruned or factorized detector to predict as `teacher`, what it was made from. `cache`: the file of its
        predictions, named after teacher, images and size; `state`: that of a training in progress.
    resize(checkpoint, image_size, out, trust)
        Change the side of the input; return height and width before and after.
    quant_aware_distill(..., graph)
        The same for the Q/DQ graph `graph`, which was exported from `checkpoint`; `teacher` may be that.
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
        """True for files with networks to train, False for graphs and for networks that at most teach."""
        return any((self.distill, self.prune, self.factorize, self.quant_aware_distill))

    def capability(self, name: str) -> Callable[..., Any]:
        """Return a capability. Raises SpecError where the family lacks it."""
        function: Callable[..., Any] | None = getattr(self, name)
        if function is None:
            expected = f"a detector by {offering(name)}"
            raise SpecError(f"{name}: not for detectors by {self.title}", expected=expected, found=self.name)
        return function


@dataclass(frozen=True)
class Imported:
    """A function that is imported when it is called. reference: `package.module:function`.

    needs: the message of the SpecError where a library that the module imports is missing; extra: of edgekd, with it.
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
    """Return the family of a detector's file, by the longest suffix that its name ends in; None for any other file."""
    fitting = [each for each in families() if str(path).endswith(each.suffix)]
    return max(fitting, key=lambda each: len(each.suffix), default=None)


def detector_file(path: Path) -> Path:
    """Return the file of a detector that its folder stands for: the one with its weights; any other path as it is."""
    inside = (path / each.files[0] for each in families() if each.files)
    return next(filter(is_file, inside), path) if is_folder(path) else path


def detector_name(path: Path) -> str:
    """Return the name of a detector: of its folder where it has several files, else of its file without the suffix."""
    family = family_of(path)
    return path.absolute().parent.name if family and path.name in family.files else path.stem


def files_beside(path: Path) -> tuple[Path, ...]:
    """Return the further files of a detector, in the folder of its weights."""
    family = require_family(path)
    return tuple(path.with_name(name) for name in family.files[1:] if is_file(path.with_name(name)))


def require_family(path: Path | str) -> Family:
    """As `family_of`. Raises SpecError for a file of no family."""
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
    """Return the suffixes of detectors' files for messages, without those that end in another one."""
    suffixes = [each.suffix for each in families()]
    last = [one for one in suffixes if not any(one != other and one.endswith(other) for other in suffixes)]
    return " or ".join(last)


def load_teacher(path: Path, trust: bool = False) -> Teacher:
    """Load a detector that a student can learn from. Raises SpecError."""
    teacher: Teacher = require_family(path).capability("teacher")(path, trust)
    return teacher
